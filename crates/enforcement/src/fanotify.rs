//! Tier T3: the kernel asks by fanotify permission events before it executes a file.
//!
//! A restriction is a session: a group with its marks and the threads around it. Another judge takes the place of the
//! one before inside the session, so the kernel asks without a gap.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use domain::decision::Verdict;
use domain::restriction::Tier;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::denial::{self, Denial, DenialLog, Process, RawDenial};
use crate::foreign::Foreign;
use crate::keep::{self, Keep, Keepers};
use crate::label::{self, InodeVersion, Job, Label};
use crate::namespaces;
use crate::programs::Programs;
use crate::responder::{self, Answer};
use crate::start::{self, StartJob};
use crate::sys::Response;
use crate::verdicts::{self, Verdicts};
use crate::{Enforcer, Error, Judge, Status, sys};

/// How much of the machine a restriction covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkScope {
    /// Every filesystem, whoever mounts it where: the whole machine.
    Filesystem,
    /// The mounts of the calling thread's mount namespace, and nothing outside of it.
    Mount,
}

impl MarkScope {
    pub(crate) fn coverage(self) -> sys::Coverage {
        match self {
            Self::Filesystem => sys::Coverage::Filesystem,
            Self::Mount => sys::Coverage::Mount,
        }
    }
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
    /// More undecided executions at once are refused.
    pub pending_max: usize,
    /// Verdicts of more files are not kept; each holds a descriptor. 8192: more programs than any machine runs.
    pub kept_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            scope: MarkScope::Filesystem,
            verdict_cache: true,
            decision_deadline: Duration::from_secs(5),
            hash_bytes_max: 512 << 20,
            pending_max: 1024,
            kept_max: 8192,
        }
    }
}

/// Files that a worker has been given and not begun with: what it takes up next is not decided earlier than needed.
const GIVEN_MAX: usize = 2;

/// Descriptors that the kept verdicts need, with room for the rest.
const DESCRIPTORS: u64 = 65_536;

/// Restricts by fanotify.
pub struct Fanotify {
    settings: Settings,
    session: Option<Session>,
    denials: Arc<DenialLog>,
    keep: Option<Arc<Keep>>,
    /// The group of an earlier gate, until it is known what becomes of it.
    former: Option<OwnedFd>,
    programs: Vec<PathBuf>,
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
    // A mark on a folder alone, which nobody executes, shows whether permission events are compiled in.
    if let Err(error) = sys::mark_executions(group.as_fd(), c"/", sys::Coverage::Inode) {
        return Some(format!(
            "the kernel has no permission events for executions (Linux 5.0, CONFIG_FANOTIFY_ACCESS_PERMISSIONS): {error}"
        ));
    }
    let leases = std::fs::read_to_string("/proc/sys/fs/leases-enable").unwrap_or_default();
    (leases.trim() != "1").then(|| "file leases are off: set the sysctl fs.leases-enable to 1".to_owned())
}

impl Fanotify {
    /// A backend that restricts nothing until it is told to.
    pub fn new(settings: Settings) -> Self {
        let (session, denials) = (None, Arc::default());
        Self { settings, session, denials, keep: None, former: None, programs: Vec::new() }
    }

    /// A backend whose restrictions outlive this process. What an earlier process has left stands until the first
    /// [`Enforcer::restrict`] takes it over, or the first [`Enforcer::release`] ends it.
    ///
    /// # Errors
    /// When there is no thread for it. A keeper that cannot be reached is none: see [`Fanotify::has_keeper`].
    pub fn kept_by(settings: Settings, keepers: Keepers) -> Result<Self, Error> {
        let mut backend = Self::new(settings);
        backend.programs = keepers.programs;
        backend.former = keepers.inherited;
        if let Some(socket) = keepers.socket {
            let (keep, former) = Keep::reach(socket, keepers.start)?;
            backend.keep = Some(keep);
            // The same one, when both have one.
            backend.former = former.or(backend.former.take());
        }
        Ok(backend)
    }

    /// Whether a keeper has what this process must not lose.
    pub fn has_keeper(&self) -> bool {
        self.keep.as_ref().is_some_and(|keep| keep.is_there())
    }
}

impl Enforcer for Fanotify {
    fn tier(&self) -> Tier {
        Tier::Fanotify
    }

    fn restrict(&mut self, judge: Arc<dyn Judge>) -> Result<(), Error> {
        match &self.session {
            Some(session) => {
                session.shared.verdicts.replace_judge(judge, &session.shared);
                session.shared.programs.lend(&session.shared);
            }
            None => {
                let (keep, former) = (self.keep.clone(), self.former.take());
                let denials = Arc::clone(&self.denials);
                self.session =
                    Some(Session::start(self.settings, judge, denials, keep, former, &self.programs)?);
            }
        }
        Ok(())
    }

