//! Allow policies, every revision of them.

use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::digest::Sha256Digest;
use domain::policy_settings::PolicySettings;
use domain::time::Timestamp;
use rusqlite::{OptionalExtension as _, Row, params};

use crate::row::{count, parsed, stored, time};
use crate::{StoreError, Tx};

/// A stored revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPolicy {
    /// The policy, with its revision.
    pub policy: AllowPolicy,
    /// Digest of its signed bytes.
    pub digest: Sha256Digest,
    /// When it was saved.
    pub updated_at: Timestamp,
    /// Who saved it.
    pub updated_by: String,
}

/// Saves a revision.
///
/// # Errors
/// [`StoreError::Duplicate`] when this revision exists.
pub fn policy_create(tx: &Tx<'_>, stored_policy: &StoredPolicy) -> Result<(), StoreError> {
    let StoredPolicy { policy, digest, updated_at, updated_by } = stored_policy;
    let profile = match policy.profile {
        Profile::OsOnly => 0_i64,
        Profile::OsAndApproved => 1,
        Profile::SurvivalOnly => 2,
    };
    let revision = stored(policy.revision);
    tx.0.prepare_cached(
        "INSERT INTO policy (name, revision, profile, digest, updated_at, updated_by) VALUES ($1, $2, $3, $4, $5, $6)",
    )?
    .execute(params![policy.name, revision, profile, digest.to_string(), updated_at.ticks(), updated_by])?;
    let mut insert = tx.0.prepare_cached(
        "INSERT INTO policy_rule (name, revision, rule, effect, sha256, path, comment, fs_verity) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )?;
    for rule in &policy.rules {
        let (sha256, path, is_fs_verity) = match &rule.matcher {
            Matcher::Sha256(digest) => (digest, None, false),
            Matcher::PathSha256(path, digest) => (digest, Some(path), false),
            Matcher::FsVerity(digest) => (digest, None, true),
        };
        let effect = i64::from(rule.effect == Effect::Deny);
        insert.execute(params![
            policy.name,
            revision,
            rule.id,
            effect,
            sha256.to_string(),
            path,
            rule.comment,
            i64::from(is_fs_verity)
        ])?;
    }
    let mut insert = tx.0.prepare_cached(
        "INSERT INTO policy_setting (name, revision, setting, value) VALUES ($1, $2, $3, $4)",
    )?;
    for (setting, value) in policy.settings.entries_set() {
        insert.execute(params![policy.name, revision, setting, value])?;
    }
    Ok(())
}

const COLUMNS: &str = "name, revision, profile, digest, updated_at, updated_by";

/// The most revisions that are listed at once.
pub const REVISIONS_MAX: u32 = 1000;
/// And the most rules that they hold together, so that revisions of long policies fit into memory.
pub const REVISION_RULES_MAX: usize = 100_000;

/// The newest revision of a policy.
///
/// # Errors
/// [`StoreError`].
pub fn policy_fetch(tx: &Tx<'_>, name: &str) -> Result<Option<StoredPolicy>, StoreError> {
    fetch_where(tx, "name = $1 ORDER BY revision DESC LIMIT 1", params![name])
}

/// One revision of a policy.
///
/// # Errors
/// [`StoreError`].
pub fn policy_fetch_revision(
    tx: &Tx<'_>,
    name: &str,
    revision: u64,
) -> Result<Option<StoredPolicy>, StoreError> {
    fetch_where(tx, "name = $1 AND revision = $2", params![name, stored(revision)])
}

/// The revision whose signed bytes have this digest.
///
/// # Errors
/// [`StoreError`].
pub fn policy_fetch_by_digest(tx: &Tx<'_>, digest: Sha256Digest) -> Result<Option<StoredPolicy>, StoreError> {
    fetch_where(tx, "digest = $1", params![digest.to_string()])
}

/// The revisions of a policy, newest first: at most [`REVISIONS_MAX`], and after the newest only as many as hold
/// [`REVISION_RULES_MAX`] rules together.
///
/// # Errors
/// [`StoreError`].
pub fn policy_revisions(tx: &Tx<'_>, name: &str) -> Result<Vec<StoredPolicy>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM policy WHERE name = $1 ORDER BY revision DESC LIMIT $2"
    ))?;
    let mut rows = statement.query(params![name, REVISIONS_MAX])?;
    let (mut revisions, mut rules): (Vec<StoredPolicy>, usize) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let revision = read(tx, row)?;
        rules = rules.saturating_add(revision.policy.rules.len());
        if rules > REVISION_RULES_MAX && !revisions.is_empty() {
            break;
        }
        revisions.push(revision);
    }
    Ok(revisions)
}

