//! Sessions of people, device codes, and used client assertions. Secrets come as digests only.

use std::time::Duration;

use domain::permission::Permission;
use domain::session::{Asked, Decision, DeviceCode, Session};
use domain::time::Timestamp;
use rusqlite::{Row, params};
use uuid::Uuid;

use crate::row::{count, parsed, parsed_or_none, stored, time, time_or_none};
use crate::{StoreError, Tx};

const SESSION: &str = "id, app, user_account, user_name, audience, permissions, everything, openid, offline, \
    signed_in_at, expires_at, revoked_at";
const DEVICE_CODE: &str = "app, audience, permissions, everything, openid, offline, address, created_at, expires_at, \
    interval_seconds, polled_at, declined_at, session";

/// The authorization code that a session begins with, and what whoever redeems it must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Digest of the code.
    pub digest: String,
    /// Where it was sent.
    pub redirect_uri: String,
    /// The challenge of PKCE, base64url.
    pub challenge: String,
    /// Goes into the id token.
    pub nonce: Option<String>,
    /// When it was redeemed.
    pub spent_at: Option<Timestamp>,
}

/// The digests of both parts of a refresh token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshToken {
    /// The part that all tokens of a session share.
    pub handle_digest: String,
    /// The part of the newest one.
    pub digest: String,
}

/// Records a session, with the code that it begins with if it does.
///
/// # Errors
/// [`StoreError`].
pub fn session_create(tx: &Tx<'_>, session: &Session, code: Option<&Code>) -> Result<(), StoreError> {
    let asked = &session.asked;
    tx.0.prepare_cached(
        "INSERT INTO session (id, app, user_account, user_name, audience, permissions, everything, openid, offline, \
         signed_in_at, expires_at, code_digest, redirect_uri, challenge, nonce) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
    )?
    .execute(params![
        session.id.to_string(),
        session.app.to_string(),
        session.user.to_string(),
        session.user_name,
        asked.audience,
        permissions_text(asked),
        i64::from(asked.everything),
        i64::from(asked.openid),
        i64::from(asked.offline),
        session.signed_in_at.ticks(),
        session.expires_at.ticks(),
        code.map(|code| &code.digest),
        code.map(|code| &code.redirect_uri),
        code.map(|code| &code.challenge),
        code.and_then(|code| code.nonce.as_ref()),
    ])?;
    Ok(())
}

/// The session with this id.
///
/// # Errors
/// [`StoreError`].
pub fn session_fetch(tx: &Tx<'_>, id: Uuid) -> Result<Option<Session>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!("SELECT {SESSION} FROM session WHERE id = $1"))?;
    let mut rows = statement.query([id.to_string()])?;
    rows.next()?.map(session_of).transpose()
}

/// The session that began with the code with this digest, spent or not.
///
/// # Errors
/// [`StoreError`].
pub fn session_by_code(tx: &Tx<'_>, digest: &str) -> Result<Option<(Session, Code)>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!(
        "SELECT {SESSION}, code_digest, redirect_uri, challenge, nonce, code_spent_at FROM session \
         WHERE code_digest = $1"
    ))?;
    let mut rows = statement.query([digest])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let code = Code {
        digest: row.get("code_digest")?,
        redirect_uri: row.get("redirect_uri")?,
        challenge: row.get("challenge")?,
        nonce: row.get("nonce")?,
        spent_at: time_or_none(row, "code_spent_at")?,
    };
    Ok(Some((session_of(row)?, code)))
}

/// The session whose refresh tokens have this handle, and the digests of the newest one.
///
/// # Errors
/// [`StoreError`].
pub fn session_by_refresh_handle(
    tx: &Tx<'_>,
    handle_digest: &str,
) -> Result<Option<(Session, RefreshToken)>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!(
        "SELECT {SESSION}, refresh_handle_digest, refresh_digest FROM session WHERE refresh_handle_digest = $1"
    ))?;
    let mut rows = statement.query([handle_digest])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let token =
        RefreshToken { handle_digest: row.get("refresh_handle_digest")?, digest: row.get("refresh_digest")? };
    Ok(Some((session_of(row)?, token)))
}

/// Records that the code of a session was redeemed; whether it was not before.
///
/// # Errors
/// [`StoreError`].
pub fn session_code_spend(tx: &Tx<'_>, id: Uuid, at: Timestamp) -> Result<bool, StoreError> {
    let changed =
        tx.0.prepare_cached("UPDATE session SET code_spent_at = $2 WHERE id = $1 AND code_spent_at IS NULL")?
            .execute(params![id.to_string(), at.ticks()])?;
    Ok(changed == 1)
}

