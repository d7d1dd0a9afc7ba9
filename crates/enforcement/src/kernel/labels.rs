//! Puts labels on files: reads each itself, and holds that nobody changed it in the meantime.
//!
//! A label begins as *pending*: whoever opens the file for writing from then on makes the programs delete it, so that
//! the label that is written over it in the end finds nothing to replace, and is not made. Identity and version are
//! what the hooks see when this process opens the file, never what `stat` says.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use domain::decision::{Decision, DecisionCause, Verdict};
use domain::digest::Sha256Digest;
use domain::program_class::ProgramClass;
use libbpf_rs::{MapCore as _, MapFlags};

use super::abi::{Classes, Key, Label, Sight, Version};
use super::elf;
use super::memory::Memory;
use super::programs::Maps;
use crate::label::{fs_verity, hash_while, path_of};
use crate::{FileFacts, Judge};

/// Filesystems whose content changes only through the kernel's hands, with inode numbers that stay: `statfs(2)`.
/// Not FAT and NTFS, whose inode numbers pass from file to file, nor what another machine or process serves.
const LABELLED: &[u64] = &[
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs, which a kernel's first root may be
    0x7371_7368, // squashfs
    0xe0f5_e1e2, // erofs
    0xf2f5_2010, // f2fs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // ZFS
    0x9660,      // ISO 9660
    0x1501_3346, // UDF
];
/// A file whose change is younger than this may change again without its time moving: the kernel's clock for it ticks
/// every 10 ms at the most.
const SETTLES_WITHIN: Duration = Duration::from_millis(20);
/// Files are told apart by this many locks while they are labelled.
const LOCKS: usize = 64;

/// Labels files for one judge at a time.
pub(super) struct Labeller {
    locks: Vec<Mutex<()>>,
    gate_program: PathBuf,
    hash_bytes_max: u64,
}

/// What files are looked at for.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) judge: &'a dyn Judge,
    /// For which epoch labels are to count.
    pub(super) epoch: u32,
    /// What is known of files is not read again.
    pub(super) memory: &'a Memory,
    /// It is given up once this says no.
    pub(super) wanted: &'a dyn Fn() -> bool,
}

/// What came of looking at a file.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub(super) decision: Decision,
    pub(super) digest: Option<Sha256Digest>,
    pub(super) key: Option<Key>,
    pub(super) version: Option<Version>,
    /// Whether it has a label that counts now.
    pub(super) labelled: bool,
    /// Whether its content was remembered, and not read.
    pub(super) remembered: bool,
}

impl Look {
    fn failure(cause: DecisionCause) -> Self {
        let decision = Decision::failure(cause);
        Self { decision, digest: None, key: None, version: None, labelled: false, remembered: false }
    }
}

impl Labeller {
    pub(super) fn new(gate_program: PathBuf, hash_bytes_max: u64) -> Self {
        Self { locks: (0..LOCKS).map(|_| Mutex::new(())).collect(), gate_program, hash_bytes_max }
    }

    /// Judges the file at `path`, and gives it a label when it may run. With `expected`, only when it is that very file.
    pub(super) fn look(&self, maps: &Maps, path: &Path, expected: Option<Key>, pass: Pass<'_>) -> Look {
        let Ok(file) = Seen::open(path, maps) else { return Look::failure(DecisionCause::Unreadable) };
        let sight = file.sight;
        if expected.is_some_and(|expected| expected != sight.key) {
            return Look::failure(DecisionCause::Unreadable);
        }
        if let Some(cause) = self.never_labelled(&sight) {
            return Look { key: Some(sight.key), ..Look::failure(cause) };
        }
        let _alone = self.lock(&sight.key);
        let known =
            label_of(maps, &sight.key).filter(|label| label.settled && label.version == sight.version);
        match known {
            Some(label) => self.judge_again(maps, &file, label, pass),
            None => {
                let remembered = pass.memory.content(path, &sight.key, &sight.version);
                self.read(maps, &file, remembered, pass)
            }
        }
    }

