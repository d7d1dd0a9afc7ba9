//! All package databases of a root, as one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::dpkg::{self, Diversion};
use crate::root::Root;
use crate::rpm;
use crate::shipped::Shipped;

/// A database file that is there cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub struct DatabaseError {
    /// The database file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Whose database lists a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageManager {
    /// `/var/lib/dpkg`.
    Dpkg,
    /// `/usr/lib/sysimage/rpm` or `/var/lib/rpm`.
    Rpm,
}

impl PackageManager {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dpkg => "dpkg",
            Self::Rpm => "rpm",
        }
    }
}

/// The databases of a root.
pub(crate) struct Databases {
    dpkg: Option<dpkg::Database>,
    rpm: rpm::Found,
}

/// An installed package of one of them.
#[derive(Clone, Copy)]
pub(crate) enum Package<'a> {
    Dpkg(&'a dpkg::Package),
    Rpm(&'a rpm::Database, &'a rpm::Package),
}

impl Databases {
    /// Opens those that there are. That there is none is an error: dpkg's.
    pub(crate) fn open(root: &Root) -> Result<Self, DatabaseError> {
        let rpm = rpm::find(root)?;
        let dpkg = match dpkg::Database::open(root) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound && !rpm.databases.is_empty() => None,
            other => Some(other?),
        };
        Ok(Self { dpkg, rpm })
    }

    /// Sorted by key, no two alike.
    pub(crate) fn packages(&self) -> Vec<Package<'_>> {
        let dpkg = self.dpkg.iter().flat_map(|database| &database.status.packages).map(Package::Dpkg);
        let of_rpm = |database| move |package| Package::Rpm(database, package);
        let rpm =
            self.rpm.databases.iter().flat_map(|database| database.packages.iter().map(of_rpm(database)));
        let mut packages: Vec<_> = dpkg.chain(rpm).collect();
        packages.sort_by(|a, b| a.key().cmp(b.key()));
        // Two databases that both have it do not make it two packages.
        packages.dedup_by(|a, b| a.key() == b.key());
        packages
    }

    pub(crate) fn diversions(&self) -> &[Diversion] {
        self.dpkg.as_ref().map_or(&[], |database| &database.diversions)
    }

    /// Packages between two states.
    pub(crate) fn unfinished(&self) -> u64 {
        self.dpkg.as_ref().map_or(0, |database| database.status.unfinished)
    }

    /// Packages and diversions that could not be understood.
    pub(crate) fn malformed(&self) -> u64 {
        self.dpkg.as_ref().map_or(0, |database| database.status.malformed)
            + self.rpm.databases.iter().map(|database| database.malformed).sum::<u64>()
    }

    /// Databases of formats that are not read.
    pub(crate) fn unsupported(&self) -> &[PathBuf] {
        &self.rpm.unsupported
    }

    /// About how many files the packages list.
    pub(crate) fn count_files(&self) -> u64 {
        let rpm = self.rpm.databases.iter().flat_map(|database| &database.packages);
        self.dpkg.as_ref().map_or(0, dpkg::Database::count_files)
            + rpm.map(|package| package.files).sum::<u64>()
    }

    /// Calls `each` with every file that the package lists: its path as listed, and by what the package knows it.
    /// Answers how many entries were malformed.
    pub(crate) fn list_files(
        &self,
        package: Package<'_>,
        each: &mut dyn FnMut(&[u8], Shipped),
    ) -> Result<u64, DatabaseError> {
        match (package, &self.dpkg) {
            (Package::Dpkg(package), Some(database)) => {
                database.list_files(package, &mut |path, md5| each(path, Shipped::Md5(md5)))
            }
            (Package::Dpkg(_), None) => Ok(0),
            (Package::Rpm(database, package), _) => database.list_files(package, each),
        }
    }

    /// Holds that what was read is what there is.
    pub(crate) fn are_unchanged(&self) -> Result<(), DatabaseError> {
        self.rpm.databases.iter().try_for_each(rpm::Database::is_unchanged)
    }
}

impl<'a> Package<'a> {
    /// What orders packages, and finds them in the state.
    pub(crate) fn key(self) -> &'a str {
        match self {
            Self::Dpkg(package) => &package.key,
            Self::Rpm(_, package) => &package.key,
        }
    }

    /// As people call it.
    pub(crate) fn name(self) -> &'a str {
        let key = self.key();
        key.strip_prefix(rpm::KEY_PREFIX).unwrap_or(key)
    }

    pub(crate) fn manager(self) -> PackageManager {
        match self {
            Self::Dpkg(_) => PackageManager::Dpkg,
            Self::Rpm(..) => PackageManager::Rpm,
        }
    }
}

/// The files, as seen from inside of the root, one of which changes whenever an installed package does.
pub(crate) fn watched() -> impl Iterator<Item = String> {
    std::iter::once(dpkg::STATUS.to_owned()).chain(rpm::watched())
}

/// Opens a database file of at most so many bytes. A pipe in its place holds nobody up.
pub(crate) fn open_file(path: &Path, bytes_max: u64) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file of possible size"));
    }
    Ok(file)
}
