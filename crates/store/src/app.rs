//! Applications.

use domain::app::App;
use domain::permission::Permission;
use domain::time::Timestamp;
use rusqlite::{Row, params};
use uuid::Uuid;

use crate::row::{parsed, time, time_or_none};
use crate::{StoreError, Tx};

const COLUMNS: &str = "id, name, permissions, created_at, revoked_at";

/// Records an app with the digest of its secret.
///
/// # Errors
/// [`StoreError::Duplicate`] when the name is taken.
pub fn app_create(tx: &Tx<'_>, app: &App, secret_digest: &str) -> Result<(), StoreError> {
    let permissions: Vec<&str> = app.permissions.iter().map(|permission| permission.name()).collect();
    tx.0.prepare_cached(
        "INSERT INTO app (id, name, secret_digest, permissions, created_at) VALUES ($1, $2, $3, $4, $5)",
    )?
    .execute(params![
        app.id.to_string(),
        app.name,
        secret_digest,
        permissions.join(" "),
        app.created_at.ticks()
    ])?;
    Ok(())
}

/// The app with this id, and the digest of its secret.
///
/// # Errors
/// [`StoreError`].
pub fn app_fetch(tx: &Tx<'_>, id: Uuid) -> Result<Option<(App, String)>, StoreError> {
    let mut statement =
        tx.0.prepare_cached(&format!("SELECT {COLUMNS}, secret_digest FROM app WHERE id = $1"))?;
    let mut rows = statement.query([id.to_string()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some((read(row)?, row.get("secret_digest")?)))
}

/// All apps, oldest first.
///
/// # Errors
/// [`StoreError`].
pub fn app_list(tx: &Tx<'_>) -> Result<Vec<App>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!("SELECT {COLUMNS} FROM app ORDER BY created_at, id"))?;
    let mut rows = statement.query([])?;
    let mut apps = Vec::new();
    while let Some(row) = rows.next()? {
        apps.push(read(row)?);
    }
    Ok(apps)
}

/// Revokes an app; whether it was there and not revoked.
///
/// # Errors
/// [`StoreError`].
pub fn app_revoke(tx: &Tx<'_>, id: Uuid, now: Timestamp) -> Result<bool, StoreError> {
    let changed =
        tx.0.prepare_cached("UPDATE app SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")?
            .execute(params![id.to_string(), now.ticks()])?;
    Ok(changed == 1)
}

fn read(row: &Row<'_>) -> Result<App, StoreError> {
    let permissions: String = row.get("permissions")?;
    Ok(App {
        id: parsed(row, "id")?,
        name: row.get("name")?,
        // A permission that this version does not know gives nothing.
        permissions: permissions.split(' ').filter_map(Permission::from_name).collect(),
        created_at: time(row, "created_at")?,
        revoked_at: time_or_none(row, "revoked_at")?,
    })
}
