//! Points in time as people type them: a time in RFC 3339, or how long ago it was.

use std::time::{SystemTime, UNIX_EPOCH};

use api_types::date_time::DateTimeUtc;
use domain::time::Timestamp;

use crate::duration;

/// Reads a time such as `2026-03-02T08:00:00Z`, or a duration such as `24h`, which counts back from this moment.
///
/// # Errors
/// What a time looks like.
pub(crate) fn parse(text: &str) -> Result<DateTimeUtc, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = duration::parse(text).map_err(|_no_duration| {
        "a time is such as 2026-03-02T08:00:00Z, or a duration ago such as 90m, 24h or 7d".to_owned()
    })?;
    Ok(DateTimeUtc(now().0.minus(ago)))
}

/// This machine's clock, to the second.
pub(crate) fn now() -> DateTimeUtc {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DateTimeUtc(Timestamp::from_unix_seconds(i64::try_from(seconds).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_ago() {
        assert_eq!(parse("2026-03-02T10:00:00+02:00").unwrap().to_string(), "2026-03-02T08:00:00.0000000Z");
        let (day, week) = (parse("24h").unwrap(), parse("7d").unwrap());
        assert!(week < day && day < now());
        for text in ["", "yesterday", "2026-03-02", "-1h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
