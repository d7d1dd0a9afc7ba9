//! The public keys of an issuer, read from the set that it publishes (RFC 7517).
//!
//! Owns which keys count: those for signatures, of a kind and size that is sound, named, and named once. A key that does
//! not count is passed over, since issuers publish keys for other purposes too; a set without any that counts is no set.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use crate::config::SigningAlgorithm;
use crate::token::{KEY_ID_BYTES_MAX, read_object};

/// The most keys in a set.
const KEYS_MAX: usize = 100;
const DEPTH_MAX: usize = 8;
/// Sizes of RSA moduli, in bytes.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// The keys that count, by their ids.
pub(super) struct KeySet(HashMap<String, Key>);

struct Key {
    public: DecodingKey,
    kind: Kind,
    /// The only algorithm that the key is for, if it says so.
    algorithm: Option<String>,
}

/// Kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// Why there is no set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeySetFault {
    /// Not the form.
    #[error("it is no JSON object with a list of keys, or has two members of one name")]
    Malformed,
    /// Too many.
    #[error("it has more than {KEYS_MAX} keys")]
    TooMany,
    /// No key that counts.
    #[error("it has no sound key for signatures with an id of its own")]
    NoKey,
}

impl KeySet {
    /// Reads a set.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, KeySetFault> {
        let document = read_object(bytes, DEPTH_MAX).ok_or(KeySetFault::Malformed)?;
        let published = document.get("keys").and_then(Value::as_array).ok_or(KeySetFault::Malformed)?;
        if published.len() > KEYS_MAX {
            return Err(KeySetFault::TooMany);
        }
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for id in published.iter().filter_map(key_id) {
            *uses.entry(id).or_default() += 1;
        }
        let counting = published.iter().filter_map(|key| {
            // Of two keys with one id, nobody can say which is meant.
            let id = key_id(key).filter(|id| uses.get(id) == Some(&1))?;
            Some((id.to_owned(), Key::read(key.as_object()?)?))
        });
        let keys: HashMap<_, _> = counting.collect();
        if keys.is_empty() { Err(KeySetFault::NoKey) } else { Ok(Self(keys)) }
    }

    /// Whether there is a key with this id.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// The key with this id, if it is for this algorithm.
    pub(super) fn find(&self, id: &str, algorithm: SigningAlgorithm) -> Option<(&DecodingKey, Algorithm)> {
        let key = self.0.get(id)?;
        let (kind, checked) = kind_of(algorithm);
        let fits = key.kind == kind && key.algorithm.as_deref().is_none_or(|only| only == algorithm.name());
        fits.then_some((&key.public, checked))
    }
}

/// The kind of key that an algorithm takes, and the algorithm in the library's words.
fn kind_of(algorithm: SigningAlgorithm) -> (Kind, Algorithm) {
    match algorithm {
        SigningAlgorithm::RS256 => (Kind::Rsa, Algorithm::RS256),
        SigningAlgorithm::RS384 => (Kind::Rsa, Algorithm::RS384),
        SigningAlgorithm::RS512 => (Kind::Rsa, Algorithm::RS512),
        SigningAlgorithm::PS256 => (Kind::Rsa, Algorithm::PS256),
        SigningAlgorithm::PS384 => (Kind::Rsa, Algorithm::PS384),
        SigningAlgorithm::PS512 => (Kind::Rsa, Algorithm::PS512),
        SigningAlgorithm::ES256 => (Kind::P256, Algorithm::ES256),
        SigningAlgorithm::ES384 => (Kind::P384, Algorithm::ES384),
        SigningAlgorithm::EdDSA => (Kind::Ed25519, Algorithm::EdDSA),
    }
}

fn key_id(key: &Value) -> Option<&str> {
    key.get("kid").and_then(Value::as_str).filter(|id| (1..=KEY_ID_BYTES_MAX).contains(&id.len()))
}

