//! The server's folder: keys, the tenant's id and the database, readable by nobody else.
//!
//! Owns names, permissions, and the rule that a key which is missing beside a database is never made again: machines
//! and clients would no longer know this server. Deliberately knows nothing of what the files mean.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orders::SigningKey;
use uuid::Uuid;
use zeroize::Zeroizing;

const DATABASE: &str = "cordon.db";
const LOCK: &str = "lock";
const ORDER_KEY: &str = "order.key";
const TENANT: &str = "tenant";
/// The longest file that is read from the folder, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// How long a lock may be held by a predecessor that ends, or by a child process on its way from fork to exec.
const LOCK_TIME_MAX: Duration = Duration::from_secs(1);
/// Bits of a mode that let others than the owner in.
const OTHERS: u32 = 0o077;

/// The folder, held by this process alone.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Whether there was a database when the folder was opened.
    in_use: bool,
    /// Locked until it is closed.
    _lock: File,
}

/// Who may read a file of the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// The owner alone, or the file is not used.
    Owner,
    /// Whoever gets it: it holds no secret.
    Anybody,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A file or folder cannot be read or written.
    #[error("cannot {verb} {}", .path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another server runs on the folder.
    #[error("{} is in use by another cordon-server: stop it first", .0.display())]
    Locked(PathBuf),
    /// Others than the owner can read it.
    #[error("{} holds secrets, but its mode {mode:o} lets others in: chmod go= it", .path.display())]
    Exposed {
        /// What is open to others.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A key is gone, but not what was made with it.
    #[error("{} is missing, but there is a database beside it: bring it back from a backup", .0.display())]
    Missing(PathBuf),
    /// A file holds something else than it should.
    #[error("{} is damaged ({message}): bring it back from a backup", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The system has no random numbers.
    #[error("cannot make a key: {0}")]
    Random(String),
}

impl DataDir {
    /// Opens the folder for this process alone; makes it when it is missing.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make", path))?;
        let in_use = path.join(DATABASE).exists();
        let mode = fs::metadata(path).map_err(io_error("look at", path))?.permissions().mode() & 0o7777;
        if mode & OTHERS != 0 {
            if in_use {
                return Err(DataDirError::Exposed { path: path.to_owned(), mode });
            }
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(io_error("protect", path))?;
        }
        let lock_path = path.join(LOCK);
        let lock = owners_file().open(&lock_path).map_err(io_error("open", &lock_path))?;
        match lock_patiently(&lock) {
            Ok(()) => Ok(Self { path: path.to_owned(), in_use, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(io_error("lock", &lock_path)(source)),
        }
    }

    /// The path of a file of the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The database's path.
    pub(crate) fn database(&self) -> PathBuf {
        self.file(DATABASE)
    }

    /// The text of a file, made by `make` when this is the folder's first use.
    ///
    /// # Errors
    /// [`DataDirError::Missing`] when it is gone from a folder that was in use; the others.
    pub(crate) fn text_or_make(
        &self,
        name: &str,
        readers: Readers,
        make: impl FnOnce() -> Result<Zeroizing<String>, DataDirError>,
    ) -> Result<Zeroizing<String>, DataDirError> {
        let path = self.file(name);
        match read(&path, readers)? {
            Some(text) => Ok(text),
            None if self.in_use => Err(DataDirError::Missing(path)),
            None => {
                let text = make()?;
                write(&path, text.as_bytes())?;
                Ok(text)
            }
        }
    }

    /// The tenant's id, which is part of every token's issuer. `wanted` is taken on the folder's first use.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub(crate) fn tenant(&self, wanted: Option<Uuid>) -> Result<Uuid, DataDirError> {
        let text = self.text_or_make(TENANT, Readers::Anybody, || {
            Ok(Zeroizing::new(format!("{}\n", wanted.unwrap_or_else(Uuid::new_v4))))
        })?;
        text.trim().parse().map_err(|_no_uuid| self.damaged(TENANT, "no UUID"))
    }

