//! The disks below mounted filesystems: who writes to them directly changes files without the kernel noticing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use libbpf_rs::{MapCore as _, MapFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Shared;

/// The most devices that are followed downwards from mounts: more than a machine has disks.
const DISKS_MAX: usize = 4096;
/// How long a wait for changes may take until it is seen that the end has come.
const LOOK_MILLISECONDS: u8 = 200;

/// Keeps the map of disks what the mounts of this namespace say, until the end.
pub(super) fn watch(shared: &Shared) {
    let Ok(mut mountinfo) = fs::File::open("/proc/thread-self/mountinfo") else { return };
    let mut known = BTreeSet::new();
    let mut text = Vec::new();
    while !shared.stopping() {
        text.clear();
        if mountinfo.rewind().and_then(|()| mountinfo.read_to_end(&mut text)).is_ok() {
            let disks = below(mounted(&text));
            for gone in known.difference(&disks) {
                drop(shared.maps.disks.delete(&number(*gone)));
            }
            for disk in &disks {
                drop(shared.maps.disks.update(&number(*disk), &1_u32.to_ne_bytes(), MapFlags::ANY));
            }
            known = disks;
        }
        loop {
            let mut polled = [PollFd::new(mountinfo.as_fd(), PollFlags::POLLPRI)];
            let changed = poll(&mut polled, PollTimeout::from(LOOK_MILLISECONDS)).unwrap_or(0) > 0;
            if changed || shared.stopping() {
                break;
            }
        }
    }
}

/// A device as the kernel numbers it inside.
fn number((major, minor): (u64, u64)) -> [u8; 4] {
    u32::try_from(major << 20 | minor).unwrap_or(0).to_ne_bytes()
}

/// The block devices that mounts name, by number or as their source.
fn mounted(mountinfo: &[u8]) -> BTreeSet<(u64, u64)> {
    let mut found = BTreeSet::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2).and_then(device);
        // Some filesystems number their superblocks themselves: btrfs does.
        let source = fields.skip_while(|field| *field != b"-").nth(2);
        let source = source.map(|path| Path::new(std::ffi::OsStr::from_bytes(path))).and_then(block_device);
        found.extend(device.into_iter().chain(source).filter(|(major, _)| *major != 0).take(DISKS_MAX));
    }
    found
}

/// `major:minor`.
fn device(text: &[u8]) -> Option<(u64, u64)> {
    let (major, minor) = std::str::from_utf8(text).ok()?.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn block_device(path: &Path) -> Option<(u64, u64)> {
    let metadata = path.is_absolute().then(|| fs::metadata(path).ok()).flatten()?;
    let device = metadata.rdev();
    metadata
        .file_type()
        .is_block_device()
        .then(|| (nix::sys::stat::major(device), nix::sys::stat::minor(device)))
}

/// The same with what they consist of: the disk of a partition, the disks of a volume.
fn below(devices: BTreeSet<(u64, u64)>) -> BTreeSet<(u64, u64)> {
    let mut waiting: Vec<_> = devices.into_iter().collect();
    let mut found = BTreeSet::new();
    while let Some(disk) = waiting.pop() {
        if found.len() >= DISKS_MAX || !found.insert(disk) {
            continue;
        }
        let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", disk.0, disk.1));
        let read = |path: &Path| fs::read(path).ok().and_then(|text| device(&text));
        if folder.join("partition").exists() {
            // A link of sysfs leads to the partition's folder in that of its disk.
            waiting.extend(
                fs::canonicalize(&folder).ok().and_then(|folder| read(&folder.parent()?.join("dev"))),
            );
        }
        let parts = fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
        waiting.extend(parts.filter_map(|part| read(&part.path().join("dev"))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_name_their_devices() {
        let text =
            b"22 1 254:1 / / rw - ext4 /dev/nonexistent rw\n23 1 0:5 / /dev rw shared:2 - devtmpfs udev rw\n\
            24 1 259:3 / /boot rw,a - vfat none rw\nnonsense\n\n25 1 x:y / / -";
        assert_eq!(mounted(text), BTreeSet::from([(254, 1), (259, 3)]));
        assert_eq!(number((259, 3)), (259_u32 << 20 | 3).to_ne_bytes());
    }

    #[test]
    fn a_device_that_is_not_there_stands_for_itself() {
        assert_eq!(below(BTreeSet::from([(4000, 7)])), BTreeSet::from([(4000, 7)]));
    }
}
