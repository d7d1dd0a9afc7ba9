//! The survival set: what must run on a restricted machine so that it stays alive, reachable, and can be released again.
//!
//! The gate and the agent with the loaders that start them, and the listed canary always belong to it: the gate is
//! started on a restricted machine too, by whoever has a break-glass code. The rest is what [`crate::vital`] finds, as
//! far as packages or rules vouch for it: a name alone makes nothing part of the set. It counts only in its place, and
//! what is found when the restriction begins is what counts until it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use domain::decision::Verdict;
use domain::digest::Sha256Digest;
use enforcement::canary::Canaries;
use enforcement::{Examiner, FileFacts, KnownDigests, Settings};

use crate::judge::{MachineJudge, PackagesFirst, is_at};
use crate::text::escaped;
use crate::vital::{self, Need};

/// Finds the survival set, and remembers digests as long as the files stay what they are.
pub struct SurvivalSet {
    /// The running gate, and its loader.
    own: BTreeSet<Sha256Digest>,
    agent_program: PathBuf,
    known: Vec<(FileIdentity, Sha256Digest)>,
    /// Below which folder the system is that is to survive.
    root: PathBuf,
    examined: Arc<Mutex<KnownDigests>>,
    is_warm: Arc<AtomicBool>,
}

/// What changes when a file is replaced or written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileIdentity(u64, u64, i64, i64, u64);

/// The contents of a survival set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survivors {
    anywhere: BTreeSet<Sha256Digest>,
    in_place: BTreeMap<Sha256Digest, BTreeSet<String>>,
}

impl Survivors {
    /// Whether the file belongs to it, where it is.
    pub fn holds(&self, file: &FileFacts<'_>) -> bool {
        self.anywhere.contains(&file.digest)
            || self
                .in_place
                .get(&file.digest)
                .is_some_and(|places| places.iter().any(|place| is_at(place.as_bytes(), file).is_some()))
    }

    /// The digests.
    pub fn iter(&self) -> impl Iterator<Item = &Sha256Digest> {
        self.anywhere.iter().chain(self.in_place.keys())
    }

    /// Where what counts in its place lies.
    pub fn places(&self) -> impl Iterator<Item = PathBuf> {
        self.in_place.values().flatten().map(PathBuf::from)
    }

    /// As the gate keeps it: a digest, and for what counts in its place a blank and the place.
    pub fn to_lines(&self) -> Vec<String> {
        let anywhere = self.anywhere.iter().map(ToString::to_string);
        let in_place = self
            .in_place
            .iter()
            .flat_map(|(digest, places)| places.iter().map(move |place| format!("{digest} {place}")));
        anywhere.chain(in_place).collect()
    }

    /// What is kept so; nothing of what is no such line.
    pub fn of_lines(lines: &[String]) -> Self {
        let mut set = Self::default();
        for line in lines {
            match line.split_once(' ') {
                None => set.anywhere.extend(line.parse::<Sha256Digest>().ok()),
                Some((digest, place)) if place.starts_with('/') => {
                    if let Ok(digest) = digest.parse() {
                        set.in_place.entry(digest).or_default().insert(place.to_owned());
                    }
                }
                Some(_) => {}
            }
        }
        set
    }

    /// Whether nothing belongs to it.
    pub fn is_empty(&self) -> bool {
        self.anywhere.is_empty() && self.in_place.is_empty()
    }

    /// What belongs to either.
    pub fn with(mut self, other: &Self) -> Self {
        self.anywhere.extend(&other.anywhere);
        for (digest, places) in &other.in_place {
            self.in_place.entry(*digest).or_default().extend(places.iter().cloned());
        }
        self
    }
}

/// The survival set of a policy, and what it lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// What belongs to it and is vouched for.
    pub survivors: Survivors,
    /// What would belong to it, and is vouched for by nothing: paths with the reason, as text.
    pub missing: Vec<String>,
}

