//! The issuer's RSA keys: one file each, named by the time from which the key signs.
//!
//! A key is published a day before it signs, so that whoever caches our keys knows it by then; it signs for thirty
//! days; and it is forgotten once the last token that it signed has expired. The names of the files are all the state
//! that this needs. Tokens are signed with RS256, the one algorithm that every client of the vendor can check.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use domain::time::Timestamp;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use zeroize::Zeroizing;

use super::{CLOCK_SKEW, TOKEN_VALIDITY};
use crate::data_dir::{self, DataDirError, Readers, io_error};

const SIGNS_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const PUBLISHED_AHEAD: Duration = Duration::from_secs(24 * 60 * 60);
const SUFFIX: &str = ".pem";
/// The most keys that a folder can sensibly hold.
const KEYS_MAX: usize = 16;

/// A folder of keys.
pub(crate) struct KeyFolder(PathBuf);

/// The keys in use, by the Unix time from which they sign.
#[derive(Default)]
pub(super) struct KeySet(BTreeMap<i64, Arc<Key>>);

/// One key.
pub(super) struct Key {
    /// Its `kid`: the thumbprint of RFC 7638.
    pub(super) id: String,
    /// Signs.
    pub(super) private: EncodingKey,
    public: DecodingKey,
    published: Jwk,
}

impl KeyFolder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The keys of the folder after what is due at `now`: the next key made, old ones forgotten. Keys that are in
    /// `known` are not read again.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub(super) fn refresh(&self, known: &KeySet, now: Timestamp) -> Result<KeySet, DataDirError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(io_error("make", &self.0))?;
        let mut signs_from = self.list()?;
        let due = due(&signs_from, now.unix_seconds());
        for from in due.forget {
            self.remove(from)?;
            signs_from.retain(|kept| *kept != from);
        }
        if let Some(from) = due.make {
            self.make(from)?;
            signs_from.push(from);
        }
        let mut keys = BTreeMap::new();
        for from in signs_from {
            let key = match known.0.get(&from) {
                Some(key) => Arc::clone(key),
                None => Arc::new(self.read(from)?),
            };
            keys.insert(from, key);
        }
        Ok(KeySet(keys))
    }

    /// Replaces all keys by one that signs at once: every token that was issued so far ends. A running server follows
    /// within a minute.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub(crate) fn replace_all(&self, now: Timestamp) -> Result<(), DataDirError> {
        let old = self.list()?;
        let mut from = now.unix_seconds();
        // Never into the file of a key that is to go.
        while old.contains(&from) {
            from = from.saturating_add(1);
        }
        self.make(from)?;
        old.into_iter().try_for_each(|from| self.remove(from))
    }

    fn list(&self) -> Result<Vec<i64>, DataDirError> {
        let mut signs_from = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(io_error("list", &self.0))? {
            let name = entry.map_err(io_error("list", &self.0))?.file_name();
            // Other files are a half-written key, or somebody else's.
            signs_from.extend(name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<i64>().ok()));
        }
        if signs_from.len() > KEYS_MAX {
            let message = format!("more than {KEYS_MAX} keys");
            return Err(DataDirError::Damaged { path: self.0.clone(), message });
        }
        Ok(signs_from)
    }

    fn make(&self, from: i64) -> Result<(), DataDirError> {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)
            .map_err(|error| DataDirError::Random(error.to_string()))?;
        data_dir::write(&self.path(from), Zeroizing::new(key.serialize_pem()).as_bytes())
    }

    fn remove(&self, from: i64) -> Result<(), DataDirError> {
        let path = self.path(from);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    fn read(&self, from: i64) -> Result<Key, DataDirError> {
        let path = self.path(from);
        let text =
            data_dir::read(&path, Readers::Owner)?.ok_or_else(|| DataDirError::Missing(path.clone()))?;
        Key::from_pem(&text).map_err(|error| DataDirError::Damaged { path, message: error.to_string() })
    }

    fn path(&self, from: i64) -> PathBuf {
        self.0.join(format!("{from}{SUFFIX}"))
    }
}

impl Key {
    fn from_pem(pem: &str) -> Result<Self, jsonwebtoken::errors::Error> {
        let private = EncodingKey::from_rsa_pem(pem.as_bytes())?;
        let mut published = Jwk::from_encoding_key(&private, Algorithm::RS256)?;
        let id = published.thumbprint(ThumbprintHash::SHA256)?;
        published.common.key_id = Some(id.clone());
        published.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { id, private, public: DecodingKey::from_jwk(&published)?, published })
    }
}