    /// Reads a file whose content was only remembered. Answers false when it is something else: it has no label then.
    pub(super) fn verify(&self, maps: &Maps, path: &Path, wanted: &dyn Fn() -> bool) -> bool {
        let Ok(file) = Seen::open(path, maps) else { return true };
        let key = file.sight.key;
        let _alone = self.lock(&key);
        let Some(label) = label_of(maps, &key).filter(|label| label.version == file.sight.version) else {
            return true;
        };
        match hash_while(&file.file, self.hash_bytes_max, wanted) {
            Ok(digest) if digest == label.digest => true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Ok(_) | Err(_) => {
                drop(maps.labels.delete(&key.to_bytes()));
                false
            }
        }
    }

    fn never_labelled(&self, sight: &Sight) -> Option<DecisionCause> {
        if sight.foreign || !LABELLED.contains(&sight.magic) {
            Some(DecisionCause::Unverifiable)
        } else if sight.writers {
            Some(DecisionCause::BeingWritten)
        } else if u64::try_from(sight.version.size).map_or(true, |size| size > self.hash_bytes_max) {
            Some(DecisionCause::TooLarge)
        } else {
            None
        }
    }

    /// What was read once need not be read again: the label would be gone if anyone had opened it for writing.
    fn judge_again(&self, maps: &Maps, file: &Seen, label: Label, pass: Pass<'_>) -> Look {
        let Pass { judge, epoch, .. } = pass;
        let (decision, path) = file.judge(judge, label.digest);
        let allowed = decision.verdict == Verdict::Allow;
        let mut next = label.counting(epoch, allowed);
        next.classes = self.classes(file, &path, label.digest, judge);
        let kept = next == label || replace(maps, &file.sight.key, &next);
        let digest = Some(label.digest);
        Look {
            decision,
            digest,
            key: Some(file.sight.key),
            version: Some(file.sight.version),
            labelled: kept && next.counts(epoch),
            remembered: false,
        }
    }

    fn read(&self, maps: &Maps, file: &Seen, remembered: Option<Sha256Digest>, pass: Pass<'_>) -> Look {
        let Pass { judge, epoch, wanted, .. } = pass;
        let key = file.sight.key;
        let failure = |cause| Look { key: Some(key), ..Look::failure(cause) };
        let mut label = Label {
            inode: key.inode,
            version: file.sight.version,
            epochs: [0, 0],
            classes: Classes::default(),
            settled: false,
            digest: Sha256Digest([0; 32]),
        };
        if !is_settled(&label.version) {
            // Its time does not tell a change yet. It soon does.
            std::thread::sleep(SETTLES_WITHIN);
            if !is_settled(&label.version) {
                return failure(DecisionCause::Unverifiable);
            }
        }
        if maps.labels.update(&key.to_bytes(), &label.to_bytes(), MapFlags::ANY).is_err() {
            return failure(DecisionCause::Overload);
        }
        // From here on a write-open takes the label away. Who opened it before is seen now.
        let again = file.again(maps).ok();
        let same = again.filter(|sight| *sight == file.sight);
        let digest = same
            .and_then(|_| remembered.or_else(|| hash_while(&file.file, self.hash_bytes_max, wanted).ok()));
        let Some(digest) = digest else {
            drop(maps.labels.delete(&key.to_bytes()));
            let written = again.is_some_and(|sight| sight.writers);
            return failure(if written { DecisionCause::BeingWritten } else { DecisionCause::Unreadable });
        };
        let (decision, path) = file.judge(judge, digest);
        let allowed = decision.verdict == Verdict::Allow;
        label.digest = digest;
        label.settled = true;
        label.classes = self.classes(file, &path, digest, judge);
        // What may not run keeps no label: there may be any number of such files.
        let labelled = allowed && replace(maps, &key, &label.counting(epoch, true));
        if !labelled {
            drop(maps.labels.delete(&key.to_bytes()));
        }
        Look {
            decision,
            digest: Some(digest),
            key: Some(key),
            version: Some(file.sight.version),
            labelled,
            remembered: remembered.is_some(),
        }
    }

    fn classes(&self, file: &Seen, path: &[u8], digest: Sha256Digest, judge: &dyn Judge) -> Classes {
        let known = judge.classes(&file.facts(digest, path));
        Classes::default()
            .with(Classes::STACK, elf::stack_is_code(&file.file))
            .with(Classes::JIT, known.contains(ProgramClass::Jit))
            .with(Classes::GATE, path == self.gate_program.as_os_str().as_bytes())
    }

