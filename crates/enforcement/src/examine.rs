//! What would become of an execution, without one: the steps of the gate's own decision, in their order.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use domain::decision::{Decision, DecisionCause};
use domain::digest::Sha256Digest;

use crate::label::{InodeVersion, Label, hash, judged, path_of};
use crate::{Judge, Settings, mounts, sys};

/// Digests that are remembered; 80 bytes each.
const KNOWN_MAX: usize = 65_536;

/// Decides about files that nobody executes.
///
/// It belongs to the thread that makes it, which should do nothing else: to see whether a file is open for writing it
/// takes a lease for a moment, and the signal of a broken lease must not reach a thread that would die of it.
#[derive(Debug)]
pub struct Examiner {
    bytes_max: u64,
    known: KnownDigests,
    found: KnownDigests,
    /// Mounts and devices of this mount namespace that another machine or process serves.
    foreign: Vec<(u64, (u64, u64))>,
    /// Keeps the lease signals of this thread blocked, and takes them.
    signals: OwnedFd,
    thread: PhantomData<*const ()>,
}

/// Digests of inode versions, for the next examiner.
#[derive(Debug, Default)]
pub struct KnownDigests(HashMap<InodeVersion, Sha256Digest>);

/// What would become of executing a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// May it run, and why.
    pub decision: Decision,
    /// Its content, when it was read.
    pub digest: Option<Sha256Digest>,
    /// Where the kernel says it lies, as bytes.
    pub path: Vec<u8>,
    /// Its device and inode number; 0 when it could not be looked at.
    pub file: (u64, u64),
}

impl Examiner {
    /// An examiner that knows these digests from one before it.
    ///
    /// # Errors
    /// When the kernel's mounts cannot be read, or no signals be held.
    pub fn new(known: KnownDigests) -> io::Result<Self> {
        Ok(Self {
            bytes_max: Settings::default().hash_bytes_max,
            known,
            found: KnownDigests::default(),
            foreign: mounts::foreign(&std::fs::read("/proc/thread-self/mountinfo")?),
            signals: sys::lease_signals()?,
            thread: PhantomData,
        })
    }

    /// The digests of the files that it looked at.
    pub fn into_known(self) -> KnownDigests {
        self.found
    }

    /// What would become of executing what is at `path`.
    ///
    /// # Errors
    /// When it cannot be opened, or is no regular file.
    pub fn path(&mut self, path: &Path, judge: &dyn Judge) -> io::Result<Examined> {
        // Only looked at first: opening a pipe waits for a writer, opening a watchdog arms it, and a foreign filesystem
        // may never answer.
        let seen = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
        let fd = seen.as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{fd}"))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        if self.foreign.iter().any(|(id, _)| Some(*id) == mount) {
            return Ok(Examined::unverifiable(path_of(&seen.into())));
        }
        if !seen.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let file = File::open(format!("/proc/thread-self/fd/{fd}"))?;
        Ok(self.open_file(&file.into(), judge))
    }

    /// What would become of executing an open file, which no foreign filesystem serves.
    pub fn open_file(&mut self, file: &OwnedFd, judge: &dyn Judge) -> Examined {
        let path = path_of(file);
        let Ok(stat) = nix::sys::stat::fstat(file.as_fd()) else {
            return Examined::unreadable(path);
        };
        let version = InodeVersion::from(&stat);
        let label = match self.hopeless(file) {
            Some(cause) => Label::failure(cause),
            None => judged(file, version, self.bytes_max, judge, |file| match self.known.0.get(&version) {
                Some(digest) => Ok(*digest),
                None => hash(file, self.bytes_max),
            }),
        };
        if let Some(digest) = label.digest
            && version.is_settled()
            && self.found.0.len() < KNOWN_MAX
        {
            self.found.0.insert(version, digest);
        }
        let Label { decision, digest, .. } = label;
        Examined { decision, digest, path, file: (version.device, version.inode) }
    }

    /// Why looking at the file's content would be of no use, when it would not: see `verdicts`.
    fn hopeless(&self, file: &OwnedFd) -> Option<DecisionCause> {
        match sys::take_lease(file.as_fd(), sys::thread_id()) {
            Ok(()) => {
                // A writer who came in this moment goes on at once; its signal is not for anybody.
                drop(sys::release_lease(file.as_fd()));
                while let Ok(Some(_)) = sys::read_lease_break(self.signals.as_fd()) {}
                None
            }
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Some(DecisionCause::BeingWritten),
            Err(_) => Some(DecisionCause::Unverifiable),
        }
    }
}

impl Examined {
    /// What would become of executing a file that cannot be opened.
    pub fn unreadable(path: Vec<u8>) -> Self {
        Self::failure(DecisionCause::Unreadable, path)
    }

    /// What would become of executing a file of a foreign filesystem.
    pub fn unverifiable(path: Vec<u8>) -> Self {
        Self::failure(DecisionCause::Unverifiable, path)
    }

    fn failure(cause: DecisionCause, path: Vec<u8>) -> Self {
        let Label { decision, digest, .. } = Label::failure(cause);
        Self { decision, digest, path, file: (0, 0) }
    }
}

/// The devices in a process's `mountinfo` that another machine or process serves, as major and minor number.
pub fn foreign_devices(mountinfo: &[u8]) -> BTreeSet<(u64, u64)> {
    mounts::foreign(mountinfo).into_iter().map(|(_, device)| device).collect()
}
