//! Machine actions with their orders and receipts.

use domain::machine::MachineId;
use domain::machine_action::{Cancellation, MachineAction, MachineActionId, Phase};
use domain::restriction::Fence;
use domain::time::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Row, params, params_from_iter};
use uuid::Uuid;

use crate::row::{
    count, kind_number, kind_of, parsed, parsed_or_none, phase_number, phase_of, source_number, source_of,
    stored, time, time_or_none,
};
use crate::{StoreError, Tx};

mod bulk;

pub use bulk::{
    bulk_machines, machine_action_by_idempotency_key_many, machine_action_create_many,
    machine_action_open_many, machine_action_supersede_many,
};

pub(crate) const COLUMNS: &str = "id, machine, computer_dns_name, store_epoch, incarnation, generation, kind, phase, \
    requestor, comment, source, external_id, policy, ends_at, idempotency_key, bulk, created_at, updated_at, deadline, \
    cancelled_by, cancelled_comment, cancelled_at, failure";

const CREATE: &str = "INSERT INTO machine_action (id, machine, computer_dns_name, store_epoch, incarnation, generation, \
    kind, phase, open, requestor, comment, source, external_id, policy, ends_at, idempotency_key, bulk, created_at, \
    updated_at, deadline, signed_order) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)";

/// Records an action with its signed order.
///
/// # Errors
/// [`StoreError::Duplicate`] when the machine has an open action, or one with the requestor's idempotency key.
pub fn machine_action_create(
    tx: &Tx<'_>,
    action: &MachineAction,
    signed_order: &str,
) -> Result<(), StoreError> {
    tx.0.prepare_cached(CREATE)?.execute(params_from_iter(created(action, signed_order)))?;
    Ok(())
}

/// The values of [`CREATE`].
fn created(action: &MachineAction, signed_order: &str) -> [Value; 21] {
    [
        action.id.0.to_string().into(),
        action.machine.to_string().into(),
        action.computer_dns_name.clone().into(),
        stored(action.fence.store_epoch).into(),
        stored(action.fence.incarnation).into(),
        stored(action.fence.generation).into(),
        kind_number(action.kind).into(),
        phase_number(action.phase).into(),
        i64::from(!action.phase.is_final()).into(),
        action.requestor.clone().into(),
        action.comment.clone().into(),
        source_number(action.source).into(),
        action.external_id.clone().into(),
        action.policy.clone().into(),
        action.ends_at.map(Timestamp::ticks).into(),
        action.idempotency_key.clone().into(),
        action.bulk.map(|bulk| bulk.to_string()).into(),
        action.created_at.ticks().into(),
        action.updated_at.ticks().into(),
        action.deadline.ticks().into(),
        signed_order.to_owned().into(),
    ]
}

/// The action with this id.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_fetch(tx: &Tx<'_>, id: MachineActionId) -> Result<Option<MachineAction>, StoreError> {
    fetch_where(tx, "id = $1", &[&id.0.to_string()])
}

/// The machine's action that is not final, if there is one.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_open(tx: &Tx<'_>, machine: MachineId) -> Result<Option<MachineAction>, StoreError> {
    fetch_where(tx, "machine = $1 AND open = 1", &[&machine.to_string()])
}

/// The machine's action with this generation: of the newest store epoch, when a restored backup made two.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_by_generation(
    tx: &Tx<'_>,
    machine: MachineId,
    generation: u64,
) -> Result<Option<MachineAction>, StoreError> {
    let wanted = "machine = $1 AND generation = $2 ORDER BY store_epoch DESC LIMIT 1";
    fetch_where(tx, wanted, &[&machine.to_string(), &stored(generation)])
}

/// The requestor's action with this idempotency key: the first by machine, when there are several.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_by_idempotency_key(
    tx: &Tx<'_>,
    requestor: &str,
    key: &str,
) -> Result<Option<MachineAction>, StoreError> {
    fetch_where(tx, BY_IDEMPOTENCY_KEY, &[&key, &requestor])
}

const BY_IDEMPOTENCY_KEY: &str = "idempotency_key = $1 AND requestor = $2 ORDER BY machine LIMIT 1";

/// The signed order of an action.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_order(tx: &Tx<'_>, id: MachineActionId) -> Result<String, StoreError> {
    let mut statement = tx.0.prepare_cached("SELECT signed_order FROM machine_action WHERE id = $1")?;
    Ok(statement.query_row([id.0.to_string()], |row| row.get(0))?)
}

/// Puts another signed order in the place of an action's: for another incarnation of its machine, or because the
/// first has expired.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_reissue(
    tx: &Tx<'_>,
    id: MachineActionId,
    fence: Fence,
    signed_order: &str,
) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "UPDATE machine_action SET store_epoch = $2, incarnation = $3, signed_order = $4 WHERE id = $1",
    )?
    .execute(params![
        id.0.to_string(),
        stored(fence.store_epoch),
        stored(fence.incarnation),
        signed_order
    ])?;
    Ok(())
}