    fn lock(&self, key: &Key) -> Option<MutexGuard<'_, ()>> {
        let at = usize::try_from(key.inode % LOCKS as u64).unwrap_or(0);
        self.locks.get(at).map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A file that this process opened, with what the hooks saw of it.
pub(super) struct Seen {
    file: OwnedFd,
    device: u64,
    inode: u64,
    pub(super) sight: Sight,
}

impl Seen {
    /// Opens a regular file for reading.
    pub(super) fn open(path: &Path, maps: &Maps) -> io::Result<Self> {
        // Only looked at first: opening a pipe waits for a writer, and opening a watchdog arms it.
        let found = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
        let metadata = found.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (file, sight) = reopen(&found.into(), maps)?;
        Ok(Self { file, device: metadata.dev(), inode: metadata.ino(), sight })
    }

    /// What the hooks see of a folder or file, whatever it is.
    pub(super) fn of_any(path: &Path, maps: &Maps) -> io::Result<Sight> {
        let found = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
        let kind = found.metadata()?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(reopen(&found.into(), maps)?.1)
    }

    fn again(&self, maps: &Maps) -> io::Result<Sight> {
        Ok(reopen(&self.file, maps)?.1)
    }

    fn judge(&self, judge: &dyn Judge, digest: Sha256Digest) -> (Decision, Vec<u8>) {
        let path = path_of(&self.file);
        (judge.judge(&self.facts(digest, &path)), path)
    }

    fn facts<'a>(&self, digest: Sha256Digest, path: &'a [u8]) -> FileFacts<'a> {
        FileFacts { digest, fs_verity: fs_verity(&self.file), path, device: self.device, inode: self.inode }
    }
}

/// Opens a file anew, and takes what the hooks saw of it.
fn reopen(file: &OwnedFd, maps: &Maps) -> io::Result<(OwnedFd, Sight)> {
    let thread = crate::sys::thread_id().to_ne_bytes();
    // The programs fill only what is there, and what an earlier open left must not be taken for this one's.
    maps.sights.update(&thread, &[0; Sight::BYTES], MapFlags::ANY).map_err(io::Error::other)?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let sight = maps.sights.lookup(&thread, MapFlags::ANY);
    // Threads come and go, and there is not room for many.
    drop(maps.sights.delete(&thread));
    let file = opened?;
    let sight = sight.map_err(io::Error::other)?.as_deref().and_then(Sight::from_bytes);
    let sight = sight.filter(|sight| sight.key != Key::default());
    let sight = sight.ok_or_else(|| io::Error::other("the hook that sees files opened saw nothing"))?;
    Ok((file.into(), sight))
}

pub(super) fn label_of(maps: &Maps, key: &Key) -> Option<Label> {
    let bytes = maps.labels.lookup(&key.to_bytes(), MapFlags::ANY).ok()??;
    Label::from_bytes(&bytes)
}

/// Puts a label in the place of the one that is there; fails when the programs have voided that.
fn replace(maps: &Maps, key: &Key, label: &Label) -> bool {
    maps.labels.update(&key.to_bytes(), &label.to_bytes(), MapFlags::EXIST).is_ok()
}

/// Whether a change from here on would show in the version.
fn is_settled(version: &Version) -> bool {
    let (seconds, nanoseconds) = version.ctime;
    let since_epoch = u64::try_from(seconds).ok().filter(|_| nanoseconds < 1_000_000_000);
    let changed = since_epoch.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds)));
    // A time in the future is not settled.
    changed.is_some_and(|at| at.elapsed().is_ok_and(|age| age > SETTLES_WITHIN))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_times_well_in_the_past_are_settled() {
        let version = |at: SystemTime| {
            let since = at.duration_since(UNIX_EPOCH).unwrap();
            Version { ctime: (since.as_secs().cast_signed(), since.subsec_nanos()), size: 1 }
        };
        let now = SystemTime::now();
        assert!(is_settled(&version(now - Duration::from_secs(1))));
        assert!(!is_settled(&version(now)) && !is_settled(&version(now + Duration::from_secs(60))));
        for ctime in [(-1, 0), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert!(!is_settled(&Version { ctime, size: 1 }), "{ctime:?}");
        }
    }
}
