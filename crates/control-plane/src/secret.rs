//! Secrets that are shown once: 256 random bits, of which the store keeps a digest.
//!
//! A plain SHA-256 is enough for what nobody chose and nobody can guess; a slow hash would only make it easy to
//! exhaust the server at its token endpoint.

use sha2::Digest as _;
use store::StoreError;
use subtle::ConstantTimeEq as _;

use crate::{Error, Result};

/// Makes a secret: `prefix` tells people and secret scanners what it is.
pub(crate) fn generate(prefix: &str) -> Result<String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::Internal(StoreError::Unsupported(format!("no random numbers from the system: {error}")))
    })?;
    Ok(format!("{prefix}{}", hex::encode(bytes)))
}

/// What the store keeps of a secret.
pub(crate) fn digest(secret: &str) -> String {
    hex::encode(sha2::Sha256::digest(secret))
}

/// Whether `secret` is the one with this digest, in constant time.
pub(crate) fn matches(secret: &str, expected_digest: &str) -> bool {
    digest(secret).as_bytes().ct_eq(expected_digest.as_bytes()).into()
}

/// A password for a person to type once: about 100 random bits, without signs that look alike.
pub(crate) fn password() -> Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz023456789";
    const GROUPS: usize = 5;
    let mut bytes = [0_u8; GROUPS * 4];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::Internal(StoreError::Unsupported(format!("no random numbers from the system: {error}")))
    })?;
    let sign = |byte: &u8| char::from(ALPHABET.get(usize::from(byte % 32)).copied().unwrap_or(b'x'));
    let groups: Vec<String> = bytes.chunks(4).map(|chunk| chunk.iter().map(sign).collect()).collect();
    Ok(groups.join("-"))
}
