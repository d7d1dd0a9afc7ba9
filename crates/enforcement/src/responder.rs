//! The thread that answers the kernel, and does nothing else: no log, no disk, no lock that another thread holds.
//!
//! What it knows, it answers at once; what it does not know, it hands on and answers later, or refuses when time is
//! up. Its labels are its own; others change them by messages. Users take turns: who floods it waits for himself.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use domain::decision::{DecisionCause, Verdict};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::denial::{self, Process, RawDenial};
use crate::fanotify::Shared;
use crate::label::{InodeVersion, Job, Label};
use crate::start::StartJob;
use crate::sys::{self, Event, Response};
use crate::turns::Turns;

/// The most labels kept: allowed ones are bounded by the leases, so these are refusals. Beyond it they are forgotten.
const LABELS_MAX: usize = 32_768;

/// Stands for the user of a process that was gone before it was looked at.
const NOBODY: u32 = u32::MAX;

/// Events read at once.
const EVENTS_AT_ONCE: usize = 64;

/// What others tell the responder.
pub(crate) enum Answer {
    /// A file was judged.
    Judged {
        /// Keeps the descriptor's number taken until the kernel has its answer.
        file: Arc<OwnedFd>,
        version: InodeVersion,
        label: Arc<Label>,
        /// Whether the verdict may be repeated for this inode version.
        keep: bool,
        /// One of those who wait, and what it is when it is refused.
        pid: i32,
        process: Option<Process>,
    },
    /// The start of a listed program was looked at.
    Started {
        fd: RawFd,
        /// As above.
        file: Arc<OwnedFd>,
        label: Arc<Label>,
        process: Option<Process>,
    },
    /// The verdict about this inode version no longer holds, or none does.
    Forget { version: Option<InodeVersion>, forgotten: Arc<AtomicBool> },
}

/// An execution that waits for a verdict.
struct Waiting {
    fd: RawFd,
    /// Owned here unless a job holds it.
    file: Arc<OwnedFd>,
    pid: i32,
    user: u32,
    deadline: Instant,
}

/// A file that is to be judged.
#[derive(Default)]
struct Question {
    /// Empty when all of them were refused for lateness.
    waiting: Vec<Waiting>,
    /// Whether a worker has it.
    given: bool,
}

#[derive(Default)]
struct Responder {
    labels: HashMap<InodeVersion, Arc<Label>>,
    questions: HashMap<InodeVersion, Question>,
    /// What no worker has yet; what was answered in the meantime is passed over.
    small: Turns<InodeVersion>,
    large: Turns<InodeVersion>,
    /// Whose start is being looked at, by the event's descriptor.
    starting: HashMap<RawFd, Waiting>,
}

