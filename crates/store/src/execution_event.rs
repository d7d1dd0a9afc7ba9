//! Refused executions, the newest of each machine.

use domain::execution_event::ExecutionEvent;
use domain::machine::MachineId;
use rusqlite::{Row, params};

use crate::row::{count, parsed, stored, time};
use crate::{StoreError, Tx};

/// How many are kept of each machine: a day of one every nine seconds.
pub const PER_MACHINE_MAX: i64 = 10_000;

/// A stored event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredExecutionEvent {
    /// Rises with the order of arrival.
    pub id: i64,
    /// The machine.
    pub machine: MachineId,
    /// Its name.
    pub computer_dns_name: String,
    /// What it reported.
    pub event: ExecutionEvent,
}

/// Keeps a batch of events, and drops the oldest beyond [`PER_MACHINE_MAX`].
///
/// # Errors
/// [`StoreError`].
pub fn execution_event_create(
    tx: &Tx<'_>,
    machine: MachineId,
    events: &[ExecutionEvent],
) -> Result<(), StoreError> {
    let machine = machine.to_string();
    let mut insert = tx.0.prepare_cached(
        "INSERT INTO execution_event (machine, at, path, sha256, cause, rule, pid, ppid, uid, parent_program, count) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )?;
    for event in events {
        insert.execute(params![
            machine,
            event.at.ticks(),
            event.path,
            event.sha256,
            event.cause,
            event.rule,
            event.pid,
            event.ppid,
            event.uid,
            event.parent_program,
            stored(event.count)
        ])?;
    }
    tx.0.prepare_cached(
        "DELETE FROM execution_event WHERE machine = $1 AND id <= \
         (SELECT id FROM execution_event WHERE machine = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
    )?
    .execute(params![machine, PER_MACHINE_MAX])?;
    Ok(())
}

/// Events with an id below `before`, newest first, of one machine or of all.
///
/// # Errors
/// [`StoreError`].
pub fn execution_event_list(
    tx: &Tx<'_>,
    machine: Option<MachineId>,
    before: i64,
    top: u32,
) -> Result<Vec<StoredExecutionEvent>, StoreError> {
    let condition = if machine.is_some() { "execution_event.machine = $1" } else { "$1 = ''" };
    let mut statement = tx.0.prepare_cached(&format!(
        "SELECT execution_event.*, computer_dns_name FROM execution_event JOIN machine ON machine.id = machine \
         WHERE {condition} AND execution_event.id < $2 ORDER BY execution_event.id DESC LIMIT $3"
    ))?;
    let wanted = machine.map(|machine| machine.to_string()).unwrap_or_default();
    let mut rows = statement.query(params![wanted, before, top])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(read(row)?);
    }
    Ok(events)
}

fn read(row: &Row<'_>) -> Result<StoredExecutionEvent, StoreError> {
    Ok(StoredExecutionEvent {
        id: row.get("id")?,
        machine: parsed(row, "machine")?,
        computer_dns_name: row.get("computer_dns_name")?,
        event: ExecutionEvent {
            at: time(row, "at")?,
            path: row.get("path")?,
            sha256: row.get("sha256")?,
            cause: row.get("cause")?,
            rule: row.get("rule")?,
            pid: row.get("pid")?,
            ppid: row.get("ppid")?,
            uid: row.get("uid")?,
            parent_program: row.get("parent_program")?,
            count: count(row, "count")?,
        },
    })
}
