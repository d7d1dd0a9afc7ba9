//! What the gate keeps on disk, so that damage is told from absence and a write is whole or not there.
//!
//! Every file but the baseline is a line with the SHA-256 of what follows, then JSON. A file is written beside its place, synced,
//! renamed over it, and the folder is synced: what `save` reported is there after a crash.
//!
//! What the way back needs, the enrollment and the break-glass codes, has a copy in a folder beside this one. So a folder
//! that was emptied is told from one that never held anything, and restricts.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::restriction::{Desired, Fence};
use domain::time::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use orders::{PublicKey, SigningKey, TrustedKeys};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::break_glass::{BreakGlass, Lift};
use crate::end::Anchor;

/// The longest file of ours but the baseline, in bytes: room for a policy.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How many policies are kept; the ones that were stored longest ago go first. More than a deployment has, so that none
/// goes that an order on its way still names.
pub const POLICIES_MAX: usize = 64;

/// How long a gate waits for the one before it to be gone.
const HANDOVER: Duration = Duration::from_secs(5);

/// The gate's folder, which one gate at a time has.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    /// Where the copies are.
    beside: PathBuf,
    _lock: Flock<fs::File>,
}

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The filesystem said no.
    #[error("{0}")]
    Io(PathBuf, #[source] io::Error),
    /// Another gate has the folder: two would undo each other's fence.
    #[error("another gate uses {0}")]
    InUse(PathBuf),
    /// The file is there, but not what was written.
    #[error("{0} is damaged: {1}")]
    Damaged(PathBuf, String),
}

/// Who this machine is and whom it obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrollment {
    /// The machine.
    pub machine: MachineId,
    /// This enrollment's incarnation.
    pub incarnation: u64,
    /// Whose orders and policies count.
    pub keys: TrustedKeys,
}

/// The last accepted order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    store_epoch: u64,
    incarnation: u64,
    generation: u64,
    /// What the machine is to be: what the order says, until a restriction ended by itself.
    restricted: bool,
    /// The order's exact bytes; empty before the first order.
    pub order: String,
    /// The exact bytes of the policy that it names, so that a restart needs nothing else.
    pub policy: Option<String>,
    /// Digests of the survival set as it was when the order was accepted, so that a program put in the agent's place
    /// later does not count.
    pub survival: Vec<String>,
    /// The signed receipt, once there is one.
    pub receipt: Option<String>,
    /// Where a restriction that ends by itself ends, until it did. When it is to end is in the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Anchor>,
    /// The code by which the restriction was lifted before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lift: Option<Lift>,
}

impl Accepted {
    /// Nothing accepted yet in this incarnation.
    pub fn none(incarnation: u64) -> Self {
        let fence = Fence { store_epoch: 0, incarnation, generation: 0 };
        Self::new(fence, Desired::Released, String::new())
    }

    /// An order that is about to be obeyed.
    pub fn new(fence: Fence, desired: Desired, order: String) -> Self {
        Self {
            store_epoch: fence.store_epoch,
            incarnation: fence.incarnation,
            generation: fence.generation,
            restricted: desired == Desired::Restricted,
            order,
            policy: None,
            survival: Vec::new(),
            receipt: None,
            end: None,
            lift: None,
        }
    }

    /// Whether the machine is to be restricted.
    pub fn is_restricted(&self) -> bool {
        self.restricted
    }

    /// The restriction ended by itself. The fence, the order and its receipt stay, so that the order, should it come
    /// again, is known and not obeyed again.
    pub fn end(&mut self) {
        self.restricted = false;
        self.end = None;
    }

    /// The fence that a later order must pass.
    pub fn fence(&self) -> Fence {
        Fence { store_epoch: self.store_epoch, incarnation: self.incarnation, generation: self.generation }
    }
}

/// The machine is restricted because the gate cannot tell what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedClosed {
    /// What is damaged or gone.
    pub reason: String,
    since: i64,
    /// The code by which the machine was released all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lift: Option<Lift>,
}