/// Puts another refresh token in the place of a session's, if there is to be one, and sets until when it lasts.
///
/// # Errors
/// [`StoreError`].
pub fn session_renew(
    tx: &Tx<'_>,
    id: Uuid,
    token: Option<&RefreshToken>,
    expires_at: Timestamp,
) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "UPDATE session SET refresh_handle_digest = $2, refresh_digest = $3, expires_at = $4 WHERE id = $1",
    )?
    .execute(params![
        id.to_string(),
        token.map(|token| &token.handle_digest),
        token.map(|token| &token.digest),
        expires_at.ticks()
    ])?;
    Ok(())
}

/// Revokes a session; whether it was not before.
///
/// # Errors
/// [`StoreError`].
pub fn session_revoke(tx: &Tx<'_>, id: Uuid, at: Timestamp) -> Result<bool, StoreError> {
    let changed =
        tx.0.prepare_cached("UPDATE session SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")?
            .execute(params![id.to_string(), at.ticks()])?;
    Ok(changed == 1)
}

/// Forgets the oldest sessions of an account but for the newest `kept`.
///
/// # Errors
/// [`StoreError`].
pub fn session_forget_oldest(tx: &Tx<'_>, user: Uuid, kept: u32) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "DELETE FROM session WHERE user_account = $1 AND id IN (SELECT id FROM session WHERE user_account = $1 \
         ORDER BY signed_in_at DESC, id LIMIT 1000 OFFSET $2)",
    )?
    .execute(params![user.to_string(), kept])?;
    Ok(())
}

/// Forgets sessions, device codes and assertions that expired before `at`.
///
/// # Errors
/// [`StoreError`].
pub fn session_forget_expired(tx: &Tx<'_>, at: Timestamp) -> Result<(), StoreError> {
    for table in ["session", "device_code", "assertion"] {
        tx.0.prepare_cached(&format!("DELETE FROM {table} WHERE expires_at < $1"))?.execute([at.ticks()])?;
    }
    Ok(())
}

