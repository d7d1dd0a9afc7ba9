//! Actions of many machines at once: each function is one statement for every [`ROWS_MAX`] rows.

use std::collections::HashMap;

use domain::machine::MachineId;
use domain::machine_action::{MachineAction, MachineActionId, Phase};
use domain::time::Timestamp;
use rusqlite::types::Value;
use rusqlite::{params, params_from_iter};

use super::{COLUMNS, CREATE, created, read};
use crate::row::{parsed, phase_number};
use crate::sql::{ROWS_MAX, places, rows, typed_rows};
use crate::{StoreError, Tx};

/// Records actions, each with its signed order.
///
/// # Errors
/// [`StoreError::Duplicate`] when a machine has an open action, or one with the requestor's idempotency key.
pub fn machine_action_create_many(
    tx: &Tx<'_>,
    actions: &[(MachineAction, String)],
) -> Result<(), StoreError> {
    for chunk in actions.chunks(ROWS_MAX) {
        let values: Vec<_> = chunk.iter().map(|(action, order)| created(action, order)).collect();
        let columns = values.first().map_or(0, |row| row.len());
        let statement = format!("{CREATE} {}", rows(chunk.len(), columns));
        tx.0.prepare_cached(&statement)?.execute(params_from_iter(values.into_iter().flatten()))?;
    }
    Ok(())
}

/// The actions of these machines that are not final, in no particular order.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_open_many(
    tx: &Tx<'_>,
    machines: &[MachineId],
) -> Result<Vec<MachineAction>, StoreError> {
    let mut actions = Vec::new();
    for chunk in machines.chunks(ROWS_MAX) {
        let mut statement = tx.0.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM machine_action WHERE machine IN ({}) AND open = 1",
            places(chunk.len())
        ))?;
        let mut rows = statement.query(params_from_iter(chunk.iter().map(MachineId::to_string)))?;
        while let Some(row) = rows.next()? {
            actions.push(read(row)?);
        }
    }
    Ok(actions)
}

/// Ends the open actions of these machines, each in favor of the newer one that is named with it, which is not made yet:
/// a machine has one open action.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_supersede_many(
    tx: &Tx<'_>,
    newer: &[(MachineId, MachineActionId)],
    requestor: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    for chunk in newer.chunks(ROWS_MAX) {
        let mut values: Vec<Value> =
            vec![phase_number(Phase::Superseded).into(), requestor.to_owned().into(), now.ticks().into()];
        for (machine, action) in chunk {
            values.push(machine.to_string().into());
            values.push(format!("superseded by action {}", action.0).into());
        }
        tx.0.prepare_cached(&supersede_many(chunk.len()))?.execute(params_from_iter(values))?;
    }
    Ok(())
}

fn supersede_many(rows: usize) -> String {
    let rows = typed_rows(4, rows, &["TEXT", "TEXT"]);
    format!(
        "WITH newer (of_machine, why) AS (VALUES {rows}) \
         UPDATE machine_action SET phase = $1, open = 0, \
         updated_at = CASE WHEN created_at < $3 THEN $3 ELSE created_at END, cancelled_by = $2, \
         cancelled_comment = newer.why, cancelled_at = $3 FROM newer \
         WHERE machine IN (SELECT of_machine FROM newer) AND machine = newer.of_machine AND open = 1"
    )
}

/// The machines that the requestor's bulk calls were about at the time `since` and later, with their groups of today.
///
/// # Errors
/// [`StoreError`].
pub fn bulk_machines(
    tx: &Tx<'_>,
    requestor: &str,
    since: Timestamp,
) -> Result<HashMap<MachineId, i64>, StoreError> {
    let mut statement = tx.0.prepare_cached(BULK_MACHINES)?;
    let mut rows = statement.query(params![requestor, since.ticks()])?;
    let mut machines = HashMap::new();
    while let Some(row) = rows.next()? {
        machines.insert(parsed(row, "id")?, row.get("machine_group")?);
    }
    Ok(machines)
}

const BULK_MACHINES: &str = "SELECT id, machine_group FROM machine WHERE id IN \
    (SELECT machine FROM machine_action WHERE bulk IS NOT NULL AND requestor = $1 AND created_at >= $2)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::plan_of;

    #[test]
    fn plans() {
        let plan = plan_of(BULK_MACHINES);
        assert!(plan.starts_with("SEARCH machine USING INDEX sqlite_autoindex_machine_1 (id=?)"), "{plan}");
        let calls = "SEARCH machine_action USING INDEX machine_action_bulk (requestor=? AND created_at>?)";
        assert!(plan.contains(calls), "{plan}");
        for rows in [1, ROWS_MAX] {
            let plan = plan_of(&supersede_many(rows));
            assert!(
                plan.contains("SEARCH machine_action USING INDEX machine_action_one_open (machine=?)"),
                "{plan}"
            );
        }
    }
}
