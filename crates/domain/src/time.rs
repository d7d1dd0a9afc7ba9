//! Points in time, as data. Nothing here reads a clock: callers pass the time in.

use std::time::Duration;

/// A point in time in UTC: ticks of 100 ns since 1970-01-01T00:00:00Z.
///
/// 100 ns is the resolution of the API's `DateTimeOffset` (seven fractional digits), so a value survives the wire
/// and the database unchanged. The range of `i64` reaches about 29,000 years to either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// Ticks of 100 ns in one second.
pub const TICKS_PER_SECOND: i64 = 10_000_000;

impl Timestamp {
    /// The point `ticks` of 100 ns after the Unix epoch (before it, when negative).
    pub const fn from_ticks(ticks: i64) -> Self {
        Self(ticks)
    }

    /// The point `seconds` after the Unix epoch, at the end of the range when it would leave it.
    pub const fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(TICKS_PER_SECOND))
    }

    /// Ticks of 100 ns since the Unix epoch.
    pub const fn ticks(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn unix_seconds(self) -> i64 {
        self.0.div_euclid(TICKS_PER_SECOND)
    }

    /// This point moved later by `duration`, saturating.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(ticks_of(duration)))
    }

    /// This point moved earlier by `duration`, saturating.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(ticks_of(duration)))
    }

    /// How long ago `earlier` was at this point; zero when it lies in the future.
    pub fn since(self, earlier: Self) -> Duration {
        let ticks = u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0);
        Duration::from_secs(ticks / 10_000_000) + Duration::from_nanos(ticks % 10_000_000 * 100)
    }
}

impl From<std::time::SystemTime> for Timestamp {
    /// Rounds down to a tick; a clock set before 1970 reads as 1970.
    fn from(time: std::time::SystemTime) -> Self {
        Self(ticks_of(time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default()))
    }
}

fn ticks_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos() / 100).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let end = Timestamp::from_ticks(i64::MAX);
        assert_eq!(end.plus(Duration::MAX), end);
        assert_eq!(Timestamp::from_ticks(0).since(end), Duration::ZERO);
        assert_eq!(Timestamp::from_unix_seconds(i64::MAX), end);
    }

    #[test]
    fn since_keeps_ticks() {
        let start = Timestamp::from_unix_seconds(7);
        assert_eq!(start.plus(Duration::from_nanos(300)).since(start), Duration::from_nanos(300));
        assert_eq!(Timestamp::from_ticks(-1).unix_seconds(), -1);
    }
}
