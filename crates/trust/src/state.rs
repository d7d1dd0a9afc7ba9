//! The inventory's state file: what each packaged file was when it was last read.
//!
//! Bytes, little endian: magic (8); items; the SHA-256 of all that precedes (32). An item is a tag and its fields: a
//! package (its key: `u16`, bytes), followed by its files (verdict, executable, which digest the package has and that
//! digest, SHA-256, stamp, path: `u16`, bytes), or the end. Packages are sorted by key and files by path, so that a scan merges the old file into the new
//! one and neither is ever in memory.
//!
//! The digest finds damage. It does not stop whoever owns the file from writing another: the file is as trustworthy as
//! the user that scans.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use domain::digest::Sha256Digest;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use crate::content::Stamp;
use crate::shipped::Shipped;

const MAGIC: &[u8; 8] = b"CORDONI2";
const DIGEST_BYTES: u64 = 32;
/// More than two million files with usual paths need.
const FILE_BYTES_MAX: u64 = 1 << 30;

// Stored; never renumber.
const TAG_END: u8 = 0;
const TAG_PACKAGE: u8 = 1;
const TAG_FILE: u8 = 2;
const SHIPPED_MD5: u8 = 0;
const SHIPPED_SHA256: u8 = 1;

/// What the last scan found where a package shipped a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// What the package shipped.
    Vouched,
    /// Something else.
    Modified,
}

/// One packaged file that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The real path.
    pub(crate) path: Vec<u8>,
    pub(crate) found: Found,
    pub(crate) executable: bool,
    /// What the package shipped.
    pub(crate) shipped: Shipped,
    /// What was there.
    pub(crate) sha256: [u8; 32],
    /// The version that was read. All zero when the file must be read again whatever its stamp.
    pub(crate) stamp: Stamp,
}

impl Record {
    /// That of no file.
    fn empty() -> Self {
        let (path, found, stamp) = (Vec::new(), Found::Modified, Stamp::default());
        Self { path, found, executable: false, shipped: Shipped::Weak, sha256: [0; 32], stamp }
    }
}

/// Why there is no state to start from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("there is no earlier scan")]
    Absent,
    #[error("the state file is damaged: {0}")]
    Damaged(&'static str),
    #[error("the state file cannot be read: {0}")]
    Io(io::Error),
}

impl From<io::Error> for StateError {
    fn from(error: io::Error) -> Self {
        let kind = error.kind();
        if kind == io::ErrorKind::NotFound {
            Self::Absent
        } else if kind == io::ErrorKind::UnexpectedEof {
            Self::Damaged("it ends too early")
        } else {
            Self::Io(error)
        }
    }
}

