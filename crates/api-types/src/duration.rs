//! Durations on the wire: ISO 8601, such as `PT4H` or `P1DT12H`. Weeks, days, hours, minutes and whole seconds; months
//! and years have no fixed length and are refused.

use std::time::Duration;

/// The longest text of a duration, in bytes.
const BYTES_MAX: usize = 32;

/// The duration that a text says.
///
/// # Errors
/// A sentence that says what is expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let expected = || {
        let shown: String = text.chars().take(BYTES_MAX).collect();
        format!(
            "{shown:?} is no ISO 8601 duration of weeks, days, hours, minutes and seconds, such as PT4H or P1DT12H"
        )
    };
    let seconds = if text.len() > BYTES_MAX { None } else { seconds(text) };
    seconds.map(Duration::from_secs).ok_or_else(expected)
}

fn seconds(text: &str) -> Option<u64> {
    let text = text.strip_prefix('P')?;
    if let Some(weeks) = text.strip_suffix('W') {
        return number(weeks)?.checked_mul(7 * 86_400);
    }
    let (date, time) = match text.split_once('T') {
        None => (text, None),
        Some((_, "")) => return None,
        Some((date, time)) => (date, Some(time)),
    };
    if date.is_empty() && time.is_none() {
        return None;
    }
    let date = parts(date, &[('D', 86_400)])?;
    let time = parts(time.unwrap_or_default(), &[('H', 3600), ('M', 60), ('S', 1)])?;
    date.checked_add(time)
}

/// Numbers with these units, each at most once and in this order.
fn parts(mut text: &str, units: &[(char, u64)]) -> Option<u64> {
    let mut sum = 0_u64;
    for (unit, seconds) in units {
        if let Some((amount, rest)) = text.split_once(*unit) {
            sum = sum.checked_add(number(amount)?.checked_mul(*seconds)?)?;
            text = rest;
        }
    }
    text.is_empty().then_some(sum)
}

fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_8601() {
        for (text, seconds) in [
            ("PT4H", Some(14_400)),
            ("P1DT12H", Some(129_600)),
            ("P2W", Some(1_209_600)),
            ("PT90M", Some(5400)),
            ("PT1H30M5S", Some(5405)),
            ("P0D", Some(0)),
            ("P", None),
            ("PT", None),
            ("P1DT", None),
            ("4h", None),
            ("PT4h", None),
            ("P1M", None),
            ("P1Y", None),
            ("PT1M1H", None),
            ("PT1H1H", None),
            ("PT-1H", None),
            ("PT+1H", None),
            ("PT1.5H", None),
            ("P1W2D", None),
            ("PT99999999999999999999H", None),
            ("PT18446744073709551615H", None),
            ("", None),
        ] {
            assert_eq!(parse(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
