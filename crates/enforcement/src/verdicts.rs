//! Verdicts that are kept: who judges, and how a kept verdict learns in time that its file is about to change.
//!
//! The kernel drops an ignore mark when a file is written by `write(2)` or truncated, but not when it is written
//! through a shared mapping. A read lease (`fcntl(2)`, `F_SETLEASE`) closes that: whoever opens the file for writing is
//! held in `open` until the lease is given back, and it is given back only after the verdict is forgotten everywhere.
//! No verdict allows without a lease: between the answer and the moment in which `execve(2)` itself locks out writers,
//! nothing else would.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domain::decision::{DecisionCause, Reuse, Verdict};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Judge;
use crate::fanotify::Shared;
use crate::keep::{Keep, Loan};
use crate::label::{InodeVersion, Job, Label};
use crate::sys::{self, LeaseBreak};

/// How long a writer waits after the verdict is forgotten.
///
/// An execution that was let through may not have locked out writers yet: in `execve(2)` that comes a little after the
/// question. A writer who waits in `open` counts as one, so `execve(2)` fails with `ETXTBSY` until this time is over.
/// Without it, changing the file in that moment is a race that its owner wins now and then.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// Leases in their last [`GRACE`]; each holds a descriptor.
const LEAVING_MAX: usize = 8_192;

/// Whether a lease was to be had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lease {
    /// We hold it.
    Held,
    /// Someone has the file open for writing.
    BeingWritten,
    /// The filesystem has no leases, or this process may take none.
    Unsupported,
}

/// The judge in force, and the verdicts that are kept with their leases. The responder never takes this lock.
pub(crate) struct Verdicts {
    inner: Mutex<Inner>,
    kept_max: usize,
    /// The thread that hears of broken leases.
    watcher: AtomicI32,
}

struct Inner {
    judge: Arc<dyn Judge>,
    /// Counts the judges: an attempt that began under another one is void.
    epoch: u64,
    /// Files that are being judged, and those whose verdict is kept.
    held: VecDeque<Held>,
    /// Files whose verdict is forgotten and whose lease is given back at a set time.
    leaving: VecDeque<(Instant, Held)>,
}

struct Held {
    /// The lease of a file whose verdict the kernel keeps outlives this process by this.
    loan: Option<Loan>,
    file: Arc<OwnedFd>,
    version: InodeVersion,
    kept: bool,
}

/// One attempt to judge a file.
pub(crate) struct Attempt {
    pub(crate) judge: Arc<dyn Judge>,
    epoch: u64,
    lease: Lease,
}

impl Attempt {
    /// Why looking at the file's content would be of no use, when it would not.
    pub(crate) fn hopeless(&self) -> Option<DecisionCause> {
        match self.lease {
            Lease::Held => None,
            Lease::BeingWritten => Some(DecisionCause::BeingWritten),
            Lease::Unsupported => Some(DecisionCause::Unverifiable),
        }
    }
}

impl Verdicts {
    /// Keeps at most `kept_max` verdicts. Each holds a descriptor and pins an inode.
    pub(crate) fn new(judge: Arc<dyn Judge>, kept_max: usize) -> Self {
        let inner = Inner { judge, epoch: 0, held: VecDeque::new(), leaving: VecDeque::new() };
        Self { inner: Mutex::new(inner), kept_max, watcher: AtomicI32::new(0) }
    }

    /// Starts to judge a file. Its lease is taken before the first byte is read.
    pub(crate) fn begin(&self, job: &Job) -> Attempt {
        let mut inner = self.lock();
        let lease = match sys::take_lease(job.file.as_fd(), self.watcher.load(Ordering::Acquire)) {
            Ok(()) => {
                let held =
                    Held { loan: None, file: Arc::clone(&job.file), version: job.version, kept: false };
                inner.held.push_back(held);
                Lease::Held
            }
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Lease::BeingWritten,
            Err(_) => Lease::Unsupported,
        };
        Attempt { judge: Arc::clone(&inner.judge), epoch: inner.epoch, lease }
    }

