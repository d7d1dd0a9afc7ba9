//! The agent's folder: files that are whole or not there, and that belong to the agent's user whoever wrote them.
//!
//! The folder's owner may have put anything into it: links to other files, pipes that never answer. Root works in it as
//! that user ([`StateDir::as_owner`]), and nobody opens there what is not a regular file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::marker::PhantomData;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::OFlag;
use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The agent's folder.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

/// Keeps others from scanning; given back when dropped, or when the process ends.
pub(crate) struct ScanLock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// While it lives, this thread is the folder's owner where it was root; threads that start meanwhile are, too, and stay
/// it.
pub(crate) struct AsOwner {
    /// Who the thread was.
    before: Option<(Uid, Gid, Vec<Gid>)>,
    /// It must end on its thread.
    _thread: PhantomData<*const ()>,
}

impl StateDir {
    pub(crate) fn new(folder: &Path) -> Self {
        // Without a slash at its end, after which a link would be followed.
        Self(folder.components().collect())
    }

    /// Makes root the folder's owner, with what the running agent may do beyond: read every file. So nothing that the
    /// owner put into the folder leads root to change, or give away, what the owner could not. Whom the gate takes the
    /// asker for is decided when a connection to it is made: make it before, or after.
    ///
    /// # Errors
    /// When the folder is none, or the system does not allow the change.
    pub(crate) fn as_owner(&self) -> Result<AsOwner> {
        let mut as_owner = AsOwner { before: None, _thread: PhantomData };
        if !geteuid().is_root() {
            return Ok(as_owner);
        }
        let owner = match fs::symlink_metadata(&self.0) {
            Ok(metadata) if metadata.is_dir() => metadata,
            Ok(_) => bail!("{} is not a folder", self.0.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(as_owner),
            Err(error) => return Err(error).with_context(|| format!("cannot look at {}", self.0.display())),
        };
        if owner.uid() != 0 {
            let groups = getgroups()?;
            as_owner.before = Some((geteuid(), getegid(), groups));
            become_user(Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()))
                .with_context(|| format!("cannot become the owner of {}", self.0.display()))?;
        }
        Ok(as_owner)
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
            open(File::options().read(true), &path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
            Ok(text)
        };
        match read() {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Makes an empty file that only the owner can read, in the place of whatever is there.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // It must be a fresh one: a link is not followed.
        File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)
    }

    /// Writes a file that only the owner can read, whole or not at all, and durably.
    ///
    /// # Errors
    /// Names the file, which is then as it was.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        let write = || -> io::Result<()> {
            let beside = format!("{name}.new");
            let mut file = self.create(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(self.path(&beside), &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Takes the right to scan: two scans must not run at once.
    ///
    /// # Errors
    /// When another scan runs, or the lock cannot be made.
    pub(crate) fn lock_scan(&self) -> Result<ScanLock> {
        let path = self.path("inventory.lock");
        let mut options = File::options();
        let file = open(options.write(true).create(true).truncate(false).mode(0o600), &path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(ScanLock(file)),
            Err(TryLockError::WouldBlock) => bail!("another scan is running: wait for its end"),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        let Some((user, group, groups)) = self.before.take() else { return };
        // Root's powers come back with the user. Where they do not, the thread goes on with less.
        let restored = set_thread_res_uid(None, user, None)
            .and_then(|()| set_thread_res_gid(None, group, None))
            .and_then(|()| set_thread_groups(&groups));
        if let Err(error) = restored {
            tracing::warn!(%error, "still acts as the owner of the agent's folder");
        }
    }
}

fn become_user(user: Uid, group: Gid) -> io::Result<()> {
    set_thread_groups(&[])?;
    set_thread_res_gid(None, group, None)?;
    // The effective powers end with this.
    set_thread_res_uid(None, user, None)?;
    let sets = capabilities(None)?;
    let effective = sets.permitted & CapabilitySet::DAC_READ_SEARCH;
    Ok(set_capabilities(None, CapabilitySets { effective, ..sets })?)
}

/// Opens a regular file, and nothing else; nothing there can hold up the opener.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = options.custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn files_are_private_and_belong_to_the_folders_owner() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let state = StateDir::new(&folder.path().join("a/"));
        drop(state.as_owner().unwrap());
        state.make().unwrap();
        assert_eq!(state.read("x").unwrap(), None);
        let is_root = geteuid().is_root();
        let private = folder.path().join("private");
        fs::write(&private, "").unwrap();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
        if is_root {
            std::os::unix::fs::chown(state.path(""), Some(1234), Some(1235)).unwrap();
        }
        let as_owner = state.as_owner().unwrap();
        for text in ["one", "two"] {
            state.write("x", text).unwrap();
            assert_eq!(state.read("x").unwrap().as_deref(), Some(text));
        }
        let metadata = fs::metadata(state.path("x")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        if is_root {
            assert_eq!((metadata.uid(), metadata.gid()), (1234, 1235));
            assert!(fs::write(&private, "").is_err(), "root's");
            assert!(fs::read(&private).is_ok(), "the inventory reads what packages keep from others");
        }
        assert_eq!(fs::metadata(state.path("")).unwrap().permissions().mode() & 0o777, 0o700);
        drop(as_owner);
        assert_eq!(geteuid().is_root(), is_root);
        fs::write(&private, "").unwrap();
        // A link to the folder is not the folder.
        symlink(state.path(""), folder.path().join("link")).unwrap();
        assert_eq!(StateDir::new(&folder.path().join("link/")).as_owner().is_err(), is_root);
    }

    #[test]
    fn links_are_replaced_and_never_followed_and_pipes_hold_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::write(&target, "kept").unwrap();
        let state = StateDir::new(folder.path());
        for name in ["x", "x.new", "inventory.lock"] {
            symlink(&target, state.path(name)).unwrap();
        }
        assert!(state.read("x").is_err());
        assert!(state.lock_scan().is_err());
        state.write("x", "text").unwrap();
        assert_eq!(state.read("x").unwrap().as_deref(), Some("text"));
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
        nix::unistd::mkfifo(&state.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(state.read("pipe").is_err());
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
