//! Points in time as `$filter` writes them, as ticks of 100 ns since 1970-01-01T00:00:00Z.
//!
//! The calendar is the proleptic Gregorian one of RFC 3339, without leap seconds.

use std::fmt::{self, Formatter};

use winnow::Parser;
use winnow::combinator::{alt, opt, preceded};
use winnow::error::EmptyError;
use winnow::token::{one_of, take_while};

const TICKS_PER_SECOND: i64 = 10_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
const MONTH_DAYS: [i64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Reads a date-time off the front: `2026-01-31T08:14:55.1203341Z`, with 0 to 9 digits of fraction, with an offset in
/// the place of `Z`, without seconds; or the start of a day: `2026-01-31Z`. What is finer than a tick is cut off.
pub(crate) fn read(input: &mut &str) -> Result<i64, EmptyError> {
    let (year, _, month, _, day) = (digits(4), '-', digits(2), '-', digits(2)).parse_next(input)?;
    let days = days_since_1970(year, month, day).ok_or(EmptyError)?;
    let time = opt(preceded(one_of(['T', 't']), time_of_day)).parse_next(input)?;
    let offset_minutes = match time {
        None => one_of(['Z', 'z']).value(0).parse_next(input)?,
        Some(_) => alt((one_of(['Z', 'z']).value(0), offset_minutes)).parse_next(input)?,
    };
    let utc = (days * SECONDS_PER_DAY - offset_minutes * 60) * TICKS_PER_SECOND + time.unwrap_or(0);
    // The offset must not lead out of the years that can be written.
    let years = year_start(0)..year_start(10_000);
    if years.contains(&utc.div_euclid(SECONDS_PER_DAY * TICKS_PER_SECOND)) {
        Ok(utc)
    } else {
        Err(EmptyError)
    }
}

/// The point in time that a whole text says, in the forms of `$filter`, as ticks of 100 ns since 1970.
pub fn parse_date_time(text: &str) -> Option<i64> {
    read.parse(text).ok()
}

fn time_of_day(input: &mut &str) -> Result<i64, EmptyError> {
    let (hour, _, minute) = (below(24), ':', below(60)).parse_next(input)?;
    let second = opt(preceded(':', below(60))).parse_next(input)?;
    let fraction = match second {
        None => None,
        Some(_) => opt(preceded('.', take_while(1..=9, '0'..='9'))).parse_next(input)?,
    };
    let ticks = fraction.map_or(Ok(0), |digits: &str| format!("{digits:0<7.7}").parse::<i64>());
    let ticks = ticks.or(Err(EmptyError))?;
    Ok(((hour * 60 + minute) * 60 + second.unwrap_or(0)) * TICKS_PER_SECOND + ticks)
}

/// A `+` that was not percent-encoded has arrived as a space.
fn offset_minutes(input: &mut &str) -> Result<i64, EmptyError> {
    let (sign, hours, _, minutes) = (one_of(['+', '-', ' ']), below(24), ':', below(60)).parse_next(input)?;
    let minutes = hours * 60 + minutes;
    Ok(if sign == '-' { -minutes } else { minutes })
}

fn below(limit: i64) -> impl FnMut(&mut &str) -> Result<i64, EmptyError> {
    move |input| digits(2).verify(|number| *number < limit).parse_next(input)
}

fn digits(count: usize) -> impl FnMut(&mut &str) -> Result<i64, EmptyError> {
    move |input| take_while(count, '0'..='9').parse_to().parse_next(input)
}

fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    let month = usize::try_from(month).ok()?.checked_sub(1)?;
    let leap_day = i64::from(is_leap(year));
    let length = MONTH_DAYS.get(month)? + if month == 1 { leap_day } else { 0 };
    let months: i64 = MONTH_DAYS.iter().take(month).sum::<i64>() + if month > 1 { leap_day } else { 0 };
    (1..=length).contains(&day).then(|| year_start(year) + months + day - 1)
}