    fn release(&mut self) {
        if let Some(former) = self.former.take() {
            let_go(former.as_fd());
        }
        match self.session.take() {
            Some(session) => drop(session),
            None => end_keeping(self.keep.as_deref()),
        }
    }

    fn status(&self) -> Status {
        let denials_dropped = self.denials.dropped();
        let Some(session) = &self.session else { return Status { denials_dropped, ..Status::default() } };
        let shared = &session.shared;
        Status {
            restricted: true,
            marks: shared.marks.load(Ordering::Relaxed) + shared.foreign.marked(),
            unmarked: shared.unmarked.load(Ordering::Relaxed) + shared.foreign.unmarked(),
            labels: shared.verdicts.count() as u64,
            asked: shared.asked.load(Ordering::Relaxed),
            denied: shared.denied.load(Ordering::Relaxed),
            denials_dropped,
        }
    }

    fn take_denials(&mut self, max: usize) -> Vec<Denial> {
        self.denials.take(max)
    }
}

impl Drop for Fanotify {
    /// A restriction that outlives this process is not lifted by its end.
    fn drop(&mut self) {
        let session = self.session.take();
        if let Some(keep) = &self.keep {
            keep.stop();
            if let Some(session) = &session {
                session.shared.left.store(true, Ordering::Release);
            }
        }
    }
}

/// Ends what an earlier process has left: whoever waits goes on.
pub(crate) fn let_go(group: BorrowedFd<'_>) {
    sys::remove_marks(group);
    let mut buffer = [0; sys::METADATA_BYTES];
    while let Ok(events) = sys::read_events(group, &mut buffer)
        && !events.is_empty()
    {
        events.iter().for_each(|event| drop(sys::respond(group, event.file.as_raw_fd(), Response::Allow)));
    }
    sys::answer_what_was_read(group, Response::Allow);
}

fn end_keeping(keep: Option<&Keep>) {
    if let Some(keep) = keep {
        keep.end();
    }
    keep::forget_group();
}

/// What the threads of a session share. The responder takes no lock of it.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    /// [`Settings::pending_max`], as far as descriptors reach.
    pub(crate) pending_max: usize,
    pub(crate) group: OwnedFd,
    pub(crate) verdicts: Verdicts,
    pub(crate) foreign: Foreign,
    pub(crate) keep: Option<Arc<Keep>>,
    pub(crate) programs: Programs,
    /// The responder empties it: a sign of life for the keeper.
    pub(crate) ping: EventFd,
    pub(crate) small: WakingQueue<Job>,
    pub(crate) large: WakingQueue<Job>,
    pub(crate) starts: WakingQueue<StartJob>,
    pub(crate) answers: WakingQueue<Answer>,
    pub(crate) raw_denials: WakingQueue<RawDenial>,
    pub(crate) denials: Arc<DenialLog>,
    /// Readable forever once the session ends.
    pub(crate) stop: EventFd,
    stopped: AtomicBool,
    /// Whether the session ends without lifting the restriction: it took over another one's and could not begin.
    left: AtomicBool,
    pub(crate) marks: AtomicU64,
    pub(crate) unmarked: AtomicU64,
    pub(crate) asked: AtomicU64,
    pub(crate) denied: AtomicU64,
}

