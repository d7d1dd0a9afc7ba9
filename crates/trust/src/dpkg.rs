//! The dpkg database: which packages are installed, and the MD5 of each file that they shipped.
//!
//! Owns the formats of `status`, `info/*.md5sums` and `diversions`. Everything read here is hostile: lines, files and
//! counts have limits, and what is malformed is counted and vouches for nothing. Whether a file still is what its
//! package shipped is the inventory's business.

mod diversions;
mod lines;
mod md5sums;
mod status;

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};

use crate::packages::{DatabaseError, open_file};
use crate::root::Root;

pub use diversions::{Diversion, read_diversions};
pub(crate) use lines::{Line, Lines};
pub use md5sums::read_md5sums;
pub use status::{Package, Status, read_status};

/// An MD5 digest: good enough to notice damage, and all that dpkg has.
pub type Md5Digest = [u8; 16];

/// The longest database file that is read, in bytes: about a hundred times a large desktop's `status`.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// What dpkg replaces whenever it changes anything.
pub(crate) const STATUS: &str = "/var/lib/dpkg/status";

/// The database in a root.
#[derive(Debug)]
pub(crate) struct Database {
    folder: PathBuf,
    pub(crate) status: Status,
    pub(crate) diversions: Vec<Diversion>,
}

impl Database {
    /// Reads which packages are installed, and the diversions.
    pub(crate) fn open(root: &Root) -> Result<Self, DatabaseError> {
        let path = root.outside(STATUS.as_bytes());
        let folder = path.parent().unwrap_or(&path).to_owned();
        let mut status =
            open(&path).and_then(read_status).map_err(|source| DatabaseError { path, source })?;
        let path = folder.join("diversions");
        let (diversions, malformed) = match open(&path).and_then(read_diversions) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), 0),
            other => other.map_err(|source| DatabaseError { path, source })?,
        };
        status.malformed += malformed;
        Ok(Self { folder, status, diversions })
    }

    /// About how many files the packages list: lines, of any form.
    pub(crate) fn count_files(&self) -> u64 {
        let mut buffer = vec![0; 64 * 1024];
        let mut count = 0;
        for package in &self.status.packages {
            count += package.conffiles.len() as u64;
            let Ok(Some(mut input)) = self.md5sums(package) else { continue };
            while let Ok(length @ 1..) = input.read(&mut buffer) {
                let lines = buffer.iter().take(length).filter(|byte| **byte == b'\n').count();
                count += lines as u64;
            }
        }
        count
    }

    /// Calls `each` with every file that the package lists: its path as listed, and its MD5. Answers how many lines
    /// were malformed.
    pub(crate) fn list_files(
        &self,
        package: &Package,
        each: &mut dyn FnMut(&[u8], Md5Digest),
    ) -> Result<u64, DatabaseError> {
        for (path, md5) in &package.conffiles {
            each(path, *md5);
        }
        let mut read = || match self.md5sums(package)? {
            Some(input) => read_md5sums(input, each),
            None => Ok(0),
        };
        read().map_err(|source| DatabaseError { path: self.md5sums_path(package), source })
    }

    fn md5sums_path(&self, package: &Package) -> PathBuf {
        self.folder.join("info").join(format!("{}.md5sums", package.key))
    }

    /// A package that ships nothing but directories has none.
    fn md5sums(&self, package: &Package) -> io::Result<Option<BufReader<io::Take<File>>>> {
        match open(&self.md5sums_path(package)) {
            Ok(input) => Ok(Some(input)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Opens a database file, within the limit.
fn open(path: &Path) -> io::Result<BufReader<io::Take<File>>> {
    let file = open_file(path, FILE_BYTES_MAX)?;
    Ok(BufReader::with_capacity(64 * 1024, file.take(FILE_BYTES_MAX)))
}

/// 32 hexadecimal digits.
fn parse_md5(text: &[u8]) -> Option<Md5Digest> {
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != 16 || !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
    let mut md5 = [0; 16];
    for (byte, [high, low]) in md5.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(md5)
}