    /// Ends an attempt with an answer to the responder. Answers whether it counted: when another judge has come in the
    /// meantime, it is to be made again.
    pub(crate) fn settle(&self, job: &Job, attempt: &Attempt, label: Label, shared: &Shared) -> bool {
        let mut inner = self.lock();
        let held = inner.position(job.file.as_raw_fd());
        if inner.epoch != attempt.epoch {
            inner.give_back(held);
            return shared.stopping();
        }
        let reusable = label.decision.reuse == Reuse::SameInodeVersion;
        match (label.decision.verdict, held) {
            (Verdict::Allow, Some(index)) => {
                let mut loan = None;
                if reusable && shared.settings.verdict_cache && !label.is_looked_at {
                    loan = shared.keep.as_ref().map(|keep| keep.lend_file(job.file.as_fd()));
                    // Without the mark the kernel asks each time, and the label answers.
                    drop(sys::ignore_executions(shared.group.as_fd(), job.file.as_fd()));
                }
                // Under the lock, so that who forgets it does so after it is learned.
                shared.answer(job, label, reusable);
                if let Some(mut held) = inner.held.remove(index) {
                    if reusable {
                        inner.supersede(held.version, shared);
                        (held.kept, held.loan) = (true, loan);
                        inner.held.push_back(held);
                        inner.make_room(self.kept_max, shared);
                    } else {
                        inner.leave(held);
                    }
                }
            }
            (Verdict::Allow, None) => {
                // The lease was broken, so the content may have changed since it was read.
                shared.answer(job, Label::failure(DecisionCause::BeingWritten), false);
            }
            (Verdict::Deny, _) => {
                inner.give_back(held);
                let keep = reusable && job.version.is_settled();
                shared.answer(job, label, keep);
            }
        }
        true
    }

    /// Puts a judge in the place of the other. When this returns, no answer comes from the old one any more.
    pub(crate) fn replace_judge(&self, judge: Arc<dyn Judge>, shared: &Shared) {
        let mut inner = self.lock();
        inner.judge = judge;
        inner.epoch += 1;
        // Cannot fail; the marks of the single files are removed one by one even so.
        drop(sys::ask_about_all_executions(shared.group.as_fd()));
        let (kept, judged) = std::mem::take(&mut inner.held).into_iter().partition(|held| held.kept);
        inner.held = judged;
        shared.forget(None);
        for held in kept {
            drop(sys::ask_about_executions(shared.group.as_fd(), held.file.as_fd()));
            inner.leave(held);
        }
    }

