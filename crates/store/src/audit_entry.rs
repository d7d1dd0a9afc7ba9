//! The audit log: append only.

use domain::audit_entry::AuditEntry;
use domain::time::Timestamp;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension as _, params, params_from_iter};

use crate::row::time;
use crate::sql::Conditions;
use crate::{StoreError, Tx};

const CREATE: &str =
    "INSERT INTO audit_entry (at, actor, operation, subject, detail) VALUES ($1, $2, $3, $4, $5)";

/// Which entries are listed: those that meet all that is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditFilter {
    /// Those behind the entry with this number in the list.
    pub before: Option<i64>,
    /// Those of this time and later.
    pub since: Option<Timestamp>,
    /// Those before this time.
    pub until: Option<Timestamp>,
    /// Who did it.
    pub actor: Option<String>,
    /// The use case.
    pub operation: Option<String>,
    /// What it was done to.
    pub subject: Option<String>,
    /// At most so many.
    pub top: u32,
}

/// Writes an entry, in the transaction of the change that it is about.
///
/// # Errors
/// [`StoreError`].
pub fn audit_entry_create(tx: &Tx<'_>, entry: &AuditEntry) -> Result<(), StoreError> {
    audit_entry_create_many(tx, std::slice::from_ref(entry))
}

/// Writes many entries.
///
/// # Errors
/// [`StoreError`].
pub fn audit_entry_create_many(tx: &Tx<'_>, entries: &[AuditEntry]) -> Result<(), StoreError> {
    let mut statement = tx.0.prepare_cached(CREATE)?;
    for AuditEntry { at, actor, operation, subject, detail } in entries {
        statement.execute(params![at.ticks(), actor, operation, subject, detail])?;
    }
    Ok(())
}

/// The entries that a filter admits, newest first, each with its number. Of one time, the higher number is the newer.
///
/// # Errors
/// [`StoreError`].
pub fn audit_entry_list(tx: &Tx<'_>, filter: &AuditFilter) -> Result<Vec<(i64, AuditEntry)>, StoreError> {
    let (sql, values) = select(tx, filter)?;
    let mut statement = tx.0.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
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

fn select(tx: &Tx<'_>, filter: &AuditFilter) -> Result<(String, Vec<Value>), StoreError> {
    let mut conditions = Conditions::default();
    for (column, wanted) in
        [("actor =", &filter.actor), ("operation =", &filter.operation), ("subject =", &filter.subject)]
    {
        if let Some(wanted) = wanted {
            conditions.require(column, wanted.clone());
        }
    }
    if let Some(since) = filter.since {
        conditions.require("at >=", since.ticks());
    }
    if let Some(until) = filter.until {
        conditions.require("at <", until.ticks());
    }
    if let Some(before) = filter.before {
        match at(tx, before)? {
            Some(at) => {
                let (at, id) = (conditions.bind(at), conditions.bind(before));
                conditions.require_sql(format!("(at, id) < ({at}, {id})"));
            }
            None => conditions.require("id <", before),
        }
    }
    let limit = conditions.bind(i64::from(filter.top));
    let (condition, values) = conditions.finish();
    let sql = format!(
        "SELECT id, at, actor, operation, subject, detail FROM audit_entry WHERE {condition} \
         ORDER BY at DESC, id DESC LIMIT {limit}"
    );
    Ok((sql, values))
}

fn at(tx: &Tx<'_>, number: i64) -> Result<Option<i64>, StoreError> {
    let mut statement = tx.0.prepare_cached("SELECT at FROM audit_entry WHERE id = $1")?;
    Ok(statement.query_row([number], |row| row.get(0)).optional()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{SORTS, plan_of};

    #[test]
    fn every_filter_is_served_by_an_index_in_the_order_of_the_list() {
        let connection = crate::sql::migrated();
        let tx = Tx::new(&connection);
        let entry = AuditEntry {
            at: Timestamp::from_ticks(1),
            actor: String::new(),
            operation: String::new(),
            subject: String::new(),
            detail: String::new(),
        };
        audit_entry_create(&tx, &entry).unwrap();
        let (text, time) = (Some("a".to_owned()), Some(Timestamp::default()));
        let filter = AuditFilter { top: 5, ..AuditFilter::default() };
        for (filter, way) in [
            (filter.clone(), "SCAN audit_entry USING INDEX audit_entry_at"),
            (
                AuditFilter { before: Some(1), ..filter.clone() },
                "SEARCH audit_entry USING INDEX audit_entry_at (at<?)",
            ),
            (
                AuditFilter { since: time, ..filter.clone() },
                "SEARCH audit_entry USING INDEX audit_entry_at (at>?)",
            ),
            (
                AuditFilter { since: time, until: time, ..filter.clone() },
                "SEARCH audit_entry USING INDEX audit_entry_at (at>? AND at<?)",
            ),
            (
                AuditFilter { actor: text.clone(), since: time, until: time, ..filter.clone() },
                "SEARCH audit_entry USING INDEX audit_entry_actor (actor=? AND at>? AND at<?)",
            ),
            (
                AuditFilter { operation: text.clone(), since: time, before: Some(1), ..filter.clone() },
                "SEARCH audit_entry USING INDEX audit_entry_operation (operation=? AND at>? AND at<?)",
            ),
            (
                AuditFilter { subject: text, ..filter },
                "SEARCH audit_entry USING INDEX audit_entry_subject (subject=?)",
            ),
        ] {
            let plan = plan_of(&select(&tx, &filter).unwrap().0);
            assert!(plan.starts_with(way), "{filter:?}: {plan}\nexpected {way}");
            assert!(!plan.contains(SORTS), "{filter:?}: {plan}");
        }
    }
}
