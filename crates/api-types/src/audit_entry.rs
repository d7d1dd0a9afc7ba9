//! The audit log.

use domain::audit_entry;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::date_time::DateTimeUtc;

/// What someone did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Rises with time.
    pub id: i64,
    /// When.
    pub date_time_utc: DateTimeUtc,
    /// The application id or user; `system` for what Cordon does by itself, `operator` for the server's command line.
    #[schema(examples("0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d"))]
    pub actor: String,
    /// The operation, such as `machine_restrict`.
    #[schema(examples("machine_restrict"))]
    pub operation: String,
    /// What it was done to, such as a machine id.
    #[schema(examples("0f3c9a7be1d2445566778899aabbccddeeff0011"))]
    pub subject: String,
    /// Details, for people.
    #[schema(examples("IR-20771 contain while triaging"))]
    pub detail: String,
}

impl AuditEntry {
    /// The entry with its number.
    pub fn numbered(id: i64, entry: audit_entry::AuditEntry) -> Self {
        Self {
            id,
            date_time_utc: entry.at.into(),
            actor: entry.actor,
            operation: entry.operation,
            subject: entry.subject,
            detail: entry.detail,
        }
    }
}
