//! Rate limits: at most so many calls in any window of time.
//!
//! The limit is a sliding window over exact call times, not a token bucket: a bucket of 100 that refills
//! within a minute lets 199 calls through in one minute, and the contract says at most 100 in *any* 60 seconds.
//! A call needs just two look-ups: the n-th call before it must have left the window.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Timestamp;

/// At most `calls` calls in any `window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How many calls; at least 1.
    pub calls: u32,
    /// In any stretch of time of this length.
    pub window: Duration,
}

/// The two limits of an operation; both must pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// In any 60 seconds.
    pub minute: Window,
    /// In any hour.
    pub hour: Window,
}

/// A call was refused by a rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    /// The limit that refused it.
    pub limit: Window,
    /// How long until the same call would pass, if no other is made: above zero.
    pub retry_after: Duration,
}

impl RateLimit {
    /// The vendor's numbers for restrict and unrestrict: 100 calls a minute and 1500 an hour.
    pub const VENDOR: Self = Self::per_minute_and_hour(100, 1500);

    /// A limit of so many calls in any 60 seconds and in any hour.
    pub const fn per_minute_and_hour(minute: u32, hour: u32) -> Self {
        Self {
            minute: Window { calls: minute, window: Duration::from_secs(60) },
            hour: Window { calls: hour, window: Duration::from_secs(3600) },
        }
    }
}

/// The times of one key's admitted calls, as many as the larger limit needs.
#[derive(Debug, Clone, Default)]
pub struct CallLog {
    /// Times of the last calls, oldest first.
    times: VecDeque<Timestamp>,
    /// How many calls were admitted in all; the next call's number.
    admitted: u64,
}

impl CallLog {
    /// A log rebuilt from stored rows `(call number, time)`, in any order.
    pub fn restore(limit: &RateLimit, rows: impl IntoIterator<Item = (u64, Timestamp)>) -> Self {
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_unstable();
        let admitted = rows.last().map_or(0, |(call, _)| call.saturating_add(1));
        let surplus = rows.len().saturating_sub(capacity(limit));
        Self { times: rows.into_iter().skip(surplus).map(|(_, at)| at).collect(), admitted }
    }

    /// Admits a call at `now` and returns its number, or says how long to wait. A refused call spends nothing.
    ///
    /// A clock that went back never admits more: what was recorded in its future counts as recorded now.
    ///
    /// # Errors
    /// [`Exceeded`] with the limit that needs the longer wait.
    pub fn admit(&mut self, limit: &RateLimit, now: Timestamp) -> Result<u64, Exceeded> {
        for ahead in self.times.iter_mut().rev().take_while(|at| **at > now) {
            *ahead = now;
        }
        let refused = [limit.minute, limit.hour]
            .into_iter()
            .filter_map(|window| {
                let leaves_at = self.nth_last(window.calls)?.plus(window.window);
                let retry_after = leaves_at.since(now);
                (!retry_after.is_zero()).then_some(Exceeded { limit: window, retry_after })
            })
            .max_by_key(|exceeded| exceeded.retry_after);
        match refused {
            Some(exceeded) => Err(exceeded),
            None => {
                // More than one, when the limit was lowered.
                while self.times.len() >= capacity(limit) {
                    self.times.pop_front();
                }
                self.times.push_back(now);
                let call = self.admitted;
                self.admitted = call.saturating_add(1);
                Ok(call)
            }
        }
    }

    /// The slot in which a store keeps call number `call`: a ring, so that the rows of a key never grow in number.
    pub fn slot(limit: &RateLimit, call: u64) -> u64 {
        call % capacity(limit) as u64
    }

    /// The time of the `n`-th last admitted call, 1 being the last.
    fn nth_last(&self, n: u32) -> Option<Timestamp> {
        let index = self.times.len().checked_sub(usize::try_from(n).ok()?)?;
        self.times.get(index).copied()
    }
}

fn capacity(limit: &RateLimit) -> usize {
    usize::try_from(limit.minute.calls.max(limit.hour.calls).max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: RateLimit = RateLimit::per_minute_and_hour(5, 12);

    fn admitted(calls: &[u64]) -> (CallLog, Vec<Timestamp>) {
        let mut log = CallLog::default();
        let mut now = Timestamp::default();
        let mut passed = Vec::new();
        for gap in calls {
            now = now.plus(Duration::from_millis(*gap));
            if log.admit(&SMALL, now).is_ok() {
                passed.push(now);
            }
        }
        (log, passed)
    }

    proptest! {
        #[test]
        fn no_window_ever_holds_more_than_the_limit(gaps in proptest::collection::vec(0..40_000_u64, 0..200)) {
            let (_, passed) = admitted(&gaps);
            for window in [SMALL.minute, SMALL.hour] {
                for (i, start) in passed.iter().enumerate() {
                    let inside = passed[i..].iter().filter(|at| at.since(*start) < window.window).count();
                    prop_assert!(inside <= window.calls as usize);
                }
            }
        }

        #[test]
        fn waiting_as_told_succeeds_and_less_does_not(gaps in proptest::collection::vec(0..9_000_u64, 0..60)) {
            let (log, _) = admitted(&gaps);
            let now = Timestamp::default().plus(Duration::from_millis(gaps.iter().sum()));
            if let Err(exceeded) = log.clone().admit(&SMALL, now) {
                prop_assert!(log.clone().admit(&SMALL, now.plus(exceeded.retry_after)).is_ok());
                let early = exceeded.retry_after - Duration::from_nanos(100);
                prop_assert!(log.clone().admit(&SMALL, now.plus(early)).is_err());
            }
        }

        #[test]
        fn a_restored_log_decides_alike(gaps in proptest::collection::vec(0..9_000_u64, 1..60)) {
            let mut log = CallLog::default();
            let mut rows = std::collections::HashMap::new();
            let mut now = Timestamp::default();
            for gap in gaps {
                now = now.plus(Duration::from_millis(gap));
                if let Ok(call) = log.admit(&SMALL, now) {
                    rows.insert(CallLog::slot(&SMALL, call), (call, now));
                }
            }
            let mut restored = CallLog::restore(&SMALL, rows.into_values());
            let (a, b) = (log.admit(&SMALL, now), restored.admit(&SMALL, now));
            prop_assert_eq!(a.is_ok(), b.is_ok());
            prop_assert_eq!(a.err(), b.err());
        }
    }

    #[test]
    fn a_refused_call_spends_nothing() {
        let mut log = CallLog::default();
        for _ in 0..5 {
            log.admit(&SMALL, Timestamp::default()).unwrap();
        }
        for _ in 0..100 {
            log.admit(&SMALL, Timestamp::default()).unwrap_err();
        }
        assert!(log.admit(&SMALL, Timestamp::from_unix_seconds(60)).is_ok());
    }

    #[test]
    fn a_clock_that_goes_back_admits_no_more() {
        let mut log = CallLog::default();
        for _ in 0..5 {
            log.admit(&SMALL, Timestamp::from_unix_seconds(1000)).unwrap();
        }
        let refused = log.admit(&SMALL, Timestamp::from_unix_seconds(10)).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(60));
        let waited = Timestamp::from_unix_seconds(10).plus(refused.retry_after);
        assert!(log.admit(&SMALL, waited).is_ok());
    }
}
