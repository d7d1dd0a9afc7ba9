//! What the gate keeps on disk, so that damage is told from absence and a write is whole or not there.
//!
//! Every file but the baseline is a line with the SHA-256 of what follows, then JSON. A file is written beside its place, synced,
//! renamed over it, and the folder is synced: what `save` reported is there after a crash.

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
}

impl FailedClosed {
    /// What is damaged or gone, and when that was found.
    pub fn new(reason: String, since: Timestamp) -> Self {
        Self { reason, since: since.ticks() }
    }

    /// Only an order signed later counts: what a lost fence would have refused is refused by its date.
    pub fn since(&self) -> Timestamp {
        Timestamp::from_ticks(self.since)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrollmentFile {
    machine: String,
    incarnation: u64,
    order_keys: Vec<String>,
}

impl State {
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
        for name in ["policies", "canaries"] {
            // On a full disk the gate still has to start. What needs the folder fails then, and says so.
            drop(create(&folder.join(name)));
        }
        Ok(Self { folder: folder.to_owned(), _lock: lock })
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
        match (self.enrollment_in("enrollment"), self.enrollment_in("enrollment.copy")) {
            (Ok(Some(enrollment)), _) | (_, Ok(Some(enrollment))) => Ok(Some(enrollment)),
            (Ok(None), Ok(None)) => Ok(None),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    fn enrollment_in(&self, name: &str) -> Result<Option<Enrollment>, StateError> {
        let Some(file) = self.load::<EnrollmentFile>(name)? else { return Ok(None) };
        let damaged = |message: String| StateError::Damaged(self.folder.join(name), message);
        let keys: Result<Vec<PublicKey>, _> = file.order_keys.iter().map(|key| key.parse()).collect();
        Ok(Some(Enrollment {
            machine: file.machine.parse().map_err(|error| damaged(format!("{error}")))?,
            incarnation: file.incarnation,
            keys: TrustedKeys::new(keys.map_err(|error| damaged(format!("{error}")))?),
        }))
    }

    /// Keeps an enrollment with its fence, which is written first: an enrollment without a fence is damage.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save_enrollment(&self, enrollment: &Enrollment, fence: &Accepted) -> Result<(), StateError> {
        self.save_accepted(fence)?;
        let file = EnrollmentFile {
            machine: enrollment.machine.to_string(),
            incarnation: enrollment.incarnation,
            order_keys: enrollment.keys.iter().map(ToString::to_string).collect(),
        };
        self.save("enrollment.copy", &file)?;
        self.save("enrollment", &file)
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
        let path = self.folder.join(name);
        let mut bytes = Vec::new();
        match fs::File::open(&path) {
            Ok(file) => file
                .take(FILE_BYTES_MAX)
                .read_to_end(&mut bytes)
                .map_err(|error| StateError::Io(path.clone(), error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::Io(path, error)),
        };
        let damaged = |message: &str| StateError::Damaged(path.clone(), message.to_owned());
        let newline = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("no checksum"))?;
        let (checksum, body) = bytes.split_at(newline);
        let body = body.get(1..).unwrap_or_default();
        if checksum != checksum_of(body).as_bytes() {
            return Err(damaged("its checksum does not match"));
        }
        serde_json::from_slice(body).map(Some).map_err(|error| damaged(&error.to_string()))
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// [`StateError::Io`]; the file is then as it was.
    pub fn save<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let path = self.folder.join(name);
        let beside = self.folder.join(format!("{name}.tmp"));
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
        let state = State::open(folder.path()).unwrap();
        assert_eq!(state.accepted().unwrap(), None);
        let accepted = Accepted::new(
            Fence { store_epoch: 1, incarnation: 2, generation: 3 },
            Desired::Restricted,
            "order".to_owned(),
        );
        state.save_accepted(&accepted).unwrap();
        assert_eq!(state.accepted().unwrap(), Some(accepted));
        let path = folder.path().join("fence");
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
        let state = State::open(folder.path()).unwrap();
        let body = r#"{"store_epoch":1,"incarnation":2,"generation":3,"restricted":true,"order":"o","policy":"p","survival":["s"],"receipt":null}"#;
        let file = format!("{}\n{body}", checksum_of(body.as_bytes()));
        fs::write(folder.path().join("fence"), &file).unwrap();
        let accepted = state.accepted().unwrap().unwrap();
        assert!(accepted.is_restricted() && accepted.end.is_none());
        // And without an end it is written like that.
        state.save_accepted(&accepted).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("fence")).unwrap(), file);
    }

    #[test]
    fn the_oldest_policies_go() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path()).unwrap();
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
        let state = State::open(folder.path()).unwrap();
        assert!(!state.has_key());
        let key = state.key().unwrap().public_key();
        assert_eq!(state.key().unwrap().public_key(), key);
        fs::write(folder.path().join("key"), "rubbish").unwrap();
        assert!(!state.has_key());
        assert_ne!(state.key().unwrap().public_key(), key);
        assert_eq!(fs::read(folder.path().join("key.damaged")).unwrap(), b"rubbish");
    }

    #[test]
    fn one_copy_of_the_enrollment_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path()).unwrap();
        let keys = TrustedKeys::new([SigningKey::from_seed(&[1; 32]).public_key()]);
        let enrollment = Enrollment { machine: MachineId([7; 20]), incarnation: 3, keys };
        state.save_enrollment(&enrollment, &Accepted::none(3)).unwrap();
        for name in ["enrollment", "enrollment.copy"] {
            let good = fs::read(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name), "rubbish").unwrap();
            assert_eq!(state.enrollment().unwrap(), Some(enrollment.clone()));
            fs::remove_file(folder.path().join(name)).unwrap();
            assert_eq!(state.enrollment().unwrap(), Some(enrollment.clone()));
            fs::write(folder.path().join(name), good).unwrap();
        }
        for name in ["enrollment", "enrollment.copy"] {
            fs::write(folder.path().join(name), "rubbish").unwrap();
        }
        assert!(state.enrollment().is_err());
    }
}
