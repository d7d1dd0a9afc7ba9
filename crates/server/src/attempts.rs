//! Failed attempts to prove who one is, counted, so that guessing is slow. Nothing but failures counts.
//!
//! Secrets have 256 random bits and are out of reach of guessing: for them, this protects the log. Passwords and the codes
//! that people type can be guessed: the store locks accounts, and this makes it slow. The count is simple (windows of one
//! minute, forgotten at its end), and bounded in memory: when there are too many different callers within one minute,
//! the further ones share counts, at random.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::time::Timestamp;

const WINDOW: Duration = Duration::from_secs(60);
/// The most keys that are counted on their own within one window.
const KEYS_MAX: usize = 20_000;
/// How many counts the further ones share: many, so that whoever fills the first ones has to fill these too, before
/// others are refused for it.
const SHARED: usize = 4_096;

/// Counts failures per key.
pub(crate) struct Attempts<K> {
    failures_max: u32,
    window: Mutex<Window<K>>,
}

struct Window<K> {
    start: Timestamp,
    failures: HashMap<K, u32>,
    /// Failures of the keys that found no place. Empty until there is one.
    shared: Vec<u32>,
    /// Chooses the shared count of a key. Callers cannot foresee it.
    chooser: RandomState,
}

/// Too many failures within a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany {
    /// When to try again: above zero.
    pub(crate) retry_after: Duration,
}

impl<K: Eq + Hash> Attempts<K> {
    /// At most so many failures of one key in a minute.
    pub(crate) fn new(failures_max: u32) -> Self {
        let (failures, shared) = (HashMap::new(), Vec::new());
        let window = Window { start: Timestamp::default(), failures, shared, chooser: RandomState::new() };
        Self { failures_max, window: Mutex::new(window) }
    }

    /// Whether `key` may try at the time `now`.
    ///
    /// # Errors
    /// [`TooMany`].
    pub(crate) fn check(&self, key: &K, now: Timestamp) -> Result<(), TooMany> {
        self.locked(now).check(key, self.failures_max, now)
    }

    /// Counts an attempt of `key` as a failure before it is known to be one, so that attempts at the same time do not
    /// get past the count. Whoever succeeds takes it back.
    ///
    /// # Errors
    /// [`TooMany`]; nothing is counted then.
    pub(crate) fn begin(&self, key: K, now: Timestamp) -> Result<(), TooMany> {
        let mut window = self.locked(now);
        window.check(&key, self.failures_max, now)?;
        window.fail(key);
        Ok(())
    }

    /// Takes back what [`Attempts::begin`] counted.
    pub(crate) fn take_back(&self, key: &K, now: Timestamp) {
        if let Some(failures) = self.locked(now).count_mut(key) {
            *failures = failures.saturating_sub(1);
        }
    }

    /// Counts a failure of `key`.
    pub(crate) fn fail(&self, key: K, now: Timestamp) {
        self.locked(now).fail(key);
    }

    fn locked(&self, now: Timestamp) -> MutexGuard<'_, Window<K>> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.turn(now);
        window
    }
}

impl<K: Eq + Hash> Window<K> {
    /// Forgets everything once the window is over, or when the clock went back behind its start.
    fn turn(&mut self, now: Timestamp) {
        if now < self.start || now.since(self.start) >= WINDOW {
            self.start = now;
            self.failures = HashMap::new();
            self.shared = Vec::new();
        }
    }

    fn check(&mut self, key: &K, failures_max: u32, now: Timestamp) -> Result<(), TooMany> {
        if self.count_mut(key).is_some_and(|failures| *failures >= failures_max) {
            let retry_after = WINDOW.saturating_sub(now.since(self.start)).max(Duration::from_secs(1));
            return Err(TooMany { retry_after });
        }
        Ok(())
    }

    fn fail(&mut self, key: K) {
        if self.count_mut(&key).is_none() {
            if self.failures.len() < KEYS_MAX {
                self.failures.insert(key, 1);
                return;
            }
            self.shared = vec![0; SHARED];
        }
        if let Some(failures) = self.count_mut(&key) {
            *failures = failures.saturating_add(1);
        }
    }

    /// The count of a key: its own, or the one that it shares; none when nothing was counted of it.
    fn count_mut(&mut self, key: &K) -> Option<&mut u32> {
        if self.failures.contains_key(key) {
            return self.failures.get_mut(key);
        }
        let chosen = self.chooser.hash_one(key).checked_rem(u64::try_from(self.shared.len()).ok()?)?;
        self.shared.get_mut(usize::try_from(chosen).ok()?)
    }
}

/// The address as far as one caller can be told from another: one host may use all of an IPv6 network of 64 bits.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        IpAddr::V4(address) => IpAddr::V4(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(1_000 + seconds)
    }

    #[test]
    fn failures_are_counted_per_key_and_forgotten() {
        let attempts = Attempts::new(2);
        attempts.check(&"a", at(0)).unwrap();
        attempts.fail("a", at(0));
        attempts.check(&"a", at(1)).unwrap();
        attempts.fail("a", at(20));
        let refused = attempts.check(&"a", at(20)).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(40));
        attempts.check(&"b", at(20)).unwrap();
        attempts.check(&"a", at(60)).unwrap();
    }

    #[test]
    fn attempts_at_the_same_time_count_until_they_succeed() {
        let attempts = Attempts::new(2);
        attempts.begin("a", at(0)).unwrap();
        attempts.begin("a", at(0)).unwrap();
        attempts.begin("a", at(0)).unwrap_err();
        attempts.take_back(&"a", at(1));
        attempts.begin("a", at(1)).unwrap();
        attempts.begin("a", at(1)).unwrap_err();
        attempts.take_back(&"b", at(1));
    }

    #[test]
    fn a_clock_that_goes_back_locks_nobody_out() {
        let attempts = Attempts::new(1);
        attempts.fail("a", at(500));
        attempts.check(&"a", at(0)).unwrap();
    }

    #[test]
    fn memory_is_bounded_and_nobody_is_left_uncounted() {
        let attempts = Attempts::new(2);
        for key in 0..2 * KEYS_MAX {
            attempts.fail(key, at(0));
        }
        let (own, shared) = {
            let window = attempts.window.lock().unwrap();
            (window.failures.len(), window.shared.len())
        };
        assert_eq!((own, shared), (KEYS_MAX, SHARED));
        attempts.check(&0, at(0)).unwrap();
        let further = 3 * KEYS_MAX;
        attempts.fail(further, at(0));
        attempts.fail(further, at(0));
        attempts.check(&further, at(0)).unwrap_err();
        attempts.check(&further, at(60)).unwrap();
    }

    #[test]
    fn one_network_is_one_caller() {
        let table = [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ];
        for (address, expected) in table {
            assert_eq!(network(address.parse().unwrap()).to_string(), expected);
        }
    }
}
