//! The audit log: written by every use case, read here.

use domain::audit_entry::AuditEntry;
use domain::permission::Requirement;
use domain::time::Timestamp;
use store::audit_entry::{AuditFilter, audit_entry_create, audit_entry_list};
use store::{StoreError, Tx};

use crate::{Caller, ControlPlane, Result};

/// Writes an entry in the transaction of the change that it is about.
#[expect(clippy::needless_pass_by_value, reason = "ids are small, and callers have a text or an id")]
pub(crate) fn record(
    tx: &Tx<'_>,
    at: Timestamp,
    actor: &str,
    operation: &str,
    subject: impl ToString,
    detail: impl Into<String>,
) -> std::result::Result<(), StoreError> {
    let entry = AuditEntry {
        at,
        actor: actor.to_owned(),
        operation: operation.to_owned(),
        subject: subject.to_string(),
        detail: detail.into(),
    };
    audit_entry_create(tx, &entry)
}

impl ControlPlane {
    /// Entries that a filter takes, newest first, each with its number.
    ///
    /// # Errors
    /// [`crate::Error::Forbidden`]; from the store.
    pub async fn audit_entry_list(
        &self,
        caller: &Caller,
        filter: AuditFilter,
    ) -> Result<Vec<(i64, AuditEntry)>> {
        caller.require(Requirement::ADMINISTER)?;
        self.0.store.read_list(move |tx| Ok(audit_entry_list(tx, &filter)?)).await
    }
}
