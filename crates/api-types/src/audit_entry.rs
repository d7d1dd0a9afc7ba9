//! The audit log.

use domain::audit_entry;
use serde::{Deserialize, Serialize};

use crate::date_time::DateTimeUtc;

/// What someone did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Rises with time.
    pub id: i64,
    /// When.
    pub date_time_utc: DateTimeUtc,
    /// The application id or user; `system` for what Cordon does by itself, `operator` for the server's command line.
    pub actor: String,
    /// The operation, such as `machine_restrict`.
    pub operation: String,
    /// What it was done to, such as a machine id.
    pub subject: String,
    /// Details, for people.
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