/// The first day of a year, in days since 1970.
fn year_start(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - 719_162
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Prints the shortest form that [`read`] reads; a year beyond 9999 has more digits and is not read.
pub(crate) fn print(ticks: i64, f: &mut Formatter<'_>) -> fmt::Result {
    let seconds = ticks.div_euclid(TICKS_PER_SECOND);
    let (days, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    // An average year has 365.2425 days: the estimate is at most one year off.
    let mut year = 1970 + days * 10_000 / 3_652_425;
    while year_start(year) > days {
        year -= 1;
    }
    while year_start(year + 1) <= days {
        year += 1;
    }
    let mut day = days - year_start(year);
    let mut month = 1;
    for (index, length) in MONTH_DAYS.into_iter().enumerate() {
        let length = length + i64::from(index == 1 && is_leap(year));
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    write!(f, "{year:04}-{month:02}-{:02}", day + 1)?;
    let fraction = ticks.rem_euclid(TICKS_PER_SECOND);
    if (second, fraction) != (0, 0) {
        write!(f, "T{:02}:{:02}", second / 3600, second / 60 % 60)?;
    }
    if (second % 60, fraction) != (0, 0) {
        write!(f, ":{:02}", second % 60)?;
    }
    if fraction != 0 {
        write!(f, ".{}", format!("{fraction:07}").trim_end_matches('0'))?;
    }
    f.write_str("Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Print(i64);

    impl fmt::Display for Print {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            print(self.0, f)
        }
    }

    #[test]
    fn forms_table() {
        for (text, printed) in [
            ("2026-01-31T00:00:00Z", "2026-01-31Z"),
            ("2026-01-31Z", "2026-01-31Z"),
            ("2026-01-31t08:14z", "2026-01-31T08:14Z"),
            ("2026-03-02T08:14:55.1203341Z", "2026-03-02T08:14:55.1203341Z"),
            ("2026-03-02T08:14:00.5Z", "2026-03-02T08:14:00.5Z"),
            ("2026-03-02T08:14:55.123456789Z", "2026-03-02T08:14:55.1234567Z"),
            ("2026-03-02T01:14:55+02:00", "2026-03-01T23:14:55Z"),
            ("2026-03-02T01:14:55 02:00", "2026-03-01T23:14:55Z"),
            ("2026-12-31T23:59:59-00:30", "2027-01-01T00:29:59Z"),
            ("1969-12-31T23:59:59.9Z", "1969-12-31T23:59:59.9Z"),
            ("2024-02-29Z", "2024-02-29Z"),
            ("2000-02-29Z", "2000-02-29Z"),
            ("0000-01-01Z", "0000-01-01Z"),
            ("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.9999999Z"),
        ] {
            assert_eq!(
                read.parse(text).map(|ticks| Print(ticks).to_string()).as_deref(),
                Ok(printed),
                "{text}"
            );
        }
        assert_eq!(read.parse("1970-01-02T00:00:00.0000001Z"), Ok(SECONDS_PER_DAY * TICKS_PER_SECOND + 1));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2026",
            "2026-01-31",
            "2026-01-31T00:00:00",
            "2026-02-29Z",
            "1900-02-29Z",
            "2026-04-31Z",
            "2026-00-01Z",
            "2026-13-01Z",
            "2026-01-00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T00:60:00Z",
            "2026-01-31T00:00:60Z",
            "2026-01-31T00:00:00.Z",
            "2026-01-31T00:00:00.1234567890Z",
            "2026-01-31T00:00.5Z",
            "2026-01-31T00:00:00+24:00",
            "2026-01-31+02:00",
            "0000-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "26-01-31Z",
            "２０２６-01-31Z",
        ] {
            assert!(read.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_day_prints_as_it_reads() {
        for day in year_start(0)..year_start(10_000) {
            let ticks = day * SECONDS_PER_DAY * TICKS_PER_SECOND;
            assert_eq!(read.parse(Print(ticks).to_string().as_str()), Ok(ticks));
        }
    }
}