/// A responder that is gone would leave everyone waiting. Without the process the kernel answers, and the service
/// manager starts it again.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Answers until the session ends.
pub(crate) fn run(shared: &Shared) {
    let _abort_on_panic = AbortOnPanic;
    let mut responder = Responder::default();
    let mut buffer = vec![0; sys::METADATA_BYTES * EVENTS_AT_ONCE];
    while !shared.stopping() {
        let timeout = responder.time_to_next_deadline();
        let mut polled = [
            PollFd::new(shared.group.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.answers.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.ping.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut polled, timeout).is_err() {
            continue;
        }
        let _ = shared.ping.read();
        shared.answers.rest();
        while let Some(answer) = shared.answers.pop() {
            responder.learn(answer, shared);
        }
        // An error on reading was answered by the kernel itself, with a refusal.
        for event in sys::read_events(shared.group.as_fd(), &mut buffer).unwrap_or_default() {
            responder.answer(event, shared);
        }
        responder.refuse_the_late(shared);
        responder.give(shared);
    }
    if !shared.leaves() {
        responder.let_through(shared, &mut buffer);
    }
}

impl Responder {
    fn answer(&mut self, event: Event, shared: &Shared) {
        shared.asked.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(event.file);
        let mut waiting = Waiting {
            fd: file.as_raw_fd(),
            file: Arc::clone(&file),
            pid: event.pid,
            user: NOBODY,
            deadline: Instant::now() + shared.settings.decision_deadline,
        };
        let Ok(stat) = nix::sys::stat::fstat(file.as_fd()) else {
            return respond(&waiting, &Arc::new(Label::failure(DecisionCause::Unreadable)), shared);
        };
        let version = InodeVersion::from(&stat);
        if let Some(label) = self.labels.get(&version) {
            let label = Arc::clone(label);
            return self.conclude(waiting, version, &label, None, shared);
        }
        waiting.user = denial::user_of(waiting.pid).unwrap_or(NOBODY);
        if !self.has_room(waiting.user, shared) {
            return respond(&waiting, &Arc::new(Label::failure(DecisionCause::Overload)), shared);
        }
        self.ask(version, waiting, shared);
    }

    /// Everyone who waits.
    fn everyone(&self) -> impl Iterator<Item = &Waiting> {
        self.questions.values().flat_map(|question| &question.waiting).chain(self.starting.values())
    }

    /// Whether one more of this user may wait. One user alone does not fill the place of all.
    fn has_room(&self, user: u32, shared: &Shared) -> bool {
        let of_user = self.everyone().filter(|other| other.user == user).count();
        self.everyone().count() < shared.pending_max && of_user < (shared.pending_max / 2).max(1)
    }

    /// Answers by a label, or has the start looked at that it depends on.
    fn conclude(
        &mut self,
        mut waiting: Waiting,
        version: InodeVersion,
        label: &Arc<Label>,
        process: Option<Process>,
        shared: &Shared,
    ) {
        if !label.is_looked_at || label.decision.verdict == Verdict::Deny {
            return respond_with(&waiting, label, process, shared);
        }
        if waiting.user == NOBODY {
            waiting.user = denial::user_of(waiting.pid).unwrap_or(NOBODY);
        }
        let job = StartJob {
            fd: waiting.fd,
            file: Arc::clone(&waiting.file),
            pid: waiting.pid,
            version,
            label: Arc::clone(label),
            deadline: waiting.deadline,
        };
        if self.has_room(waiting.user, shared) && shared.starts.push(job).is_ok() {
            self.starting.insert(waiting.fd, waiting);
        } else {
            respond(&waiting, &Arc::new(Label::failure(DecisionCause::Overload)), shared);
        }
    }

    /// Queues a question in its user's turn, also when others wait for the same answer: theirs may be later.
    fn ask(&mut self, version: InodeVersion, waiting: Waiting, shared: &Shared) {
        let user = waiting.user;
        self.questions.entry(version).or_default().waiting.push(waiting);
        let questions = &self.questions;
        let turns = if version.is_large() { &mut self.large } else { &mut self.small };
        if turns.len() >= 2 * shared.pending_max {
            turns.retain(|version| questions.get(version).is_some_and(|question| !question.given));
        }
        turns.push(user, version);
    }

    /// Gives the workers what they have room for.
    fn give(&mut self, shared: &Shared) {
        for (turns, queue) in [(&mut self.small, &shared.small), (&mut self.large, &shared.large)] {
            while !queue.is_full()
                && let Some(version) = turns.pop()
            {
                let Some(question) = self.questions.get_mut(&version).filter(|question| !question.given)
                else {
                    continue;
                };
                let Some(last) = question.waiting.last() else {
                    self.questions.remove(&version);
                    continue;
                };
                let file = Arc::clone(&last.file);
                let job = Job { file, version, pid: last.pid, deadline: last.deadline };
                // There is room: nobody else puts anything in.
                question.given = queue.push(job).is_ok();
            }
        }
    }

    fn learn(&mut self, answer: Answer, shared: &Shared) {
        match answer {
            Answer::Judged { file, version, label, keep, pid, mut process } => {
                let mut waiting = self.questions.remove(&version).unwrap_or_default().waiting;
                if label.decision.cause == DecisionCause::Late {
                    // It was not judged, for those who gave up. Others have come since.
                    let now = Instant::now();
                    for late in waiting.extract_if(.., |waiting| waiting.deadline <= now) {
                        respond(&late, &label, shared);
                    }
                    waiting.into_iter().for_each(|waiting| self.ask(version, waiting, shared));
                } else {
                    for waiting in waiting {
                        let process = process.take_if(|_| waiting.pid == pid);
                        self.conclude(waiting, version, &label, process, shared);
                    }
                }
                drop(file);
                if keep {
                    if self.labels.len() >= LABELS_MAX {
                        self.labels.retain(|_, label| label.decision.verdict == Verdict::Allow);
                    }
                    self.labels.insert(version, label);
                }
            }
            Answer::Started { fd, file, label, process } => {
                if let Some(waiting) = self.starting.remove(&fd) {
                    respond_with(&waiting, &label, process, shared);
                }
                drop(file);
            }
            Answer::Forget { version, forgotten } => {
                match version {
                    Some(version) => drop(self.labels.remove(&version)),
                    None => self.labels.clear(),
                }
                forgotten.store(true, Ordering::Release);
            }
        }
    }

    /// The restriction is lifted: what the kernel asked before goes ahead, as it would when the group is closed.
    fn let_through(&mut self, shared: &Shared, buffer: &mut [u8]) {
        let allow = |fd: RawFd| drop(sys::respond(shared.group.as_fd(), fd, Response::Allow));
        let starting = self.starting.drain().map(|(_, waiting)| waiting);
        let waiting = self.questions.drain().flat_map(|(_, question)| question.waiting).chain(starting);
        waiting.for_each(|waiting| allow(waiting.fd));
        while let Ok(events) = sys::read_events(shared.group.as_fd(), buffer)
            && !events.is_empty()
        {
            events.iter().for_each(|event| allow(event.file.as_raw_fd()));
        }
    }

    fn refuse_the_late(&mut self, shared: &Shared) {
        let now = Instant::now();
        for question in self.questions.values_mut() {
            for late in question.waiting.extract_if(.., |waiting| waiting.deadline <= now) {
                respond(&late, &Arc::new(Label::failure(DecisionCause::Late)), shared);
            }
        }
        for (_, late) in self.starting.extract_if(|_, waiting| waiting.deadline <= now) {
            respond(&late, &Arc::new(Label::failure(DecisionCause::Late)), shared);
        }
    }

    fn time_to_next_deadline(&self) -> PollTimeout {
        let Some(next) = self.everyone().map(|waiting| waiting.deadline).min() else {
            return PollTimeout::NONE;
        };
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }
}

fn respond(waiting: &Waiting, label: &Arc<Label>, shared: &Shared) {
    respond_with(waiting, label, None, shared);
}

/// Answers the kernel first, and reports a refusal after.
fn respond_with(waiting: &Waiting, label: &Arc<Label>, process: Option<Process>, shared: &Shared) {
    let response = match label.decision.verdict {
        Verdict::Allow => Response::Allow,
        Verdict::Deny => Response::Deny,
    };
    // A group that takes no answers has no more questions either.
    drop(sys::respond(shared.group.as_fd(), waiting.fd, response));
    if response == Response::Deny {
        shared.denied.fetch_add(1, Ordering::Relaxed);
        let (file, label) = (Arc::clone(&waiting.file), Arc::clone(label));
        let denial = RawDenial { file, pid: waiting.pid, label, process };
        if shared.raw_denials.push(denial).is_err() {
            shared.denials.count_dropped();
        }
    }
}
