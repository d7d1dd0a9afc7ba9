//! People with an account of this deployment, their passwords' hashes, and what they got wrong.

use std::collections::HashMap;

use domain::time::Timestamp;
use domain::user::User;
use rusqlite::{Row, params};
use uuid::Uuid;

use crate::row::{count, parsed, time, time_or_none};
use crate::{StoreError, Tx};

const COLUMNS: &str = "id, name, display_name, created_at, password_changed_at, disabled_at, locked_until";

/// All people, by name.
///
/// # Errors
/// [`StoreError`].
pub fn user_list(tx: &Tx<'_>) -> Result<Vec<User>, StoreError> {
    let mut groups: HashMap<String, Vec<String>> = HashMap::new();
    let mut statement =
        tx.0.prepare_cached("SELECT user_account, user_group FROM user_account_group ORDER BY user_group")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        groups.entry(row.get("user_account")?).or_default().push(row.get("user_group")?);
    }
    let mut statement = tx.0.prepare_cached(&format!("SELECT {COLUMNS} FROM user_account ORDER BY name"))?;
    let mut rows = statement.query([])?;
    let mut users = Vec::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get("id")?;
        users.push(read(row, groups.remove(&id).unwrap_or_default())?);
    }
    Ok(users)
}

/// The person who signs in with this name, and the password's hash.
///
/// # Errors
/// [`StoreError`].
pub fn user_fetch(tx: &Tx<'_>, name: &str) -> Result<Option<(User, String)>, StoreError> {
    let mut statement =
        tx.0.prepare_cached(&format!("SELECT {COLUMNS}, password_hash FROM user_account WHERE name = $1"))?;
    let mut rows = statement.query([name])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let mut statement = tx.0.prepare_cached(
        "SELECT user_group FROM user_account_group WHERE user_account = $1 ORDER BY user_group",
    )?;
    let id: String = row.get("id")?;
    let groups = statement.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(Some((read(row, groups)?, row.get("password_hash")?)))
}

/// Records a person with the password's hash.
///
/// # Errors
/// [`StoreError::Duplicate`] when the name is taken.
pub fn user_create(tx: &Tx<'_>, user: &User, password_hash: &str) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO user_account (id, name, display_name, password_hash, created_at, password_changed_at, \
         disabled_at, locked_until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )?
    .execute(params![
        user.id.to_string(),
        user.name,
        user.display_name,
        password_hash,
        user.created_at.ticks(),
        user.password_changed_at.ticks(),
        user.disabled_at.map(Timestamp::ticks),
        user.locked_until.map(Timestamp::ticks)
    ])?;
    groups_create(tx, user)
}

/// Changes a person's display name and groups, and whether the account is disabled.
///
/// # Errors
/// [`StoreError`].
pub fn user_update(tx: &Tx<'_>, user: &User) -> Result<(), StoreError> {
    let changed = tx
        .0
        .prepare_cached("UPDATE user_account SET display_name = $2, disabled_at = $3, password_changed_at = $4 WHERE id = $1")?
        .execute(params![
            user.id.to_string(),
            user.display_name,
            user.disabled_at.map(Timestamp::ticks),
            user.password_changed_at.ticks()
        ])?;
    if changed == 0 {
        return Ok(());
    }
    groups_delete(tx, user.id)?;
    groups_create(tx, user)
}

/// Puts another password's hash in the place of a person's. What was got wrong before is forgotten.
///
/// # Errors
/// [`StoreError`].
pub fn user_password_set(
    tx: &Tx<'_>,
    id: Uuid,
    password_hash: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "UPDATE user_account SET password_hash = $2, password_changed_at = $3, failures = 0, locked_until = NULL \
         WHERE id = $1",
    )?
    .execute(params![id.to_string(), password_hash, at.ticks()])?;
    Ok(())
}

/// Deletes a person's account; whether it was there.
///
/// # Errors
/// [`StoreError`].
pub fn user_delete(tx: &Tx<'_>, id: Uuid) -> Result<bool, StoreError> {
    groups_delete(tx, id)?;
    tx.0.prepare_cached("DELETE FROM sign_in_network WHERE user_account = $1")?.execute([id.to_string()])?;
    Ok(tx.0.prepare_cached("DELETE FROM user_account WHERE id = $1")?.execute([id.to_string()])? == 1)
}

