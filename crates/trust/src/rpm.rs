//! The rpm database: which packages are installed, and the SHA-256 of each file that they shipped.
//!
//! Owns the formats of `rpmdb.sqlite`, `Packages.db` and of the headers in them. Everything read here is hostile, as in
//! [`crate::dpkg`]. A database that is damaged, or changes while it is read, is an error: what is missing from half a
//! database would be refused. Berkeley DB, which rpm wrote before 4.16, is not read, only named.

mod header;
mod ndb;
mod sqlite;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::content::Stamp;
use crate::packages::{DatabaseError, open_file};
use crate::root::Root;
use crate::shipped::Shipped;

pub use header::{Header, Malformed};
pub use ndb::Ndb;
pub use sqlite::Sqlite;

/// What the keys begin with, and no key of dpkg.
pub(crate) const KEY_PREFIX: &str = "rpm/";
/// The most packages that are read.
const PACKAGES_MAX: usize = 200_000;
/// The longest header that is read, in bytes: a kernel's is about one megabyte.
const BLOB_BYTES_MAX: u64 = 64 << 20;
/// The longest database that is read, in bytes: several times that of a machine with everything installed.
const FILE_BYTES_MAX: u64 = 4 << 30;
/// The folders that distributions keep it in.
const FOLDERS: [&str; 2] = ["/usr/lib/sysimage/rpm", "/var/lib/rpm"];
/// How an `SQLite` journal begins that is to be rolled back.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// The headers of a database, in the order of its own.
pub trait Blobs {
    /// How many there are.
    fn count(&self) -> usize;

    /// The header of this number.
    ///
    /// # Errors
    /// `InvalidData` when it cannot be one; from the source.
    fn blob(&self, number: usize) -> io::Result<Vec<u8>>;
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    /// [`KEY_PREFIX`], then name, version, release and architecture.
    pub(crate) key: String,
    number: usize,
    /// About how many files it lists.
    pub(crate) files: u64,
}

/// One database.
pub(crate) struct Database {
    path: PathBuf,
    /// Which versions of its files were opened.
    opened: [(PathBuf, Option<Stamp>); 2],
    blobs: Box<dyn Blobs>,
    /// Sorted by key, no two alike.
    pub(crate) packages: Vec<Package>,
    /// Headers that could not be understood.
    pub(crate) malformed: u64,
}

/// What a root has of rpm.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) databases: Vec<Database>,
    /// Databases of a format that is not read.
    pub(crate) unsupported: Vec<PathBuf>,
}

/// Opens every database of a root. Where there are several, a package in any of them is installed.
pub(crate) fn find(root: &Root) -> Result<Found, DatabaseError> {
    let mut found = Found::default();
    let mut seen = Vec::new();
    for folder in FOLDERS {
        // One is a link to the other, often.
        let Ok(real) = root.follow(folder.as_bytes()) else { continue };
        let folder = root.outside(&real);
        if seen.contains(&folder) {
            continue;
        }
        let before = found.databases.len();
        for (name, kind) in [("rpmdb.sqlite", Kind::Sqlite), ("Packages.db", Kind::Ndb)] {
            let path = folder.join(name);
            let error = |source| DatabaseError { path: path.clone(), source };
            if let Some(database) = Database::open(&path, kind).map_err(error)? {
                found.databases.push(database);
            }
        }
        let unread = folder.join("Packages");
        if found.databases.len() == before && unread.symlink_metadata().is_ok() {
            found.unsupported.push(unread);
        }
        seen.push(folder);
    }
    Ok(found)
}

/// The files that show that a database changed.
pub(crate) fn watched() -> impl Iterator<Item = String> {
    let names = ["rpmdb.sqlite", "rpmdb.sqlite-wal", "Packages.db"];
    FOLDERS.iter().flat_map(move |folder| names.map(|name| format!("{folder}/{name}")))
}

#[derive(Clone, Copy)]
enum Kind {
    Sqlite,
    Ndb,
}

impl Database {
    /// `None` when there is none.
    fn open(path: &Path, kind: Kind) -> io::Result<Option<Self>> {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let opened = [path.to_owned(), beside("-wal")].map(|path| {
            let stamp = stamp(&path);
            (path, stamp)
        });
        let Some(file) = open_if_there(path)? else { return Ok(None) };
        let blobs: Box<dyn Blobs> = match kind {
            Kind::Ndb => Box::new(Ndb::open(file)?),
            Kind::Sqlite => {
                let mut magic = Vec::new();
                if let Some(journal) = open_if_there(&beside("-journal"))? {
                    journal.take(8).read_to_end(&mut magic)?;
                }
                if magic == JOURNAL_MAGIC {
                    return Err(io::Error::other("a transaction is not finished"));
                }
                Box::new(Sqlite::open(file, open_if_there(&beside("-wal"))?)?)
            }
        };
        let mut packages = Vec::new();
        let mut malformed = 0;
        for number in 0..blobs.count() {
            let blob = blobs.blob(number)?;
            match Header::read(&blob).and_then(|header| Ok((header.package()?, header.count_files()))) {
                Ok((name, files)) => {
                    packages.push(Package { key: format!("{KEY_PREFIX}{name}"), number, files })
                }
                Err(_malformed) => malformed += 1,
            }
        }
        make_unique(&mut packages);
        Ok(Some(Self { path: path.to_owned(), opened, blobs, packages, malformed }))
    }

    /// Calls `each` with every file that the package shipped: its path, and its digest. Answers how many entries were
    /// malformed.
    pub(crate) fn list_files(
        &self,
        package: &Package,
        each: &mut dyn FnMut(&[u8], Shipped),
    ) -> Result<u64, DatabaseError> {
        let blob = self.blobs.blob(package.number);
        let blob = blob.map_err(|source| DatabaseError { path: self.path.clone(), source })?;
        // A header that cannot be understood lists nothing, and is one.
        Ok(Header::read(&blob).and_then(|header| header.list_files(each)).unwrap_or(1))
    }

    /// Holds that the database is still the one that was opened, and was all the while.
    pub(crate) fn is_unchanged(&self) -> Result<(), DatabaseError> {
        if self.opened.iter().all(|(path, opened)| stamp(path) == *opened) {
            return Ok(());
        }
        let source = io::Error::other("it changed while it was read");
        Err(DatabaseError { path: self.path.clone(), source })
    }
}

/// A package that is there twice, after a transaction that broke off, is so under two keys.
fn make_unique(packages: &mut [Package]) {
    packages.sort_by(|a, b| (&a.key, a.number).cmp(&(&b.key, b.number)));
    let mut previous = String::new();
    for package in packages.iter_mut() {
        if package.key == previous {
            package.key = format!("{}#{}", package.key, package.number);
        } else {
            previous.clone_from(&package.key);
        }
    }
    packages.sort_by(|a, b| a.key.cmp(&b.key));
}

fn stamp(path: &Path) -> Option<Stamp> {
    path.metadata().ok().map(|metadata| Stamp::of(&metadata))
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match open_file(path, FILE_BYTES_MAX) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