impl Shared {
    /// Whether the session ends.
    pub(crate) fn stopping(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Whether what has no answer is left to whoever comes next.
    pub(crate) fn leaves(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Hands a verdict to the responder; `keep` makes it a label.
    pub(crate) fn answer(&self, job: &Job, label: Label, keep: bool) {
        // While it waits, it is there to be looked at.
        let is_refused = label.decision.verdict == Verdict::Deny;
        let process = is_refused.then(|| Process::of(job.pid)).flatten();
        let answer = Answer::Judged {
            file: Arc::clone(&job.file),
            version: job.version,
            label: Arc::new(label),
            keep,
            pid: job.pid,
            process,
        };
        self.send(answer);
    }

    /// Makes the responder forget a label, or all; returns when it has.
    pub(crate) fn forget(&self, version: Option<InodeVersion>) {
        let forgotten = Arc::new(AtomicBool::new(false));
        self.send(Answer::Forget { version, forgotten: Arc::clone(&forgotten) });
        while !forgotten.load(Ordering::Acquire) && !self.stopping() {
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Waits for room: the responder always makes some.
    pub(crate) fn send(&self, mut answer: Answer) {
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

    pub(crate) fn is_full(&self) -> bool {
        self.queue.is_full()
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

pub(crate) fn event_fd() -> Result<EventFd, Error> {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|error| Error::new("eventfd", error))
}

/// Starts a thread of a session. It ends by itself when the session does.
pub(crate) fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    body: impl FnOnce(&Arc<Shared>) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(256 * 1024)
        .spawn(move || body(&shared))
        .map_err(|error| Error::new(format!("starting the thread {name}"), error))
}

/// One restriction.
struct Session {
    shared: Arc<Shared>,
    responder: Option<JoinHandle<()>>,
}

impl Session {
    fn start(
        settings: Settings,
        judge: Arc<dyn Judge>,
        denials: Arc<DenialLog>,
        keep: Option<Arc<Keep>>,
        former: Option<OwnedFd>,
        programs: &[PathBuf],
    ) -> Result<Self, Error> {
        let takes_over = former.is_some();
        let group = match former {
            Some(group) => {
                // Nothing of this is read here yet, so that no answer can meet the wrong question. Whoever was being
                // decided about is refused. No lease of the earlier gate is ours, so neither are its kept verdicts.
                sys::answer_what_was_read(group.as_fd(), Response::Deny);
                sys::ask_about_all_executions(group.as_fd())
                    .map_err(|error| Error::new("fanotify_mark: flush", error))?;
                group
            }
            None => sys::fanotify_init().map_err(|error| Error::new("fanotify_init", error))?,
        };
        let descriptors = raise_descriptor_limit();
        let pending_max = settings.pending_max.min(descriptors / 8).max(1);
        let shared = Arc::new(Shared {
            settings,
            pending_max,
            group,
            verdicts: Verdicts::new(judge, settings.kept_max.min(descriptors / 4)),
            foreign: Foreign::default(),
            keep,
            programs: Programs::new(programs),
            ping: event_fd()?,
            small: WakingQueue::new(GIVEN_MAX)?,
            large: WakingQueue::new(GIVEN_MAX)?,
            starts: WakingQueue::new(pending_max)?,
            answers: WakingQueue::new(pending_max * 2)?,
            raw_denials: WakingQueue::new((descriptors / 8).clamp(1, 1024))?,
            denials,
            stop: event_fd()?,
            stopped: AtomicBool::new(false),
            left: AtomicBool::new(takes_over),
            marks: AtomicU64::new(0),
            unmarked: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            denied: AtomicU64::new(0),
        });
        // From here on, dropping the session undoes everything.
        let mut session = Self { shared, responder: None };
        let shared = &session.shared;
        let (ready, is_ready) = mpsc::channel();
        spawn("leases", shared, move |shared| {
            verdicts::watch(shared, |result| drop(ready.send(result)));
        })?;
        let watching =
            is_ready.recv().map_err(|_gone| Error::new("lease thread", std::io::ErrorKind::BrokenPipe))?;
        watching.map_err(|error| Error::new("signalfd", error))?;
        session.responder = Some(spawn("respond", shared, |shared| responder::run(shared))?);
        spawn("label", shared, |shared| {
            while let Some(job) = shared.small.wait(shared) {
                label::judge(&job, shared);
            }
        })?;
        spawn("label-large", shared, |shared| {
            while let Some(job) = shared.large.wait(shared) {
                label::judge(&job, shared);
            }
        })?;
        start::begin(shared)?;
        spawn("denials", shared, |shared| denial::run(shared))?;
        if let Some(keep) = &shared.keep {
            keep.begin(shared, takes_over);
        }
        keep::store_group(shared.group.as_fd());
        namespaces::cover(shared)?;
        shared.programs.lend(shared);
        spawn("programs", shared, |shared| shared.programs.go_on_lending(shared))?;
        if let Some(keep) = &shared.keep {
            keep.marked();
        }
        shared.left.store(false, Ordering::Release);
        Ok(session)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.shared.leaves() {
            // From here on the kernel asks nothing; what it asked before, the responder lets through as it ends.
            sys::remove_marks(self.shared.group.as_fd());
            self.shared.foreign.end();
            end_keeping(self.shared.keep.as_deref());
        }
        self.shared.stopped.store(true, Ordering::Release);
        let _ = self.shared.stop.write(1);
        self.shared.verdicts.end();
        if let Some(responder) = self.responder.take() {
            // A thread that panicked has nothing left to stop.
            drop(responder.join());
        }
        // The other threads end soon; a disk that does not answer may hold one up. Closing the group waits for the
        // kernel's grace periods. Neither must hold up the release.
        drop(spawn("close", &self.shared, |shared| {
            while Arc::strong_count(shared) > 1 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }));
    }
}

/// Each kept verdict holds a descriptor. Raises the limit as far as it goes, and answers it.
pub(crate) fn raise_descriptor_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    for (soft_wanted, hard_wanted) in
        [(DESCRIPTORS, hard.max(DESCRIPTORS)), (DESCRIPTORS.min(hard), hard), (soft, hard)]
    {
        if soft >= soft_wanted || setrlimit(Resource::RLIMIT_NOFILE, soft_wanted, hard_wanted).is_ok() {
            return usize::try_from(soft.max(soft_wanted)).unwrap_or(usize::MAX);
        }
    }
    0
}
