//! The agent's folder: files that are whole or not there, and that belong to the agent's user whoever wrote them.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The agent's folder.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

/// Keeps others from scanning; given back when dropped, or when the process ends.
pub(crate) struct ScanLock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl StateDir {
    pub(crate) fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Makes the folder when it is missing; only its owner may look inside.
    ///
    /// # Errors
    /// Names the folder.
    pub(crate) fn make(&self) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.with_context(|| format!("cannot make {}", self.0.display()))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The file's content; none when it is not there.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.path(name);
        let read = || -> io::Result<String> {
            let mut text = String::new();
            File::open(&path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
            Ok(text)
        };
        match read() {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes a file that only the owner can read, whole or not at all, and durably.
    ///
    /// # Errors
    /// Names the file, which is then as it was.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        let write = || -> io::Result<()> {
            let beside = self.path(&format!("{name}.new"));
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            self.give_to_owner(&beside)?;
            fs::rename(&beside, &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Gives a file that root made to the folder's owner.
    pub(crate) fn give_to_owner(&self, path: &Path) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            let owner = fs::metadata(&self.0)?;
            std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    }

    /// Takes the right to scan: two scans must not run at once.
    ///
    /// # Errors
    /// When another scan runs, or the lock cannot be made.
    pub(crate) fn lock_scan(&self) -> Result<ScanLock> {
        let path = self.path("inventory.lock");
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        self.give_to_owner(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(ScanLock(file)),
            Err(TryLockError::WouldBlock) => bail!("another scan is running: wait for its end"),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_are_private_and_belong_to_the_folders_owner() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(&folder.path().join("a/b"));
        state.make().unwrap();
        assert_eq!(state.read("x").unwrap(), None);
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            std::os::unix::fs::chown(state.path(""), Some(1234), Some(1235)).unwrap();
        }
        for text in ["one", "two"] {
            state.write("x", text).unwrap();
            assert_eq!(state.read("x").unwrap().as_deref(), Some(text));
        }
        let metadata = fs::metadata(state.path("x")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        if is_root {
            assert_eq!((metadata.uid(), metadata.gid()), (1234, 1235));
        }
        assert_eq!(fs::metadata(state.path("")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn only_one_scan_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        let first = state.lock_scan().unwrap();
        assert!(state.lock_scan().is_err());
        drop(first);
        assert!(state.lock_scan().is_ok());
    }
}
