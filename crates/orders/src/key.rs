//! Ed25519 keys (RFC 8032) of the control plane's order signer and of each machine's gate.

use std::fmt;
use std::str::FromStr;

use domain::policy_settings::ManifestKey;
use ed25519_dalek::Signer as _;
use sha2::Digest as _;

/// The most keys that a machine trusts at once: the current one, and those of a rotation.
pub(crate) const TRUSTED_KEYS_MAX: usize = 8;

/// Names a key inside an envelope: the first 8 bytes of the SHA-256 of the public key, 16 hexadecimal digits.
///
/// A hint for finding the key, never a proof: the signature is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyId(pub(crate) String);

/// A private key. Its `Debug` shows the key id only.
pub struct SigningKey(ed25519_dalek::SigningKey);

/// A public key: 32 bytes, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

/// The text is not a usable Ed25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an Ed25519 public key is 64 hexadecimal digits that name a point of the curve")]
pub struct ParseKeyError;

/// The keys whose signatures a verifier believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKeys(Vec<PublicKey>);

impl SigningKey {
    /// Makes a key from the operating system's random numbers.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = [0_u8; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self::from_seed(&seed))
    }

    /// The key with this 32-byte seed, as a key file keeps it.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The seed, for writing a key file. Secret.
    pub fn to_seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public_key().id().0)
    }
}

impl PublicKey {
    /// The key's name inside envelopes.
    pub fn id(&self) -> KeyId {
        let digest = sha2::Sha256::digest(self.0.as_bytes());
        KeyId(hex::encode(digest.get(..8).unwrap_or_default()))
    }

    /// Strict verification: refuses the malleable signatures and small-order keys that plain RFC 8032 lets through.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let mut bytes = [0_u8; 32];
        hex::decode_to_slice(text, &mut bytes).or(Err(ParseKeyError))?;
        ed25519_dalek::VerifyingKey::from_bytes(&bytes).map(Self).or(Err(ParseKeyError))
    }
}

impl TrustedKeys {
    /// The keys that an allow policy trusts for manifests. What is no point of the curve verifies nothing.
    pub fn of_manifests(keys: &[ManifestKey]) -> Self {
        let point = |key: &ManifestKey| ed25519_dalek::VerifyingKey::from_bytes(&key.0).ok().map(PublicKey);
        Self::new(keys.iter().filter_map(point))
    }

    /// Trusts the first eight of these keys.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self(keys.into_iter().take(TRUSTED_KEYS_MAX).collect())
    }

    /// The keys.
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.iter()
    }

    pub(crate) fn find(&self, id: &str) -> Option<&PublicKey> {
        self.0.iter().find(|key| key.id().0 == id)
    }
}
