//! Whether a package manager is at work: the scripts that it still has to run are no packaged files, so a restriction
//! would stop it halfway, and leave the machine with half of a library.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// The locks that they hold while they change anything, and whose they are.
const LOCKS: [(&str, &str); 3] = [
    ("dpkg", "/var/lib/dpkg/lock"),
    ("rpm", "/usr/lib/sysimage/rpm/.rpm.lock"),
    ("rpm", "/var/lib/rpm/.rpm.lock"),
];

/// The package manager that is at work, and its process. Locks that cannot be looked at are held by nobody.
pub fn under_way() -> Option<(&'static str, i32)> {
    LOCKS.iter().find_map(|(manager, path)| Some((*manager, holder(path)?)))
}

/// Who holds a lock for writing.
fn holder(path: &str) -> Option<i32> {
    let file: File =
        File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    // Would we have to wait for a lock for reading, of the whole file?
    let mut lock = libc::flock {
        l_type: i16::try_from(libc::F_RDLCK).ok()?,
        l_whence: i16::try_from(libc::SEEK_SET).ok()?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).ok()?;
    (i32::from(lock.l_type) == libc::F_WRLCK).then_some(lock.l_pid)
}
