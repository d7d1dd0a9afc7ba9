//! A scan of the packages beside the running agent, on a thread of its own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_core::{Input, InventoryEnd};
use tokio::sync::mpsc;
use trust::Progress;

use crate::config::Config;
use crate::inventory;

/// How often the progress is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// The most modified programs that the log names.
const NAMED_MAX: usize = 3;

/// A running scan; told to stop when dropped.
pub(super) struct Scan {
    pub(super) inputs: mpsc::Receiver<Input>,
    stop: Arc<AtomicBool>,
}

impl Scan {
    pub(super) fn start(config: Config) -> Self {
        let (told, inputs) = mpsc::channel(2);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("inventory".to_owned()).stack_size(512 * 1024);
        let (error_told, work) = (told.clone(), move || {
            inventory::be_patient();
            let end = scan(&config, &told, &stopped);
            // Nobody listens any more when the agent ends.
            drop(told.blocking_send(Input::InventoryEnded(end)));
        });
        if let Err(error) = thread.spawn(work) {
            let end = InventoryEnd::Failed(format!("cannot start a thread: {error}"));
            // There is room: nothing was sent before.
            drop(error_told.try_send(Input::InventoryEnded(end)));
        }
        Self { inputs, stop }
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.stop();
    }
}

fn scan(config: &Config, told: &mpsc::Sender<Input>, stop: &AtomicBool) -> InventoryEnd {
    let mut last = Instant::now();
    let mut tell = |progress: Progress| {
        if last.elapsed() >= PROGRESS_EVERY {
            last = Instant::now();
            tracing::info!(files_done = progress.files_done, files_total = progress.files_total, "inventory");
            // A report that finds no room is overtaken by the next.
            drop(told.try_send(Input::InventoryProgressed(inventory::progress_summary(progress))));
        }
    };
    match inventory::refresh(config, &mut tell, stop) {
        Ok(outcome) => {
            let report = &outcome.report;
            tracing::info!(
                packages = report.packages,
                files = report.files,
                hashed = report.hashed,
                vouched = report.vouched,
                modified = report.modified,
                unreadable = report.unreadable,
                missing = report.missing,
                baseline = %outcome.baseline,
                unchanged = outcome.was_held,
                "inventory complete"
            );
            if !outcome.was_held && !report.modified_executables.is_empty() {
                let named: Vec<_> = report.modified_executables.iter().take(NAMED_MAX).collect();
                tracing::warn!(
                    first = ?named,
                    "programs that are not what their packages shipped are refused while restricted; \
                     cordon-agent inventory names them"
                );
            }
            InventoryEnd::Stored(inventory::summary(&outcome))
        }
        Err(_) if stop.load(Ordering::Relaxed) => InventoryEnd::Stopped,
        Err(error) => InventoryEnd::Failed(format!("{error:#}")),
    }
}

/// Notices that the package database changed, and then that it rests.
pub(super) struct PackageWatch {
    path: PathBuf,
    seen: Option<Version>,
    is_moving: bool,
}

/// Which version of the database's main file there is: dpkg replaces it whole.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version(u64, i64, i64, u64);

impl PackageWatch {
    pub(super) fn new(root: &Path) -> Self {
        let path = root.join("var/lib/dpkg/status");
        Self { seen: version(&path), path, is_moving: false }
    }

    /// Whether the database changed, and has been at rest since the last look.
    pub(super) fn look(&mut self) -> bool {
        let version = version(&self.path);
        if version != self.seen {
            self.seen = version;
            self.is_moving = true;
            return false;
        }
        std::mem::take(&mut self.is_moving)
    }
}

fn version(path: &Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok()?;
    Some(Version(metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_only_when_it_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("var/lib/dpkg/status");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut watch = PackageWatch::new(folder.path());
        assert!(!watch.look());
        for length in 1..4 {
            fs::write(&path, "x".repeat(length)).unwrap();
            assert!(!watch.look(), "it still changes");
        }
        assert!(watch.look());
        assert!(!watch.look());
    }
}
