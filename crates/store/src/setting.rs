//! Settings that administrators change, as text. What they mean is not known here.

use std::collections::BTreeMap;

use rusqlite::params;

use crate::{StoreError, Tx};

/// The setting that belongs to the database itself: see [`crate::store_epoch_fetch`].
const STORE_EPOCH: &str = "store_epoch";

/// All settings that were set, by name.
///
/// # Errors
/// [`StoreError`].
pub fn setting_list(tx: &Tx<'_>) -> Result<BTreeMap<String, String>, StoreError> {
    let mut statement = tx.0.prepare_cached("SELECT name, value FROM setting WHERE name <> $1")?;
    let settings = statement.query_map([STORE_EPOCH], |row| Ok((row.get("name")?, row.get("value")?)))?;
    Ok(settings.collect::<Result<_, _>>()?)
}

/// Sets a setting, or with none removes it, so that its default applies.
///
/// # Errors
/// [`StoreError::Unsupported`] for the store's own setting.
pub fn setting_set(tx: &Tx<'_>, name: &str, value: Option<&str>) -> Result<(), StoreError> {
    if name == STORE_EPOCH {
        return Err(StoreError::Unsupported(format!("{STORE_EPOCH} is the store's own")));
    }
    match value {
        Some(value) => {
            tx.0.prepare_cached(
                "INSERT INTO setting (name, value) VALUES ($1, $2) \
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )?
            .execute(params![name, value])?
        }
        None => tx.0.prepare_cached("DELETE FROM setting WHERE name = $1")?.execute([name])?,
    };
    Ok(())
}
