//! How the domain's values are stored, for the nouns that share them. Stored numbers never change their meaning.

use domain::machine_action::{Kind, Phase, RequestSource};
use domain::time::Timestamp;
use rusqlite::Row;

use crate::StoreError;

pub(crate) fn phase_number(phase: Phase) -> i64 {
    match phase {
        Phase::Queued => 0,
        Phase::Offered => 1,
        Phase::Accepted => 2,
        Phase::Applying => 3,
        Phase::Enforced => 4,
        Phase::Rejected => 5,
        Phase::ApplyFailed => 6,
        Phase::ProbeFailed => 7,
        Phase::Expired => 8,
        Phase::Cancelled => 9,
        Phase::Superseded => 10,
    }
}

pub(crate) fn kind_number(kind: Kind) -> i64 {
    match kind {
        Kind::Restrict => 0,
        Kind::Unrestrict => 1,
    }
}

pub(crate) fn source_number(source: RequestSource) -> i64 {
    match source {
        RequestSource::PublicApi => 0,
        RequestSource::Portal => 1,
    }
}

pub(crate) fn phase_of(number: i64) -> Result<Phase, StoreError> {
    find(Phase::ALL, phase_number, number, "phase")
}

pub(crate) fn kind_of(number: i64) -> Result<Kind, StoreError> {
    find([Kind::Restrict, Kind::Unrestrict], kind_number, number, "kind")
}

pub(crate) fn source_of(number: i64) -> Result<RequestSource, StoreError> {
    find([RequestSource::PublicApi, RequestSource::Portal], source_number, number, "source")
}

fn find<T: Copy>(
    all: impl IntoIterator<Item = T>,
    number_of: fn(T) -> i64,
    number: i64,
    what: &str,
) -> Result<T, StoreError> {
    all.into_iter()
        .find(|value| number_of(*value) == number)
        .ok_or_else(|| StoreError::Damaged(format!("{what} {number}")))
}

/// Reads a value that is stored as text.
pub(crate) fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: &str) -> Result<T, StoreError> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_unreadable| StoreError::Damaged(format!("{column} {text:?}")))
}

/// Reads a value that is stored as text, or null.
pub(crate) fn parsed_or_none<T: std::str::FromStr>(
    row: &Row<'_>,
    column: &str,
) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|_unreadable| StoreError::Damaged(format!("{column} {text:?}"))))
        .transpose()
}

pub(crate) fn time(row: &Row<'_>, column: &str) -> Result<Timestamp, StoreError> {
    Ok(Timestamp::from_ticks(row.get(column)?))
}

pub(crate) fn time_or_none(row: &Row<'_>, column: &str) -> Result<Option<Timestamp>, StoreError> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_ticks))
}

/// Reads a count, which is stored as a signed number.
pub(crate) fn count<T: TryFrom<i64>>(row: &Row<'_>, column: &str) -> Result<T, StoreError> {
    let number: i64 = row.get(column)?;
    T::try_from(number).map_err(|_unreadable| StoreError::Damaged(format!("{column} {number}")))
}

/// Reads a count, or null.
pub(crate) fn count_or_none<T: TryFrom<i64>>(row: &Row<'_>, column: &str) -> Result<Option<T>, StoreError> {
    let number: Option<i64> = row.get(column)?;
    let damaged = |number| StoreError::Damaged(format!("{column} {number}"));
    number.map(|number| T::try_from(number).map_err(|_unreadable| damaged(number))).transpose()
}

/// A count as it is stored. No count reaches 2^63.
pub(crate) fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
