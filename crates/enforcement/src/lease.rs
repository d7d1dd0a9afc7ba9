//! Leases: how a kept verdict learns in time that its file is about to change.
//!
//! The kernel drops an ignore mark when a file is written by `write(2)` or truncated, but not when it is written
//! through a shared mapping. A read lease (`fcntl(2)`, `F_SETLEASE`) closes that: whoever opens the file for writing is
//! held in `open` until the lease is given back, and it is given back only after the verdict is forgotten everywhere.
//! A verdict without a lease is not kept.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::decision::DecisionCause;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::fanotify::Shared;
use crate::label::{InodeVersion, Job, Label};
use crate::sys::{self, LeaseBreak};

/// The most files whose verdicts are kept. Each holds a descriptor and pins an inode.
const LEASES_MAX: usize = 8_192;

/// Whether a lease was to be had.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lease {
    /// We hold it.
    Held,
    /// Someone has the file open for writing.
    BeingWritten,
    /// The filesystem has no leases.
    Unsupported,
}

/// The leases that a session holds.
#[derive(Default)]
pub(crate) struct Leases {
    held: Mutex<VecDeque<Held>>,
    /// The thread that hears of breaks.
    watcher: AtomicI32,
}

struct Held {
    file: Arc<OwnedFd>,
    version: InodeVersion,
    kept: bool,
}

impl Leases {
    /// Takes a lease for the time of judging.
    pub(crate) fn take(&self, file: &Arc<OwnedFd>, version: InodeVersion) -> Lease {
        let mut held = self.lock();
        match sys::take_lease(file.as_fd(), self.watcher.load(Ordering::Acquire)) {
            Ok(()) => {
                held.push_back(Held { file: Arc::clone(file), version, kept: false });
                Lease::Held
            }
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Lease::BeingWritten,
            Err(_) => Lease::Unsupported,
        }
    }

    /// Gives a lease back; whether it was held to this moment.
    pub(crate) fn give_back(&self, file: &Arc<OwnedFd>) -> bool {
        let mut held = self.lock();
        let fd = file.as_raw_fd();
        let before = held.len();
        held.retain(|held| held.file.as_raw_fd() != fd);
        // It may have been broken already: then there is nothing to give back.
        drop(sys::release_lease(file.as_fd()));
        held.len() < before
    }

    /// Answers a job with a verdict that is kept as long as its lease. When the lease broke while the file was judged,
    /// the answer is a refusal: the content may have changed since it was read.
    pub(crate) fn keep(&self, job: &Job, label: Label, shared: &Shared) {
        let mut held = self.lock();
        let fd = job.file.as_raw_fd();
        let Some(entry) = held.iter_mut().find(|held| held.file.as_raw_fd() == fd) else {
            drop(held);
            shared.answer(job, Label::failure(DecisionCause::BeingWritten), false);
            return;
        };
        entry.kept = true;
        if shared.settings.verdict_cache {
            // Without the mark the kernel asks each time, and the label answers.
            drop(sys::ignore_executions(shared.group.as_fd(), job.file.as_fd()));
        }
        // Under the lock, so that a break that comes now forgets after this is learned.
        shared.answer(job, label, true);
        let oldest = if held.iter().filter(|held| held.kept).count() > LEASES_MAX {
            held.iter().position(|held| held.kept).and_then(|index| held.remove(index))
        } else {
            None
        };
        drop(held);
        if let Some(oldest) = oldest {
            forget(&oldest, shared);
        }
    }

    /// How many verdicts are kept.
    pub(crate) fn count(&self) -> usize {
        self.lock().iter().filter(|held| held.kept).count()
    }

    fn remove(&self, fd: RawFd) -> Option<Held> {
        let mut held = self.lock();
        let index = held.iter().position(|held| held.file.as_raw_fd() == fd)?;
        held.remove(index)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a verdict everywhere, then lets the writer go on.
fn forget(held: &Held, shared: &Shared) {
    if held.kept {
        // It is gone already when the kernel dropped it by itself.
        drop(sys::ask_about_executions(shared.group.as_fd(), held.file.as_fd()));
        shared.forget(held.version);
    }
    drop(sys::release_lease(held.file.as_fd()));
}

/// Waits for broken leases until the session ends. Calls `ready` once leases may be taken.
pub(crate) fn watch(shared: &Shared, ready: impl FnOnce(std::io::Result<()>)) {
    let signals = match sys::lease_signals() {
        Ok(signals) => signals,
        Err(error) => return ready(Err(error)),
    };
    shared.leases.watcher.store(sys::thread_id(), Ordering::Release);
    ready(Ok(()));
    while !shared.stopping() {
        let mut polled = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut polled, PollTimeout::NONE).is_err() {
            // Interrupted; a lasting error must not become a busy loop.
            std::thread::sleep(Duration::from_millis(1));
        }
        while let Ok(Some(broken)) = sys::read_lease_break(signals.as_fd()) {
            match broken {
                LeaseBreak::Of(fd) => {
                    if let Some(held) = shared.leases.remove(fd) {
                        forget(&held, shared);
                    }
                }
                LeaseBreak::Unknown => {
                    let all = std::mem::take(&mut *shared.leases.lock());
                    all.iter().for_each(|held| forget(held, shared));
                }
            }
        }
    }
}