    /// Gives every lease back: nothing is restricted any more.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.epoch += 1;
        let (held, leaving) = (std::mem::take(&mut inner.held), std::mem::take(&mut inner.leaving));
        for held in held.iter().chain(leaving.iter().map(|(_, held)| held)) {
            drop(sys::release_lease(held.file.as_fd()));
        }
    }

    /// Counts the judges.
    pub(crate) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// The judge in force.
    pub(crate) fn judge(&self) -> Arc<dyn Judge> {
        Arc::clone(&self.lock().judge)
    }

    /// The thread that hears of broken leases.
    pub(crate) fn watcher(&self) -> i32 {
        self.watcher.load(Ordering::Acquire)
    }

    /// Gives a keeper that lost it everything that it is to have.
    pub(crate) fn lend_again(&self, keep: &Keep) {
        let inner = self.lock();
        let lent = inner.held.iter().filter(|held| held.loan.is_some());
        lent.for_each(|held| keep.lend_file_again(held.file.as_fd()));
    }

    /// How many verdicts are kept.
    pub(crate) fn count(&self) -> usize {
        self.lock().held.iter().filter(|held| held.kept).count()
    }

    /// Forgets the verdicts whose leases broke, of all that are held or of the one with this descriptor.
    fn forget_broken(&self, fd: Option<RawFd>, shared: &Shared) {
        let mut inner = self.lock();
        let mut index = 0;
        while let Some(held) = inner.held.get(index) {
            let is_meant = fd.is_none_or(|fd| held.file.as_raw_fd() == fd);
            if !is_meant || !sys::is_lease_broken(held.file.as_fd()) {
                index += 1;
            } else if let Some(held) = inner.held.remove(index) {
                inner.forget(held, shared);
            }
        }
    }

    /// Gives the leases back whose time has come; how long until the next.
    fn release_due(&self) -> PollTimeout {
        let mut inner = self.lock();
        inner.release_due();
        let Some((at, _)) = inner.leaving.front() else { return PollTimeout::NONE };
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn position(&self, fd: RawFd) -> Option<usize> {
        self.held.iter().position(|held| held.file.as_raw_fd() == fd)
    }

    /// Ends the lease of a file that nothing was allowed about.
    fn give_back(&mut self, index: Option<usize>) {
        if let Some(held) = index.and_then(|index| self.held.remove(index)) {
            drop(sys::release_lease(held.file.as_fd()));
        }
    }

    /// Lets go of an earlier version of the same file, whose times or rights changed.
    fn supersede(&mut self, version: InodeVersion, shared: &Shared) {
        let earlier = |held: &Held| held.kept && held.version.is_same_file(&version);
        if let Some(earlier) = self.held.iter().position(earlier)
            && let Some(earlier) = self.held.remove(earlier)
        {
            if earlier.version != version {
                shared.forget(Some(earlier.version));
            }
            self.leave(earlier);
        }
    }

    fn make_room(&mut self, kept_max: usize, shared: &Shared) {
        self.release_due();
        let kept = self.held.iter().filter(|held| held.kept).count();
        if kept > kept_max
            && let Some(oldest) = self.held.iter().position(|held| held.kept)
            && let Some(oldest) = self.held.remove(oldest)
        {
            self.forget(oldest, shared);
        }
    }

    /// Forgets a verdict everywhere; only then the lease may go.
    fn forget(&mut self, held: Held, shared: &Shared) {
        if held.kept {
            // It is gone already when the kernel dropped it by itself.
            drop(sys::ask_about_executions(shared.group.as_fd(), held.file.as_fd()));
            shared.forget(Some(held.version));
            self.leave(held);
        } else {
            drop(sys::release_lease(held.file.as_fd()));
        }
    }

    fn leave(&mut self, held: Held) {
        self.leaving.push_back((Instant::now() + GRACE, held));
        if self.leaving.len() > LEAVING_MAX
            && let Some((_, held)) = self.leaving.pop_front()
        {
            drop(sys::release_lease(held.file.as_fd()));
        }
    }

    fn release_due(&mut self) {
        let now = Instant::now();
        while self.leaving.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, held)) = self.leaving.pop_front() {
                drop(sys::release_lease(held.file.as_fd()));
            }
        }
    }
}

/// Waits for broken leases until the session ends. Calls `ready` once leases may be taken.
pub(crate) fn watch(shared: &Shared, ready: impl FnOnce(std::io::Result<()>)) {
    let signals = match sys::lease_signals() {
        Ok(signals) => signals,
        Err(error) => return ready(Err(error)),
    };
    let verdicts = &shared.verdicts;
    verdicts.watcher.store(sys::thread_id(), Ordering::Release);
    ready(Ok(()));
    while !shared.stopping() {
        let timeout = verdicts.release_due();
        let mut polled = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut polled, timeout).is_err() {
            // Interrupted; a lasting error must not become a busy loop.
            std::thread::sleep(Duration::from_millis(1));
        }
        while let Ok(Some(broken)) = sys::read_lease_break(signals.as_fd()) {
            match broken {
                LeaseBreak::Of(fd) => verdicts.forget_broken(Some(fd), shared),
                LeaseBreak::Unknown => verdicts.forget_broken(None, shared),
            }
        }
    }
}
