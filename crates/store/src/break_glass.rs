//! Break-glass codes: what a machine holds, what was shown of it, and what was used.

use domain::machine::MachineId;
use domain::time::Timestamp;
use rusqlite::params;

use crate::row::{count, stored, time_or_none};
use crate::{StoreError, Tx};

/// What is known of a machine's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakGlassRow {
    /// The store epoch of the statement that the machine holds.
    pub store_epoch: u64,
    /// The enrollment that it is of.
    pub incarnation: u64,
    /// The serial of its first code.
    pub first_serial: u64,
    /// The serial of the last code that was shown, of this statement or one before it in the same enrollment and epoch.
    pub shown_serial: u64,
    /// When that was.
    pub shown_at: Option<Timestamp>,
}

/// A code that was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakGlassUseRow {
    /// The store epoch of its statement.
    pub store_epoch: u64,
    /// The enrollment that it is of.
    pub incarnation: u64,
    /// Its serial.
    pub serial: u64,
    /// The generation of the restriction that it lifted.
    pub generation: u64,
    /// When, by the machine's clock.
    pub used_at: Timestamp,
}

/// What is known of a machine's codes; none before the machine said that it holds any.
///
/// # Errors
/// [`StoreError`].
pub fn break_glass_fetch(tx: &Tx<'_>, machine: MachineId) -> Result<Option<BreakGlassRow>, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "SELECT store_epoch, incarnation, first_serial, shown_serial, shown_at FROM break_glass WHERE machine = $1",
    )?;
    let mut rows = statement.query([machine.to_string()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(BreakGlassRow {
        store_epoch: count(row, "store_epoch")?,
        incarnation: count(row, "incarnation")?,
        first_serial: count(row, "first_serial")?,
        shown_serial: count(row, "shown_serial")?,
        shown_at: time_or_none(row, "shown_at")?,
    }))
}

/// Puts this in the place of what was known.
///
/// # Errors
/// [`StoreError`].
pub fn break_glass_save(tx: &Tx<'_>, machine: MachineId, known: &BreakGlassRow) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO break_glass (machine, store_epoch, incarnation, first_serial, shown_serial, shown_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (machine) DO UPDATE SET store_epoch = $2, incarnation = $3, \
         first_serial = $4, shown_serial = $5, shown_at = $6",
    )?
    .execute(params![
        machine.to_string(),
        stored(known.store_epoch),
        stored(known.incarnation),
        stored(known.first_serial),
        stored(known.shown_serial),
        known.shown_at.map(Timestamp::ticks)
    ])?;
    Ok(())
}

/// Records that a code was used; whether that is news.
///
/// # Errors
/// [`StoreError`].
pub fn break_glass_use_create(
    tx: &Tx<'_>,
    machine: MachineId,
    used: &BreakGlassUseRow,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let created = tx
        .0
        .prepare_cached(
            "INSERT INTO break_glass_use (machine, store_epoch, incarnation, serial, generation, used_at, recorded_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            machine.to_string(),
            stored(used.store_epoch),
            stored(used.incarnation),
            stored(used.serial),
            stored(used.generation),
            used.used_at.ticks(),
            now.ticks()
        ])?;
    Ok(created == 1)
}

/// The serial of the last code of a store epoch and an enrollment that was used; 0 before the first.
///
/// # Errors
/// [`StoreError`].
pub fn break_glass_used_serial(
    tx: &Tx<'_>,
    machine: MachineId,
    store_epoch: u64,
    incarnation: u64,
) -> Result<u64, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "SELECT coalesce(max(serial), 0) AS serial FROM break_glass_use \
         WHERE machine = $1 AND store_epoch = $2 AND incarnation = $3",
    )?;
    let mut rows = statement.query(params![machine.to_string(), stored(store_epoch), stored(incarnation)])?;
    let row = rows.next()?.ok_or_else(|| StoreError::Damaged("no row came back".to_owned()))?;
    count(row, "serial")
}

/// The restriction of a machine was lifted by a code: it is wanted to be what it reports.
///
/// # Errors
/// [`StoreError`].
pub fn break_glass_lift(tx: &Tx<'_>, machine: MachineId, at: Timestamp) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "UPDATE machine SET desired_restricted = 0, wanted_generation = reported_generation, ends_at = NULL, \
         broken_glass_at = $2 WHERE id = $1",
    )?
    .execute(params![machine.to_string(), at.ticks()])?;
    Ok(())
}
