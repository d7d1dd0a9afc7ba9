//! The signed envelope: DSSE (Dead Simple Signing Envelope, v1.0.2), which signs exact bytes without canonicalization.
//!
//! The payload type is part of what is signed, so a policy can never be read as an order.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::digest::Sha256Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::key::{SigningKey, TRUSTED_KEYS_MAX, TrustedKeys};
use crate::order::text_of;

/// A payload with its signatures. Nothing in it is to be believed before it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    keyid: String,
    sig: String,
}

/// Why an envelope is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Longer than its kind may be.
    #[error("{bytes} bytes, at most {limit} are possible")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit for its kind.
        limit: usize,
    },
    /// Not an envelope.
    #[error("not a signed envelope: {0}")]
    Malformed(String),
    /// An envelope of another kind.
    #[error("holds {found:?}, expected {expected:?}")]
    OtherType {
        /// What it says it holds.
        found: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// No signature by a trusted key.
    #[error("not signed by a trusted key")]
    Untrusted,
    /// A trusted key signed something that this version cannot read.
    #[error("signed, but not readable by this version: {0}")]
    Unreadable(String),
    /// Signed for another machine.
    #[error("addressed to machine {0}")]
    OtherMachine(domain::machine::MachineId),
    /// Its time has not come.
    #[error("not valid yet")]
    NotYet,
    /// Its time has passed.
    #[error("expired")]
    Expired,
}

impl Envelope {
    /// Signs `payload` as `payload_type`.
    pub(crate) fn sign(payload_type: &str, payload: &[u8], key: &SigningKey) -> Self {
        let signature = key.sign(&pre_authentication_encoding(payload_type, payload));
        Self {
            payload_type: payload_type.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![Signature { keyid: key.public_key().id().0, sig: STANDARD.encode(signature) }],
        }
    }

    /// The envelope as bytes, for the wire and the disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Plain strings only: serialization has no way to fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads an envelope without believing it.
    ///
    /// # Errors
    /// [`VerifyError::TooLarge`] above `limit` bytes, [`VerifyError::Malformed`].
    pub fn from_bytes(bytes: &[u8], limit: usize) -> Result<Self, VerifyError> {
        if bytes.len() > limit {
            return Err(VerifyError::TooLarge { bytes: bytes.len(), limit });
        }
        let envelope: Self =
            serde_json::from_slice(bytes).map_err(|error| VerifyError::Malformed(error.to_string()))?;
        if envelope.signatures.len() > TRUSTED_KEYS_MAX {
            return Err(VerifyError::Malformed(format!("more than {TRUSTED_KEYS_MAX} signatures")));
        }
        Ok(envelope)
    }

    /// SHA-256 of the payload's bytes: the identity of a signed document whatever its signatures.
    ///
    /// # Errors
    /// [`VerifyError::Malformed`] when the payload is not base64.
    pub fn payload_digest(&self) -> Result<Sha256Digest, VerifyError> {
        Ok(Sha256Digest(sha2::Sha256::digest(self.payload_bytes()?).into()))
    }

    /// The payload's bytes, once a trusted key is found to have signed them as `payload_type`.
    fn verify(&self, payload_type: &'static str, keys: &TrustedKeys) -> Result<Vec<u8>, VerifyError> {
        if self.payload_type != payload_type {
            let found = self.payload_type.chars().take(80).collect();
            return Err(VerifyError::OtherType { found, expected: payload_type });
        }
        let payload = self.payload_bytes()?;
        let message = pre_authentication_encoding(payload_type, &payload);
        let trusted = self.signatures.iter().any(|signature| {
            let Some(key) = keys.find(&signature.keyid) else { return false };
            let Ok(bytes) = STANDARD.decode(&signature.sig) else { return false };
            <[u8; 64]>::try_from(bytes).is_ok_and(|bytes| key.verifies(&message, &bytes))
        });
        if trusted { Ok(payload) } else { Err(VerifyError::Untrusted) }
    }

    /// The document in the payload, as `read` understands it, once a trusted key is found to have signed it as
    /// `payload_type`: the one way from bytes to what is acted on.
    pub(crate) fn document<D: DeserializeOwned, T>(
        &self,
        payload_type: &'static str,
        keys: &TrustedKeys,
        read: impl FnOnce(D) -> Result<T, String>,
    ) -> Result<T, VerifyError> {
        let payload = self.verify(payload_type, keys)?;
        serde_json::from_slice(&payload).map_err(text_of).and_then(read).map_err(VerifyError::Unreadable)
    }

    fn payload_bytes(&self) -> Result<Vec<u8>, VerifyError> {
        STANDARD.decode(&self.payload).map_err(|error| VerifyError::Malformed(format!("payload: {error}")))
    }
}

/// DSSE's PAE: lengths before each part, so that no two (type, payload) pairs share an encoding.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pae_matches_the_specification() {
        // The example of the DSSE protocol document.
        let pae = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(pae, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let key = SigningKey::from_seed(&[7; 32]);
        let keys = TrustedKeys::new([key.public_key()]);
        let bytes = Envelope::sign("test", b"{\"generation\":7}", &key).to_bytes();
        assert!(Envelope::from_bytes(&bytes, 4096).unwrap().verify("test", &keys).is_ok());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let verified =
                Envelope::from_bytes(&flipped, 4096).and_then(|envelope| envelope.verify("test", &keys));
            assert!(verified.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_type_or_key_is_refused() {
        let key = SigningKey::from_seed(&[7; 32]);
        let other = TrustedKeys::new([SigningKey::from_seed(&[8; 32]).public_key()]);
        let envelope = Envelope::sign("a", b"x", &key);
        assert_eq!(envelope.verify("a", &other), Err(VerifyError::Untrusted));
        let keys = TrustedKeys::new([key.public_key()]);
        assert!(matches!(envelope.verify("b", &keys), Err(VerifyError::OtherType { .. })));
    }
}
