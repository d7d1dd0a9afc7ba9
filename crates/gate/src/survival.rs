//! The survival set: what must run on a restricted machine so that it can be released again.
//!
//! It is the gate and the agent with the loaders that start them, and the listed canary. The gate is started on a
//! restricted machine too: by whoever has a break-glass code. What else keeps a machine alive
//! comes from packages.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use domain::digest::Sha256Digest;
use enforcement::Settings;
use enforcement::canary::Canaries;

/// Finds the digests of the survival set, and remembers them as long as the files stay what they are.
pub struct SurvivalSet {
    /// The running gate, and its loader.
    own: BTreeSet<Sha256Digest>,
    agent_program: PathBuf,
    known: Vec<(FileIdentity, Sha256Digest)>,
}

/// What changes when a file is replaced or written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileIdentity(u64, u64, i64, i64, u64);

impl SurvivalSet {
    /// Hashes the running gate; the agent's program is looked at when it is needed.
    ///
    /// # Errors
    /// From reading the gate's own program.
    pub fn new(agent_program: &Path) -> std::io::Result<Self> {
        let program = Path::new("/proc/self/exe");
        let hash = |file: File| enforcement::hash(&file.into(), Settings::default().hash_bytes_max);
        let mut own = BTreeSet::from([hash(File::open(program)?)?]);
        // Without it only a gate that runs already lifts anything.
        own.extend(loader_of(program).and_then(|loader| hash(File::open(loader).ok()?).ok()));
        Ok(Self { own, agent_program: agent_program.to_owned(), known: Vec::new() })
    }

    /// The set as the files are. A program that is not there is left out.
    pub fn look(&mut self) -> BTreeSet<Sha256Digest> {
        let mut set = self.fixed();
        let programs = [Some(self.agent_program.clone()), loader_of(&self.agent_program)];
        let before = std::mem::take(&mut self.known);
        for program in programs.into_iter().flatten() {
            if let Some(found) = digest_of(&program, &before) {
                self.known.push(found);
                set.insert(found.1);
            }
        }
        set
    }

    /// Where the set lies, besides the canary.
    pub fn places(&self) -> Vec<PathBuf> {
        let own = std::fs::read_link("/proc/self/exe").ok();
        let agent = [Some(self.agent_program.clone()), loader_of(&self.agent_program)];
        own.into_iter().chain(agent.into_iter().flatten()).collect()
    }

    /// What of the set is part of the running gate.
    pub fn fixed(&self) -> BTreeSet<Sha256Digest> {
        self.own.iter().copied().chain([Canaries::listed_digest()]).collect()
    }
}

fn digest_of(program: &Path, known: &[(FileIdentity, Sha256Digest)]) -> Option<(FileIdentity, Sha256Digest)> {
    let file = File::open(program).ok()?;
    let metadata = file.metadata().ok()?;
    let identity =
        FileIdentity(metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), metadata.len());
    if let Some(found) = known.iter().find(|(known, _)| *known == identity) {
        return Some(*found);
    }
    let digest = enforcement::hash(&file.into(), Settings::default().hash_bytes_max).ok()?;
    Some((identity, digest))
}

/// The loader that a dynamic program names (`PT_INTERP`, `elf(5)`); none for a static one. The kernel executes it too.
pub(crate) fn loader_of(program: &Path) -> Option<PathBuf> {
    const INTERPRETER: u32 = 3;
    let file = File::open(program).ok()?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    // 64 bits and the processor's own byte order, which is all that the gate is built for.
    if !header.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let (entries, size, count) =
        (long(&header, 32)?, u64::from(short(&header, 54)?), u64::from(short(&header, 56)?));
    for index in 0..count {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, entries.checked_add(index * size)?).ok()?;
        if entry.first_chunk().copied().map(u32::from_ne_bytes) == Some(INTERPRETER) {
            let length = usize::try_from(long(&entry, 32)?).ok().filter(|length| *length <= 4096)?;
            let mut path = vec![0; length];
            file.read_exact_at(&mut path, long(&entry, 8)?).ok()?;
            let path = path.split(|byte| *byte == 0).next()?;
            return Some(PathBuf::from(std::ffi::OsStr::from_bytes(path)));
        }
    }
    None
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_and_its_loader_belong_to_it() {
        // The test itself stands for the agent: a dynamic program.
        let program = std::env::current_exe().unwrap();
        let loader = loader_of(&program).expect("a loader");
        assert!(loader.starts_with("/lib") || loader.starts_with("/lib64"), "{}", loader.display());
        let mut survival = SurvivalSet::new(&program).unwrap();
        let digest = |path: &Path| {
            enforcement::hash(&File::open(path).unwrap().into(), Settings::default().hash_bytes_max).unwrap()
        };
        let expected =
            [&digest(&program), &digest(&loader), &Canaries::listed_digest()].map(|digest| *digest);
        assert_eq!(survival.look(), BTreeSet::from(expected));
        assert_eq!(survival.look(), BTreeSet::from(expected), "from memory");
    }

    #[test]
    fn what_is_no_program_has_no_loader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        // The test, its loader, and the canary.
        assert_eq!(SurvivalSet::new(&path).unwrap().look().len(), 3, "missing");
        let header = |tail: &[u8]| [&b"\x7fELF\x02"[..], tail].concat();
        for bytes in
            [Vec::new(), b"#!/bin/sh\n".to_vec(), header(&[]), header(&[0xff; 59]), header(&[0xff; 200])]
        {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(loader_of(&path), None);
        }
    }
}
