//! Actions of many machines at once. What is read takes a statement for every [`ROWS_MAX`] machines; what is written
//! takes one for each row, made ready once: SQLite keeps what a statement of many rows would have to undo.

use std::collections::HashMap;

use domain::machine::MachineId;
use domain::machine_action::{MachineAction, MachineActionId, Phase};
use domain::time::Timestamp;
use rusqlite::{params, params_from_iter};

use super::{COLUMNS, CREATE, created, read};
use crate::row::{parsed, phase_number};
use crate::sql::{ROWS_MAX, places_from};
use crate::{StoreError, Tx};

/// Records actions, each with its signed order.
///
/// # Errors
/// [`StoreError::Duplicate`] when a machine has an open action, or one with the requestor's idempotency key; what was
/// recorded before it is there until the transaction is given up.
pub fn machine_action_create_many(
    tx: &Tx<'_>,
    actions: &[(MachineAction, String)],
) -> Result<(), StoreError> {
    let mut statement = tx.0.prepare_cached(CREATE)?;
    for (action, order) in actions {
        statement.execute(params_from_iter(created(action, order)))?;
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
    of_machines(tx, machines, "open = 1", &[])
}

/// The requestor's actions of these machines with this idempotency key, in no particular order.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_by_idempotency_key_many(
    tx: &Tx<'_>,
    requestor: &str,
    key: &str,
    machines: &[MachineId],
) -> Result<Vec<MachineAction>, StoreError> {
    of_machines(tx, machines, "idempotency_key = $1 AND requestor = $2", &[key, requestor])
}

/// Actions of these machines that meet a condition on these values.
fn of_machines(
    tx: &Tx<'_>,
    machines: &[MachineId],
    condition: &str,
    values: &[&str],
) -> Result<Vec<MachineAction>, StoreError> {
    let mut actions = Vec::new();
    for chunk in machines.chunks(ROWS_MAX) {
        let mut statement = tx.0.prepare_cached(&select_of_machines(chunk.len(), condition, values.len()))?;
        let values = values.iter().map(|value| (*value).to_owned());
        let mut rows =
            statement.query(params_from_iter(values.chain(chunk.iter().map(MachineId::to_string))))?;
        while let Some(row) = rows.next()? {
            actions.push(read(row)?);
        }
    }
    Ok(actions)
}

fn select_of_machines(machines: usize, condition: &str, values: usize) -> String {
    let machines = places_from(values + 1, machines);
    format!("SELECT {COLUMNS} FROM machine_action WHERE {condition} AND machine IN ({machines})")
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
    let mut statement = tx.0.prepare_cached(SUPERSEDE)?;
    for (machine, action) in newer {
        let why = format!("superseded by action {}", action.0);
        statement.execute(params![
            machine.to_string(),
            phase_number(Phase::Superseded),
            now.ticks(),
            requestor,
            why
        ])?;
    }
    Ok(())
}

const SUPERSEDE: &str = "UPDATE machine_action SET phase = $2, open = 0, \
    updated_at = CASE WHEN created_at < $3 THEN $3 ELSE created_at END, cancelled_by = $4, cancelled_comment = $5, \
    cancelled_at = $3 WHERE machine = $1 AND open = 1";

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
        let plan = plan_of(SUPERSEDE);
        assert_eq!(plan, "SEARCH machine_action USING INDEX machine_action_one_open (machine=?)");
        for machines in [1, ROWS_MAX] {
            let plan = plan_of(&select_of_machines(machines, "open = 1", 0));
            assert_eq!(plan, "SEARCH machine_action USING INDEX machine_action_one_open (machine=?)");
            let key = "idempotency_key = $1 AND requestor = $2";
            let plan = plan_of(&select_of_machines(machines, key, 2));
            let way = "machine_action_idempotency (idempotency_key=? AND requestor=? AND machine=?)";
            assert_eq!(plan, format!("SEARCH machine_action USING INDEX {way}"));
        }
    }
}