impl From<StateError> for io::Error {
    fn from(error: StateError) -> Self {
        let kind = match error {
            StateError::Io(error) => return error,
            StateError::Absent => io::ErrorKind::NotFound,
            StateError::Damaged(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error.to_string())
    }
}

/// Reads a state file that is whole, record by record.
pub(crate) struct StateReader {
    input: BufReader<io::Take<File>>,
    digest: Sha256Digest,
    /// The key of the package that the record belongs to.
    package: String,
    record: Record,
    at_end: bool,
}

impl StateReader {
    /// Opens a state file and reads it once to find damage. Follows no link, and waits for nobody's pipe.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(StateError::Damaged("it is not a regular file"));
        }
        let length = metadata.len();
        if length > FILE_BYTES_MAX {
            return Err(StateError::Damaged("it is too long"));
        }
        let covered = length.checked_sub(DIGEST_BYTES).ok_or(StateError::Damaged("it is too short"))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut input = (&file).take(covered);
        while let count @ 1.. = input.read(&mut buffer)? {
            hasher.update(buffer.get(..count).unwrap_or_default());
        }
        let mut digest = [0; 32];
        file.read_exact(&mut digest)?;
        if digest != <[u8; 32]>::from(hasher.finalize()) {
            return Err(StateError::Damaged("its digest is wrong"));
        }
        file.rewind()?;
        let mut input = BufReader::with_capacity(buffer.len(), file.take(covered));
        if read_array(&mut input)? != *MAGIC {
            return Err(StateError::Damaged("it is not an inventory of this version"));
        }
        let digest = Sha256Digest(digest);
        Ok(Self { input, digest, package: String::new(), record: Record::empty(), at_end: false })
    }

    /// The next record, `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<&Record>, StateError> {
        while !self.at_end {
            match read_array(&mut self.input)? {
                [TAG_END] => self.at_end = true,
                [TAG_PACKAGE] => {
                    let mut key = Vec::new();
                    read_bytes(&mut self.input, &mut key)?;
                    let key = String::from_utf8(key);
                    self.package = key.map_err(|_not_utf8| StateError::Damaged("a package has no name"))?;
                }
                [TAG_FILE] => {
                    self.read_record()?;
                    return Ok(Some(&self.record));
                }
                [_] => return Err(StateError::Damaged("an unknown item")),
            }
        }
        Ok(None)
    }

    /// The record of this package and path. To be asked in the file's order: what lies before is skipped.
    pub(crate) fn find(&mut self, package: &str, path: &[u8]) -> Result<Option<&Record>, StateError> {
        while !self.at_end && (self.package.as_str(), self.record.path.as_slice()) < (package, path) {
            self.next()?;
        }
        let found = !self.at_end && self.package == package && self.record.path == path;
        Ok(found.then_some(&self.record))
    }

    fn read_record(&mut self) -> Result<(), StateError> {
        let input = &mut self.input;
        let [found, executable] = read_array(input)?;
        self.record.found = match found {
            0 => Found::Vouched,
            1 => Found::Modified,
            _ => return Err(StateError::Damaged("an unknown verdict")),
        };
        self.record.executable = executable != 0;
        self.record.shipped = match read_array(input)? {
            [SHIPPED_MD5] => Shipped::Md5(read_array(input)?),
            [SHIPPED_SHA256] => Shipped::Sha256(Sha256Digest(read_array(input)?)),
            [_] => return Err(StateError::Damaged("an unknown digest")),
        };
        self.record.sha256 = read_array(input)?;
        self.record.stamp = Stamp {
            device: u64::from_le_bytes(read_array(input)?),
            inode: u64::from_le_bytes(read_array(input)?),
            ctime_seconds: i64::from_le_bytes(read_array(input)?),
            ctime_nanoseconds: i64::from_le_bytes(read_array(input)?),
            size: u64::from_le_bytes(read_array(input)?),
        };
        read_bytes(input, &mut self.record.path)
    }
}

fn read_array<const N: usize>(input: &mut impl Read) -> Result<[u8; N], StateError> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_bytes(input: &mut impl Read, into: &mut Vec<u8>) -> Result<(), StateError> {
    into.resize(usize::from(u16::from_le_bytes(read_array(input)?)), 0);
    Ok(input.read_exact(into)?)
}

/// Writes a state file next to the old one, and puts it in its place when it is whole.
pub(crate) struct StateWriter {
    output: BufWriter<Hashed>,
    path: PathBuf,
    temporary: PathBuf,
    started: (i64, i64),
}

impl StateWriter {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A fresh file: a link is not followed, and its time is that of its creation.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let started = Stamp::of(&file.metadata()?).ctime();
        let mut output = BufWriter::with_capacity(64 * 1024, Hashed { file, hasher: Sha256::new() });
        output.write_all(MAGIC)?;
        Ok(Self { output, path: path.to_owned(), temporary, started })
    }

    /// When the file was created, in seconds and nanoseconds, by the same coarse clock that stamps other files'
    /// changes. A file that was changed no earlier can change once more without its time moving on.
    pub(crate) fn started(&self) -> (i64, i64) {
        self.started
    }

    /// Begins a package, in the order of their keys.
    pub(crate) fn package(&mut self, key: &str) -> io::Result<()> {
        self.output.write_all(&[TAG_PACKAGE])?;
        self.bytes(key.as_bytes())
    }

    /// Adds a file to the package, in the order of their paths.
    pub(crate) fn file(&mut self, record: &Record) -> io::Result<()> {
        let found = match record.found {
            Found::Vouched => 0,
            Found::Modified => 1,
        };
        self.output.write_all(&[TAG_FILE, found, u8::from(record.executable)])?;
        match record.shipped {
            Shipped::Md5(md5) => self.output.write_all(&[&[SHIPPED_MD5][..], &md5].concat())?,
            Shipped::Sha256(Sha256Digest(sha256)) => {
                self.output.write_all(&[&[SHIPPED_SHA256][..], &sha256].concat())?;
            }
            Shipped::Weak => return Err(io::Error::other("a file that nothing is known of")),
        }
        self.output.write_all(&record.sha256)?;
        let Stamp { device, inode, ctime_seconds, ctime_nanoseconds, size } = record.stamp;
        self.output.write_all(&device.to_le_bytes())?;
        self.output.write_all(&inode.to_le_bytes())?;
        self.output.write_all(&ctime_seconds.to_le_bytes())?;
        self.output.write_all(&ctime_nanoseconds.to_le_bytes())?;
        self.output.write_all(&size.to_le_bytes())?;
        self.bytes(&record.path)
    }

    /// Puts the file in the old one's place, durably. An old one of the same content is left alone.
    pub(crate) fn finish(mut self, old: Option<&StateReader>) -> io::Result<()> {
        self.output.write_all(&[TAG_END])?;
        let Hashed { mut file, hasher } = self.output.into_inner().map_err(io::IntoInnerError::into_error)?;
        let digest = Sha256Digest(hasher.finalize().into());
        if old.is_some_and(|old| old.digest == digest) {
            return fs::remove_file(&self.temporary);
        }
        file.write_all(digest.as_bytes())?;
        file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u16::try_from(bytes.len()).map_err(|_too_long| io::ErrorKind::InvalidInput)?;
        self.output.write_all(&length.to_le_bytes())?;
        self.output.write_all(bytes)
    }
}

