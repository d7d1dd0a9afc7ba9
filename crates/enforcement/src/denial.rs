//! Denials: who was refused what, found out after the kernel has its answer.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use domain::decision::DecisionCause;
use domain::digest::Sha256Digest;
use domain::execution_event::Hook;
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
    /// Which of the kernel's questions it was.
    pub hook: Hook,
    /// Where the file lay, as bytes.
    pub path: Vec<u8>,
    /// Its content, when it was read.
    pub digest: Option<Sha256Digest>,
    /// Why.
    pub cause: DecisionCause,
    /// The process that tried.
    pub pid: i32,
    /// Its parent; 0 when the process was gone before it was looked at, which happens when the refusal was known.
    pub ppid: i32,
    /// Its user; none when the process was gone.
    pub uid: Option<u32>,
    /// The program that it ran, as bytes; empty when the process was gone.
    pub parent_program: Vec<u8>,
    /// Its control group in the unified hierarchy, as bytes; empty when the process was gone.
    pub cgroup: Vec<u8>,
    /// The interpreter, when the file is a script or was to run one.
    pub interpreter: Option<Vec<u8>>,
    /// The script: the file itself, or what the interpreter was to run.
    pub script: Option<Vec<u8>>,
    /// Whether it was only noted and went on: what a guard only watches, say.
    pub audited: bool,
    /// How many alike.
    pub count: u64,
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
    pub(crate) cgroup: Vec<u8>,
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
            cgroup: cgroup_of(pid),
        })
    }
}

/// The control group of a process; empty when it is gone. Of the older hierarchies, the one of systemd counts.
fn cgroup_of(pid: i32) -> Vec<u8> {
    let text = std::fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let lines = || text.split(|byte| *byte == b'\n');
    let unified = lines().find_map(|line| line.strip_prefix(b"0::"));
    let named = || {
        lines().find_map(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':');
            (fields.nth(1)? == b"name=systemd").then(|| fields.next())?
        })
    };
    unified.filter(|path| *path != b"/").or_else(named).or(unified).unwrap_or_default().to_vec()
}

/// The interpreter in a script's first line (`execve(2)`); none when it is no script, or cannot be read.
fn interpreter_of(script: &OwnedFd) -> Option<Vec<u8>> {
    // The kernel looks at no more.
    let mut head = [0; 256];
    let length = nix::sys::uio::pread(script, &mut head, 0).ok()?;
    let line = head.get(..length)?.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let name = line.trim_ascii_start().split(|byte| matches!(byte, b' ' | b'\t' | 0)).next()?;
    (!name.is_empty()).then(|| name.to_vec())
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
                && (other.cause == denial.cause && other.hook == denial.hook)
                && (other.audited == denial.audited && other.script == denial.script)
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
    let path = path_of(&raw.file);
    // Who serves such a file may never answer.
    let is_readable = raw.label.decision.cause != DecisionCause::Unverifiable;
    let interpreter = is_readable.then(|| interpreter_of(&raw.file)).flatten();
    Denial {
        at: Timestamp::from(SystemTime::now()),
        hook: Hook::Execute,
        script: interpreter.is_some().then(|| path.clone()),
        interpreter,
        audited: false,
        path,
        digest: raw.label.digest,
        cause: raw.label.decision.cause.clone(),
        pid: raw.pid,
        ppid: process.as_ref().map_or(0, |process| process.parent),
        uid: process.as_ref().and_then(|process| process.user),
        cgroup: process.as_ref().map(|process| process.cgroup.clone()).unwrap_or_default(),
        parent_program: process.map(|process| process.program).unwrap_or_default(),
        count: 1,
    }
}
