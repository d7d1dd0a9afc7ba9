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
}