/// Records a device that waits. `network` is whom it counts for.
///
/// # Errors
/// [`StoreError::Duplicate`] when the person's code is in use.
pub fn device_code_create(
    tx: &Tx<'_>,
    code: &DeviceCode,
    network: &str,
    digest: &str,
    user_code_digest: &str,
) -> Result<(), StoreError> {
    let asked = &code.asked;
    tx.0.prepare_cached(
        "INSERT INTO device_code (digest, user_code_digest, app, audience, permissions, everything, openid, offline, \
         address, network, created_at, expires_at, interval_seconds) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )?
    .execute(params![
        digest,
        user_code_digest,
        code.app.to_string(),
        asked.audience,
        permissions_text(asked),
        i64::from(asked.everything),
        i64::from(asked.openid),
        i64::from(asked.offline),
        code.address,
        network,
        code.created_at.ticks(),
        code.expires_at.ticks(),
        stored(code.interval.as_secs()),
    ])?;
    Ok(())
}

/// How many devices wait for a person at the time `at`: all, and those of one network.
///
/// # Errors
/// [`StoreError`].
pub fn device_code_count(tx: &Tx<'_>, network: &str, at: Timestamp) -> Result<(u64, u64), StoreError> {
    let waiting = "FROM device_code WHERE session IS NULL AND declined_at IS NULL AND expires_at > $1";
    let all: i64 =
        tx.0.prepare_cached(&format!("SELECT count(*) {waiting}"))?
            .query_row([at.ticks()], |row| row.get(0))?;
    let of_network: i64 =
        tx.0.prepare_cached(&format!("SELECT count(*) {waiting} AND network = $2"))?
            .query_row(params![at.ticks(), network], |row| row.get(0))?;
    Ok((u64::try_from(all).unwrap_or(0), u64::try_from(of_network).unwrap_or(0)))
}

/// The device that holds the code with this digest.
///
/// # Errors
/// [`StoreError`].
pub fn device_code_fetch(tx: &Tx<'_>, digest: &str) -> Result<Option<DeviceCode>, StoreError> {
    device_code_by(tx, "digest", digest)
}

/// The device whose code for the person has this digest.
///
/// # Errors
/// [`StoreError`].
pub fn device_code_by_user_code(
    tx: &Tx<'_>,
    user_code_digest: &str,
) -> Result<Option<DeviceCode>, StoreError> {
    device_code_by(tx, "user_code_digest", user_code_digest)
}

fn device_code_by(tx: &Tx<'_>, column: &str, digest: &str) -> Result<Option<DeviceCode>, StoreError> {
    let mut statement =
        tx.0.prepare_cached(&format!("SELECT {DEVICE_CODE} FROM device_code WHERE {column} = $1"))?;
    let mut rows = statement.query([digest])?;
    rows.next()?.map(device_code_of).transpose()
}

/// Records when a device polled.
///
/// # Errors
/// [`StoreError`].
pub fn device_code_polled(tx: &Tx<'_>, digest: &str, at: Timestamp) -> Result<(), StoreError> {
    tx.0.prepare_cached("UPDATE device_code SET polled_at = $2 WHERE digest = $1")?
        .execute(params![digest, at.ticks()])?;
    Ok(())
}

/// Records what a person decided; whether nobody had before.
///
/// # Errors
/// [`StoreError`].
pub fn device_code_decide(
    tx: &Tx<'_>,
    user_code_digest: &str,
    decision: Decision,
    at: Timestamp,
) -> Result<bool, StoreError> {
    let (session, declined_at) = match decision {
        Decision::Approved(session) => (Some(session.to_string()), None),
        Decision::Declined => (None, Some(at.ticks())),
    };
    let changed =
        tx.0.prepare_cached(
            "UPDATE device_code SET session = $2, declined_at = $3 \
             WHERE user_code_digest = $1 AND session IS NULL AND declined_at IS NULL",
        )?
        .execute(params![user_code_digest, session, declined_at])?;
    Ok(changed == 1)
}

/// Forgets a device; whether it was there.
///
/// # Errors
/// [`StoreError`].
pub fn device_code_delete(tx: &Tx<'_>, digest: &str) -> Result<bool, StoreError> {
    Ok(tx.0.prepare_cached("DELETE FROM device_code WHERE digest = $1")?.execute([digest])? == 1)
}

/// Records an assertion of an app by its `jti`; whether it was not used before.
///
/// # Errors
/// [`StoreError`].
pub fn assertion_spend(
    tx: &Tx<'_>,
    app: Uuid,
    jti_digest: &str,
    expires_at: Timestamp,
) -> Result<bool, StoreError> {
    let inserted =
        tx.0.prepare_cached(
            "INSERT INTO assertion (app, jti_digest, expires_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )?
        .execute(params![app.to_string(), jti_digest, expires_at.ticks()])?;
    Ok(inserted == 1)
}

/// How many assertions of an app are remembered.
///
/// # Errors
/// [`StoreError`].
pub fn assertion_count(tx: &Tx<'_>, app: Uuid) -> Result<u64, StoreError> {
    let number: i64 =
        tx.0.prepare_cached("SELECT count(*) FROM assertion WHERE app = $1")?
            .query_row([app.to_string()], |row| row.get(0))?;
    Ok(u64::try_from(number).unwrap_or(0))
}

fn permissions_text(asked: &Asked) -> String {
    let names: Vec<&str> = asked.permissions.iter().map(|permission| permission.name()).collect();
    names.join(" ")
}

fn asked_of(row: &Row<'_>) -> Result<Asked, StoreError> {
    let permissions: String = row.get("permissions")?;
    Ok(Asked {
        audience: row.get("audience")?,
        // A permission that this version does not know gives nothing.
        permissions: permissions.split(' ').filter_map(Permission::from_name).collect(),
        everything: row.get::<_, i64>("everything")? != 0,
        openid: row.get::<_, i64>("openid")? != 0,
        offline: row.get::<_, i64>("offline")? != 0,
    })
}

fn session_of(row: &Row<'_>) -> Result<Session, StoreError> {
    Ok(Session {
        id: parsed(row, "id")?,
        app: parsed(row, "app")?,
        user: parsed(row, "user_account")?,
        user_name: row.get("user_name")?,
        asked: asked_of(row)?,
        signed_in_at: time(row, "signed_in_at")?,
        expires_at: time(row, "expires_at")?,
        revoked_at: time_or_none(row, "revoked_at")?,
    })
}

fn device_code_of(row: &Row<'_>) -> Result<DeviceCode, StoreError> {
    let session = parsed_or_none(row, "session")?.map(Decision::Approved);
    let declined = time_or_none(row, "declined_at")?.map(|_| Decision::Declined);
    Ok(DeviceCode {
        app: parsed(row, "app")?,
        asked: asked_of(row)?,
        address: row.get("address")?,
        created_at: time(row, "created_at")?,
        expires_at: time(row, "expires_at")?,
        interval: Duration::from_secs(count(row, "interval_seconds")?),
        polled_at: time_or_none(row, "polled_at")?,
        decision: session.or(declined),
    })
}