fn fetch_where(
    tx: &Tx<'_>,
    condition: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Option<StoredPolicy>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!("SELECT {COLUMNS} FROM policy WHERE {condition}"))?;
    let mut rows = statement.query(values)?;
    rows.next()?.map(|row| read(tx, row)).transpose()
}

fn read(tx: &Tx<'_>, row: &Row<'_>) -> Result<StoredPolicy, StoreError> {
    let name: String = row.get("name")?;
    let revision: u64 = count(row, "revision")?;
    let profile = match row.get::<_, i64>("profile")? {
        0 => Profile::OsOnly,
        1 => Profile::OsAndApproved,
        2 => Profile::SurvivalOnly,
        other => return Err(StoreError::Damaged(format!("profile {other}"))),
    };
    let settings = settings(tx, &name, revision)?;
    let rules = rules(tx, &name, revision)?;
    Ok(StoredPolicy {
        policy: AllowPolicy { name, revision, profile, settings, rules },
        digest: parsed(row, "digest")?,
        updated_at: time(row, "updated_at")?,
        updated_by: row.get("updated_by")?,
    })
}

fn settings(tx: &Tx<'_>, name: &str, revision: u64) -> Result<PolicySettings, StoreError> {
    let mut statement =
        tx.0.prepare_cached("SELECT setting, value FROM policy_setting WHERE name = $1 AND revision = $2")?;
    let rows = statement.query_map(params![name, stored(revision)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let entries: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
    PolicySettings::of_entries(entries).map_err(|error| StoreError::Damaged(error.to_string()))
}

fn rules(tx: &Tx<'_>, name: &str, revision: u64) -> Result<Vec<Rule>, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "SELECT rule, effect, sha256, path, comment, fs_verity FROM policy_rule \
         WHERE name = $1 AND revision = $2 ORDER BY rule",
    )?;
    let mut rows = statement.query(params![name, stored(revision)])?;
    let mut rules = Vec::new();
    while let Some(row) = rows.next()? {
        let digest = parsed(row, "sha256")?;
        let path: Option<Vec<u8>> = row.get("path")?;
        rules.push(Rule {
            id: row.get("rule")?,
            matcher: match path {
                None if row.get::<_, i64>("fs_verity")? == 1 => Matcher::FsVerity(digest),
                None => Matcher::Sha256(digest),
                Some(path) => Matcher::PathSha256(path, digest),
            },
            effect: if row.get::<_, i64>("effect")? == 1 { Effect::Deny } else { Effect::Allow },
            comment: row.get("comment")?,
        });
    }
    Ok(rules)
}

/// The names of all policies.
///
/// # Errors
/// [`StoreError`].
pub fn policy_names(tx: &Tx<'_>) -> Result<Vec<String>, StoreError> {
    let mut statement = tx.0.prepare_cached("SELECT DISTINCT name FROM policy ORDER BY name")?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// The name and newest digest of a policy, without its rules.
///
/// # Errors
/// [`StoreError`].
pub fn policy_digest(tx: &Tx<'_>, name: &str) -> Result<Option<Sha256Digest>, StoreError> {
    let mut statement =
        tx.0.prepare_cached("SELECT digest FROM policy WHERE name = $1 ORDER BY revision DESC LIMIT 1")?;
    let text: Option<String> = statement.query_row([name], |row| row.get(0)).optional()?;
    text.map(|text| text.parse().map_err(|_unreadable| StoreError::Damaged(format!("digest {text:?}"))))
        .transpose()
}