/// Records how many wrong passwords there were since the last right one, and until when sign-ins are refused.
///
/// # Errors
/// [`StoreError`].
pub fn user_failed(
    tx: &Tx<'_>,
    id: Uuid,
    failures: u32,
    locked_until: Option<Timestamp>,
) -> Result<(), StoreError> {
    tx.0.prepare_cached("UPDATE user_account SET failures = $2, locked_until = $3 WHERE id = $1")?
        .execute(params![id.to_string(), failures, locked_until.map(Timestamp::ticks)])?;
    Ok(())
}

/// How many wrong passwords there were since the last right one; none of a person without an account.
///
/// # Errors
/// [`StoreError`].
pub fn user_failures(tx: &Tx<'_>, id: Uuid) -> Result<u32, StoreError> {
    let mut statement = tx.0.prepare_cached("SELECT failures FROM user_account WHERE id = $1")?;
    let mut rows = statement.query([id.to_string()])?;
    let failures = rows.next()?.map(|row| count(row, "failures")).transpose()?;
    Ok(failures.unwrap_or(0))
}

/// Forgets the wrong passwords before a right one.
///
/// # Errors
/// [`StoreError`].
pub fn user_signed_in(tx: &Tx<'_>, id: Uuid) -> Result<(), StoreError> {
    user_failed(tx, id, 0, None)
}

/// Records that a person signed in from a network, and forgets all but the newest `kept` of the person's networks. Does
/// nothing when the account is gone.
///
/// # Errors
/// [`StoreError`].
pub fn user_network_seen(
    tx: &Tx<'_>,
    id: Uuid,
    network: &str,
    at: Timestamp,
    kept: u32,
) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO sign_in_network (user_account, network, signed_in_at) \
         SELECT id, $2, $3 FROM user_account WHERE id = $1 \
         ON CONFLICT (user_account, network) DO UPDATE SET signed_in_at = excluded.signed_in_at",
    )?
    .execute(params![id.to_string(), network, at.ticks()])?;
    tx.0.prepare_cached(
        "DELETE FROM sign_in_network WHERE user_account = $1 AND network IN (SELECT network FROM sign_in_network \
         WHERE user_account = $1 ORDER BY signed_in_at DESC, network LIMIT 1000 OFFSET $2)",
    )?
    .execute(params![id.to_string(), kept])?;
    Ok(())
}

/// Whether a person signed in from a network at `since` or later.
///
/// # Errors
/// [`StoreError`].
pub fn user_network_known(
    tx: &Tx<'_>,
    id: Uuid,
    network: &str,
    since: Timestamp,
) -> Result<bool, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "SELECT 1 FROM sign_in_network WHERE user_account = $1 AND network = $2 AND signed_in_at >= $3",
    )?;
    Ok(statement.exists(params![id.to_string(), network, since.ticks()])?)
}

fn groups_create(tx: &Tx<'_>, user: &User) -> Result<(), StoreError> {
    let mut insert = tx.0.prepare_cached(
        "INSERT INTO user_account_group (user_account, user_group) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )?;
    for group in &user.groups {
        insert.execute(params![user.id.to_string(), group])?;
    }
    Ok(())
}

fn groups_delete(tx: &Tx<'_>, id: Uuid) -> Result<(), StoreError> {
    tx.0.prepare_cached("DELETE FROM user_account_group WHERE user_account = $1")?
        .execute([id.to_string()])?;
    Ok(())
}

fn read(row: &Row<'_>, groups: Vec<String>) -> Result<User, StoreError> {
    Ok(User {
        id: parsed(row, "id")?,
        name: row.get("name")?,
        display_name: row.get("display_name")?,
        groups,
        created_at: time(row, "created_at")?,
        password_changed_at: time(row, "password_changed_at")?,
        disabled_at: time_or_none(row, "disabled_at")?,
        locked_until: time_or_none(row, "locked_until")?,
    })
}
