//! Points in time, as data. Nothing here reads a clock: callers pass the time in.

use std::fmt;
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

impl fmt::Display for Timestamp {
    /// For people: UTC in whole seconds, rounded down, like `2026-11-03T08:00:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.unix_seconds();
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Years that begin in March, so that a leap day is the last of its year; an era is 400 of them.
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = year + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
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
    fn people_read_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_793_692_800, "2026-11-03T08:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Timestamp::from_unix_seconds(seconds).to_string(), expected);
        }
        // The ends of the range are points in time too.
        assert!(Timestamp::from_ticks(i64::MAX).to_string().starts_with("31197-"));
        assert!(Timestamp::from_ticks(i64::MIN).to_string().starts_with("-"));
    }

    #[test]
    fn since_keeps_ticks() {
        let start = Timestamp::from_unix_seconds(7);
        assert_eq!(start.plus(Duration::from_nanos(300)).since(start), Duration::from_nanos(300));
        assert_eq!(Timestamp::from_ticks(-1).unix_seconds(), -1);
    }
}