/// Hashes what passes through to the file.
struct Hashed {
    file: File,
    hasher: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path) {
        let mut writer = StateWriter::create(path).unwrap();
        for (package, files) in [("a", &["/1", "/2"][..]), ("b:amd64", &[]), ("c", &["/0", "/3"])] {
            writer.package(package).unwrap();
            for file in files {
                let shipped = match package {
                    "c" => Shipped::Sha256(Sha256Digest([3; 32])),
                    _ => Shipped::Md5([5; 16]),
                };
                let record = Record { path: file.as_bytes().to_vec(), shipped, ..Record::empty() };
                writer.file(&record).unwrap();
            }
        }
        writer.finish(None).unwrap();
    }

    #[test]
    fn records_are_found_in_order_whatever_lies_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write(&path);
        let mut reader = StateReader::open(&path).unwrap();
        for (package, file, there) in [
            ("A", "/1", false),
            ("a", "/0", false),
            ("a", "/1", true),
            ("a", "/1", true),
            ("a", "/3", false),
            ("b:amd64", "/1", false),
            ("c", "/2", false),
            ("c", "/3", true),
            ("c", "/4", false),
            ("d", "/1", false),
        ] {
            assert_eq!(reader.find(package, file.as_bytes()).unwrap().is_some(), there, "{package} {file}");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write(&path);
        let good = fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            matches!(StateReader::open(&path), Err(StateError::Damaged(_)))
        };
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            assert!(damaged(&bytes), "byte {at}");
            assert!(damaged(&good[..at]), "cut at {at}");
        }
        assert!(!damaged(&good));
    }

    /// A whole file can still be nonsense: another version's, or a liar's.
    #[test]
    fn nonsense_under_a_right_digest_is_damage_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let nonsense: [&[u8]; 7] = [
            b"CORDONI1\0",
            b"CORDONI2",
            b"CORDONI2\x03",
            b"CORDONI2\x01\xff\xffa",
            b"CORDONI2\x01\x01\0\xff\0",
            b"CORDONI2\x02\x07\0",
            b"CORDONI2\x02\0\0\x02",
        ];
        for bytes in nonsense {
            fs::write(&path, [bytes, Sha256::digest(bytes).as_slice()].concat()).unwrap();
            let read =
                StateReader::open(&path).and_then(|mut reader| reader.next().map(|record| record.is_some()));
            assert!(matches!(read, Err(StateError::Damaged(_))), "{bytes:?}");
        }
    }

    #[test]
    fn links_are_not_followed_and_pipes_hold_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("state"), dir.path().join("target"));
        write(&target);
        let content = fs::read(&target).unwrap();
        for name in [path.clone(), dir.path().join("state.new")] {
            std::os::unix::fs::symlink(&target, name).unwrap();
        }
        assert!(StateReader::open(&path).is_err());
        write(&path);
        assert!(StateReader::open(&path).is_ok() && fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read(&target).unwrap(), content);
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(StateReader::open(&pipe), Err(StateError::Damaged(_))));
    }
}
