//! The inventory: what packages shipped, read at the lowest priority and given to the gate.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use agent_protocol::InventorySummary;
use anyhow::{Context as _, Result};
use domain::digest::Sha256Digest;
use sha2::{Digest as _, Sha256};
use trust::{Inventory, Progress, ScanReport};

use crate::config::Config;
use crate::gate::Gate;
use crate::state_dir::StateDir;

/// What came of a scan.
pub(crate) struct Outcome {
    pub(crate) report: ScanReport,
    /// SHA-256 of the baseline that the gate holds.
    pub(crate) baseline: Sha256Digest,
    /// Whether the gate held it before.
    pub(crate) was_held: bool,
}

/// The inventory of this machine.
pub(crate) fn inventory(config: &Config) -> Inventory {
    Inventory::new(&config.dpkg_root, &StateDir::new(&config.state_dir).path("inventory"))
}

/// Scans, and gives the baseline to the gate unless it holds it already. The file of the baseline is streamed: nothing
/// here holds all of it.
///
/// # Errors
/// When another scan runs, the packages cannot be read, the gate refuses, or the scan was stopped.
pub(crate) fn refresh(
    config: &Config,
    progress: &mut dyn FnMut(Progress),
    stop: &AtomicBool,
) -> Result<Outcome> {
    let state = StateDir::new(&config.state_dir);
    let as_owner = state.as_owner()?;
    let _lock = state.lock_scan()?;
    let inventory = inventory(config);
    let report = inventory.scan(progress, stop)?;
    let path = state.path("baseline");
    let (file, bytes, baseline) =
        write_baseline(&inventory, &state).with_context(|| format!("cannot write {}", path.display()))?;
    // It stays readable through the open file only.
    fs::remove_file(&path)?;
    drop(as_owner);
    let mut gate = Gate::connect(&config.gate_socket)?;
    let was_held = gate.status()?.baseline == Some(baseline.to_string());
    if !was_held {
        gate.give_baseline(file, bytes, baseline)?;
    }
    Ok(Outcome { report, baseline, was_held })
}

fn write_baseline(inventory: &Inventory, state: &StateDir) -> Result<(File, u64, Sha256Digest)> {
    let file = state.create("baseline")?;
    let mut out = BufWriter::new(Hashing { file, hasher: Sha256::new(), bytes: 0 });
    inventory.write_baseline(&mut out)?;
    let Hashing { mut file, hasher, bytes } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok((file, bytes, Sha256Digest(hasher.finalize().into())))
}

/// Hashes what passes through to the file.
struct Hashing {
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// How far a scan is, as a frame says it.
pub(crate) fn progress_summary(progress: Progress) -> InventorySummary {
    InventorySummary {
        complete: false,
        files_done: progress.files_done,
        files_total: progress.files_total,
        vouched: 0,
        modified: 0,
        unreadable: 0,
        baseline: None,
    }
}

/// What a scan found, as a frame says it.
pub(crate) fn summary(outcome: &Outcome) -> InventorySummary {
    let report = &outcome.report;
    InventorySummary {
        complete: true,
        files_done: report.files,
        files_total: report.files,
        vouched: report.vouched,
        modified: report.modified,
        unreadable: report.unreadable + report.missing,
        baseline: Some(outcome.baseline.to_string()),
    }
}

/// Puts the calling thread behind everything else that wants the processor or the disk. What the system does not allow
/// is left as it is: a scan is then less polite, not wrong.
pub(crate) fn be_patient() {
    // On Linux this is about the calling thread.
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "the scan runs at the usual priority");
    }
    // There is no call for the disk's priority in safe code. The thread's link reads "<process>/task/<thread>".
    let Ok(thread) = fs::read_link("/proc/thread-self") else { return };
    let Some(thread) = thread.file_name() else { return };
    let mut ionice = Command::new("/usr/bin/ionice");
    ionice.args(["-c", "3", "-p"]).arg(thread);
    drop(ionice.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status());
}
