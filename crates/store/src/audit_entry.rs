//! The audit log: append only.

use domain::audit_entry::AuditEntry;
use rusqlite::params;

use crate::row::time;
use crate::{StoreError, Tx};

/// Writes an entry, in the transaction of the change that it is about.
///
/// # Errors
/// [`StoreError`].
pub fn audit_entry_create(tx: &Tx<'_>, entry: &AuditEntry) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO audit_entry (at, actor, operation, subject, detail) VALUES ($1, $2, $3, $4, $5)",
    )?
    .execute(params![entry.at.ticks(), entry.actor, entry.operation, entry.subject, entry.detail])?;
    Ok(())
}

/// Entries with a number below `before`, newest first, each with its number.
///
/// # Errors
/// [`StoreError`].
pub fn audit_entry_list(tx: &Tx<'_>, before: i64, top: u32) -> Result<Vec<(i64, AuditEntry)>, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "SELECT id, at, actor, operation, subject, detail FROM audit_entry WHERE id < $1 ORDER BY id DESC LIMIT $2",
    )?;
    let mut rows = statement.query(params![before, top])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let entry = AuditEntry {
            at: time(row, "at")?,
            actor: row.get("actor")?,
            operation: row.get("operation")?,
            subject: row.get("subject")?,
            detail: row.get("detail")?,
        };
        entries.push((row.get("id")?, entry));
    }
    Ok(entries)
}
