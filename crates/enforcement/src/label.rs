//! Labels: what is known of one inode version, and how it comes to be known.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use domain::decision::{Decision, DecisionCause};
use domain::digest::Sha256Digest;
use domain::program_class::ProgramClasses;
use nix::sys::stat::FileStat;
use sha2::Digest as _;

use crate::fanotify::Shared;
use crate::{FileFacts, Judge};

/// Bytes read at once while hashing.
const READ_BYTES: usize = 128 * 1024;

/// Identifies a file's content as far as the kernel tells without reading it. `mtime` is not part of it: its owner can
/// set it at will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct InodeVersion {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    ctime: (i64, i64),
    size: i64,
}

impl From<&FileStat> for InodeVersion {
    fn from(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
            size: stat.st_size,
        }
    }
}

impl InodeVersion {
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether hashing it takes long enough to hold up smaller files.
    pub(crate) fn is_large(&self) -> bool {
        self.size > 8 * 1024 * 1024
    }

    /// Whether a change from here on would show in the version: the kernel's clock for `ctime` ticks at least each
    /// 10 ms, and two changes within one tick look the same.
    pub(crate) fn is_settled(&self) -> bool {
        let (seconds, nanoseconds) = self.ctime;
        let since_epoch = u64::try_from(seconds)
            .ok()
            .zip(u32::try_from(nanoseconds).ok())
            .filter(|(_, nanoseconds)| *nanoseconds < 1_000_000_000)
            .map(|(seconds, nanoseconds)| Duration::new(seconds, nanoseconds));
        let changed = since_epoch.and_then(|since_epoch| UNIX_EPOCH.checked_add(since_epoch));
        // A time in the future is not settled.
        changed.is_some_and(|at| at.elapsed().is_ok_and(|age| age > Duration::from_millis(20)))
    }
}

/// A file that waits to be judged.
pub(crate) struct Job {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) version: InodeVersion,
    /// One of those who wait.
    pub(crate) pid: i32,
    /// When the last of those who wait gives up, as far as is known when the job is made.
    pub(crate) deadline: Instant,
}

/// What came of a job.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) decision: Decision,
    pub(crate) digest: Option<Sha256Digest>,
    pub(crate) classes: ProgramClasses,
    /// Whether each start is looked at before the verdict is given, when it is to allow.
    pub(crate) is_looked_at: bool,
}

impl Label {
    pub(crate) fn failure(cause: DecisionCause) -> Self {
        Self {
            decision: Decision::failure(cause),
            digest: None,
            classes: ProgramClasses::NONE,
            is_looked_at: false,
        }
    }
}

/// Judges one file and hands the answer to the responder.
pub(crate) fn judge(job: &Job, shared: &Shared) {
    // After a flood the queue is full of jobs that nobody waits for: what comes now goes before them.
    if job.deadline <= Instant::now() {
        return shared.answer(job, Label::failure(DecisionCause::Late), false);
    }
    loop {
        let attempt = shared.verdicts.begin(job);
        let label = match attempt.hopeless() {
            Some(cause) => Label::failure(cause),
            None => look(job, attempt.judge.as_ref(), shared),
        };
        if shared.verdicts.settle(job, &attempt, label, shared) {
            return;
        }
    }
}

fn look(job: &Job, judge: &dyn Judge, shared: &Shared) -> Label {
    let bytes_max = shared.settings.hash_bytes_max;
    judged(&job.file, job.version, bytes_max, judge, |file| {
        hash_while(file, bytes_max, || !shared.stopping())
    })
}

/// What the judge in force says of a file that nobody executes at the moment.
pub(crate) fn decide(file: &OwnedFd, version: InodeVersion, shared: &Shared) -> Decision {
    let bytes_max = shared.settings.hash_bytes_max;
    let judge = shared.verdicts.judge();
    let hash = |file: &OwnedFd| hash_while(file, bytes_max, || !shared.stopping());
    judged(file, version, bytes_max, judge.as_ref(), hash).decision
}

/// What a judge says of a file whose content `hash` finds out.
pub(crate) fn judged(
    file: &OwnedFd,
    version: InodeVersion,
    bytes_max: u64,
    judge: &dyn Judge,
    hash: impl FnOnce(&OwnedFd) -> io::Result<Sha256Digest>,
) -> Label {
    if u64::try_from(version.size).unwrap_or(0) > bytes_max {
        return Label::failure(DecisionCause::TooLarge);
    }
    let Ok(digest) = hash(file) else {
        return Label::failure(DecisionCause::Unreadable);
    };
    let unchanged =
        nix::sys::stat::fstat(file.as_fd()).is_ok_and(|stat| InodeVersion::from(&stat) == version);
    if !unchanged {
        return Label::failure(DecisionCause::Unreadable);
    }
    let path = path_of(file);
    let facts = FileFacts {
        digest,
        fs_verity: fs_verity(file),
        path: &path,
        device: version.device,
        inode: version.inode,
    };
    let classes = judge.classes(&facts);
    let is_looked_at = judge.is_looked_at(classes);
    Label { decision: judge.judge(&facts), digest: Some(digest), classes, is_looked_at }
}

/// The file's fs-verity digest, when the kernel checks its content against one of SHA-256 (Linux 5.4).
pub fn fs_verity(file: &OwnedFd) -> Option<Sha256Digest> {
    crate::sys::measure_verity(file.as_fd()).map(Sha256Digest)
}

/// SHA-256 of a file's content from its beginning, at most `bytes_max` bytes.
///
/// # Errors
/// `FileTooLarge` when it is longer; from reading.
pub fn hash(file: &OwnedFd, bytes_max: u64) -> io::Result<Sha256Digest> {
    hash_while(file, bytes_max, || true)
}

/// [`hash`] that gives up with `Interrupted` once `wanted` says no.
pub(crate) fn hash_while(
    file: &OwnedFd,
    bytes_max: u64,
    wanted: impl Fn() -> bool,
) -> io::Result<Sha256Digest> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut offset: u64 = 0;
    while wanted() {
        let position = i64::try_from(offset).map_err(io::Error::other)?;
        let length = match nix::sys::uio::pread(file, &mut buffer, position) {
            Ok(length) => length,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if length == 0 {
            return Ok(Sha256Digest(hasher.finalize().into()));
        }
        offset += length as u64;
        if offset > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        hasher.update(buffer.get(..length).unwrap_or_default());
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// Where the kernel says that an open file lies; empty when it does not say.
pub(crate) fn path_of(file: &OwnedFd) -> Vec<u8> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(link).map(|path| path.as_os_str().as_bytes().to_vec()).unwrap_or_default()
}
