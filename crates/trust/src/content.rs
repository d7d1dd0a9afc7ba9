//! One file's content and identity, from one descriptor and one read.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::digest::Sha256Digest;
use md5::{Digest as _, Md5};
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::Errno;
use sha2::Sha256;

use crate::dpkg::Md5Digest;
use crate::shipped::Shipped;

/// Long enough that system calls do not count, short enough to stay in the processor's cache.
const BUFFER_BYTES: usize = 128 * 1024;

/// Which version of which inode a file is. The time of modification is no part of it, because anybody may set that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) ctime_seconds: i64,
    pub(crate) ctime_nanoseconds: i64,
    pub(crate) size: u64,
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            ctime_seconds: metadata.ctime(),
            ctime_nanoseconds: metadata.ctime_nsec(),
            size: metadata.size(),
        }
    }

    pub(crate) fn ctime(&self) -> (i64, i64) {
        (self.ctime_seconds, self.ctime_nanoseconds)
    }
}

/// What one read found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content {
    pub(crate) md5: Md5Digest,
    pub(crate) sha256: Sha256Digest,
    pub(crate) stamp: Stamp,
    /// Whether it can be executed or loaded ([`is_executable`]).
    pub(crate) executable: bool,
}

impl Content {
    /// Whether it is what a package shipped.
    pub(crate) fn is(&self, shipped: Shipped) -> bool {
        match shipped {
            Shipped::Md5(md5) => md5 == self.md5,
            Shipped::Sha256(sha256) => sha256 == self.sha256,
            Shipped::Weak => false,
        }
    }
}

/// Why nothing can be said about a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A link, a directory or a device is where a package shipped a file.
    #[error("not a regular file")]
    NotRegular,
    /// It was changed while it was read, twice in a row.
    #[error("changes while it is read")]
    Changing,
    /// The file system refused.
    #[error("{0}")]
    Io(io::ErrorKind),
}

/// Why a read ended without content.
#[derive(Debug)]
pub(crate) enum ReadError {
    Stopped,
    Unreadable(Unreadable),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        // Opened without following links, a link is a loop.
        if Errno::from_io_error(&error) == Some(Errno::LOOP) {
            return Self::Unreadable(Unreadable::NotRegular);
        }
        Self::Unreadable(Unreadable::Io(error.kind()))
    }
}

/// An execute bit, or a beginning that the kernel or a loader would run: ELF, `#!`.
pub(crate) fn is_executable(mode: u32, beginning: &[u8]) -> bool {
    mode & 0o111 != 0 || beginning.starts_with(b"\x7fELF") || beginning.starts_with(b"#!")
}

/// Reads files, with one buffer for all of them.
pub(crate) struct Reader<'a> {
    buffer: Vec<u8>,
    stop: &'a AtomicBool,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(stop: &'a AtomicBool) -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], stop }
    }

    /// Reads a regular file, whose last component is not followed, once more when it changed meanwhile.
    pub(crate) fn read(&mut self, path: &Path) -> Result<Content, ReadError> {
        for _ in 0..2 {
            // Not blocking: a pipe in the file's place must not hold the scan.
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
            let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
            if let Some(content) = self.read_open(&file)? {
                return Ok(content);
            }
        }
        Err(ReadError::Unreadable(Unreadable::Changing))
    }

    /// `None` when the file was another version before than after.
    fn read_open(&mut self, file: &File) -> Result<Option<Content>, ReadError> {
        let before = file.metadata()?;
        if !before.is_file() {
            return Err(ReadError::Unreadable(Unreadable::NotRegular));
        }
        if before.len() > self.buffer.len() as u64 {
            // Advice only: a scan should neither wait for the disk nor push out what programs use.
            for advice in [Advice::Sequential, Advice::NoReuse] {
                fadvise(file, 0, None, advice).ok();
            }
        }
        let (mut md5, mut sha256) = (Md5::new(), Sha256::new());
        let mut magic = [0; 4];
        let mut length = 0_u64;
        // One byte beyond its size shows that it grew, and a file that always grows ends too.
        let mut input = file.take(before.len().saturating_add(1));
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(ReadError::Stopped);
            }
            let count = match input.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let chunk = self.buffer.get(..count).unwrap_or_default();
            if length == 0 {
                magic.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            }
            length += count as u64;
            md5.update(chunk);
            sha256.update(chunk);
        }
        let after = Stamp::of(&file.metadata()?);
        if after != Stamp::of(&before) || length != after.size {
            return Ok(None);
        }
        Ok(Some(Content {
            md5: md5.finalize().into(),
            sha256: Sha256Digest(sha256.finalize().into()),
            stamp: after,
            executable: is_executable(before.mode(), &magic),
        }))
    }
}