impl Survey {
    /// What is missing, in one sentence that a receipt can hold; none when nothing is.
    pub fn complaint(&self) -> Option<String> {
        /// A receipt's reason has 1024 bytes.
        const LIST_BYTES_MAX: usize = 700;
        let count = self.missing.len();
        let mut list = String::new();
        let mut named = 0;
        for missing in &self.missing {
            if list.len() + missing.len() > LIST_BYTES_MAX {
                break;
            }
            list.push_str(if named == 0 { "" } else { ", " });
            list.push_str(missing);
            named += 1;
        }
        let rest = if named < count { format!(" and {} more", count - named) } else { String::new() };
        (count > 0).then(|| {
            format!("{count} programs that keep this machine alive and reachable would not run: {list}{rest}")
        })
    }
}

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
        Ok(Self {
            own,
            agent_program: agent_program.to_owned(),
            known: Vec::new(),
            root: PathBuf::from("/"),
            examined: Arc::default(),
            is_warm: Arc::default(),
        })
    }

    /// Says below which folder the system is that is to survive, if not below `/`.
    pub fn look_below(&mut self, root: PathBuf) {
        self.root = root;
    }

    /// What belongs to it whatever packages and rules say, as the files are. A program that is not there is left out.
    pub fn look(&mut self) -> Survivors {
        let mut set = self.fixed();
        let programs = [Some(self.agent_program.clone()), loader_of(&self.agent_program)];
        let before = std::mem::take(&mut self.known);
        for program in programs.into_iter().flatten() {
            if let Some(found) = digest_of(&program, &before) {
                self.known.push(found);
                set.anywhere.insert(found.1);
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
    pub fn fixed(&self) -> Survivors {
        let anywhere = self.own.iter().copied().chain([Canaries::listed_digest()]).collect();
        Survivors { anywhere, ..Survivors::default() }
    }

    /// The whole set, by what `judge` vouches for. Milliseconds when the files were hashed before.
    ///
    /// # Errors
    /// When nothing can be examined on this machine.
    pub fn survey(&self, judge: MachineJudge, sees_mappings: bool) -> std::io::Result<Survey> {
        survey(&self.root, &Arc::clone(&self.examined), judge, sees_mappings)
    }

    /// Whether a survey takes milliseconds.
    pub fn is_warm(&self) -> bool {
        self.is_warm.load(Ordering::Acquire)
    }

    /// Hashes what [`SurvivalSet::survey`] will need, in a thread of its own.
    pub fn warm_up(&self, judge: MachineJudge) {
        let (root, examined) = (self.root.clone(), Arc::clone(&self.examined));
        let is_warm = Arc::clone(&self.is_warm);
        let work = move || {
            let _is_patient = rustix::process::setpriority_process(None, 19);
            is_warm.store(survey(&root, &examined, judge, false).is_ok(), Ordering::Release);
        };
        // Without it the first switch takes longer.
        drop(std::thread::Builder::new().name("survey".to_owned()).spawn(work));
    }
}

/// Surveys in a thread of its own, as an examiner needs.
fn survey(
    root: &Path,
    examined: &Mutex<KnownDigests>,
    judge: MachineJudge,
    sees_mappings: bool,
) -> std::io::Result<Survey> {
    let work = || -> std::io::Result<Survey> {
        let needs = vital::look(root);
        let root = std::fs::canonicalize(root)?;
        // Who comes second waits, and need not hash anything again.
        let mut known = examined.lock().unwrap_or_else(PoisonError::into_inner);
        let mut examiner = Examiner::new(std::mem::take(&mut known))?;
        let mut survey = Survey { survivors: judge.survival.clone(), missing: Vec::new() };
        let judge = PackagesFirst(judge);
        for (path, need) in needs {
            let examined = examiner.path(&path, &judge);
            let decision = examined.as_ref().map(|examined| &examined.decision);
            let is_allowed = decision.is_ok_and(|decision| decision.verdict == Verdict::Allow);
            let cause = decision.map_or("unreadable", |decision| decision.cause.code());
            let is_roots = vital::is_roots_alone(&path, &root);
            let digest = examined.as_ref().ok().and_then(|examined| examined.digest);
            match (digest, path.to_str()) {
                (Some(digest), Some(place)) if is_allowed && is_roots => {
                    survey.survivors.in_place.entry(digest).or_default().insert(place.to_owned());
                }
                _ if need == Need::Mapped && !sees_mappings => {}
                _ => {
                    let cause = if is_allowed { "others than root can change it" } else { cause };
                    survey.missing.push(format!("{} ({cause})", escaped(path.as_os_str().as_bytes())));
                }
            }
        }
        *known = examiner.into_known();
        Ok(survey)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("survey".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_panic| Err(std::io::Error::other("the survey ended early")))
    })
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
        let expected = BTreeSet::from([digest(&program), digest(&loader), Canaries::listed_digest()]);
        for _again_from_memory in 0..2 {
            assert_eq!(survival.look().iter().copied().collect::<BTreeSet<_>>(), expected);
        }
    }

    #[test]
    fn what_is_no_program_has_no_loader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        // The test, its loader, and the canary.
        assert_eq!(SurvivalSet::new(&path).unwrap().look().iter().count(), 3, "missing");
        let header = |tail: &[u8]| [&b"\x7fELF\x02"[..], tail].concat();
        for bytes in
            [Vec::new(), b"#!/bin/sh\n".to_vec(), header(&[]), header(&[0xff; 59]), header(&[0xff; 200])]
        {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(loader_of(&path), None);
        }
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let digest = Sha256Digest([7; 32]);
        let mut set = Survivors::default();
        set.anywhere.insert(digest);
        set.in_place.insert(digest, ["/a b".to_owned(), "/c".to_owned()].into());
        assert_eq!(Survivors::of_lines(&set.to_lines()), set);
        // Of damaged lines nothing comes that counts anywhere.
        let damaged =
            [format!("{digest} "), format!("{digest} a"), "x /a".to_owned(), String::new(), " ".to_owned()];
        assert!(Survivors::of_lines(&damaged).is_empty());
    }

    #[test]
    fn a_complaint_fits_into_a_receipt() {
        let survey = |missing: Vec<String>| Survey { survivors: Survivors::default(), missing };
        assert_eq!(survey(Vec::new()).complaint(), None);
        let one = survey(vec!["/a (unlisted)".to_owned()]).complaint().unwrap();
        assert!(one.ends_with("would not run: /a (unlisted)"), "{one}");
        for missing in [vec!["x".repeat(100); 100], vec!["x".repeat(5000)]] {
            let count = missing.len();
            let many = survey(missing).complaint().unwrap();
            assert!(many.len() < 1000 && many.starts_with(&format!("{count} programs")), "{many}");
            assert!(many.ends_with(" more"), "{many}");
        }
    }
}
