//! Labels: what is known of one inode version, and how it comes to be known.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use domain::decision::{Decision, DecisionCause, Reuse, Verdict};
use domain::digest::Sha256Digest;
use nix::sys::stat::FileStat;
use sha2::Digest as _;

use crate::FileFacts;
use crate::fanotify::Shared;
use crate::lease::Lease;

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
    /// Whether hashing it takes long enough to hold up smaller files.
    pub(crate) fn is_large(&self) -> bool {
        self.size > 8 * 1024 * 1024
    }
}

/// A file that waits to be judged.
pub(crate) struct Job {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) version: InodeVersion,
}

/// What came of a job.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) decision: Decision,
    pub(crate) digest: Option<Sha256Digest>,
}

impl Label {
    pub(crate) fn failure(cause: DecisionCause) -> Self {
        Self { decision: Decision::failure(cause), digest: None }
    }
}

/// Judges one file and hands the answer to the responder.
///
/// A lease is taken before the first byte is read and kept as long as the verdict is: whoever opens the file for
/// writing, even to map it, waits in the kernel until the verdict is forgotten.
pub(crate) fn judge(job: &Job, shared: &Shared) {
    let lease = shared.leases.take(&job.file, job.version);
    let label = match lease {
        Lease::BeingWritten => Label::failure(DecisionCause::BeingWritten),
        Lease::Held | Lease::Unsupported => look(job, shared),
    };
    let allowed = label.decision.verdict == Verdict::Allow;
    // A verdict about a file with other names may hang on the name, so its refusal is not kept.
    let keep_refusal = !allowed && job_stat(job).is_ok_and(|stat| stat.st_nlink <= 1);
    let reusable = label.decision.reuse == Reuse::SameInodeVersion;
    match lease {
        Lease::Held if allowed && reusable => shared.leases.keep(job, label, shared),
        Lease::Held => {
            let label = if shared.leases.give_back(&job.file) || !allowed {
                label
            } else {
                Label::failure(DecisionCause::BeingWritten)
            };
            shared.answer(job, label, reusable && keep_refusal);
        }
        Lease::BeingWritten => shared.answer(job, label, false),
        Lease::Unsupported => shared.answer(job, label, reusable && keep_refusal),
    }
}

fn look(job: &Job, shared: &Shared) -> Label {
    if u64::try_from(job.version.size).unwrap_or(0) > shared.settings.hash_bytes_max {
        return Label::failure(DecisionCause::TooLarge);
    }
    let Ok(digest) = hash(&job.file, shared.settings.hash_bytes_max) else {
        return Label::failure(DecisionCause::Unreadable);
    };
    if job_stat(job).is_ok_and(|stat| InodeVersion::from(&stat) != job.version) {
        return Label::failure(DecisionCause::Unreadable);
    }
    let path = path_of(&job.file);
    let facts = FileFacts { digest, path: &path, device: job.version.device, inode: job.version.inode };
    Label { decision: shared.judge.judge(&facts), digest: Some(digest) }
}

fn job_stat(job: &Job) -> io::Result<FileStat> {
    Ok(nix::sys::stat::fstat(job.file.as_fd())?)
}

/// SHA-256 of a file's content from its beginning, at most `bytes_max` bytes.
///
/// # Errors
/// `FileTooLarge` when it is longer; from reading.
pub fn hash(file: &OwnedFd, bytes_max: u64) -> io::Result<Sha256Digest> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut offset: u64 = 0;
    loop {
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
}

/// Where the kernel says that an open file lies; empty when it does not say.
pub(crate) fn path_of(file: &OwnedFd) -> Vec<u8> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(link).map(|path| path.as_os_str().as_bytes().to_vec()).unwrap_or_default()
}