    /// The key that signs orders. It is never in the database: a forged row must move no machine.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub(crate) fn order_key(&self) -> Result<SigningKey, DataDirError> {
        let text = self.text_or_make(ORDER_KEY, Readers::Owner, || {
            let key = SigningKey::generate().map_err(|error| DataDirError::Random(error.to_string()))?;
            let seed = Zeroizing::new(key.to_seed());
            Ok(Zeroizing::new(format!("{}\n", hex::encode(*seed))))
        })?;
        let mut seed = Zeroizing::new([0_u8; 32]);
        hex::decode_to_slice(text.trim(), seed.as_mut())
            .map_err(|_not_hex| self.damaged(ORDER_KEY, "not 64 hexadecimal digits"))?;
        Ok(SigningKey::from_seed(&seed))
    }

    /// The error for a file whose content makes no sense.
    pub(crate) fn damaged(&self, name: &str, message: impl Into<String>) -> DataDirError {
        DataDirError::Damaged { path: self.file(name), message: message.into() }
    }
}

/// Reads a file; none when there is no such file.
///
/// # Errors
/// [`DataDirError::Exposed`], [`DataDirError::Io`].
pub(crate) fn read(path: &Path, readers: Readers) -> Result<Option<Zeroizing<String>>, DataDirError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mode = file.metadata().map_err(io_error("look at", path))?.permissions().mode() & 0o7777;
    if readers == Readers::Owner && mode & OTHERS != 0 {
        return Err(DataDirError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(io_error("read", path))?;
    Ok(Some(text))
}

/// Writes a file that only the owner may read, so that it is on the disk whole or not at all.
///
/// # Errors
/// [`DataDirError::Io`].
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), DataDirError> {
    let temporary = path.with_extension("partial");
    let write_all = || {
        let mut file = owners_file().truncate(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write_all().map_err(io_error("write", path))
}

fn owners_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).write(true).mode(0o600);
    options
}

/// For `map_err`.
pub(crate) fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { verb, path, source }
}

fn lock_patiently(lock: &File) -> Result<(), TryLockError> {
    let start = Instant::now();
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_TIME_MAX => {
                std::thread::sleep(LOCK_TIME_MAX / 100);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_and_are_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server");
        let (tenant, key) = {
            let data = DataDir::open(&path).unwrap();
            (data.tenant(None).unwrap(), data.order_key().unwrap().public_key())
        };
        let data = DataDir::open(&path).unwrap();
        assert_eq!(
            (data.tenant(Some(Uuid::nil())).unwrap(), data.order_key().unwrap().public_key()),
            (tenant, key)
        );
        for file in [path.clone(), path.join(ORDER_KEY), path.join(TENANT)] {
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & OTHERS, 0, "{}", file.display());
        }
    }

    #[test]
    fn a_second_server_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        assert!(matches!(DataDir::open(folder.path()), Err(DataDirError::Locked(_))));
        drop(first);
        DataDir::open(folder.path()).unwrap();
    }

    #[test]
    fn a_key_that_is_missing_beside_a_database_is_not_made_again() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDir::open(folder.path()).unwrap());
        File::create(folder.path().join(DATABASE)).unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        assert!(matches!(data.order_key(), Err(DataDirError::Missing(_))));
        assert!(!folder.path().join(ORDER_KEY).exists());
    }

    #[test]
    fn damaged_and_exposed_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        for text in ["", "00", "zz"] {
            write(&data.file(ORDER_KEY), text.as_bytes()).unwrap();
            assert!(matches!(data.order_key(), Err(DataDirError::Damaged { .. })), "{text:?}");
        }
        fs::set_permissions(data.file(ORDER_KEY), Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(data.order_key(), Err(DataDirError::Exposed { mode: 0o640, .. })));
        File::create(folder.path().join(DATABASE)).unwrap();
        drop(data);
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(DataDir::open(folder.path()), Err(DataDirError::Exposed { mode: 0o755, .. })));
    }
}
