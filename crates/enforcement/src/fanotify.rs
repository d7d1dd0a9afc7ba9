//! Tier T3: the kernel asks by fanotify permission events before it executes a file.
//!
//! A restriction is a session: a group with its marks and the threads around it. A new policy is a new session that
//! stands before the old one goes, so at every moment at least one of them is asked.

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use domain::restriction::Tier;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::denial::{self, Denial, DenialLog, RawDenial};
use crate::label::{self, InodeVersion, Job, Label};
use crate::lease::{self, Leases};
use crate::responder::{self, Answer};
use crate::{Enforcer, Error, Judge, Status, mounts, sys};

/// How much of the machine a restriction covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkScope {
    /// Every filesystem, whoever mounts it where: the whole machine.
    Filesystem,
    /// The mounts of the calling thread's mount namespace, and nothing outside of it.
    Mount,
}

/// How the backend behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// What is covered.
    pub scope: MarkScope,
    /// Whether the kernel keeps verdicts (ignore marks). Off: it asks at each execution.
    pub verdict_cache: bool,
    /// A decision that takes longer is a refusal.
    pub decision_deadline: Duration,
    /// Larger files are not hashed and never run, unless their verdict is known: 512 MiB holds any program we know.
    pub hash_bytes_max: u64,
    /// More undecided files at once are refused.
    pub pending_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            scope: MarkScope::Filesystem,
            verdict_cache: true,
            decision_deadline: Duration::from_secs(5),
            hash_bytes_max: 512 << 20,
            pending_max: 1024,
        }
    }
}

/// Descriptors that the cached programs need, with room for the rest.
const DESCRIPTORS: u64 = 16_384;

/// Restricts by fanotify.
pub struct Fanotify {
    settings: Settings,
    session: Option<Session>,
    denials: Arc<DenialLog>,
}

/// Whether this kernel and this process can restrict by fanotify: nothing, or why not in one sentence.
pub fn support() -> Option<String> {
    let group = match sys::fanotify_init() {
        Ok(group) => group,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return Some("fanotify permission events need root (CAP_SYS_ADMIN)".to_owned());
        }
        Err(error) => return Some(format!("the kernel has no fanotify: {error}")),
    };
    // A mark on a mount that holds no programs shows whether permission events are compiled in.
    let probe = sys::mark_executions(group.as_fd(), c"/proc", sys::Coverage::Mount);
    probe.err().map(|error| {
        format!("the kernel has no permission events for executions (Linux 5.0, CONFIG_FANOTIFY_ACCESS_PERMISSIONS): {error}")
    })
}

impl Fanotify {
    /// A backend that restricts nothing until it is told to.
    pub fn new(settings: Settings) -> Self {
        Self { settings, session: None, denials: Arc::default() }
    }
}

impl Enforcer for Fanotify {
    fn tier(&self) -> Tier {
        Tier::Fanotify
    }

    fn restrict(&mut self, judge: Arc<dyn Judge>) -> Result<(), Error> {
        // The old session is dropped only after the new one stands.
        self.session = Some(Session::start(self.settings, judge, Arc::clone(&self.denials))?);
        Ok(())
    }

    fn release(&mut self) {
        self.session = None;
    }

    fn status(&self) -> Status {
        let denials_dropped = self.denials.dropped();
        let Some(session) = &self.session else { return Status { denials_dropped, ..Status::default() } };
        let shared = &session.shared;
        Status {
            restricted: true,
            marks: shared.marks.load(Ordering::Relaxed),
            labels: shared.leases.count() as u64,
            asked: shared.asked.load(Ordering::Relaxed),
            denied: shared.denied.load(Ordering::Relaxed),
            denials_dropped,
        }
    }

    fn take_denials(&mut self, max: usize) -> Vec<Denial> {
        self.denials.take(max)
    }
}

/// What the threads of a session share. The responder takes no lock of it.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) judge: Arc<dyn Judge>,
    pub(crate) group: OwnedFd,
    pub(crate) leases: Leases,
    pub(crate) small: WakingQueue<Job>,
    pub(crate) large: WakingQueue<Job>,
    pub(crate) answers: WakingQueue<Answer>,
    pub(crate) raw_denials: WakingQueue<RawDenial>,
    pub(crate) denials: Arc<DenialLog>,
    /// Readable forever once the session ends.
    pub(crate) stop: EventFd,
    stopped: AtomicBool,
    pub(crate) marks: AtomicU64,
    pub(crate) asked: AtomicU64,
    pub(crate) denied: AtomicU64,
}

