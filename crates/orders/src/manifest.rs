//! Signed manifests: contents that whoever makes a program vouches for, ahead of time and without the server.
//!
//! An allow policy names the keys whose manifests count; the files themselves lie on the machine.

use domain::digest::Sha256Digest;
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, VerifyError};
use crate::key::{SigningKey, TrustedKeys};
use crate::order::text_of;

const PAYLOAD_TYPE: &str = "application/vnd.cordon.manifest.v1+json";
/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What it lists, for people: 1 to 256 bytes without control characters.
    pub name: String,
    /// When it was signed. It does not count before.
    pub issued_at: Timestamp,
    /// It does not count from then on.
    pub expires_at: Timestamp,
    /// Contents that may run, wherever they lie. At most [`Manifest::DIGESTS_MAX`]; their order has no meaning.
    pub digests: Vec<Sha256Digest>,
}

/// Why a manifest cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The name is empty, too long, or not fit for a terminal.
    #[error("the name of a manifest has 1 to {NAME_BYTES_MAX} bytes and no control characters")]
    Name,
    /// It ends before it begins.
    #[error("a manifest must expire after it was issued")]
    Expiry,
    /// More contents than one manifest lists.
    #[error("{0} contents, at most {max} are possible", max = Manifest::DIGESTS_MAX)]
    TooMany(usize),
}

impl Manifest {
    /// The most contents of one manifest.
    pub const DIGESTS_MAX: usize = 50_000;

    /// Signs it.
    ///
    /// # Errors
    /// [`ManifestError`] when no gate would believe it.
    pub fn sign(&self, key: &SigningKey) -> Result<Envelope, ManifestError> {
        self.validate()?;
        let document = Document {
            name: self.name.clone(),
            issued_at: self.issued_at.ticks(),
            expires_at: self.expires_at.ticks(),
            sha256: self.digests.iter().map(ToString::to_string).collect(),
        };
        Ok(Envelope::sign(PAYLOAD_TYPE, &serde_json::to_vec(&document).unwrap_or_default(), key))
    }

    fn validate(&self) -> Result<(), ManifestError> {
        let is_name =
            (1..=NAME_BYTES_MAX).contains(&self.name.len()) && !self.name.chars().any(char::is_control);
        if !is_name {
            return Err(ManifestError::Name);
        }
        if self.expires_at <= self.issued_at {
            return Err(ManifestError::Expiry);
        }
        if self.digests.len() > Self::DIGESTS_MAX {
            return Err(ManifestError::TooMany(self.digests.len()));
        }
        Ok(())
    }
}

/// The manifest inside an envelope that a trusted key signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedManifest {
    manifest: Manifest,
    digest: Sha256Digest,
}

impl VerifiedManifest {
    /// The longest signed manifest, in bytes: what [`Manifest::DIGESTS_MAX`] contents need in base64.
    pub const BYTES_MAX: usize = 5 * 1024 * 1024;

    /// Believes `bytes` when a trusted key signed them as a manifest, and it has begun and not expired.
    ///
    /// # Errors
    /// [`VerifyError`], which says what is wrong.
    pub fn verify(bytes: &[u8], keys: &TrustedKeys, now: Timestamp) -> Result<Self, VerifyError> {
        let verified = Self::verify_kept(bytes, keys)?;
        let Manifest { issued_at, expires_at, .. } = verified.manifest;
        if now < issued_at {
            return Err(VerifyError::NotYet);
        }
        if now >= expires_at {
            return Err(VerifyError::Expired);
        }
        Ok(verified)
    }

    /// As [`VerifiedManifest::verify`], for one that counted when the machine was restricted, whatever time it is.
    ///
    /// # Errors
    /// [`VerifyError`], which says what is wrong.
    pub fn verify_kept(bytes: &[u8], keys: &TrustedKeys) -> Result<Self, VerifyError> {
        let envelope = Envelope::from_bytes(bytes, Self::BYTES_MAX)?;
        let manifest = envelope.document(PAYLOAD_TYPE, keys, Document::read)?;
        Ok(Self { manifest, digest: envelope.payload_digest()? })
    }

