//! The thread that answers the kernel, and does nothing else: no log, no disk, no lock that another thread holds.
//!
//! What it knows, it answers at once; what it does not know, it hands on and answers later, or refuses when time is
//! up. Its labels are its own; others change them by messages.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use domain::decision::{DecisionCause, Verdict};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::denial::RawDenial;
use crate::fanotify::Shared;
use crate::label::{InodeVersion, Job, Label};
use crate::sys::{self, Event, Response};

/// The most labels kept: allowed ones are bounded by the leases, so these are refusals. Beyond it they are forgotten.
const LABELS_MAX: usize = 32_768;

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
    },
    /// A verdict no longer holds.
    Forget { version: InodeVersion, forgotten: Arc<AtomicBool> },
}

/// An execution that waits for a verdict.
struct Waiting {
    fd: RawFd,
    /// Owned here unless a job holds it.
    file: Arc<OwnedFd>,
    pid: i32,
    deadline: Instant,
}

#[derive(Default)]
struct Responder {
    labels: HashMap<InodeVersion, Arc<Label>>,
    /// Who waits for each inode version that is being judged; empty when all of them were refused for lateness.
    waiting: HashMap<InodeVersion, Vec<Waiting>>,
}

/// Answers until the session ends.
pub(crate) fn run(shared: &Shared) {
    let mut responder = Responder::default();
    let mut buffer = vec![0; sys::EVENT_BUFFER_BYTES];
    while !shared.stopping() {
        let timeout = responder.time_to_next_deadline();
        let mut polled = [
            PollFd::new(shared.group.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.answers.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut polled, timeout).is_err() {
            continue;
        }
        shared.answers.rest();
        while let Some(answer) = shared.answers.pop() {
            responder.learn(answer, shared);
        }
        // An error on reading was answered by the kernel itself, with a refusal.
        for event in sys::read_events(shared.group.as_fd(), &mut buffer).unwrap_or_default() {
            responder.answer(event, shared);
        }
        responder.refuse_the_late(shared);
    }
}

impl Responder {
    fn answer(&mut self, event: Event, shared: &Shared) {
        shared.asked.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(event.file);
        let waiting = Waiting {
            fd: file.as_raw_fd(),
            file: Arc::clone(&file),
            pid: event.pid,
            deadline: Instant::now() + shared.settings.decision_deadline,
        };
        let Ok(stat) = nix::sys::stat::fstat(file.as_fd()) else {
            return respond(&waiting, &Arc::new(Label::failure(DecisionCause::Unreadable)), shared);
        };
        let version = InodeVersion::from(&stat);
        if let Some(label) = self.labels.get(&version) {
            return respond(&waiting, label, shared);
        }
        let all_waiting: usize = self.waiting.values().map(Vec::len).sum();
        if all_waiting >= shared.settings.pending_max {
            return respond(&waiting, &Arc::new(Label::failure(DecisionCause::Overload)), shared);
        }
        if let Some(others) = self.waiting.get_mut(&version) {
            others.push(waiting);
            return;
        }
        let queue = if version.is_large() { &shared.large } else { &shared.small };
        match queue.push(Job { file, version }) {
            Ok(()) => {
                self.waiting.insert(version, vec![waiting]);
            }
            Err(_job) => respond(&waiting, &Arc::new(Label::failure(DecisionCause::Overload)), shared),
        }
    }

    fn learn(&mut self, answer: Answer, shared: &Shared) {
        match answer {
            Answer::Judged { file, version, label, keep } => {
                for waiting in self.waiting.remove(&version).unwrap_or_default() {
                    respond(&waiting, &label, shared);
                }
                drop(file);
                if keep {
                    if self.labels.len() >= LABELS_MAX {
                        self.labels.retain(|_, label| label.decision.verdict == Verdict::Allow);
                    }
                    self.labels.insert(version, label);
                }
            }
            Answer::Forget { version, forgotten } => {
                self.labels.remove(&version);
                forgotten.store(true, Ordering::Release);
            }
        }
    }

    fn refuse_the_late(&mut self, shared: &Shared) {
        let now = Instant::now();
        for all in self.waiting.values_mut() {
            for late in all.extract_if(.., |waiting| waiting.deadline <= now) {
                respond(&late, &Arc::new(Label::failure(DecisionCause::Late)), shared);
            }
        }
    }

    fn time_to_next_deadline(&self) -> PollTimeout {
        let Some(next) = self.waiting.values().flatten().map(|waiting| waiting.deadline).min() else {
            return PollTimeout::NONE;
        };
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }
}

/// Answers the kernel first, and reports a refusal after.
fn respond(waiting: &Waiting, label: &Arc<Label>, shared: &Shared) {
    let response = match label.decision.verdict {
        Verdict::Allow => Response::Allow,
        Verdict::Deny => Response::Deny,
    };
    // A group that takes no answers has no more questions either.
    drop(sys::respond(shared.group.as_fd(), waiting.fd, response));
    if response == Response::Deny {
        shared.denied.fetch_add(1, Ordering::Relaxed);
        let denial =
            RawDenial { file: Arc::clone(&waiting.file), pid: waiting.pid, label: Arc::clone(label) };
        if shared.raw_denials.push(denial).is_err() {
            shared.denials.count_dropped();
        }
    }
}
