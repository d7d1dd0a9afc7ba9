//! A scan of the packages beside the running agent, on a thread of its own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
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
            for database in &report.unsupported {
                tracing::warn!(
                    ?database,
                    "a package database of a format that is not read vouches for nothing"
                );
            }
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

/// Notices that a package database changed, and then that it rests.
pub(super) struct PackageWatch {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Version>>,
    is_moving: bool,
}

/// Which version of a database's file there is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version(u64, i64, i64, u64);

impl PackageWatch {
    /// Looks at these files, of which not all need to be there.
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self { seen: versions(&paths), paths, is_moving: false }
    }

    /// Whether a database changed, and all have been at rest since the last look.
    pub(super) fn look(&mut self) -> bool {
        let versions = versions(&self.paths);
        if versions != self.seen {
            self.seen = versions;
            self.is_moving = true;
            return false;
        }
        std::mem::take(&mut self.is_moving)
    }
}

fn versions(paths: &[PathBuf]) -> Vec<Option<Version>> {
    let version = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some(Version(metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), metadata.len()))
    };
    paths.iter().map(version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_only_when_it_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["status", "rpmdb.sqlite-wal"].map(|name| folder.path().join(name));
        let mut watch = PackageWatch::new(paths.to_vec());
        assert!(!watch.look());
        for path in paths {
            for length in 1..4 {
                fs::write(&path, "x".repeat(length)).unwrap();
                assert!(!watch.look(), "it still changes");
            }
            assert!(watch.look());
            assert!(!watch.look());
        }
    }
}
