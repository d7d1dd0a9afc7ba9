//! Restricting and unrestricting many machines by one call.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::text::MachineId;

/// Restricts or unrestricts many machines. Key names are case sensitive, as in the call for one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
#[schema(example = json!({
    "MachineIds": ["0f3c9a7be1d2445566778899aabbccddeeff0011"], "Comment": "IR-20771 contain the finance fleet",
    "ExternalId": "IR-20771", "ExpiresIn": "PT4H", "Policy": "default", "DryRun": false
}))]
pub struct BulkRequest {
    /// The machines, by id. Either this or `Filter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(inline, value_type = Option<Vec<MachineId>>, max_items = 100_000)]
    pub machine_ids: Option<Vec<String>>,
    /// The machines that an OData filter takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(examples("machineTags/any(t: t eq 'finance')"))]
    pub filter: Option<String>,
    /// Why; required.
    #[serde(default)]
    #[schema(
        required = true,
        nullable = false,
        max_length = 4000,
        pattern = r"\S",
        examples("IR-20771 contain the finance fleet")
    )]
    pub comment: Option<String>,
    /// The caller's own reference, echoed as `externalId`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256, examples("IR-20771"))]
    pub external_id: Option<String>,
    /// After which time the restrictions end by themselves: an ISO 8601 duration, a minute to a year.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        max_length = 32,
        pattern = r"^P([0-9]+W|[0-9]+D|([0-9]+D)?T([0-9]+H([0-9]+M)?([0-9]+S)?|[0-9]+M([0-9]+S)?|[0-9]+S))$",
        examples("PT4H")
    )]
    pub expires_in: Option<String>,
    /// The allow policy to apply; that of each machine's group when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9-]{1,64}$", examples("default"))]
    pub policy: Option<String>,
    /// Whether only to count.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a bulk call did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkReply {
    /// The call's id, which the audit log names; null for a dry run.
    pub id: Option<Uuid>,
    /// Whether it only counted.
    pub dry_run: bool,
    /// What was counted; null unless it was a dry run.
    pub plan: Option<BulkPlan>,
    /// One for each machine; empty for a dry run.
    pub results: Vec<BulkResult>,
}

/// What a bulk call would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkPlan {
    /// How many machines it names.
    #[schema(examples(120))]
    pub total: u64,
    /// How many of them are unknown, or not to be known of.
    #[schema(examples(0))]
    pub unknown: u64,
    /// How many of them are connected.
    #[schema(examples(112))]
    pub online: u64,
    /// How many are not: they obey once they connect, unless the action's deadline passes first.
    #[schema(examples(8))]
    pub offline: u64,
    /// How many cannot be restricted.
    #[schema(examples(2))]
    pub unsupported: u64,
    /// How many are restricted already.
    #[schema(examples(5))]
    pub already_restricted: u64,
    /// How many have an action of the same kind that is not final, and get no other.
    #[schema(examples(1))]
    pub already_active: u64,
    /// How many would get an action.
    #[schema(examples(117))]
    pub actions: u64,
    /// Why the call would be refused: it would change too many; null when it would not be.
    #[schema(examples(
        "This would change 120 machines; bulk calls of this caller may change 100 in an hour"
    ))]
    pub refusal: Option<String>,
    /// What would be refused on the machines, when it is known. Not known yet: always null.
    #[schema(value_type = Option<Object>)]
    pub impact: Option<serde_json::Value>,
}

/// What a bulk call did about one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkResult {
    /// The machine.
    #[schema(examples("0f3c9a7be1d2445566778899aabbccddeeff0011"))]
    pub machine_id: String,
    /// Its name; null when it is unknown.
    #[schema(examples("lab-042"))]
    pub computer_dns_name: Option<String>,
    /// The action that was made; null when there is none.
    pub action_id: Option<Uuid>,
    /// Why there is none; null when there is one.
    pub error: Option<BulkError>,
}

/// Why a machine got no action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkError {
    /// The code that the call for this one machine would answer.
    #[schema(examples("ActiveRequestAlreadyExists"))]
    pub code: String,
    /// For people.
    #[schema(examples("Action is already in progress"))]
    pub message: String,
}

impl BulkRequest {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 7] =
        ["MachineIds", "Filter", "Comment", "ExternalId", "ExpiresIn", "Policy", "DryRun"];
}
