//! What was read of files, kept over a restart of the machine: a machine that went down restricted comes up restricted,
//! and cannot read everything that may run before anything runs.
//!
//! Only a hint, in a file that root alone can change: what is labelled by it is read afterwards, and loses its label
//! when it is something else. A damaged file is none.
//!
//! Bytes: magic (8), count (`u64`, little endian), then for each file a SHA-256 of its place, identity and version, and
//! the SHA-256 of its content, in no order; then a SHA-256 of all of that.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use domain::digest::Sha256Digest;
use sha2::{Digest as _, Sha256};

use super::abi::{Key, Version};

const MAGIC: &[u8; 8] = b"CORDONR1";
const RECORD_BYTES: usize = 64;
/// More files than there is room for labels are not kept.
const FILES_MAX: usize = super::LABELS_MAX;

/// Files by what tells them apart, with their content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Memory(HashMap<[u8; 32], Sha256Digest>);

impl Memory {
    /// Reads what was kept; nothing when it is not there, or not whole.
    pub(super) fn read(path: &Path) -> Self {
        Self::try_read(path).unwrap_or_default()
    }

    fn try_read(path: &Path) -> io::Result<Self> {
        let longest = 16 + FILES_MAX * RECORD_BYTES + 32;
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(longest as u64).read_to_end(&mut bytes)?;
        Self::parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        let (head, records) = body.split_first_chunk::<16>()?;
        let (magic, count) = head.split_first_chunk::<8>()?;
        let count = u64::from_le_bytes(count.try_into().ok()?);
        let is_whole = magic == MAGIC
            && Sha256::digest(body).as_slice() == sum
            && u64::try_from(records.len()).ok() == count.checked_mul(RECORD_BYTES as u64);
        let record = |record: &[u8]| -> Option<([u8; 32], Sha256Digest)> {
            Some((*record.first_chunk()?, Sha256Digest(*record.last_chunk()?)))
        };
        is_whole.then(|| records.chunks_exact(RECORD_BYTES).filter_map(record).collect()).map(Self)
    }

    /// Keeps it, whole or not at all.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(48 + self.0.len() * RECORD_BYTES);
        bytes.extend(MAGIC);
        bytes.extend((self.0.len() as u64).to_le_bytes());
        for (file, content) in &self.0 {
            bytes.extend(file);
            bytes.extend(content.as_bytes());
        }
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        let beside = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?.write_all(&bytes)?;
        fs::rename(&beside, path)
    }

    pub(super) fn add(&mut self, place: &Path, key: &Key, version: &Version, content: Sha256Digest) {
        if self.0.len() < FILES_MAX {
            self.0.insert(name(place, key, version), content);
        }
    }

    pub(super) fn content(&self, place: &Path, key: &Key, version: &Version) -> Option<Sha256Digest> {
        // Nothing is hashed for nothing.
        if self.0.is_empty() { None } else { self.0.get(&name(place, key, version)).copied() }
    }
}

/// Tells files apart over restarts: the numbers of devices and mounts are not the same then.
fn name(place: &Path, key: &Key, version: &Version) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(key.inode.to_le_bytes());
    hasher.update(key.volume.to_le_bytes());
    hasher.update(key.generation.to_le_bytes());
    hasher.update(version.ctime.0.to_le_bytes());
    hasher.update(version.ctime.1.to_le_bytes());
    hasher.update(version.size.to_le_bytes());
    hasher.update(place.as_os_str().as_encoded_bytes());
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_damage_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("read");
        let (key, version) = (Key { inode: 7, ..Key::default() }, Version { ctime: (1, 2), size: 3 });
        let mut memory = Memory::default();
        memory.add(Path::new("/bin/a"), &key, &version, Sha256Digest([1; 32]));
        memory.add(Path::new("/bin/b"), &key, &version, Sha256Digest([2; 32]));
        memory.write(&path).unwrap();
        let again = Memory::read(&path);
        assert_eq!(again, memory);
        assert_eq!(again.content(Path::new("/bin/b"), &key, &version), Some(Sha256Digest([2; 32])));
        // Another boot numbers devices anew.
        let moved = Key { device: 9, mount: 4, ..key };
        assert!(again.content(Path::new("/bin/a"), &moved, &version).is_some());
        for (key, version) in [
            (Key { inode: 8, ..key }, version),
            (Key { generation: 1, ..key }, version),
            (Key { volume: 1, ..key }, version),
            (key, Version { size: 4, ..version }),
            (key, Version { ctime: (1, 3), ..version }),
        ] {
            assert_eq!(again.content(Path::new("/bin/a"), &key, &version), None);
        }
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(Memory::parse(&bad), None, "{at}");
            assert_eq!(Memory::parse(&good[..at]), None, "{at}");
        }
        assert_eq!(Memory::read(&folder.path().join("missing")), Memory::default());
    }
}
