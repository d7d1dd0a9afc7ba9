//! The mounts that a restriction covers, read from the kernel's `mountinfo` (`proc_pid_mountinfo(5)`).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

/// Filesystems that hold no programs, and several of which take no marks.
const WITHOUT_PROGRAMS: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// Filesystems that another machine or process serves, which may give other bytes the second time, or no answer at all.
const FOREIGN: &[&str] = &[
    "9p", "afs", "ceph", "cifs", "coda", "fuse", "fuseblk", "gfs2", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
];

/// The most mounts that are looked at.
const MOUNTS_MAX: usize = 100_000;

/// A mount whose filesystem can hold programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The kernel's number for it; used again after it is gone.
    pub(crate) id: u64,
    /// The kernel's number for its filesystem, major and minor; used again after it is gone.
    pub(crate) device: (u32, u32),
    /// Where it is, below the root of those who see it; no slash at the beginning.
    path: CString,
    /// Whether its content is another's word.
    pub(crate) foreign: bool,
}

/// A path that leads to one mount, whatever is mounted over it in the meantime.
pub(crate) struct MountPath {
    _mount: OwnedFd,
    path: CString,
}

impl MountPath {
    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.path
    }
}

/// Whether a look at a path may wait for whoever serves a folder on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It may.
    Waits,
    /// What the kernel does not know already is not asked for: `ResourceBusy`.
    None,
}

/// How often a path is tried that the kernel could not follow from memory: another change at the same moment is a
/// reason too.
const ATTEMPTS: usize = 8;

impl Mount {
    /// A path to this very mount, found below `root`.
    ///
    /// # Errors
    /// `ResourceBusy` when another mount hides it: what its path leads to is that other one, which its own server may
    /// hold up, or which takes no mark. From opening.
    pub(crate) fn reopen_path(&self, root: &OwnedFd, patience: Patience) -> io::Result<MountPath> {
        let mount = self.open(root, patience)?;
        let fd = mount.as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        if id != Some(self.id) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let path = CString::new(format!("/proc/self/fd/{fd}"))?;
        Ok(MountPath { _mount: mount, path })
    }

    fn open(&self, root: &OwnedFd, patience: Patience) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let path = if self.path.is_empty() { c"." } else { self.path.as_c_str() };
        // Linux 5.12; the mount point and what is above it are in the kernel's memory.
        let from_memory = ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED)
            | ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_SYMLINKS;
        for _ in 0..ATTEMPTS {
            match openat2(root, path, OpenHow::new().flags(flags).resolve(from_memory)) {
                Ok(mount) => return Ok(mount),
                Err(Errno::EAGAIN) => {}
                // An older kernel, or a filter of system calls that does not know it.
                Err(Errno::ENOSYS | Errno::EINVAL | Errno::EPERM) => break,
                Err(error) => return Err(error.into()),
            }
        }
        match patience {
            Patience::Waits => Ok(openat(root, path, flags | OFlag::O_NOFOLLOW, Mode::empty())?),
            Patience::None => Err(io::ErrorKind::ResourceBusy.into()),
        }
    }
}

/// A mount together with the root below which its path leads to it.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) mount: Mount,
    pub(crate) root: Arc<OwnedFd>,
}

/// The mounts in a `mountinfo` whose filesystem can hold programs. Paths are bytes: none is lost for its encoding.
pub(crate) fn with_programs(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|byte| *byte == b'\n').take(MOUNTS_MAX).filter_map(mount).collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let (major, minor) = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let path = unescaped(fields.nth(1)?);
    // Optional fields end with a hyphen, then comes the filesystem's type.
    fields.find(|field| *field == b"-")?;
    let kind = std::str::from_utf8(fields.next()?).ok()?;
    // A mount whose mount point was removed cannot be reached by a path.
    if WITHOUT_PROGRAMS.contains(&kind) || path.ends_with(b"//deleted") {
        return None;
    }
    // Subtypes follow a point: `fuse.sshfs`.
    let family = kind.split('.').next()?;
    let path = CString::new(path.strip_prefix(b"/")?).ok()?;
    Some(Mount { id, device, path, foreign: FOREIGN.contains(&family) })
}

/// The filesystems in a `mountinfo` that another machine or process serves: the mount's number, and the major and minor
/// number of its device.
pub(crate) fn foreign(mountinfo: &[u8]) -> Vec<(u64, (u64, u64))> {
    let foreign = with_programs(mountinfo).into_iter().filter(|mount| mount.foreign);
    foreign.map(|mount| (mount.id, (mount.device.0.into(), mount.device.1.into()))).collect()
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.first_chunk::<3>().filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let (b'\\', Some(digits)) = (byte, octal) {
            let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            bytes.push(u8::try_from(value).unwrap_or(b'?'));
            rest = tail.get(3..).unwrap_or_default();
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn covers_what_holds_programs() {
        let mountinfo = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            23 22 0:21 / /proc rw - proc proc rw\n\
            24 22 0:22 / /dev/shm rw - tmpfs tmpfs rw\n\
            25 22 0:23 / /mnt/a\\040b rw master:1 propagate_from:2 - overlay overlay rw\n\
            26 22 0:24 / /gone//deleted rw - tmpfs tmpfs rw\n\
            28 22 0:26 / /media/\xfc rw - vfat /dev/sdb1 rw\n\
            27 22 0:25 / /run/user/1/doc rw - fuse.portal portal rw\n\
            rubbish\n";
        let found = with_programs(mountinfo);
        let seen: Vec<_> = found.iter().map(|m| (m.id, m.path.to_bytes(), m.foreign)).collect();
        let expected: [(u64, &[u8], bool); 5] = [
            (22, b"", false),
            (24, b"dev/shm", false),
            (25, b"mnt/a b", false),
            (28, b"media/\xfc", false),
            (27, b"run/user/1/doc", true),
        ];
        assert_eq!(seen, expected);
        assert_eq!(foreign(mountinfo), [(27, (0, 25))]);
        let devices: Vec<_> = found.iter().map(|mount| mount.device).collect();
        assert_eq!(devices, [(254, 0), (0, 22), (0, 23), (0, 26), (0, 25)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, escapes in "(\\\\[0-9]{0,4}| - | ){0,20}") {
            let _ = (with_programs(&bytes), foreign(&bytes));
            let _ = with_programs(format!("1 2 3 4 {escapes} - ext4 x").as_bytes());
            let _ = foreign(format!("1 2 {escapes} / / - fuse x").as_bytes());
        }
    }
}
