//! The scan over all packaged files, and the baseline that comes of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use domain::digest::Sha256Digest;
use policy::baseline::{Builder, FILES_MAX};

use crate::content::{ReadError, Reader, Stamp, Unreadable};
use crate::packages::{self, DatabaseError, Databases, Package};
use crate::root::{Places, Root, path_of};
use crate::shipped::Shipped;
use crate::state::{Found, Record, StateError, StateReader, StateWriter};

/// The most files that a report names, of each kind.
const NAMED_MAX: usize = 100;

/// What packages shipped to a machine, and what became of it. All of it is in the state file; an `Inventory` itself
/// holds two paths. Two scans must not run at once on one state file.
#[derive(Debug, Clone)]
pub struct Inventory {
    pub(crate) root: Root,
    state: PathBuf,
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files looked at.
    pub files_done: u64,
    /// About as many there are.
    pub files_total: u64,
    /// Bytes read and hashed.
    pub bytes_hashed: u64,
}

/// What a scan found.
#[derive(Debug, Clone, Default)]
pub struct ScanReport {
    /// Installed packages.
    pub packages: u64,
    /// Packages between two states, because dpkg runs or failed. Files count of those that are unpacked already. rpm has
    /// no such state.
    pub unfinished_packages: u64,
    /// Files that packages shipped: the sum of `vouched`, `modified`, `unreadable` and `missing`.
    pub files: u64,
    /// Files that were read because they, or what was known of them, had changed.
    pub hashed: u64,
    /// Bytes of these.
    pub bytes_hashed: u64,
    /// Files that are what their package shipped.
    pub vouched: u64,
    /// Files that are not: changed on the machine, or taken over by another package.
    pub modified: u64,
    /// Modified files that can be executed or loaded: the first hundred. Edited configuration is not named.
    pub modified_executables: Vec<PathBuf>,
    /// Files that could not be read, or are no regular files any more.
    pub unreadable: u64,
    /// The first hundred of these.
    pub unreadable_files: Vec<Unvouched>,
    /// Files that are not there. Documentation that was excluded from installation is the usual case.
    pub missing: u64,
    /// Files that rpm has no SHA-256 of. They are not looked at.
    pub weak: u64,
    /// Entries of the package databases that could not be understood, or were too many.
    pub malformed: u64,
    /// Package databases of a format that is not read. What is in them vouches for nothing.
    pub unsupported: Vec<PathBuf>,
    /// Why no earlier result could be used, where that is so.
    pub started_over: Option<String>,
}

