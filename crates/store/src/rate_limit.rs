//! The call times that rate limits count, so that they hold over a restart.

use domain::rate_limit::{CallLog, RateLimit};
use domain::time::Timestamp;
use rusqlite::params;

use crate::row::{count, stored, time};
use crate::{StoreError, Tx};

/// Whose calls of which operation.
pub type Key = (String, String);

/// Records call number `call` in its slot of the ring.
///
/// # Errors
/// [`StoreError`].
pub fn rate_limit_spend(
    tx: &Tx<'_>,
    key: &Key,
    limit: &RateLimit,
    call: u64,
    at: Timestamp,
) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO rate_limit_call (operation, app, slot, call, at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (operation, app, slot) DO UPDATE SET call = $4, at = $5",
    )?
    .execute(params![key.0, key.1, stored(CallLog::slot(limit, call)), stored(call), at.ticks()])?;
    Ok(())
}

/// Every recorded call since `since`.
///
/// # Errors
/// [`StoreError`].
pub fn rate_limit_list(tx: &Tx<'_>, since: Timestamp) -> Result<Vec<(Key, u64, Timestamp)>, StoreError> {
    let mut statement =
        tx.0.prepare_cached("SELECT operation, app, call, at FROM rate_limit_call WHERE at >= $1")?;
    let mut rows = statement.query([since.ticks()])?;
    let mut calls = Vec::new();
    while let Some(row) = rows.next()? {
        calls.push(((row.get("operation")?, row.get("app")?), count(row, "call")?, time(row, "at")?));
    }
    Ok(calls)
}

/// Forgets every recorded call, for writing them anew: rings of another size use other slots.
///
/// # Errors
/// [`StoreError`].
pub fn rate_limit_clear(tx: &Tx<'_>) -> Result<(), StoreError> {
    tx.0.execute("DELETE FROM rate_limit_call", [])?;
    Ok(())
}
