//! The text of a bearer token: a signed JWT, taken apart by one strict reader. Verifies nothing.
//!
//! Owns what a token may look like at all: its size, its parts, the members of its header, JSON without two members of
//! one name. There is one reader for all issuers, and what it read is what counts: no second reader could understand
//! the same bytes otherwise. Deliberately knows no issuer, key or clock, and nothing else of this crate, so that it is
//! fuzzed by itself.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The longest token that is looked at, in bytes: two hundred groups, which is what the vendor puts into one, take
/// twelve thousand.
pub(crate) const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The longest id of a key, in bytes.
pub(crate) const KEY_ID_BYTES_MAX: usize = 256;
/// How deep JSON may be nested in a token.
const DEPTH_MAX: usize = 8;
/// `typ` of the tokens that grant access: RFC 7519, and RFC 9068.
const TYPES: [&str; 3] = ["JWT", "at+jwt", "application/at+jwt"];

/// A token that was read and not verified.
#[derive(Debug)]
pub(crate) struct TokenText<'a> {
    /// How it says it is signed. Whether that counts is the issuer's to say.
    pub(crate) algorithm: String,
    /// The key that it says it is signed with.
    pub(crate) key_id: Option<String>,
    /// The other members of its header. None of them is to be believed: they may name one of several known keys.
    pub(crate) header: Map<String, Value>,
    /// The bytes that are signed: header, dot, claims, encoded as they arrived.
    pub(crate) signed: &'a str,
    /// The signature, encoded as it arrived; known to be canonical base64url.
    pub(crate) signature: &'a str,
    /// What it claims.
    pub(crate) claims: Map<String, Value>,
}

/// Why a text is no token, in words for whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable(pub(crate) &'static str);

/// Takes a token apart.
///
/// # Errors
/// [`Unreadable`].
pub(crate) fn read_token(text: &str) -> Result<TokenText<'_>, Unreadable> {
    if text.len() > TOKEN_BYTES_MAX {
        return Err(Unreadable("it is too long"));
    }
    let malformed = || Unreadable("this is no token of this server");
    let (signed, signature) = text.rsplit_once('.').ok_or_else(malformed)?;
    // More parts stay in `claims`, where a dot is no base64.
    let (header, claims) = signed.split_once('.').ok_or_else(malformed)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_not_base64| malformed());
    let (header, claims) = (decode(header)?, decode(claims)?);
    decode(signature)?;
    let mut header = read_object(&header, DEPTH_MAX).ok_or_else(malformed)?;
    check_header(&header)?;
    let Some(Value::String(algorithm)) = header.remove("alg") else {
        return Err(Unreadable("its header names no algorithm"));
    };
    let key_id = match header.remove("kid") {
        None => None,
        Some(Value::String(id)) if id.len() <= KEY_ID_BYTES_MAX => Some(id),
        Some(_) => return Err(Unreadable("the id of its key is no text, or too long")),
    };
    let claims = read_object(&claims, DEPTH_MAX).ok_or_else(malformed)?;
    Ok(TokenText { algorithm, key_id, header, signed, signature, claims })
}

/// Refuses what changes the meaning of a token. Members that offer a key (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.
fn check_header(header: &Map<String, Value>) -> Result<(), Unreadable> {
    if header.contains_key("crit") {
        return Err(Unreadable("its header has critical extensions, and none is understood here"));
    }
    if header.get("b64").is_some_and(|b64| *b64 != Value::Bool(true)) {
        return Err(Unreadable("its claims are not encoded"));
    }
    if header.contains_key("zip") || header.contains_key("enc") {
        return Err(Unreadable("it is compressed or encrypted"));
    }
    match header.get("typ") {
        None => Ok(()),
        Some(Value::String(kind)) if TYPES.iter().any(|known| known.eq_ignore_ascii_case(kind)) => Ok(()),
        Some(_) => Err(Unreadable("it is of a type that grants no access")),
    }
}

/// Reads a JSON object in which no object has two members of one name, nested at most so deep. Nothing else is one.
pub(crate) fn read_object(bytes: &[u8], depth_max: usize) -> Option<Map<String, Value>> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: depth_max }.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    if let Value::Object(members) = value { Some(members) } else { None }
}

/// Reads any JSON, strictly. How deep it may still be nested.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn inner<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(Self { depth })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut values = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(inner)?;
            if values.insert(name, value).is_some() {
                return Err(A::Error::custom("two members of one name"));
            }
        }
        Ok(Value::Object(values))
    }
}