    /// What it says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of the signed bytes: what tells two manifests apart.
    pub fn digest(&self) -> Sha256Digest {
        self.digest
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: String,
    issued_at: i64,
    expires_at: i64,
    sha256: Vec<String>,
}

impl Document {
    fn read(self) -> Result<Manifest, String> {
        let manifest = Manifest {
            name: self.name,
            issued_at: Timestamp::from_ticks(self.issued_at),
            expires_at: Timestamp::from_ticks(self.expires_at),
            digests: self
                .sha256
                .iter()
                .map(|text| text.parse().map_err(text_of))
                .collect::<Result<_, _>>()?,
        };
        manifest.validate().map_err(text_of)?;
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn manifest(digests: Vec<Sha256Digest>) -> Manifest {
        Manifest { name: "acme 2.1".to_owned(), issued_at: at(100), expires_at: at(200), digests }
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn trusted() -> TrustedKeys {
        TrustedKeys::new([key(1).public_key()])
    }

    #[test]
    fn it_counts_between_its_times_and_by_its_key_only() {
        let manifest = manifest(vec![Sha256Digest([7; 32])]);
        let bytes = manifest.sign(&key(1)).unwrap().to_bytes();
        let verify = |now| VerifiedManifest::verify(&bytes, &trusted(), at(now));
        assert_eq!(verify(100).unwrap().manifest(), &manifest);
        assert!(verify(199).is_ok());
        assert_eq!(verify(99), Err(VerifyError::NotYet));
        assert_eq!(verify(200), Err(VerifyError::Expired));
        assert!(VerifiedManifest::verify_kept(&bytes, &trusted()).is_ok());
        let strange = manifest.sign(&key(2)).unwrap().to_bytes();
        assert_eq!(VerifiedManifest::verify(&strange, &trusted(), at(150)), Err(VerifyError::Untrusted));
        // Another kind of document by the right key.
        let other = Envelope::sign("application/vnd.cordon.policy.v1+json", b"{}", &key(1)).to_bytes();
        assert!(matches!(
            VerifiedManifest::verify(&other, &trusted(), at(150)),
            Err(VerifyError::OtherType { .. })
        ));
    }

    #[test]
    fn what_no_gate_would_believe_is_not_signed() {
        let good = manifest(Vec::new());
        for name in [String::new(), "n".repeat(257), "a\u{1b}[2J".to_owned()] {
            assert_eq!(Manifest { name, ..good.clone() }.sign(&key(1)).unwrap_err(), ManifestError::Name);
        }
        let backwards = Manifest { expires_at: at(100), ..good.clone() };
        assert_eq!(backwards.sign(&key(1)).unwrap_err(), ManifestError::Expiry);
        let many =
            Manifest { digests: vec![Sha256Digest([0; 32]); Manifest::DIGESTS_MAX + 1], ..good.clone() };
        assert_eq!(many.sign(&key(1)).unwrap_err(), ManifestError::TooMany(Manifest::DIGESTS_MAX + 1));
        let most = Manifest { digests: vec![Sha256Digest([0xff; 32]); Manifest::DIGESTS_MAX], ..good };
        let bytes = most.sign(&key(1)).unwrap().to_bytes();
        assert!(VerifiedManifest::verify(&bytes, &trusted(), at(150)).is_ok(), "{} bytes", bytes.len());
    }

    #[test]
    fn a_signed_document_must_be_a_manifest() {
        let read = |payload: &str| {
            let bytes = Envelope::sign(PAYLOAD_TYPE, payload.as_bytes(), &key(1)).to_bytes();
            VerifiedManifest::verify_kept(&bytes, &trusted()).map(drop)
        };
        let document = |name: &str, digest: &str, more: &str| {
            format!(r#"{{"name":"{name}","issued_at":1,"expires_at":2,"sha256":["{digest}"]{more}}}"#)
        };
        let digest = "ab".repeat(32);
        assert_eq!(read(&document("a", &digest, "")), Ok(()));
        for payload in [
            document("", &digest, ""),
            document("a", "ab", ""),
            document("a", &"xy".repeat(32), ""),
            document("a", &digest, r#","path":"/usr/bin/x""#),
            document("a", &digest, r#","issued_at":1"#),
            r#"{"name":"a","issued_at":2,"expires_at":2,"sha256":[]}"#.to_owned(),
            r#"{"name":"a","issued_at":1,"expires_at":2}"#.to_owned(),
            "[".repeat(10_000),
            String::new(),
        ] {
            assert!(matches!(read(&payload), Err(VerifyError::Unreadable(_))), "{payload:.80}");
        }
    }

    proptest! {
        #[test]
        fn what_is_signed_is_read_back(
            name in "[ -~\u{a1}-\u{ff}]{1,60}", issued: i32, length in 1..i64::from(i32::MAX),
            digests in prop::collection::vec(any::<[u8; 32]>(), 0..20), seed: u8
        ) {
            let digests = digests.into_iter().map(Sha256Digest).collect();
            let (issued_at, expires_at) = (at(issued.into()), at(i64::from(issued) + length));
            let manifest = Manifest { name, issued_at, expires_at, digests };
            let bytes = manifest.sign(&key(seed)).unwrap().to_bytes();
            let keys = TrustedKeys::new([key(seed).public_key()]);
            let verified = VerifiedManifest::verify(&bytes, &keys, issued_at).unwrap();
            prop_assert_eq!(verified.manifest(), &manifest);
        }

        #[test]
        fn damage_is_never_believed(at_byte in 0..500_usize, change in 1..=u8::MAX) {
            let good = manifest(vec![Sha256Digest([7; 32])]);
            let mut bytes = good.sign(&key(1)).unwrap().to_bytes();
            let at_byte = at_byte % bytes.len();
            bytes[at_byte] ^= change;
            if let Ok(verified) = VerifiedManifest::verify_kept(&bytes, &trusted()) {
                prop_assert_eq!(verified.manifest(), &good, "only what is not signed may differ");
            }
        }
    }
}
