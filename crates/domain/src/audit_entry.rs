//! Audit entries: who did what to what.

use crate::time::Timestamp;

/// One change, written in the same transaction as the change itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// The application id or user; [`AuditEntry::SYSTEM`] or [`AuditEntry::OPERATOR`] otherwise.
    pub actor: String,
    /// The use case, such as `machine_restrict`.
    pub operation: String,
    /// What it was done to, such as a machine id.
    pub subject: String,
    /// Details, for people.
    pub detail: String,
}

impl AuditEntry {
    /// The actor of what Cordon does by itself, such as a time-out.
    pub const SYSTEM: &'static str = "system";
    /// The actor of what the server's command line does.
    pub const OPERATOR: &'static str = "operator";
}
