//! Refused executions, the newest of each machine.

use domain::execution_event::ExecutionEvent;
use domain::machine::MachineId;
use domain::machine_group::MachineAccess;
use domain::time::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Row, params, params_from_iter};

use crate::row::{count, count_or_none, parsed, stored, time};
use crate::sql::Conditions;
use crate::{StoreError, Tx, access};

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

/// Which events are listed: those that meet all that is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// Those that arrived before the one with this id.
    pub before: Option<i64>,
    /// Those of this machine.
    pub machine: Option<MachineId>,
    /// Those about files with this content, SHA-256 in lower case.
    pub sha256: Option<String>,
    /// Those of this time and later, by the machines' clocks.
    pub since: Option<Timestamp>,
    /// Those before this time, by the machines' clocks.
    pub until: Option<Timestamp>,
    /// At most so many.
    pub top: u32,
}

/// Keeps a batch of events, and drops the oldest beyond [`PER_MACHINE_MAX`]. Of `dropped` more, the machine only knows
/// that they were.
///
/// # Errors
/// [`StoreError`].
pub fn execution_event_create(
    tx: &Tx<'_>,
    machine: MachineId,
    events: &[ExecutionEvent],
    dropped: u64,
) -> Result<(), StoreError> {
    let machine = machine.to_string();
    if dropped > 0 {
        // Saturates, whatever a machine says.
        tx.0.prepare_cached(
            "UPDATE machine SET events_dropped = min(events_dropped, 9223372036854775807 - $2) + $2 WHERE id = $1",
        )?
        .execute(params![machine, stored(dropped)])?;
    }
    let mut insert = tx.0.prepare_cached(
        "INSERT INTO execution_event (machine, at, path, sha256, cause, rule, pid, ppid, uid, parent_program, count, \
         hook, cgroup, container, interpreter, script, policy, policy_revision, audited) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
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
            stored(event.count),
            event.hook,
            event.cgroup,
            event.container,
            event.interpreter,
            event.script,
            event.policy,
            event.policy_revision.map(stored),
            event.audited
        ])?;
    }
    tx.0.prepare_cached(
        "DELETE FROM execution_event WHERE machine = $1 AND id <= \
         (SELECT id FROM execution_event WHERE machine = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
    )?
    .execute(params![machine, PER_MACHINE_MAX])?;
    Ok(())
}

/// The events that a filter admits, of machines that the caller may know of. Those that arrived last come first.
///
/// # Errors
/// [`StoreError`].
pub fn execution_event_list(
    tx: &Tx<'_>,
    filter: &EventFilter,
    access: &MachineAccess,
) -> Result<Vec<StoredExecutionEvent>, StoreError> {
    let (sql, values) = select(filter, access);
    let mut statement = tx.0.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(read(row)?);
    }
    Ok(events)
}

/// A plus sign before a number keeps its index out. One machine's events, or those of one file, are found in their
/// order. Otherwise a time's events are found by their time and then sorted, rather than all looked at.
fn select(filter: &EventFilter, access: &MachineAccess) -> (String, Vec<Value>) {
    let by_time = filter.machine.is_none()
        && filter.sha256.is_none()
        && (filter.since.is_some() || filter.until.is_some());
    let (id, at) = if by_time {
        ("+execution_event.id", "execution_event.at")
    } else {
        ("execution_event.id", "+execution_event.at")
    };
    let mut conditions = Conditions::default();
    if let Some(machine) = filter.machine {
        conditions.require("execution_event.machine =", machine.to_string());
    }
    if let Some(sha256) = &filter.sha256 {
        // Of one machine there are few events: its index serves both.
        let column = if filter.machine.is_some() {
            "coalesce(execution_event.sha256, '') ="
        } else {
            "execution_event.sha256 ="
        };
        conditions.require(column, sha256.clone());
    }
    if let Some(since) = filter.since {
        conditions.require(&format!("{at} >="), since.ticks());
    }
    if let Some(until) = filter.until {
        conditions.require(&format!("{at} <"), until.ticks());
    }
    if let Some(before) = filter.before {
        conditions.require(&format!("{id} <"), before);
    }
    conditions.require_sql(access::condition(access, "+machine.machine_group"));
    let limit = conditions.bind(i64::from(filter.top));
    let (condition, values) = conditions.finish();
    let sql = format!(
        "SELECT execution_event.*, computer_dns_name FROM execution_event \
         JOIN machine ON machine.id = execution_event.machine \
         WHERE {condition} ORDER BY {id} DESC LIMIT {limit}"
    );
    (sql, values)
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
            hook: row.get("hook")?,
            cgroup: row.get("cgroup")?,
            container: row.get("container")?,
            interpreter: row.get("interpreter")?,
            script: row.get("script")?,
            policy: row.get("policy")?,
            policy_revision: count_or_none(row, "policy_revision")?,
            audited: row.get("audited")?,
            count: count(row, "count")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{SORTS, plan_of};

    #[test]
    fn plans() {
        let (machine, sha256, since) =
            (Some(MachineId([1; 20])), Some("a".to_owned()), Some(Timestamp::default()));
        let filter = EventFilter { before: Some(9), top: 5, ..EventFilter::default() };
        for (filter, way, sorts) in [
            (filter.clone(), "USING INTEGER PRIMARY KEY (rowid<?)", false),
            (
                EventFilter { machine, since, sha256: sha256.clone(), ..filter.clone() },
                "USING INDEX execution_event_machine (machine=? AND id<?)",
                false,
            ),
            (
                EventFilter { sha256, since, until: since, ..filter.clone() },
                "USING INDEX execution_event_sha256 (sha256=? AND id<?)",
                false,
            ),
            (EventFilter { since, ..filter.clone() }, "USING INDEX execution_event_at (at>?)", true),
            (
                EventFilter { since, until: since, ..filter },
                "USING INDEX execution_event_at (at>? AND at<?)",
                true,
            ),
        ] {
            for access in [MachineAccess::All, MachineAccess::Groups(vec![1, 2])] {
                let plan = plan_of(&select(&filter, &access).0);
                let events = plan.split("; ").find(|step| step.contains("execution_event")).unwrap();
                assert_eq!(events, format!("SEARCH execution_event {way}"), "{filter:?}: {plan}");
                assert_eq!(plan.contains(SORTS), sorts, "{filter:?}: {plan}");
            }
        }
    }
}