impl Key {
    fn read(members: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let for_signatures = members.get("use").is_none_or(|purpose| purpose == "sig");
        let verifies = match members.get("key_ops") {
            None => true,
            Some(operations) => operations.as_array()?.iter().any(|operation| operation == "verify"),
        };
        // Whoever publishes a private key has none any more.
        let is_private = members.contains_key("d") || members.contains_key("k");
        if !for_signatures || !verifies || is_private {
            return None;
        }
        let algorithm = match members.get("alg") {
            None => None,
            Some(algorithm) => Some(algorithm.as_str()?.to_owned()),
        };
        let point = |size: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == size && y.len() == size).then_some(())?;
            DecodingKey::from_ec_components(text("x")?, text("y")?).ok()
        };
        let (kind, public) = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let (modulus, exponent) = (bytes("n")?, bytes("e")?);
                let modulus = modulus.get(modulus.iter().position(|byte| *byte != 0)?..)?;
                let sound = RSA_BYTES.contains(&modulus.len()) && (1..=8).contains(&exponent.len());
                sound.then(|| (Kind::Rsa, DecodingKey::from_rsa_raw_components(modulus, &exponent)))?
            }
            ("EC", Some("P-256")) => (Kind::P256, point(32)?),
            ("EC", Some("P-384")) => (Kind::P384, point(48)?),
            ("OKP", Some("Ed25519")) => {
                let key = bytes("x").filter(|key| key.len() == 32)?;
                (Kind::Ed25519, DecodingKey::from_ed_der(&key))
            }
            _ => return None,
        };
        Some(Self { public, kind, algorithm })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn coordinate(size: usize) -> String {
        URL_SAFE_NO_PAD.encode(vec![7; size])
    }

    fn rsa(id: &str) -> Value {
        json!({"kty": "RSA", "kid": id, "n": coordinate(256), "e": "AQAB"})
    }

    fn read(keys: &[Value]) -> Result<KeySet, KeySetFault> {
        KeySet::read(json!({"keys": keys}).to_string().as_bytes())
    }

    #[test]
    fn keys_are_for_their_own_algorithms() {
        let keys = [
            rsa("rsa"),
            json!({"kty": "RSA", "kid": "ps", "alg": "PS256", "n": coordinate(256), "e": "AQAB"}),
            json!({"kty": "EC", "kid": "p256", "crv": "P-256", "x": coordinate(32), "y": coordinate(32)}),
            json!({"kty": "EC", "kid": "p384", "crv": "P-384", "x": coordinate(48), "y": coordinate(48)}),
            json!({"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": coordinate(32), "use": "sig", "key_ops": ["verify"]}),
        ];
        let keys = read(&keys).unwrap();
        use SigningAlgorithm as A;
        let all = [A::RS256, A::RS384, A::RS512, A::PS256, A::PS384, A::PS512, A::ES256, A::ES384, A::EdDSA];
        for (id, fitting) in [
            ("rsa", &[A::RS256, A::RS384, A::RS512, A::PS256, A::PS384, A::PS512][..]),
            ("ps", &[A::PS256]),
            ("p256", &[A::ES256]),
            ("p384", &[A::ES384]),
            ("ed", &[A::EdDSA]),
            ("other", &[]),
        ] {
            let found: Vec<_> = all.into_iter().filter(|a| keys.find(id, *a).is_some()).collect();
            assert_eq!(found, fitting, "{id}");
        }
    }

    #[test]
    fn a_duplicate_id_counts_for_no_key() {
        let twin = json!({"kty": "EC", "kid": "a", "crv": "P-256", "x": coordinate(32), "y": coordinate(32)});
        let keys = read(&[rsa("a"), rsa("b"), twin]).unwrap();
        assert!(!keys.contains("a") && keys.contains("b"));
    }

    #[test]
    fn what_is_no_sound_key_is_passed_over() {
        let with = |name: &str, value: Value| {
            let mut key = rsa("a");
            key[name] = value;
            key
        };
        for key in [
            json!({"kty": "oct", "kid": "a", "k": coordinate(32)}),
            with("use", json!("enc")),
            with("key_ops", json!(["sign"])),
            with("key_ops", json!("verify")),
            with("alg", json!(7)),
            with("d", json!(coordinate(256))),
            with("n", json!(coordinate(255))),
            with("n", json!(coordinate(1025))),
            with("n", json!("!")),
            with("e", json!("")),
            with("kid", json!("")),
            with("kid", json!(1)),
            with("kid", json!("a".repeat(KEY_ID_BYTES_MAX + 1))),
            with("kid", Value::Null),
            json!({"kty": "EC", "kid": "a", "crv": "P-256", "x": coordinate(31), "y": coordinate(33)}),
            json!({"kty": "EC", "kid": "a", "crv": "P-521", "x": coordinate(66), "y": coordinate(66)}),
            json!({"kty": "OKP", "kid": "a", "crv": "X25519", "x": coordinate(32)}),
            json!(["RSA"]),
        ] {
            assert_eq!(read(std::slice::from_ref(&key)).err(), Some(KeySetFault::NoKey), "{key}");
            assert!(read(&[key, rsa("b")]).unwrap().contains("b"));
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for text in ["", "[]", "{}", "{\"keys\": {}}", "{\"keys\": [], \"keys\": []}", "{\"keys\": []} x"] {
            assert_eq!(KeySet::read(text.as_bytes()).err(), Some(KeySetFault::Malformed), "{text}");
        }
        assert_eq!(read(&[]).err(), Some(KeySetFault::NoKey));
        let many: Vec<_> = (0..=KEYS_MAX).map(|number| rsa(&number.to_string())).collect();
        assert_eq!(read(&many).err(), Some(KeySetFault::TooMany));
        let deep = format!("{{\"keys\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(KeySet::read(deep.as_bytes()).err(), Some(KeySetFault::Malformed));
    }
}
