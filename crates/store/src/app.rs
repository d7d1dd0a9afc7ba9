//! Applications, and the public keys with which they sign client assertions.

use domain::app::App;
use domain::permission::Permission;
use domain::time::Timestamp;
use rusqlite::{Row, params};
use uuid::Uuid;

use crate::row::{count_or_none, parsed, time, time_or_none};
use crate::{StoreError, Tx};

const COLUMNS: &str = "id, name, permissions, is_public, redirect_uris, machine_groups, bulk_machines_max, created_at, \
    revoked_at";

/// A public key with which an app signs client assertions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppKey {
    /// SHA-256 of the public key (`SubjectPublicKeyInfo`, DER) in hexadecimal: its identity within the app.
    pub thumbprint: String,
    /// SHA-1 of the certificate that the key came with, base64url: the `x5t` of assertions.
    pub x5t: Option<String>,
    /// SHA-256 of that certificate, base64url: the `x5t#S256` of assertions.
    pub x5t_s256: Option<String>,
    /// The public key (`SubjectPublicKeyInfo`) in PEM.
    pub public_key: String,
    /// What it is for.
    pub comment: String,
    /// When it was added.
    pub created_at: Timestamp,
    /// When the certificate ends.
    pub expires_at: Option<Timestamp>,
}

/// Records an app with the digest of its secret, which is empty when it is a public one.
///
/// # Errors
/// [`StoreError::Duplicate`] when the name is taken.
pub fn app_create(tx: &Tx<'_>, app: &App, secret_digest: &str) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO app (id, name, secret_digest, permissions, is_public, redirect_uris, machine_groups, \
         bulk_machines_max, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )?
    .execute(params![
        app.id.to_string(),
        app.name,
        secret_digest,
        permissions_text(app),
        i64::from(app.is_public),
        app.redirect_uris.join("\n"),
        groups_text(app),
        app.bulk_machines_max,
        app.created_at.ticks()
    ])?;
    Ok(())
}

/// Changes an app: its name, permissions, redirect URIs, machine groups and bulk limit.
///
/// # Errors
/// [`StoreError::Duplicate`] when the name is taken.
pub fn app_update(tx: &Tx<'_>, app: &App) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "UPDATE app SET name = $2, permissions = $3, redirect_uris = $4, machine_groups = $5, \
         bulk_machines_max = $6 WHERE id = $1",
    )?
    .execute(params![
        app.id.to_string(),
        app.name,
        permissions_text(app),
        app.redirect_uris.join("\n"),
        groups_text(app),
        app.bulk_machines_max
    ])?;
    Ok(())
}

/// Puts another secret in the place of an app's.
///
/// # Errors
/// [`StoreError`].
pub fn app_secret_set(tx: &Tx<'_>, id: Uuid, secret_digest: &str) -> Result<(), StoreError> {
    tx.0.prepare_cached("UPDATE app SET secret_digest = $2 WHERE id = $1")?
        .execute(params![id.to_string(), secret_digest])?;
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

/// Adds a key to an app, which is there.
///
/// # Errors
/// [`StoreError::Duplicate`] when the app has it.
pub fn app_key_create(tx: &Tx<'_>, app: Uuid, key: &AppKey) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO app_key (app, thumbprint, x5t, x5t_s256, public_key, comment, created_at, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )?
    .execute(params![
        app.to_string(),
        key.thumbprint,
        key.x5t,
        key.x5t_s256,
        key.public_key,
        key.comment,
        key.created_at.ticks(),
        key.expires_at.map(Timestamp::ticks)
    ])?;
    Ok(())
}

/// The keys of an app, oldest first.
///
/// # Errors
/// [`StoreError`].
pub fn app_key_list(tx: &Tx<'_>, app: Uuid) -> Result<Vec<AppKey>, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "SELECT thumbprint, x5t, x5t_s256, public_key, comment, created_at, expires_at FROM app_key \
         WHERE app = $1 ORDER BY created_at, thumbprint",
    )?;
    let mut rows = statement.query([app.to_string()])?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        keys.push(AppKey {
            thumbprint: row.get("thumbprint")?,
            x5t: row.get("x5t")?,
            x5t_s256: row.get("x5t_s256")?,
            public_key: row.get("public_key")?,
            comment: row.get("comment")?,
            created_at: time(row, "created_at")?,
            expires_at: time_or_none(row, "expires_at")?,
        });
    }
    Ok(keys)
}

/// Takes a key from an app; whether it had it.
///
/// # Errors
/// [`StoreError`].
pub fn app_key_delete(tx: &Tx<'_>, app: Uuid, thumbprint: &str) -> Result<bool, StoreError> {
    let deleted =
        tx.0.prepare_cached("DELETE FROM app_key WHERE app = $1 AND thumbprint = $2")?
            .execute(params![app.to_string(), thumbprint])?;
    Ok(deleted == 1)
}

fn permissions_text(app: &App) -> String {
    let names: Vec<&str> = app.permissions.iter().map(|permission| permission.name()).collect();
    names.join(" ")
}

fn groups_text(app: &App) -> Option<String> {
    let groups = app.machine_groups.as_ref()?;
    Some(groups.iter().map(i64::to_string).collect::<Vec<_>>().join(" "))
}

fn groups_of(text: &str) -> Result<Vec<i64>, StoreError> {
    let damaged = |_unreadable| StoreError::Damaged(format!("machine_groups {text:?}"));
    text.split_whitespace().map(|number| number.parse().map_err(damaged)).collect()
}

fn read(row: &Row<'_>) -> Result<App, StoreError> {
    let permissions: String = row.get("permissions")?;
    let redirect_uris: String = row.get("redirect_uris")?;
    let machine_groups: Option<String> = row.get("machine_groups")?;
    Ok(App {
        id: parsed(row, "id")?,
        name: row.get("name")?,
        // A permission that this version does not know gives nothing.
        permissions: permissions.split(' ').filter_map(Permission::from_name).collect(),
        is_public: row.get::<_, i64>("is_public")? != 0,
        redirect_uris: redirect_uris.lines().map(str::to_owned).collect(),
        machine_groups: machine_groups.as_deref().map(groups_of).transpose()?,
        bulk_machines_max: count_or_none(row, "bulk_machines_max")?,
        created_at: time(row, "created_at")?,
        revoked_at: time_or_none(row, "revoked_at")?,
    })
}
