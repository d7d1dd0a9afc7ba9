//! Settings that administrators change while the server runs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A setting as it is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Its name.
    #[schema(examples("rateLimitPerMinute"))]
    pub name: String,
    /// Its value.
    #[schema(examples(100))]
    pub value: u64,
    /// What it is when nobody sets it: the vendor's number, or what the server was started with.
    #[schema(examples(100))]
    pub default: u64,
    /// Whether somebody set it.
    pub is_set: bool,
}

/// Changes settings: what is missing stays as it is, null takes back what was set. Unknown keys are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettingsUpdate {
    /// How many calls of one operation one app may make in any 60 seconds.
    #[serde(default, with = "set", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 10_000_000, examples(100))]
    pub rate_limit_per_minute: Option<Option<u64>>,
    /// How many in any hour.
    #[serde(default, with = "set", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 10_000_000, examples(1500))]
    pub rate_limit_per_hour: Option<Option<u64>>,
    /// How long a machine action may stay open before it times out, in seconds.
    #[serde(default, with = "set", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 31_536_000, examples(259_200))]
    pub action_deadline_seconds: Option<Option<u64>>,
    /// How many machines one caller may change by bulk calls in any hour without the right *Bulk remediation*.
    #[serde(default, with = "set", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0, maximum = 10_000_000, examples(100))]
    pub bulk_machines_per_hour: Option<Option<u64>>,
    /// And how many of a hundred machines of one machine group.
    #[serde(default, with = "set", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0, maximum = 100, examples(25))]
    pub bulk_group_percent_per_hour: Option<Option<u64>>,
}

impl SettingsUpdate {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 5] = [
        "rateLimitPerMinute",
        "rateLimitPerHour",
        "actionDeadlineSeconds",
        "bulkMachinesPerHour",
        "bulkGroupPercentPerHour",
    ];

    /// What is to change, by name.
    pub fn changes(&self) -> Vec<(String, Option<u64>)> {
        let values = [
            self.rate_limit_per_minute,
            self.rate_limit_per_hour,
            self.action_deadline_seconds,
            self.bulk_machines_per_hour,
            self.bulk_group_percent_per_hour,
        ];
        Self::KEYS
            .into_iter()
            .zip(values)
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

/// A value that is there, which may be null.
mod set {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(clippy::option_option, reason = "a null is not a missing value")]
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<u64>>, D::Error> {
        Option::<u64>::deserialize(deserializer).map(Some)
    }

    #[expect(clippy::ref_option, clippy::option_option, reason = "the form that serde calls")]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<Option<u64>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.flatten().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_takes_back_and_missing_stays() {
        let update: SettingsUpdate =
            serde_json::from_str(r#"{"rateLimitPerHour": null, "bulkMachinesPerHour": 5}"#).unwrap();
        assert_eq!(
            update.changes(),
            [("rateLimitPerHour".to_owned(), None), ("bulkMachinesPerHour".to_owned(), Some(5))]
        );
        let text = serde_json::to_string(&update).unwrap();
        assert_eq!(text, r#"{"rateLimitPerHour":null,"bulkMachinesPerHour":5}"#);
        assert!(serde_json::from_str::<SettingsUpdate>(r#"{"other": 1}"#).is_err());
    }
}
