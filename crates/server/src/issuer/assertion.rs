//! Client assertions (RFC 7523, `private_key_jwt`): an app proves who it is by a token that it signed itself.
//!
//! Owns which key and which algorithm count. The key is one of the app's own, whatever else the assertion offers; the
//! algorithm is one that the key is for. Each assertion counts once.

use std::time::Duration;

use domain::app::App;
use domain::time::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};
use store::app::AppKey;
use uuid::Uuid;

use super::client_key::{KeyKind, key_kind};
use super::refused::Refused;
use super::{Issuer, Version};
use crate::state::AppState;
use crate::token::{self, CLOCK_SKEW, TokenFault, TokenText};

/// How long an assertion may be valid.
const VALIDITY_MAX: Duration = Duration::from_secs(60 * 60);
/// The longest `jti`, in bytes.
const JTI_BYTES_MAX: usize = 256;
/// What the form says an assertion is.
pub(super) const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// The algorithms that assertions may be signed with.
pub(super) const ALGORITHMS: [&str; 8] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384"];

/// The app that signed an assertion. `client_id` is what the form says besides.
pub(super) async fn authenticate(
    state: &AppState,
    client_id: Option<&str>,
    assertion: &str,
    now: Timestamp,
) -> Result<App, Refused> {
    let text = token::read(assertion).map_err(refused)?;
    let subject = text.claims.get("sub").and_then(Value::as_str).and_then(|id| id.parse::<Uuid>().ok());
    let id = match (client_id.map(str::parse::<Uuid>), subject) {
        (Some(Ok(id)), Some(subject)) if id == subject => id,
        (None, Some(subject)) => subject,
        _ => return Err(invalid("its subject is not the client_id")),
    };
    let found = state.control.app_for_sign_in(id).await.map_err(|error| Refused::fault(&error))?;
    let Some((app, keys)) = found.filter(|(app, _)| !app.is_public) else {
        return Err(invalid("the application is unknown, or has no key"));
    };
    let key = chosen(&text, &keys).ok_or_else(|| {
        invalid("it is not signed with a key that the application has here (x5t, x5t#S256 or kid)")
    })?;
    let (algorithm, key) = pinned(&text, key)?;
    token::verify(&text, &key, algorithm).map_err(refused)?;
    let expires_at = check_claims(&state.issuer, id, &text.claims, now)?;
    let jti = text.claims.get("jti").and_then(Value::as_str).unwrap_or_default();
    match state.control.assertion_spend(id, jti, expires_at).await {
        Ok(true) => Ok(app),
        Ok(false) => Err(invalid("it was used already")),
        Err(control_plane::Error::BadRequest(why)) => Err(invalid(&why)),
        Err(error) => Err(Refused::fault(&error)),
    }
}

/// The key that an assertion names, of the app's; the only one when it names none of them.
fn chosen<'a>(text: &TokenText<'_>, keys: &'a [AppKey]) -> Option<&'a AppKey> {
    let named =
        |member: &str| text.header.get(member).and_then(Value::as_str).map(|id| id.trim_end_matches('='));
    let (x5t, x5t_s256, kid) = (named("x5t"), named("x5t#S256"), text.key_id.as_deref());
    let found = keys.iter().find(|key| {
        (x5t_s256.is_some() && key.x5t_s256.as_deref() == x5t_s256)
            || (x5t.is_some() && key.x5t.as_deref() == x5t)
            || kid.is_some_and(|kid| key.thumbprint.eq_ignore_ascii_case(kid))
    });
    match (found, keys) {
        (Some(key), _) => Some(key),
        // Names of other kinds are common: the signature decides.
        (None, [only]) => Some(only),
        (None, _) => None,
    }
}