impl FailedClosed {
    /// What is damaged or gone, and when that was found.
    pub fn new(reason: String, since: Timestamp) -> Self {
        Self { reason, since: since.ticks(), lift: None }
    }

    /// Only an order signed later counts: what a lost fence would have refused is refused by its date.
    pub fn since(&self) -> Timestamp {
        Timestamp::from_ticks(self.since)
    }
}

/// Why the machine has to be restricted by what a folder of state says, where no gate runs; none when it has not.
/// What cannot be read restricts.
pub fn why_restricted(folder: &Path) -> Option<String> {
    if !folder.exists() && !beside(folder).exists() {
        return None;
    }
    let look = || -> Result<Option<String>, StateError> {
        let state = State::open(folder)?;
        match state.failed_closed()? {
            Some(failed) if failed.lift.is_some() => return Ok(None),
            Some(failed) => return Ok(Some(failed.reason)),
            None => {}
        }
        let enrolled = state.enrollment()?.is_some();
        Ok(match state.accepted()? {
            Some(accepted) if accepted.is_restricted() => Some("the last order restricts it".to_owned()),
            Some(_) => None,
            None => enrolled.then(|| "it is enrolled, and its fence is gone".to_owned()),
        })
    };
    look().unwrap_or_else(|error| Some(format!("{:#}", anyhow::Error::from(error))))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrollmentFile {
    machine: String,
    incarnation: u64,
    order_keys: Vec<String>,
}

impl State {
    /// The file of the manifests that count while the machine is restricted.
    pub const MANIFESTS: &str = "manifests";

    /// Opens the folder and makes it when it is missing; only root may look inside.
    ///
    /// # Errors
    /// [`StateError::InUse`], [`StateError::Io`].
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let failed = |error| StateError::Io(folder.to_owned(), error);
        let create = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        create(folder).map_err(failed)?;
        let mut file = fs::File::open(folder).map_err(failed)?;
        let start = Instant::now();
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((_, Errno::EWOULDBLOCK)) if start.elapsed() > HANDOVER => {
                    return Err(StateError::InUse(folder.to_owned()));
                }
                Err((back, Errno::EWOULDBLOCK)) => {
                    file = back;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err((_, error)) => return Err(failed(error.into())),
            }
        };
        let beside = beside(folder);
        for path in [folder.join("policies"), folder.join("canaries"), beside.clone()] {
            // On a full disk the gate still has to start. What needs the folder fails then, and says so.
            drop(create(&path));
        }
        Ok(Self { folder: folder.to_owned(), beside, _lock: lock })
    }

    /// Where the canaries live.
    pub fn canaries(&self) -> PathBuf {
        self.folder.join("canaries")
    }

    /// Where the package baseline is, or is to be.
    pub fn baseline(&self) -> PathBuf {
        self.folder.join("baseline")
    }

    /// How many files the kept baseline says that it lists; 0 without one, or when it cannot be read.
    pub fn baseline_files(&self) -> usize {
        let baseline = fs::File::open(self.baseline()).and_then(policy::baseline::Baseline::open);
        baseline.map_or(0, |baseline| usize::try_from(baseline.files()).unwrap_or(0))
    }

    /// Makes an empty file in which a baseline is gathered before it takes its place. Whoever gathered one before holds
    /// another file.
    ///
    /// # Errors
    /// From the filesystem.
    pub fn baseline_incoming(&self) -> io::Result<(PathBuf, fs::File)> {
        let path = self.folder.join("baseline.incoming");
        remove(&path)?;
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((path, file))
    }

    /// The gate's own key, made when there is none. A damaged one is put aside: see [`State::has_key`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn key(&self) -> Result<SigningKey, StateError> {
        let path = self.folder.join("key");
        match self.load::<String>("key") {
            Ok(Some(seed)) => {
                let mut bytes = [0; 32];
                if hex::decode_to_slice(&seed, &mut bytes).is_ok() {
                    return Ok(SigningKey::from_seed(&bytes));
                }
            }
            Ok(None) | Err(StateError::Damaged(..)) => {}
            Err(error) => return Err(error),
        }
        if path.exists() {
            fs::rename(&path, self.folder.join("key.damaged"))
                .map_err(|error| StateError::Io(path.clone(), error))?;
        }
        let key = SigningKey::generate().map_err(|error| StateError::Io(path, io::Error::other(error)))?;
        self.save("key", &hex::encode(key.to_seed()))?;
        Ok(key)
    }

    /// Whether there is a key that can be read.
    pub fn has_key(&self) -> bool {
        self.load::<String>("key").is_ok_and(|seed| seed.is_some())
    }

    /// Who this machine is; none before enrollment. There are two copies, because without it no order can be believed.
    ///
    /// # Errors
    /// [`StateError`] when both are damaged.
    pub fn enrollment(&self) -> Result<Option<Enrollment>, StateError> {
        let name = "enrollment";
        match (enrollment_in(&self.folder.join(name)), enrollment_in(&self.beside.join(name))) {
            (Ok(Some(enrollment)), copy) => {
                if copy.ok().flatten().as_ref() != Some(&enrollment) {
                    // What cannot be mended now is tried again at the next start.
                    drop(save_in(&self.beside, name, &EnrollmentFile::of(&enrollment)));
                }
                Ok(Some(enrollment))
            }
            (_, Ok(Some(enrollment))) => {
                drop(self.save(name, &EnrollmentFile::of(&enrollment)));
                Ok(Some(enrollment))
            }
            (Ok(None), Ok(None)) => Ok(None),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// Keeps an enrollment with its fence, which is written first: an enrollment without a fence is damage.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save_enrollment(&self, enrollment: &Enrollment, fence: &Accepted) -> Result<(), StateError> {
        self.save_accepted(fence)?;
        let file = EnrollmentFile::of(enrollment);
        save_in(&self.beside, "enrollment", &file)?;
        self.save("enrollment", &file)
    }

    /// What is kept of break-glass. There are two copies, of which the later counts.
    ///
    /// # Errors
    /// [`StateError`] when none can be read, and one is damaged.
    pub fn break_glass(&self) -> Result<BreakGlass, StateError> {
        let name = "break-glass";
        let found = [load_from::<BreakGlass>(&self.folder.join(name)), load_from(&self.beside.join(name))];
        let mut later: Option<BreakGlass> = None;
        let mut failure = None;
        for found in found {
            match found {
                Ok(Some(glass)) if later.as_ref().is_none_or(|later| glass.revision > later.revision) => {
                    later = Some(glass);
                }
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        match (later, failure) {
            (Some(glass), _) => Ok(glass),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(BreakGlass::default()),
        }
    }

    /// Keeps it, in one place at least.
    ///
    /// # Errors
    /// [`StateError::Io`] when it is in neither.
    pub fn save_break_glass(&self, glass: &mut BreakGlass) -> Result<(), StateError> {
        glass.revision += 1;
        let name = "break-glass";
        let copy = save_in(&self.beside, name, glass);
        self.save(name, glass).or(copy)
    }

    /// Why the machine is restricted without an order, when it is.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn failed_closed(&self) -> Result<Option<FailedClosed>, StateError> {
        self.load("failed-closed")
    }

    /// Keeps the reason, or forgets it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save_failed_closed(&self, failed: Option<&FailedClosed>) -> Result<(), StateError> {
        let path = self.folder.join("failed-closed");
        match failed {
            Some(failed) => self.save("failed-closed", failed),
            None => remove(&path).map_err(|error| StateError::Io(path, error)),
        }
    }

    /// The last accepted order; none before enrollment.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn accepted(&self) -> Result<Option<Accepted>, StateError> {
        self.load("fence")
    }

    /// Makes an order the last accepted one, durably.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save_accepted(&self, accepted: &Accepted) -> Result<(), StateError> {
        self.save("fence", accepted)
    }

    /// The bytes of a policy that was stored under this digest.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn policy(&self, digest: Sha256Digest) -> Result<Option<String>, StateError> {
        self.load(&format!("policies/{digest}"))
    }

    /// Keeps a policy, and drops the oldest beyond [`POLICIES_MAX`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save_policy(&self, digest: Sha256Digest, bytes: &str) -> Result<(), StateError> {
        self.save(&format!("policies/{digest}"), bytes)?;
        for old in self.policies().iter().skip(POLICIES_MAX) {
            // What cannot be removed is tried again the next time.
            drop(fs::remove_file(self.folder.join(format!("policies/{old}"))));
        }
        Ok(())
    }

    /// The digests of the kept policies, the one that was stored last first.
    pub fn policies(&self) -> Vec<Sha256Digest> {
        let entries = fs::read_dir(self.folder.join("policies")).into_iter().flatten().flatten();
        let mut found: Vec<(_, Sha256Digest)> = entries
            .filter_map(|entry| {
                let digest = entry.file_name().to_str()?.parse().ok()?;
                Some((entry.metadata().ok()?.modified().ok()?, digest))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, digest)| digest).collect()
    }

    /// Reads a file that only this gate writes; none when it is not there.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        load_from(&self.folder.join(name))
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// [`StateError::Io`]; the file is then as it was.
    pub fn save<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), StateError> {
        save_in(&self.folder, name, value)
    }
}

