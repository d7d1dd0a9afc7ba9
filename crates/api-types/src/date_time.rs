//! The API's `DateTimeOffset`: UTC, `Z`, seven fractional digits, as in `2026-03-02T08:14:55.1203341Z`.

use chrono::{DateTime, Utc};
use domain::time::{TICKS_PER_SECOND, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, Object, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

/// A point in time on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DateTimeUtc(pub Timestamp);

impl From<Timestamp> for DateTimeUtc {
    fn from(timestamp: Timestamp) -> Self {
        Self(timestamp)
    }
}

impl std::fmt::Display for DateTimeUtc {
    /// A time outside chrono's range prints as the Unix epoch: no such time is ever stored.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fraction = self.0.ticks().rem_euclid(TICKS_PER_SECOND);
        let time = DateTime::from_timestamp(self.0.unix_seconds(), 0).unwrap_or_default();
        write!(f, "{}.{fraction:07}Z", time.format("%Y-%m-%dT%H:%M:%S"))
    }
}

impl std::str::FromStr for DateTimeUtc {
    type Err = chrono::ParseError;

    /// Reads RFC 3339 with any offset and 0 to 9 fractional digits; what is finer than 100 ns is cut off.
    fn from_str(text: &str) -> Result<Self, chrono::ParseError> {
        let time = DateTime::parse_from_rfc3339(text)?.with_timezone(&Utc);
        let ticks = time.timestamp().saturating_mul(TICKS_PER_SECOND);
        Ok(Self(Timestamp::from_ticks(ticks.saturating_add(i64::from(time.timestamp_subsec_nanos() / 100)))))
    }
}

impl Serialize for DateTimeUtc {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PartialSchema for DateTimeUtc {
    fn schema() -> RefOr<Schema> {
        Object::builder()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .description(Some("UTC, with seven fractional digits; on input any offset and 0 to 9 digits."))
            .examples(["2026-03-02T08:14:55.1203341Z"])
            .into()
    }
}

impl ToSchema for DateTimeUtc {}

impl<'de> Deserialize<'de> for DateTimeUtc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_digits_out_any_in() {
        let table = [
            ("2026-03-02T08:14:55.1203341Z", "2026-03-02T08:14:55.1203341Z"),
            ("2026-03-02T08:14:55Z", "2026-03-02T08:14:55.0000000Z"),
            ("2026-03-02T10:14:55.5+02:00", "2026-03-02T08:14:55.5000000Z"),
            ("2026-03-02T08:14:55.123456789Z", "2026-03-02T08:14:55.1234567Z"),
            ("1969-12-31T23:59:59.9Z", "1969-12-31T23:59:59.9000000Z"),
        ];
        for (input, output) in table {
            assert_eq!(input.parse::<DateTimeUtc>().unwrap().to_string(), output);
        }
    }
}
