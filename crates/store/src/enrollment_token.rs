//! Enrollment tokens.

use domain::enrollment_token::EnrollmentToken;
use domain::time::Timestamp;
use rusqlite::{Row, params};
use uuid::Uuid;

use crate::row::{count, parsed, time, time_or_none};
use crate::{StoreError, Tx};

const COLUMNS: &str = "id, comment, uses_max, uses, created_at, expires_at, revoked_at";

/// Records a token with the digest of its secret.
///
/// # Errors
/// [`StoreError`].
pub fn enrollment_token_create(
    tx: &Tx<'_>,
    token: &EnrollmentToken,
    secret_digest: &str,
) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO enrollment_token (id, secret_digest, comment, uses_max, uses, created_at, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )?
    .execute(params![
        token.id.to_string(),
        secret_digest,
        token.comment,
        token.uses_max,
        token.uses,
        token.created_at.ticks(),
        token.expires_at.ticks()
    ])?;
    Ok(())
}

/// The token whose secret has this digest.
///
/// # Errors
/// [`StoreError`].
pub fn enrollment_token_fetch(
    tx: &Tx<'_>,
    secret_digest: &str,
) -> Result<Option<EnrollmentToken>, StoreError> {
    let mut statement =
        tx.0.prepare_cached(&format!("SELECT {COLUMNS} FROM enrollment_token WHERE secret_digest = $1"))?;
    let mut rows = statement.query([secret_digest])?;
    rows.next()?.map(read).transpose()
}

/// All tokens, newest first.
///
/// # Errors
/// [`StoreError`].
pub fn enrollment_token_list(tx: &Tx<'_>) -> Result<Vec<EnrollmentToken>, StoreError> {
    let mut statement =
        tx.0.prepare_cached(&format!("SELECT {COLUMNS} FROM enrollment_token ORDER BY created_at DESC, id"))?;
    let mut rows = statement.query([])?;
    let mut tokens = Vec::new();
    while let Some(row) = rows.next()? {
        tokens.push(read(row)?);
    }
    Ok(tokens)
}

/// Spends one use; whether there was one left.
///
/// # Errors
/// [`StoreError`].
pub fn enrollment_token_spend(tx: &Tx<'_>, id: Uuid) -> Result<bool, StoreError> {
    let changed =
        tx.0.prepare_cached("UPDATE enrollment_token SET uses = uses + 1 WHERE id = $1 AND uses < uses_max")?
            .execute([id.to_string()])?;
    Ok(changed == 1)
}

/// Revokes a token; whether it was there and not revoked.
///
/// # Errors
/// [`StoreError`].
pub fn enrollment_token_revoke(tx: &Tx<'_>, id: Uuid, now: Timestamp) -> Result<bool, StoreError> {
    let changed = tx
        .0
        .prepare_cached("UPDATE enrollment_token SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")?
        .execute(params![id.to_string(), now.ticks()])?;
    Ok(changed == 1)
}

fn read(row: &Row<'_>) -> Result<EnrollmentToken, StoreError> {
    Ok(EnrollmentToken {
        id: parsed(row, "id")?,
        comment: row.get("comment")?,
        uses_max: count(row, "uses_max")?,
        uses: count(row, "uses")?,
        created_at: time(row, "created_at")?,
        expires_at: time(row, "expires_at")?,
        revoked_at: time_or_none(row, "revoked_at")?,
    })
}