/// A file that could not be vouched for, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unvouched {
    /// The real path.
    pub path: PathBuf,
    /// What was wrong.
    pub reason: Unreadable,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A package database cannot be read, or changed while it was read.
    #[error("cannot read the package database")]
    Database(#[from] DatabaseError),
    /// The state file cannot be read or written.
    #[error("cannot keep the inventory in {}", path.display())]
    State {
        /// The state file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The baseline cannot be written out.
    #[error("cannot write the baseline")]
    Output(#[source] io::Error),
    /// The scan was told to stop. The earlier result is as it was.
    #[error("the scan was stopped")]
    Stopped,
}

impl Inventory {
    /// The inventory of the machine whose root directory is `root`, kept in the file `state`. The directory of `state`
    /// must exist.
    pub fn new(root: &Path, state: &Path) -> Self {
        Self { root: Root(root.to_owned()), state: state.to_owned() }
    }

    /// The files one of which changes whenever an installed package does. Not all of them need to be there.
    pub fn watched(&self) -> Vec<PathBuf> {
        packages::watched().map(|path| self.root.outside(path.as_bytes())).collect()
    }

    /// Looks at every packaged file, reads those that changed since the last scan, and keeps the result.
    ///
    /// `progress` is called after each file. `stop` is looked at before each file and every 128 KiB.
    ///
    /// # Errors
    /// [`Error`]; the earlier result is then as it was. A state file that is damaged or of another version is no error
    /// but a reason to read everything ([`ScanReport::started_over`]).
    pub fn scan(&self, progress: &mut dyn FnMut(Progress), stop: &AtomicBool) -> Result<ScanReport, Error> {
        let databases = Databases::open(&self.root)?;
        let packages = databases.packages();
        let mut report = ScanReport {
            packages: packages.len() as u64,
            unfinished_packages: databases.unfinished(),
            malformed: databases.malformed(),
            unsupported: databases.unsupported().to_vec(),
            ..ScanReport::default()
        };
        let mut old = StateReader::open(&self.state)
            .inspect_err(|error| report.started_over = Some(error.to_string()))
            .ok();
        let state_error = |source| self.state_error(source);
        let mut new = StateWriter::create(&self.state).map_err(state_error)?;
        let mut scan = Scan {
            places: Places::new(&self.root, databases.diversions()),
            reader: Reader::new(stop),
            started: new.started(),
            progress: Progress { files_total: databases.count_files(), ..Progress::default() },
            report,
        };
        let mut listing = Listing::default();
        for package in packages {
            scan.list(&databases, package, &mut listing)?;
            new.package(package.key()).map_err(state_error)?;
            for (path, shipped) in listing.files() {
                if stop.load(Ordering::Relaxed) {
                    return Err(Error::Stopped);
                }
                let known = match old.as_mut().map(|old| old.find(package.key(), path)) {
                    Some(Ok(known)) => known,
                    Some(Err(error)) => {
                        scan.report.started_over = Some(error.to_string());
                        old = None;
                        None
                    }
                    None => None,
                };
                if let Some(record) = scan.look_at(&self.root, path, shipped, known)? {
                    new.file(&record).map_err(state_error)?;
                }
                scan.progress.files_done += 1;
                progress(scan.progress);
            }
        }
        databases.are_unchanged()?;
        new.finish(old.as_ref()).map_err(state_error)?;
        scan.report.bytes_hashed = scan.progress.bytes_hashed;
        Ok(scan.report)
    }

    /// Writes the last scan's baseline, in the bytes of [`policy::baseline`]: the files that packages vouch for and
    /// that can be executed or loaded.
    ///
    /// # Errors
    /// [`Error::State`] when there is no whole state file; [`Error::Output`].
    pub fn write_baseline(&self, out: &mut impl io::Write) -> Result<(), Error> {
        self.build_baseline()
            .map_err(|error| self.state_error(error.into()))?
            .finish(out)
            .map_err(Error::Output)
    }

    fn build_baseline(&self) -> Result<Builder, StateError> {
        let mut builder = Builder::default();
        let mut state = StateReader::open(&self.state)?;
        while let Some(record) = state.next()? {
            if record.executable && record.found == Found::Vouched {
                builder.add(Sha256Digest(record.sha256), &record.path);
            }
        }
        Ok(builder)
    }

    fn state_error(&self, source: io::Error) -> Error {
        Error::State { path: self.state.clone(), source }
    }
}

/// The files of one package by real path: few allocations, whatever their number.
#[derive(Default)]
struct Listing {
    paths: Vec<u8>,
    /// Start and end in `paths`.
    files: Vec<(usize, usize, Shipped)>,
}

impl Listing {
    fn add(&mut self, path: &[u8], shipped: Shipped) {
        let start = self.paths.len();
        self.paths.extend_from_slice(path);
        self.files.push((start, self.paths.len(), shipped));
    }

    /// Sorts by path. A path with two digests contradicts itself: the number of these is answered, and one is kept.
    fn sort(&mut self) -> u64 {
        let Self { paths, files } = self;
        let path = |file: &(usize, usize, Shipped)| paths.get(file.0..file.1);
        files.sort_unstable_by(|a, b| (path(a), a.2).cmp(&(path(b), b.2)));
        files.dedup_by(|a, b| path(a) == path(b) && a.2 == b.2);
        let before = files.len();
        files.dedup_by(|a, b| path(a) == path(b));
        (before - files.len()) as u64
    }

    fn files(&self) -> impl Iterator<Item = (&[u8], Shipped)> {
        self.files.iter().filter_map(|(start, end, shipped)| Some((self.paths.get(*start..*end)?, *shipped)))
    }
}

/// A scan under way.
struct Scan<'a> {
    places: Places<'a>,
    reader: Reader<'a>,
    /// Files that changed since then can change once more without it showing.
    started: (i64, i64),
    progress: Progress,
    report: ScanReport,
}

impl Scan<'_> {
    fn list(
        &mut self,
        databases: &Databases,
        package: Package<'_>,
        listing: &mut Listing,
    ) -> Result<(), Error> {
        listing.paths.clear();
        listing.files.clear();
        let mut left = FILES_MAX.saturating_sub(self.report.files);
        let malformed = databases.list_files(package, &mut |path, shipped| {
            if shipped == Shipped::Weak {
                self.report.weak += 1;
                return;
            }
            if left == 0 {
                self.report.malformed += 1;
                return;
            }
            left -= 1;
            match self.places.real_place(package, path) {
                Ok(real) => listing.add(&real, shipped),
                Err(error) => {
                    self.report.files += 1;
                    self.progress.files_done += 1;
                    self.count_unreachable(path, error.kind());
                }
            }
        })?;
        self.report.malformed += malformed + listing.sort();
        self.report.files += listing.files.len() as u64;
        Ok(())
    }

    /// What is to be remembered of a file: what was known if that still holds, else what is read. `None` when nothing
    /// could be read.
    fn look_at(
        &mut self,
        root: &Root,
        path: &[u8],
        shipped: Shipped,
        known: Option<&Record>,
    ) -> Result<Option<Record>, Error> {
        let outside = root.outside(path);
        let stamp = match outside.symlink_metadata() {
            Ok(metadata) if metadata.is_file() => Stamp::of(&metadata),
            Ok(_) => {
                self.count_unreadable(path, Unreadable::NotRegular);
                return Ok(None);
            }
            Err(error) => {
                self.count_unreachable(path, error.kind());
                return Ok(None);
            }
        };
        if let Some(known) = known
            && known.shipped == shipped
            && known.stamp == stamp
        {
            self.count(known);
            return Ok(Some(known.clone()));
        }
        let content = match self.reader.read(&outside) {
            Ok(content) => content,
            Err(ReadError::Stopped) => return Err(Error::Stopped),
            Err(ReadError::Unreadable(reason)) => {
                self.count_unreadable(path, reason);
                return Ok(None);
            }
        };
        self.report.hashed += 1;
        self.progress.bytes_hashed += content.stamp.size;
        let settled = content.stamp.ctime() < self.started;
        let record = Record {
            path: path.to_vec(),
            found: if content.is(shipped) { Found::Vouched } else { Found::Modified },
            executable: content.executable,
            shipped,
            sha256: content.sha256.0,
            stamp: if settled { content.stamp } else { Stamp::default() },
        };
        self.count(&record);
        Ok(Some(record))
    }

    fn count(&mut self, record: &Record) {
        match record.found {
            Found::Vouched => self.report.vouched += 1,
            Found::Modified => {
                self.report.modified += 1;
                if record.executable && self.report.modified_executables.len() < NAMED_MAX {
                    self.report.modified_executables.push(path_of(&record.path).to_owned());
                }
            }
        }
    }

    fn count_unreadable(&mut self, path: &[u8], reason: Unreadable) {
        self.report.unreadable += 1;
        if self.report.unreadable_files.len() < NAMED_MAX {
            self.report.unreadable_files.push(Unvouched { path: path_of(path).to_owned(), reason });
        }
    }

    /// Counts a file at which the file system did not even let look.
    fn count_unreachable(&mut self, path: &[u8], kind: io::ErrorKind) {
        if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            self.report.missing += 1;
        } else {
            self.count_unreadable(path, Unreadable::Io(kind));
        }
    }
}
