//! Impact previews: the last of each machine for each revision of a policy.

use domain::impact_preview::{ImpactPreview, PER_MACHINE_MAX, RefusedFile};
use domain::machine::MachineId;
use domain::time::Timestamp;
use rusqlite::params;

use crate::row::{count, count_or_none, stored, time};
use crate::{StoreError, Tx};

/// A preview as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImpactPreview {
    /// The preview.
    pub preview: ImpactPreview,
    /// When it came, by the server's clock.
    pub received_at: Timestamp,
}

/// Keeps a preview in place of an earlier one. Of each machine the [`PER_MACHINE_MAX`] that came last are kept.
///
/// # Errors
/// [`StoreError`].
pub fn impact_preview_save(
    tx: &Tx<'_>,
    machine: MachineId,
    policy: &str,
    revision: u64,
    preview: &ImpactPreview,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (machine, revision) = (machine.to_string(), stored(revision));
    let of = params![machine, policy, revision];
    let which = "machine = $1 AND policy = $2 AND revision = $3";
    tx.0.prepare_cached(&format!("DELETE FROM impact_preview_file WHERE {which}"))?.execute(of)?;
    tx.0.prepare_cached(&format!("DELETE FROM impact_preview WHERE {which}"))?.execute(of)?;
    tx.0.prepare_cached(
        "INSERT INTO impact_preview (machine, policy, revision, received_at, taken_at, processes, files, history_days, \
         is_cut, refused_files) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )?
    .execute(params![
        machine,
        policy,
        revision,
        now.ticks(),
        preview.taken_at.ticks(),
        stored(preview.processes),
        stored(preview.files),
        preview.history_days,
        preview.is_cut,
        stored(preview.refused_files)
    ])?;
    let mut insert = tx.0.prepare_cached(
        "INSERT INTO impact_preview_file (machine, policy, revision, position, path, sha256, cause, rule, mapped_only, \
         last_seen, executions, processes, pids) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )?;
    for (position, file) in (0_i64..).zip(&preview.refused) {
        let pids: Vec<_> = file.pids.iter().map(ToString::to_string).collect();
        insert.execute(params![
            machine,
            policy,
            revision,
            position,
            file.path,
            file.sha256,
            file.cause,
            file.rule,
            file.mapped_only,
            file.last_seen.ticks(),
            stored(file.executions),
            stored(file.processes),
            pids.join(" ")
        ])?;
    }
    let old = "(policy, revision) IN (SELECT policy, revision FROM impact_preview WHERE machine = $1 \
               ORDER BY received_at DESC, policy, revision DESC LIMIT -1 OFFSET $2)";
    let too_many = params![machine, PER_MACHINE_MAX];
    tx.0.prepare_cached(&format!("DELETE FROM impact_preview_file WHERE machine = $1 AND {old}"))?
        .execute(too_many)?;
    tx.0.prepare_cached(&format!("DELETE FROM impact_preview WHERE machine = $1 AND {old}"))?
        .execute(too_many)?;
    Ok(())
}

/// The last preview of a machine for this revision of a policy.
///
/// # Errors
/// [`StoreError`].
pub fn impact_preview_fetch(
    tx: &Tx<'_>,
    machine: MachineId,
    policy: &str,
    revision: u64,
) -> Result<Option<StoredImpactPreview>, StoreError> {
    let which = "machine = $1 AND policy = $2 AND revision = $3";
    let (machine, revision) = (machine.to_string(), stored(revision));
    let of = params![machine, policy, revision];
    let mut statement = tx.0.prepare_cached(&format!("SELECT * FROM impact_preview WHERE {which}"))?;
    let mut rows = statement.query(of)?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let mut preview = ImpactPreview {
        taken_at: time(row, "taken_at")?,
        processes: count(row, "processes")?,
        files: count(row, "files")?,
        history_days: count_or_none(row, "history_days")?,
        is_cut: row.get("is_cut")?,
        refused_files: count(row, "refused_files")?,
        refused: Vec::new(),
    };
    let received_at = time(row, "received_at")?;
    let mut statement =
        tx.0.prepare_cached(&format!("SELECT * FROM impact_preview_file WHERE {which} ORDER BY position"))?;
    let mut rows = statement.query(of)?;
    while let Some(row) = rows.next()? {
        let pids: String = row.get("pids")?;
        preview.refused.push(RefusedFile {
            path: row.get("path")?,
            sha256: row.get("sha256")?,
            cause: row.get("cause")?,
            rule: row.get("rule")?,
            mapped_only: row.get("mapped_only")?,
            last_seen: time(row, "last_seen")?,
            executions: count(row, "executions")?,
            processes: count(row, "processes")?,
            pids: pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        });
    }
    Ok(Some(StoredImpactPreview { preview, received_at }))
}
