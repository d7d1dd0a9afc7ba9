//! The programs that start the gate again: the gate, its loader, what the service manager executes for it.
//!
//! While no gate answers, nothing runs but what the kernel knows already, so these must always be known, or no gate
//! could come back. They have leases of their own for as long as a restriction lasts, and the keeper has them too.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domain::decision::Verdict;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::fanotify::Shared;
use crate::keep::Keep;
use crate::label::{self, InodeVersion};
use crate::sys;
use crate::verdicts::GRACE;

/// How often it is looked whether a program was replaced, or is to be written to.
const INTERVAL: Duration = Duration::from_secs(1);

/// The programs of a restriction.
pub(crate) struct Programs {
    all: Mutex<Vec<Program>>,
}

struct Program {
    path: PathBuf,
    lent: Option<Lent>,
    /// What was looked at last, and under which judge: it is not read again and again when it may not run.
    seen: Option<(InodeVersion, u64)>,
}

/// A program that was judged, with a lease of its own.
struct Lent {
    file: OwnedFd,
    version: InodeVersion,
    /// When somebody was first seen who waits to write to it.
    broken: Option<Instant>,
}

impl Programs {
    pub(crate) fn new(paths: &[PathBuf]) -> Self {
        let all = paths.iter().map(|path| Program { path: path.clone(), lent: None, seen: None }).collect();
        Self { all: Mutex::new(all) }
    }

    /// Judges what is new, gives it to the keeper, and tells the kernel to let it run.
    pub(crate) fn lend(&self, shared: &Shared) {
        for (number, program) in (0..).zip(self.lock().iter_mut()) {
            if program.let_writers_go(shared) {
                continue;
            }
            if program.is_new(shared) {
                program.lent = Lent::read(&program.path, shared);
                if let (Some(lent), Some(keep)) = (&program.lent, &shared.keep) {
                    keep.lend_program(number, lent.file.as_fd());
                }
            }
            if let Some(lent) = &program.lent {
                // Again and again: another policy makes the kernel forget all that it was told.
                drop(sys::ignore_executions(shared.group.as_fd(), lent.file.as_fd()));
            }
        }
    }

    /// Does so until the session ends.
    pub(crate) fn go_on_lending(&self, shared: &Shared) {
        let timeout = PollTimeout::try_from(INTERVAL).unwrap_or(PollTimeout::MAX);
        while !shared.stopping() {
            self.lend(shared);
            if poll(&mut [PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN)], timeout).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.lock().clear();
    }

    /// Gives a keeper that lost it everything that it is to have.
    pub(crate) fn lend_again(&self, keep: &Keep) {
        for (number, program) in (0..).zip(self.lock().iter()) {
            if let Some(lent) = &program.lent {
                keep.lend_program(number, lent.file.as_fd());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Program>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Program {
    /// Whether what is at the path was not looked at yet.
    fn is_new(&mut self, shared: &Shared) -> bool {
        let Ok(stat) = nix::sys::stat::stat(&self.path) else { return false };
        let now = Some((InodeVersion::from(&stat), shared.verdicts.epoch()));
        let is_lent = self.lent.as_ref().is_some_and(|lent| lent.version == InodeVersion::from(&stat));
        std::mem::replace(&mut self.seen, now) != now && !is_lent
    }

    /// Gives the lease back some time after somebody began to wait for it. Answers whether somebody waits.
    fn let_writers_go(&mut self, shared: &Shared) -> bool {
        let Some(lent) = &mut self.lent else { return false };
        if !sys::is_lease_broken(lent.file.as_fd()) {
            return false;
        }
        drop(sys::ask_about_executions(shared.group.as_fd(), lent.file.as_fd()));
        if lent.broken.get_or_insert_with(Instant::now).elapsed() >= GRACE {
            drop(sys::release_lease(lent.file.as_fd()));
            (self.lent, self.seen) = (None, None);
        }
        true
    }
}

impl Lent {
    /// Reads and judges a program; none when it may not run, or cannot be held as it is.
    fn read(path: &Path, shared: &Shared) -> Option<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = open(path, flags, Mode::empty()).ok()?;
        let stat = fstat(&file).ok()?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return None;
        }
        let version = InodeVersion::from(&stat);
        sys::take_lease(file.as_fd(), shared.verdicts.watcher()).ok()?;
        let decision = label::decide(&file, version, shared);
        let unbroken = !sys::is_lease_broken(file.as_fd());
        (decision.verdict == Verdict::Allow && unbroken).then_some(Self { file, version, broken: None })
    }
}
