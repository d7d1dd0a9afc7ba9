//! Denials: who was refused what, found out after the kernel has its answer.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use domain::decision::DecisionCause;
use domain::digest::Sha256Digest;
use domain::time::Timestamp;

use crate::fanotify::Shared;
use crate::label::{Label, path_of};

/// The most denials that wait to be taken. Each holds two paths, so 8 MiB at the very worst.
const DENIALS_MAX: usize = 1024;
/// Denials alike within this time are one, with a count.
const COALESCED_WITHIN: Duration = Duration::from_secs(1);
/// How far back a denial alike is looked for.
const COALESCED_LOOK_BACK: usize = 16;

/// One refused execution, or several alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// When the first of them was refused.
    pub at: Timestamp,
    /// Where the file lay, as bytes.
    pub path: Vec<u8>,
    /// Its content, when it was read.
    pub digest: Option<Sha256Digest>,
    /// Why.
    pub cause: DecisionCause,
    /// Whether it was refused; what a guard only watches is not.
    pub refused: bool,
    /// The process that tried.
    pub pid: i32,
    /// Its parent; 0 when the process was gone before it was looked at, which happens when the refusal was known.
    pub ppid: i32,
    /// Its user; none when the process was gone.
    pub uid: Option<u32>,
    /// The program that it ran, as bytes; empty when the process was gone.
    pub parent_program: Vec<u8>,
    /// How many alike.
    pub count: u64,
}

impl std::fmt::Display for Denial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, program) = (self.path.escape_ascii(), self.parent_program.escape_ascii());
        let guard = if let DecisionCause::Guard(name) = &self.cause { name } else { "" };
        let cause = self.cause.code();
        let (pid, count) = (self.pid, self.count);
        write!(formatter, "{cause} {guard}: \"{path}\" by {program} (process {pid}, {count} times)")
    }
}

/// What the responder hands over.
pub(crate) struct RawDenial {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) pid: i32,
    pub(crate) label: Arc<Label>,
    /// The process, when it was looked at while it waited.
    pub(crate) process: Option<Process>,
}

/// What is known of a process that tried.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    parent: i32,
    user: Option<u32>,
    pub(crate) program: Vec<u8>,
}

/// The user of a process; none when it is gone. It waits for nothing.
pub(crate) fn user_of(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field(&status, "Uid:")
}

/// The first number of a field of `/proc/PID/status`.
fn field<T: std::str::FromStr>(status: &str, name: &str) -> Option<T> {
    status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

impl Process {
    /// Looks at a process; none when it is gone.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        Some(Self {
            parent: field(&status, "PPid:").unwrap_or(0),
            user: field(&status, "Uid:"),
            program: program.into_os_string().into_vec(),
        })
    }
}

/// The denials that nobody has taken.
#[derive(Default)]
pub(crate) struct DenialLog {
    waiting: Mutex<VecDeque<(Instant, Denial)>>,
    dropped: AtomicU64,
}

impl DenialLog {
    pub(crate) fn take(&self, max: usize) -> Vec<Denial> {
        let mut waiting = self.lock();
        let count = waiting.len().min(max);
        waiting.drain(..count).map(|(_, denial)| denial).collect()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, denial: Denial) {
        let mut waiting = self.lock();
        let alike = waiting.iter_mut().rev().take(COALESCED_LOOK_BACK).find(|(at, other)| {
            at.elapsed() < COALESCED_WITHIN
                && other.path == denial.path
                && (&other.cause, other.refused) == (&denial.cause, denial.refused)
                && other.digest == denial.digest
                // Who is gone counts as anyone.
                && (denial.uid.is_none() || other.uid == denial.uid)
        });
        if let Some((_, other)) = alike {
            other.count += 1;
        } else if waiting.len() < DENIALS_MAX {
            waiting.push_back((Instant::now(), denial));
        } else {
            self.count_dropped();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, Denial)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Describes denials until the session ends, and what is left then.
pub(crate) fn run(shared: &Shared) {
    while let Some(raw) = shared.raw_denials.wait(shared).or_else(|| shared.raw_denials.pop()) {
        shared.denials.add(describe(&raw));
    }
}

pub(crate) fn describe(raw: &RawDenial) -> Denial {
    let process = raw.process.clone().or_else(|| Process::of(raw.pid));
    Denial {
        at: Timestamp::from(SystemTime::now()),
        path: path_of(&raw.file),
        digest: raw.label.digest,
        cause: raw.label.decision.cause.clone(),
        refused: true,
        pid: raw.pid,
        ppid: process.as_ref().map_or(0, |process| process.parent),
        uid: process.as_ref().and_then(|process| process.user),
        parent_program: process.map(|process| process.program).unwrap_or_default(),
        count: 1,
    }
}