/// The algorithm of an assertion if the key is for it, and the key to verify with.
fn pinned(text: &TokenText<'_>, key: &AppKey) -> Result<(Algorithm, DecodingKey), Refused> {
    let pem = key.public_key.as_bytes();
    let (kind, decoded) = match key_kind(&key.public_key) {
        Some(KeyKind::Rsa) => (KeyKind::Rsa, DecodingKey::from_rsa_pem(pem)),
        Some(kind) => (kind, DecodingKey::from_ec_pem(pem)),
        None => return Err(invalid("the key that the application has here cannot be used")),
    };
    let algorithm = match (kind, text.algorithm.as_str()) {
        (KeyKind::Rsa, "RS256") => Algorithm::RS256,
        (KeyKind::Rsa, "RS384") => Algorithm::RS384,
        (KeyKind::Rsa, "RS512") => Algorithm::RS512,
        (KeyKind::Rsa, "PS256") => Algorithm::PS256,
        (KeyKind::Rsa, "PS384") => Algorithm::PS384,
        (KeyKind::Rsa, "PS512") => Algorithm::PS512,
        (KeyKind::P256, "ES256") => Algorithm::ES256,
        (KeyKind::P384, "ES384") => Algorithm::ES384,
        _ => return Err(invalid("its algorithm is not one that the application's key is for")),
    };
    let key = decoded.map_err(|error| Refused::fault(&error))?;
    Ok((algorithm, key))
}

/// Checks what a verified assertion claims; when it expires.
fn check_claims(
    issuer: &Issuer,
    app: Uuid,
    claims: &Map<String, Value>,
    now: Timestamp,
) -> Result<Timestamp, Refused> {
    let is_app = |name: &str| {
        claims.get(name).and_then(Value::as_str).and_then(|id| id.parse::<Uuid>().ok()) == Some(app)
    };
    if !is_app("iss") || !is_app("sub") {
        return Err(invalid("its issuer and its subject must be the client_id"));
    }
    let claims = &in_whole_seconds(claims);
    token::check_times(claims, now).map_err(refused)?;
    let expires_at = claims.get("exp").and_then(Value::as_i64).map(Timestamp::from_unix_seconds);
    let latest = now.plus(VALIDITY_MAX).plus(CLOCK_SKEW);
    let Some(expires_at) = expires_at.filter(|expires_at| *expires_at <= latest) else {
        return Err(invalid("it is valid for more than an hour"));
    };
    let accepted = audiences(issuer);
    token::check_audience(claims, &accepted, |audience| accepted.iter().any(|known| known == audience))
        .map_err(refused)?;
    let jti = claims.get("jti").and_then(Value::as_str);
    if !jti.is_some_and(|jti| (1..=JTI_BYTES_MAX).contains(&jti.len())) {
        return Err(invalid("it has no jti, which makes it count once"));
    }
    Ok(expires_at)
}

/// The claims with the fractions of their times cut off: the standard admits them, and a common client library sends
/// them. Written as text, because a number that is no time has no place in another type.
fn in_whole_seconds(claims: &Map<String, Value>) -> Map<String, Value> {
    let mut claims = claims.clone();
    for name in ["exp", "nbf", "iat"] {
        let Some(time) = claims.get_mut(name).filter(|time| time.is_f64()) else { continue };
        let text = time.to_string();
        if let Some(seconds) = text.split_once('.').and_then(|(seconds, _)| seconds.parse::<i64>().ok())
            && !text.contains('e')
        {
            *time = seconds.into();
        }
    }
    claims
}

/// Whom an assertion may be for: a token endpoint, or the issuer.
fn audiences(issuer: &Issuer) -> Vec<String> {
    let base = format!("{}/{}", issuer.public_url, issuer.tenant);
    vec![
        format!("{base}/oauth2/token"),
        format!("{base}/oauth2/v2.0/token"),
        issuer.name(Version::V1),
        issuer.name(Version::V2),
    ]
}

fn refused(fault: TokenFault) -> Refused {
    match fault {
        TokenFault::Invalid(why) => invalid(&why),
        TokenFault::WrongAudience { accepted } => {
            invalid(&format!("its audience must be one of: {}", accepted.join(", ")))
        }
        TokenFault::Unavailable { .. } => Refused::unavailable(),
    }
}

fn invalid(why: &str) -> Refused {
    Refused::client(700_027, format!("The client assertion is refused: {why}."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fractions_of_seconds_are_cut_off() {
        let claims = json!({"exp": 1_800_000_000.75, "nbf": 1e300, "iat": 1_800_000_000, "x": 1.5});
        let cut = in_whole_seconds(claims.as_object().unwrap());
        assert_eq!(
            Value::Object(cut),
            json!({"exp": 1_800_000_000, "nbf": 1e300, "iat": 1_800_000_000, "x": 1.5})
        );
    }
}
