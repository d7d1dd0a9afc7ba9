//! Spread: delays from random numbers that the caller seeds.

use std::time::Duration;

/// `SplitMix64` (Steele, Lea, Flood 2014): evenly distributed, and nothing here is a secret.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A time from zero to `longest`, any with the same chance.
    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        let nanoseconds = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        // The high half of the product scales without the bias of a remainder.
        let scaled = (u128::from(self.next()) * (u128::from(nanoseconds) + 1)) >> 64;
        Duration::from_nanos(u64::try_from(scaled).unwrap_or(nanoseconds))
    }

    /// A time within half of `mean` to either side.
    pub(crate) fn around(&mut self, mean: Duration) -> Duration {
        mean / 2 + self.up_to(mean)
    }
}

/// Delays between attempts: `random(0, min(cap, base * 2^n))`, the jitter after the cap, so that a fleet that lost its
/// server does not come back in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    pub(crate) fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempts: 0 }
    }

    pub(crate) fn next(&mut self, random: &mut Random) -> Duration {
        let longest = self.base.saturating_mul(2_u32.saturating_pow(self.attempts)).min(self.cap);
        self.attempts = self.attempts.saturating_add(1);
        random.up_to(longest)
    }

    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    pub(crate) fn set_cap(&mut self, cap: Duration) {
        self.cap = cap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_fill_the_whole_range_and_respect_the_cap() {
        let mut random = Random::new(1);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for attempt in 0..40_u32 {
            let longest = Duration::from_secs(1 << attempt.min(6)).min(Duration::from_secs(60));
            assert!(backoff.next(&mut random) <= longest, "attempt {attempt}");
        }
        let delays: Vec<_> = (0..2000).map(|_| backoff.next(&mut random)).collect();
        for sixth in 0..6_u64 {
            let from = Duration::from_secs(sixth * 10);
            let within =
                delays.iter().filter(|d| **d >= from && **d < from + Duration::from_secs(10)).count();
            assert!((250..420).contains(&within), "{within} of 2000 in the sixth {sixth}");
        }
        backoff.reset();
        assert!(backoff.next(&mut random) <= Duration::from_secs(1));
        backoff.set_cap(Duration::from_millis(10));
        assert!((0..9).all(|_| backoff.next(&mut random) <= Duration::from_millis(10)));
    }

    #[test]
    fn heartbeats_are_spread_by_half_to_either_side() {
        let mut random = Random::new(2);
        let mean = Duration::from_secs(60);
        let delays: Vec<_> = (0..1000).map(|_| random.around(mean)).collect();
        assert!(delays.iter().all(|d| (Duration::from_secs(30)..=Duration::from_secs(90)).contains(d)));
        assert!(delays.iter().min() < Some(&Duration::from_secs(32)));
        assert!(delays.iter().max() > Some(&Duration::from_secs(88)));
        assert_eq!(random.up_to(Duration::ZERO), Duration::ZERO);
        assert!(random.up_to(Duration::MAX) < Duration::MAX);
    }
}
