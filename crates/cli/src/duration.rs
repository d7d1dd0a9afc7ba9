//! Durations as people type them: `90s`, `10m`, `24h`, `7d`.

use std::time::Duration;

/// Reads a whole number and a unit.
///
/// # Errors
/// What a duration looks like.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 60 * 60), ("d", 24 * 60 * 60)];
    let split = units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
    let seconds = split.and_then(|(number, seconds)| number.parse::<u32>().ok()?.checked_mul(seconds));
    match seconds {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds.into())),
        _ => Err("a duration is a number above 0 and s, m, h or d, such as 90s, 10m, 24h or 7d".to_owned()),
    }
}

/// Reads the same, or ISO 8601 such as `PT4H`, as ISO 8601.
///
/// # Errors
/// What a duration looks like.
pub(crate) fn parse_iso(text: &str) -> Result<String, String> {
    if text.starts_with('P') {
        return api_types::duration::parse(text).map(|_| text.to_owned());
    }
    parse(text)?;
    let upper = text.to_uppercase();
    Ok(if upper.ends_with('D') { format!("P{upper}") } else { format!("PT{upper}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let table = [("90s", 90), ("10m", 600), ("24h", 86_400), ("7d", 604_800), ("1s", 1)];
        for (text, seconds) in table {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "0s", "10", "-1s", "1.5h", "10 m", "4294967295d", "1m30s", "9é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_as_the_api_has_them() {
        for (text, iso) in [
            ("4h", "PT4H"),
            ("90m", "PT90M"),
            ("30s", "PT30S"),
            ("7d", "P7D"),
            ("P1DT12H", "P1DT12H"),
            ("PT4H", "PT4H"),
        ] {
            assert_eq!(parse_iso(text).as_deref(), Ok(iso));
            assert!(api_types::duration::parse(iso).is_ok());
        }
        for text in ["", "P", "P1M", "4", "4H", "0h"] {
            assert!(parse_iso(text).is_err(), "{text}");
        }
    }
}
