//! Machine actions with their orders and receipts.

use domain::machine::MachineId;
use domain::machine_action::{Cancellation, MachineAction, MachineActionId, Phase};
use domain::restriction::Fence;
use domain::time::Timestamp;
use rusqlite::{Row, named_params, params};
use uuid::Uuid;

use crate::row::{
    count, kind_number, kind_of, parsed, phase_number, phase_of, source_number, source_of, stored, time,
};
use crate::{StoreError, Tx};

pub(crate) const COLUMNS: &str = "id, machine, computer_dns_name, store_epoch, incarnation, generation, kind, phase, \
    requestor, comment, source, external_id, created_at, updated_at, deadline, cancelled_by, cancelled_comment, \
    cancelled_at, failure";

/// Records an action with its signed order.
///
/// # Errors
/// [`StoreError::Duplicate`] when the machine has an open action.
pub fn machine_action_create(
    tx: &Tx<'_>,
    action: &MachineAction,
    signed_order: &str,
) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO machine_action (id, machine, computer_dns_name, store_epoch, incarnation, generation, kind, \
         phase, open, requestor, comment, source, external_id, created_at, updated_at, deadline, signed_order) \
         VALUES (:id, :machine, :name, :epoch, :incarnation, :generation, :kind, :phase, :open, :requestor, \
         :comment, :source, :external, :created, :updated, :deadline, :order)",
    )?
    .execute(named_params! {
        ":id": action.id.0.to_string(),
        ":machine": action.machine.to_string(),
        ":name": action.computer_dns_name,
        ":epoch": stored(action.fence.store_epoch),
        ":incarnation": stored(action.fence.incarnation),
        ":generation": stored(action.fence.generation),
        ":kind": kind_number(action.kind),
        ":phase": phase_number(action.phase),
        ":open": i64::from(!action.phase.is_final()),
        ":requestor": action.requestor,
        ":comment": action.comment,
        ":source": source_number(action.source),
        ":external": action.external_id,
        ":created": action.created_at.ticks(),
        ":updated": action.updated_at.ticks(),
        ":deadline": action.deadline.ticks(),
        ":order": signed_order,
    })?;
    Ok(())
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
            "UPDATE machine_action SET phase = :to, open = :open, updated_at = :now, failure = :failure, \
             cancelled_by = :by, cancelled_comment = :comment, cancelled_at = :at WHERE id = :id AND phase = :from",
        )?
        .execute(named_params! {
            ":to": phase_number(to),
            ":open": i64::from(!to.is_final()),
            ":now": now.ticks(),
            ":failure": failure,
            ":by": cancellation.map(|c| c.requestor.as_str()),
            ":comment": cancellation.map(|c| c.comment.as_str()),
            ":at": cancellation.map(|c| c.at.ticks()),
            ":id": action.id.0.to_string(),
            ":from": phase_number(action.phase),
        })?;
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
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        deadline: time(row, "deadline")?,
        cancellation,
        failure: row.get("failure")?,
    })
}
