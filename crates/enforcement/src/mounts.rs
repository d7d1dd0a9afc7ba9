//! The mounts that a restriction covers, read from the kernel's `mountinfo` (`proc_pid_mountinfo(5)`).

use std::ffi::CString;

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

/// The most mounts that are looked at.
const MOUNTS_MAX: usize = 100_000;

/// The mount points in a `mountinfo` whose filesystem can hold programs.
pub(crate) fn with_programs(mountinfo: &str) -> Vec<CString> {
    mountinfo.lines().take(MOUNTS_MAX).filter_map(mount_point).collect()
}

fn mount_point(line: &str) -> Option<CString> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let kind = filesystem.split(' ').next()?;
    if WITHOUT_PROGRAMS.contains(&kind) {
        return None;
    }
    let path = unescaped(mount.split(' ').nth(4)?);
    // A mount whose mount point was removed cannot be reached by a path.
    if path.ends_with(b"//deleted") {
        return None;
    }
    CString::new(path).ok()
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
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
        let mountinfo = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            23 22 0:21 / /proc rw - proc proc rw\n\
            24 22 0:22 / /dev/shm rw - tmpfs tmpfs rw\n\
            25 22 0:23 / /mnt/a\\040b rw master:1 propagate_from:2 - overlay overlay rw\n\
            26 22 0:24 / /gone//deleted rw - tmpfs tmpfs rw\n\
            rubbish\n";
        let found: Vec<_> = with_programs(mountinfo).into_iter().map(|p| p.into_string().unwrap()).collect();
        assert_eq!(found, ["/", "/dev/shm", "/mnt/a b"]);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".*", escapes in "(\\\\[0-9]{0,4}| - | ){0,20}") {
            let _ = with_programs(&text);
            let _ = with_programs(&format!("1 2 3 4 {escapes} - ext4 x"));
        }
    }
}