/// The folder of the copies: of the same name with `.copy` behind it.
fn beside(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".copy");
    PathBuf::from(name)
}

impl EnrollmentFile {
    fn of(enrollment: &Enrollment) -> Self {
        Self {
            machine: enrollment.machine.to_string(),
            incarnation: enrollment.incarnation,
            order_keys: enrollment.keys.iter().map(ToString::to_string).collect(),
        }
    }
}

fn enrollment_in(path: &Path) -> Result<Option<Enrollment>, StateError> {
    let Some(file) = load_from::<EnrollmentFile>(path)? else { return Ok(None) };
    let damaged = |message: String| StateError::Damaged(path.to_owned(), message);
    let keys: Result<Vec<PublicKey>, _> = file.order_keys.iter().map(|key| key.parse()).collect();
    Ok(Some(Enrollment {
        machine: file.machine.parse().map_err(|error| damaged(format!("{error}")))?,
        incarnation: file.incarnation,
        keys: TrustedKeys::new(keys.map_err(|error| damaged(format!("{error}")))?),
    }))
}

fn load_from<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let failed = |error| StateError::Io(path.to_owned(), error);
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    read_file(&bytes).map(Some).map_err(|message| StateError::Damaged(path.to_owned(), message))
}

/// What a file of the gate's says.
///
/// # Errors
/// What is damaged.
pub fn read_file<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let newline = bytes.iter().position(|byte| *byte == b'\n').ok_or("no checksum")?;
    let (checksum, body) = bytes.split_at(newline);
    let body = body.get(1..).unwrap_or_default();
    if checksum != checksum_of(body).as_bytes() {
        return Err("its checksum does not match".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn save_in<T: Serialize + ?Sized>(folder: &Path, name: &str, value: &T) -> Result<(), StateError> {
    let path = folder.join(name);
    let beside = folder.join(format!("{name}.tmp"));
    let write = || -> io::Result<()> {
        let body = serde_json::to_vec(value)?;
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(format!("{}\n", checksum_of(&body)).as_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        put_in_place(&beside, &path)
    };
    write().map_err(|error| {
        // Half a file must not keep a full disk full.
        drop(fs::remove_file(&beside));
        StateError::Io(path.clone(), error)
    })
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames a synced file over its place and syncs the folder.
///
/// # Errors
/// From the filesystem.
pub fn put_in_place(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let folder = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::File::open(folder)?.sync_all()
}

fn checksum_of(body: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_cut_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = State::open(&path).unwrap();
        assert_eq!(state.accepted().unwrap(), None);
        let accepted = Accepted::new(
            Fence { store_epoch: 1, incarnation: 2, generation: 3 },
            Desired::Restricted,
            "order".to_owned(),
        );
        state.save_accepted(&accepted).unwrap();
        assert_eq!(state.accepted().unwrap(), Some(accepted));
        let path = path.join("fence");
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bad).unwrap();
            assert!(matches!(state.accepted(), Err(StateError::Damaged(..))), "bit {bit}");
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert!(matches!(state.accepted(), Err(StateError::Damaged(..))), "cut to {length}");
        }
    }

    #[test]
    fn a_fence_from_before_there_were_ends_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = State::open(&path).unwrap();
        let body = r#"{"store_epoch":1,"incarnation":2,"generation":3,"restricted":true,"order":"o","policy":"p","survival":["s"],"receipt":null}"#;
        let file = format!("{}\n{body}", checksum_of(body.as_bytes()));
        fs::write(path.join("fence"), &file).unwrap();
        let accepted = state.accepted().unwrap().unwrap();
        assert!(accepted.is_restricted() && accepted.end.is_none());
        // And without an end it is written like that.
        state.save_accepted(&accepted).unwrap();
        assert_eq!(fs::read_to_string(path.join("fence")).unwrap(), file);
    }

    #[test]
    fn the_oldest_policies_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = State::open(&path).unwrap();
        let last = Sha256Digest([200; 32]);
        for i in 100..=last.0[0] {
            state.save_policy(Sha256Digest([i; 32]), "policy").unwrap();
        }
        assert_eq!(state.policies().len(), POLICIES_MAX);
        assert_eq!(state.policies()[0], last);
        assert!(state.policy(last).unwrap().is_some());
    }

    #[test]
    fn the_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = State::open(&path).unwrap();
        assert!(!state.has_key());
        let key = state.key().unwrap().public_key();
        assert_eq!(state.key().unwrap().public_key(), key);
        fs::write(path.join("key"), "rubbish").unwrap();
        assert!(!state.has_key());
        assert_ne!(state.key().unwrap().public_key(), key);
        assert_eq!(fs::read(path.join("key.damaged")).unwrap(), b"rubbish");
    }

    #[test]
    fn one_copy_of_the_enrollment_is_enough_and_mends_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = State::open(&path).unwrap();
        let keys = TrustedKeys::new([SigningKey::from_seed(&[1; 32]).public_key()]);
        let enrollment = Enrollment { machine: MachineId([7; 20]), incarnation: 3, keys };
        state.save_enrollment(&enrollment, &Accepted::none(3)).unwrap();
        let copies = [path.join("enrollment"), beside(&path).join("enrollment")];
        for copy in &copies {
            let good = fs::read(copy).unwrap();
            fs::write(copy, "rubbish").unwrap();
            assert_eq!(state.enrollment().unwrap(), Some(enrollment.clone()));
            assert_eq!(fs::read(copy).unwrap(), good);
            fs::remove_file(copy).unwrap();
            assert_eq!(state.enrollment().unwrap(), Some(enrollment.clone()));
            assert_eq!(fs::read(copy).unwrap(), good);
        }
        for copy in &copies {
            fs::write(copy, "rubbish").unwrap();
        }
        assert!(state.enrollment().is_err());
    }

    #[test]
    fn of_two_copies_of_break_glass_the_later_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = State::open(&path).unwrap();
        assert_eq!(state.break_glass().unwrap(), BreakGlass::default());
        let copies = [path.join("break-glass"), beside(&path).join("break-glass")];
        let mut glass = BreakGlass::default();
        state.save_break_glass(&mut glass).unwrap();
        let old = fs::read(&copies[0]).unwrap();
        state.save_break_glass(&mut glass).unwrap();
        for copy in &copies {
            let good = fs::read(copy).unwrap();
            for bad in [old.as_slice(), b"rubbish", b""] {
                fs::write(copy, bad).unwrap();
                assert_eq!(state.break_glass().unwrap(), glass);
            }
            fs::write(copy, good).unwrap();
        }
        for copy in &copies {
            fs::write(copy, "rubbish").unwrap();
        }
        assert!(state.break_glass().is_err());
    }
}