/// The machine's signed receipt for an action, and the key that it was verified with.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_receipt(
    tx: &Tx<'_>,
    id: MachineActionId,
) -> Result<Option<(String, String)>, StoreError> {
    let mut statement =
        tx.0.prepare_cached("SELECT receipt, receipt_key FROM machine_action WHERE id = $1")?;
    let (receipt, key): (Option<String>, Option<String>) =
        statement.query_row([id.0.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(receipt.zip(key))
}

/// Keeps the machine's signed receipt for an action, and the key that it was verified with: the machine may get another.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_receipt_keep(
    tx: &Tx<'_>,
    id: MachineActionId,
    receipt: &str,
    gate_key: &str,
) -> Result<(), StoreError> {
    tx.0.prepare_cached("UPDATE machine_action SET receipt = $2, receipt_key = $3 WHERE id = $1")?
        .execute(params![id.0.to_string(), receipt, gate_key])?;
    Ok(())
}

/// Moves an action from the phase that it was read in to `to`; whether it was still in that phase.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_move(
    tx: &Tx<'_>,
    action: &MachineAction,
    to: Phase,
    failure: Option<&str>,
    cancellation: Option<&Cancellation>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if !action.phase.may_become(to) {
        return Ok(false);
    }
    let changed = tx
        .0
        .prepare_cached(
            "UPDATE machine_action SET phase = $3, open = $4, \
             updated_at = CASE WHEN created_at < $5 THEN $5 ELSE created_at END, failure = $6, cancelled_by = $7, \
             cancelled_comment = $8, cancelled_at = $9 WHERE id = $1 AND phase = $2",
        )?
        .execute(params![
            action.id.0.to_string(),
            phase_number(action.phase),
            phase_number(to),
            i64::from(!to.is_final()),
            now.ticks(),
            failure,
            cancellation.map(|c| c.requestor.as_str()),
            cancellation.map(|c| c.comment.as_str()),
            cancellation.map(|c| c.at.ticks())
        ])?;
    Ok(changed == 1)
}

/// Actions that are not final although their deadline has passed, oldest first, at most a hundred.
///
/// # Errors
/// [`StoreError`].
pub fn machine_action_overdue(tx: &Tx<'_>, now: Timestamp) -> Result<Vec<MachineAction>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM machine_action WHERE open = 1 AND deadline < $1 ORDER BY deadline LIMIT 100"
    ))?;
    let mut rows = statement.query([now.ticks()])?;
    let mut actions = Vec::new();
    while let Some(row) = rows.next()? {
        actions.push(read(row)?);
    }
    Ok(actions)
}

fn fetch_where(
    tx: &Tx<'_>,
    condition: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Option<MachineAction>, StoreError> {
    let mut statement =
        tx.0.prepare_cached(&format!("SELECT {COLUMNS} FROM machine_action WHERE {condition}"))?;
    let mut rows = statement.query(values)?;
    rows.next()?.map(read).transpose()
}

pub(crate) fn read(row: &Row<'_>) -> Result<MachineAction, StoreError> {
    let cancelled_at: Option<i64> = row.get("cancelled_at")?;
    let cancellation = match cancelled_at {
        None => None,
        Some(at) => Some(Cancellation {
            requestor: row.get("cancelled_by")?,
            comment: row.get("cancelled_comment")?,
            at: Timestamp::from_ticks(at),
        }),
    };
    Ok(MachineAction {
        id: MachineActionId(parsed::<Uuid>(row, "id")?),
        kind: kind_of(row.get("kind")?)?,
        phase: phase_of(row.get("phase")?)?,
        machine: parsed(row, "machine")?,
        computer_dns_name: row.get("computer_dns_name")?,
        fence: Fence {
            store_epoch: count(row, "store_epoch")?,
            incarnation: count(row, "incarnation")?,
            generation: count(row, "generation")?,
        },
        requestor: row.get("requestor")?,
        comment: row.get("comment")?,
        source: source_of(row.get("source")?)?,
        external_id: row.get("external_id")?,
        policy: row.get("policy")?,
        ends_at: time_or_none(row, "ends_at")?,
        idempotency_key: row.get("idempotency_key")?,
        bulk: parsed_or_none(row, "bulk")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        deadline: time(row, "deadline")?,
        cancellation,
        failure: row.get("failure")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::plan_of;

    #[test]
    fn a_repeated_request_is_found_by_its_key() {
        let plan = plan_of(&format!("SELECT {COLUMNS} FROM machine_action WHERE {BY_IDEMPOTENCY_KEY}"));
        let way = "machine_action_idempotency (idempotency_key=? AND requestor=?)";
        assert_eq!(plan, format!("SEARCH machine_action USING INDEX {way}"));
    }
}