impl Shared {
    /// Whether the session ends.
    pub(crate) fn stopping(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Hands a verdict to the responder; `keep` makes it a label.
    pub(crate) fn answer(&self, job: &Job, label: Label, keep: bool) {
        let answer = Answer::Judged {
            file: Arc::clone(&job.file),
            version: job.version,
            label: Arc::new(label),
            keep,
        };
        self.send(answer);
    }

    /// Makes the responder forget a label; returns when it has.
    pub(crate) fn forget(&self, version: InodeVersion) {
        let forgotten = Arc::new(AtomicBool::new(false));
        self.send(Answer::Forget { version, forgotten: Arc::clone(&forgotten) });
        while !forgotten.load(Ordering::Acquire) && !self.stopping() {
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Waits for room: the responder always makes some.
    fn send(&self, mut answer: Answer) {
        while let Err(back) = self.answers.push(answer) {
            if self.stopping() {
                return;
            }
            answer = back;
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A bounded queue without locks, whose reader sleeps in `poll`.
pub(crate) struct WakingQueue<T> {
    queue: ArrayQueue<T>,
    pub(crate) wake: EventFd,
}

impl<T> WakingQueue<T> {
    fn new(capacity: usize) -> Result<Self, Error> {
        Ok(Self { queue: ArrayQueue::new(capacity), wake: event_fd()? })
    }

    /// Puts an item in, or gives it back when there is no room. Never waits.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        self.queue.push(item)?;
        // A full counter (2^64 - 2) is readable too.
        let _ = self.wake.write(1);
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Makes `wake` unreadable; for before the queue is emptied.
    pub(crate) fn rest(&self) {
        let _ = self.wake.read();
    }

    /// Waits for the next item; none when the session ends.
    pub(crate) fn wait(&self, shared: &Shared) -> Option<T> {
        loop {
            if shared.stopping() {
                return None;
            }
            self.rest();
            if let Some(item) = self.pop() {
                // Others may wait in the queue.
                let _ = self.wake.write(1);
                return Some(item);
            }
            let mut polled = [
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut polled, PollTimeout::NONE).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn event_fd() -> Result<EventFd, Error> {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|error| Error::new("eventfd", error))
}

/// One restriction.
struct Session {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Session {
    fn start(settings: Settings, judge: Arc<dyn Judge>, denials: Arc<DenialLog>) -> Result<Self, Error> {
        raise_descriptor_limit();
        let shared = Arc::new(Shared {
            settings,
            judge,
            group: sys::fanotify_init().map_err(|error| Error::new("fanotify_init", error))?,
            leases: Leases::default(),
            small: WakingQueue::new(settings.pending_max)?,
            large: WakingQueue::new(settings.pending_max)?,
            answers: WakingQueue::new(settings.pending_max * 2)?,
            raw_denials: WakingQueue::new(1024)?,
            denials,
            stop: event_fd()?,
            stopped: AtomicBool::new(false),
            marks: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            denied: AtomicU64::new(0),
        });
        // From here on, dropping the session undoes everything.
        let mut session = Self { shared, threads: Vec::new() };
        let (ready, is_ready) = mpsc::channel();
        session.spawn("lease", move |shared| {
            lease::watch(shared, |result| drop(ready.send(result)));
        })?;
        let watching =
            is_ready.recv().map_err(|_gone| Error::new("lease thread", std::io::ErrorKind::BrokenPipe))?;
        watching.map_err(|error| Error::new("signalfd", error))?;
        session.spawn("respond", responder::run)?;
        for name in ["label", "label-large"] {
            session.spawn(name, move |shared| {
                let queue = if name == "label" { &shared.small } else { &shared.large };
                while let Some(job) = queue.wait(shared) {
                    label::judge(&job, shared);
                }
            })?;
        }
        session.spawn("denials", denial::run)?;
        session.mark_and_watch_mounts()?;
        Ok(session)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce(&Shared) + Send + 'static) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(256 * 1024)
            .spawn(move || body(&shared))
            .map_err(|error| Error::new(format!("starting the thread {name}"), error))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Marks every mount, and goes on to mark those that appear.
    ///
    /// Between a mount's appearance and its mark there is a moment: see the limitations of tier T3.
    fn mark_and_watch_mounts(&mut self) -> Result<(), Error> {
        // The thread's own: its mount namespace may differ from that of the process.
        let path = "/proc/thread-self/mountinfo";
        let mountinfo =
            std::fs::File::open(path).map_err(|error| Error::new(format!("open {path}"), error))?;
        mark_mounts(&mountinfo, &self.shared)?;
        self.spawn("mounts", move |shared| {
            while !shared.stopping() {
                let mut polled = [
                    PollFd::new(mountinfo.as_fd(), PollFlags::POLLPRI),
                    PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
                ];
                if poll(&mut polled, PollTimeout::NONE).is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if !shared.stopping() {
                    // A mount that went away again, or takes no mark: the next change tries again.
                    drop(mark_mounts(&mountinfo, shared));
                }
            }
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = self.shared.stop.write(1);
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to stop.
            drop(thread.join());
        }
        // With the last reference to the group its marks go, and the kernel answers what is pending with "allow".
    }
}

fn mark_mounts(mut mountinfo: &std::fs::File, shared: &Shared) -> Result<(), Error> {
    let coverage = match shared.settings.scope {
        MarkScope::Filesystem => sys::Coverage::Filesystem,
        MarkScope::Mount => sys::Coverage::Mount,
    };
    let mut text = Vec::new();
    std::io::Seek::rewind(&mut mountinfo)
        .and_then(|()| mountinfo.read_to_end(&mut text))
        .map_err(|error| Error::new("read mountinfo", error))?;
    let mut marks = 0;
    let mut failed = None;
    for path in mounts::with_programs(&String::from_utf8_lossy(&text)) {
        match sys::mark_executions(shared.group.as_fd(), &path, coverage) {
            Ok(()) => marks += 1,
            // The mount went away, or another one hides it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
            Err(error) => {
                failed = Some(Error::new(format!("fanotify_mark {}", path.to_string_lossy()), error))
            }
        }
    }
    shared.marks.store(marks, Ordering::Relaxed);
    failed.map_or(Ok(()), Err)
}

/// Each cached program holds a descriptor. Failing to raise the limit only means that fewer are cached.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < DESCRIPTORS
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS.min(hard), hard);
    }
}