impl KeySet {
    /// The key that signs at `now`; the first one when the clock is behind all of them. None for an empty set only.
    pub(super) fn signing(&self, now: Timestamp) -> Option<&Key> {
        let started = self.0.range(..=now.unix_seconds()).next_back();
        started.or_else(|| self.0.first_key_value()).map(|(_, key)| &**key)
    }

    /// The public key with this id.
    pub(super) fn find(&self, id: &str) -> Option<&DecodingKey> {
        self.0.values().find(|key| key.id == id).map(|key| &key.public)
    }

    /// All public keys, those that do not sign yet included.
    pub(super) fn public(&self) -> JwkSet {
        JwkSet { keys: self.0.values().map(|key| key.published.clone()).collect() }
    }
}

/// What is to be done with a set of keys.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    /// Make a key that signs from then on.
    make: Option<i64>,
    /// Forget these.
    forget: Vec<i64>,
}

fn due(signs_from: &[i64], now: i64) -> Due {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let newest = signs_from.iter().max();
    let make = match newest {
        None => Some(now),
        Some(newest) => {
            let ahead = seconds(PUBLISHED_AHEAD);
            let next = newest.saturating_add(seconds(SIGNS_FOR));
            // A server that was down for long makes up for it, but publishes ahead all the same.
            (now >= next.saturating_sub(ahead)).then(|| next.max(now.saturating_add(ahead)))
        }
    };
    let last_token = seconds(TOKEN_VALIDITY + CLOCK_SKEW);
    let is_over = |from: &&i64| {
        let successor = signs_from.iter().filter(|other| other > from).min();
        successor.is_some_and(|successor| successor.saturating_add(last_token) < now)
    };
    Due { make, forget: signs_from.iter().filter(is_over).copied().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 60 * 60;

    #[test]
    fn keys_are_made_ahead_and_kept_for_their_last_token() {
        let nothing = |make| Due { make, forget: Vec::new() };
        let table = [
            (vec![], 100, nothing(Some(100))),
            (vec![0], 29 * DAY - 1, nothing(None)),
            (vec![0], 29 * DAY, nothing(Some(30 * DAY))),
            (vec![0, 30 * DAY], 29 * DAY + 1, nothing(None)),
            (vec![0, 30 * DAY], 30 * DAY + 3660, nothing(None)),
            (vec![0, 30 * DAY], 30 * DAY + 3661, Due { make: None, forget: vec![0] }),
            // Down for a year.
            (vec![0], 365 * DAY, nothing(Some(366 * DAY))),
            // The clock went back.
            (vec![100 * DAY], 0, nothing(None)),
        ];
        for (signs_from, now, expected) in table {
            assert_eq!(due(&signs_from, now), expected, "{signs_from:?} {now}");
        }
    }

    #[test]
    fn keys_survive_a_restart_and_foreign_files() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFolder::new(folder.path().join("issuer"));
        let now = Timestamp::from_unix_seconds(1_800_000_000);
        let first = keys.refresh(&KeySet::default(), now).unwrap();
        fs::write(folder.path().join("issuer/README"), "hello").unwrap();
        let second = keys.refresh(&KeySet::default(), now).unwrap();
        assert_eq!(first.signing(now).unwrap().id, second.signing(now).unwrap().id);
        assert!(second.signing(now.minus(SIGNS_FOR)).is_some());
    }

    #[test]
    fn a_damaged_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFolder::new(folder.path().to_owned());
        data_dir::write(&folder.path().join("5.pem"), b"rubbish").unwrap();
        let Err(DataDirError::Damaged { path, .. }) = keys.refresh(&KeySet::default(), Timestamp::default())
        else {
            panic!("a damaged key was read")
        };
        assert!(path.ends_with("5.pem"));
    }

    #[test]
    fn replacing_all_leaves_one_other_key() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFolder::new(folder.path().to_owned());
        let now = Timestamp::from_unix_seconds(1_800_000_000);
        let before = keys.refresh(&KeySet::default(), now).unwrap();
        for later in [now, now.plus(PUBLISHED_AHEAD)] {
            keys.replace_all(later).unwrap();
            let after = keys.refresh(&before, later).unwrap();
            assert_eq!(after.0.len(), 1);
            assert_ne!(after.signing(later).unwrap().id, before.signing(now).unwrap().id);
        }
    }
}
