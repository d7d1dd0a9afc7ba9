//! The tags of machines.

use domain::machine::MachineId;
use rusqlite::params;

use crate::row::count;
use crate::{StoreError, Tx};

/// Gives a machine, which is there, a tag; whether it did not have it.
///
/// # Errors
/// [`StoreError`].
pub fn machine_tag_add(tx: &Tx<'_>, id: MachineId, tag: &str) -> Result<bool, StoreError> {
    let added =
        tx.0.prepare_cached("INSERT INTO machine_tag (machine, tag) VALUES ($1, $2) ON CONFLICT DO NOTHING")?
            .execute(params![id.to_string(), tag])?;
    Ok(added == 1)
}

/// Takes a tag from a machine; whether it had it.
///
/// # Errors
/// [`StoreError`].
pub fn machine_tag_remove(tx: &Tx<'_>, id: MachineId, tag: &str) -> Result<bool, StoreError> {
    let removed =
        tx.0.prepare_cached("DELETE FROM machine_tag WHERE machine = $1 AND tag = $2")?
            .execute(params![id.to_string(), tag])?;
    Ok(removed == 1)
}

/// How many tags a machine has.
///
/// # Errors
/// [`StoreError`].
pub fn machine_tag_count(tx: &Tx<'_>, id: MachineId) -> Result<u64, StoreError> {
    let mut statement = tx.0.prepare_cached("SELECT count(*) AS tags FROM machine_tag WHERE machine = $1")?;
    let mut rows = statement.query([id.to_string()])?;
    let row = rows.next()?.ok_or_else(|| StoreError::Damaged("no count came back".to_owned()))?;
    count(row, "tags")
}
