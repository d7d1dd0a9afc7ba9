//! The embedded token issuer: makes bearer tokens, and checks those that come back.
//!
//! Owns the claims of a token, which audiences are accepted, and what its own tokens must be besides what `token` checks
//! of all: RS256 and nothing else, by a key of its own, for its tenant. Deliberately does not know what a permission
//! allows, nor whether an app was revoked since: that is asked of `control-plane` with each request.

mod endpoints;

mod authorize;
mod device;
mod grant;

mod assertion;
mod client;
mod client_key;
mod credentials;
mod keys;
mod origin;
mod page;
mod refused;
mod scope;
mod sign_in;
mod signing;

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use domain::time::Timestamp;
use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::JwkSet;
use serde_json::Value;
use uuid::Uuid;

pub(crate) use client_key::read_key;
pub(crate) use endpoints::routes;
pub(crate) use keys::KeyFolder;

use crate::attempts::Attempts;
use crate::config::Config;
use crate::data_dir::DataDirError;
use crate::token::{
    self, CLOCK_SKEW, ClaimNames, Speaker, SpeakerKind, Subject, Token, TokenFault, TokenText,
};
use keys::KeySet;

/// The names of the vendor's API over the years: tokens for any of them count, so that clients change nothing but URLs.
const VENDOR_AUDIENCES: [&str; 4] = [
    "https://api.securitycenter.windows.com",
    "https://api.securitycenter.microsoft.com",
    "https://api.security.microsoft.com",
    "https://securitycenter.onmicrosoft.com/windowsatpservice",
];
/// How long a token is valid.
pub(crate) const TOKEN_VALIDITY: Duration = Duration::from_secs(60 * 60);
/// Failures a minute from one network, of each kind. Not counted per app: ids are no secret, so anybody could lock an
/// app out.
const FAILURES_PER_NETWORK: u32 = 30;
/// Wrong passwords a minute for one account from one network, whether it exists or not. The store locks it besides.
const FAILURES_PER_ACCOUNT: u32 = 10;
/// Polls of devices a minute that come too early, from one network.
const EARLY_POLLS_PER_NETWORK: u32 = 300;
/// Devices a minute that begin to wait for a person, from one network.
const DEVICE_CODES_PER_NETWORK: u32 = 30;

/// Makes and checks tokens.
pub(crate) struct Issuer {
    tenant: Uuid,
    public_url: String,
    /// Without trailing slashes; each is accepted with one too.
    audiences: Vec<String>,
    folder: KeyFolder,
    keys: RwLock<Arc<KeySet>>,
    /// Unknown apps, wrong secrets, codes and refresh tokens: random numbers. What is right counts whatever others do.
    secrets: Attempts<IpAddr>,
    /// Codes of devices as people type them.
    user_codes: Attempts<IpAddr>,
    passwords: Attempts<IpAddr>,
    passwords_of_account: Attempts<(String, IpAddr)>,
    device_codes: Attempts<IpAddr>,
    early_polls: Attempts<IpAddr>,
}

/// The two forms of tokens and token replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// `/{tenant}/oauth2/token`
    V1,
    /// `/{tenant}/oauth2/v2.0/token`
    V2,
}

impl Issuer {
    /// Takes up the keys of `folder`, or makes the first.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub(crate) fn open(
        folder: KeyFolder,
        tenant: Uuid,
        config: &Config,
        now: Timestamp,
    ) -> Result<Self, DataDirError> {
        let keys = folder.refresh(&KeySet::default(), now)?;
        let configured = config.audiences.iter().map(|audience| audience.trim_end_matches('/').to_owned());
        let mut audiences: Vec<_> = VENDOR_AUDIENCES.map(str::to_owned).to_vec();
        audiences.push(config.public_url.clone());
        audiences.extend(configured);
        Ok(Self {
            tenant,
            public_url: config.public_url.clone(),
            audiences,
            folder,
            keys: RwLock::new(Arc::new(keys)),
            secrets: Attempts::new(FAILURES_PER_NETWORK),
            user_codes: Attempts::new(FAILURES_PER_NETWORK),
            passwords: Attempts::new(FAILURES_PER_NETWORK),
            passwords_of_account: Attempts::new(FAILURES_PER_ACCOUNT),
            device_codes: Attempts::new(DEVICE_CODES_PER_NETWORK),
            early_polls: Attempts::new(EARLY_POLLS_PER_NETWORK),
        })
    }

    /// The only tenant.
    pub(crate) fn tenant(&self) -> Uuid {
        self.tenant
    }

    /// Checks a bearer token at the time `now`.
    ///
    /// # Errors
    /// [`TokenFault`].
    pub(crate) fn validate(&self, text: &TokenText<'_>, now: Timestamp) -> Result<Token, TokenFault> {
        let invalid = |why: &str| Err(TokenFault::invalid(why));
        if text.algorithm != "RS256" {
            return invalid("the token is not signed with RS256");
        }
        let keys = self.keys();
        let Some(key) = text.key_id.as_deref().and_then(|id| keys.find(id)) else {
            return invalid("the token's key is unknown");
        };
        token::verify(text, key, Algorithm::RS256)?;
        let claims = &text.claims;
        let issuer = claims.get("iss").and_then(Value::as_str);
        if ![Version::V1, Version::V2].iter().any(|version| issuer == Some(&self.name(*version))) {
            return invalid("the token is from another issuer");
        }
        let tenant = claims.get("tid").and_then(Value::as_str);
        if tenant.and_then(|tenant| tenant.parse().ok()) != Some(self.tenant) {
            return invalid("the token is for another tenant");
        }
        if !claims.contains_key("nbf") {
            return invalid("the token does not say from when it is valid");
        }
        token::check_times(claims, now)?;
        let names = ClaimNames { roles: "roles", groups: "groups", name: None };
        let Speaker { client, kind } = token::read_speaker(claims, names)?;
        let Ok(app) = client.parse::<Uuid>() else {
            return invalid("the token names no application");
        };
        token::check_audience(claims, &self.audiences, |audience| self.accepts(audience))?;
        let subject = match kind {
            SpeakerKind::App { permissions } => Subject::App { permissions },
            SpeakerKind::User { name, id, scopes, groups, signed_in_at } => Subject::User {
                name: name.to_owned(),
                id: id.to_owned(),
                scopes,
                groups: groups.into_iter().map(str::to_owned).collect(),
                signed_in_at,
                local: true,
            },
        };
        Ok(Token { app: app.to_string(), subject })
    }

    /// The public keys, for whoever checks our tokens.
    fn public_keys(&self) -> JwkSet {
        self.keys().public()
    }

    /// Makes the next key ahead of its use, forgets keys whose last token has expired, and takes up what changed in the
    /// folder.
    ///
    /// # Errors
    /// [`DataDirError`]; the keys are then as before.
    pub(crate) fn refresh(&self, now: Timestamp) -> Result<(), DataDirError> {
        let keys = self.folder.refresh(&self.keys(), now)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The issuer's name in tokens.
    fn name(&self, version: Version) -> String {
        let (url, tenant) = (&self.public_url, self.tenant);
        match version {
            Version::V1 => format!("{url}/{tenant}/"),
            Version::V2 => format!("{url}/{tenant}/v2.0"),
        }
    }

    /// Whether tokens for `audience` are for this server.
    pub(crate) fn accepts(&self, audience: &str) -> bool {
        let bare = audience.strip_suffix('/').unwrap_or(audience);
        self.audiences.iter().any(|accepted| accepted.eq_ignore_ascii_case(bare))
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use control_plane::Granted;
    use domain::app::App;
    use domain::permission::Permission;
    use domain::session::Asked;
    use domain::user::User;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_seconds(1_800_000_000);
    const AUDIENCE: &str = "https://api.securitycenter.microsoft.com";

    struct Fixture {
        issuer: Issuer,
        folder: tempfile::TempDir,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { public_url: "https://cordon.example".to_owned(), ..Config::default() };
        let keys = KeyFolder::new(folder.path().join("issuer"));
        let issuer = Issuer::open(keys, Uuid::from_u128(7), &config, NOW).unwrap();
        Fixture { issuer, folder }
    }

    fn app() -> App {
        App {
            id: Uuid::from_u128(9),
            name: "connector".to_owned(),
            permissions: vec![Permission::MachineReadAll, Permission::MachineRestrictExecution],
            is_public: false,
            redirect_uris: Vec::new(),
            machine_groups: None,
            bulk_machines_max: None,
            created_at: NOW,
            revoked_at: None,
        }
    }

    impl Fixture {
        fn token(&self, version: Version, audience: &str) -> String {
            self.issuer.sign(version, &app(), audience, NOW).unwrap()
        }

        fn private_key(&self) -> EncodingKey {
            let mut files = std::fs::read_dir(self.folder.path().join("issuer")).unwrap();
            EncodingKey::from_rsa_pem(&std::fs::read(files.next().unwrap().unwrap().path()).unwrap()).unwrap()
        }

        /// A token of ours with one claim changed, signed by our own key.
        fn changed(&self, claim: &str, value: Value) -> String {
            let (header, mut claims) = parts(&self.token(Version::V2, AUDIENCE));
            if value.is_null() {
                claims.as_object_mut().unwrap().remove(claim);
            } else {
                claims[claim] = value;
            }
            let mut signed_header = Header::new(Algorithm::RS256);
            signed_header.kid = Some(header["kid"].as_str().unwrap().to_owned());
            jsonwebtoken::encode(&signed_header, &claims, &self.private_key()).unwrap()
        }

        fn validate(&self, token: &str, now: Timestamp) -> Result<Token, TokenFault> {
            self.issuer.validate(&token::read(token)?, now)
        }

        fn refused(&self, token: &str) -> String {
            match self.validate(token, NOW) {
                Err(TokenFault::Invalid(why)) => why,
                other => panic!("{token}: {other:?}"),
            }
        }
    }

    fn granted() -> Granted {
        let user = User {
            id: Uuid::from_u128(11),
            name: "ann@lab.example".to_owned(),
            display_name: "Ann".to_owned(),
            groups: vec!["soc".to_owned()],
            created_at: NOW,
            password_changed_at: NOW,
            disabled_at: None,
            locked_until: None,
        };
        let asked = Asked {
            audience: AUDIENCE.to_owned(),
            permissions: vec![Permission::MachineReadAll],
            everything: false,
            openid: true,
            offline: false,
        };
        let signed_in_at = NOW.minus(Duration::from_secs(600));
        Granted { user, session: Uuid::from_u128(12), asked, signed_in_at, nonce: None, refresh_token: None }
    }

    fn parts(token: &str) -> (Value, Value) {
        let mut parts = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
        let mut next = || serde_json::from_slice(&parts.next().unwrap()).unwrap();
        (next(), next())
    }

    fn unsigned(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}", part(header), part(claims))
    }

    #[test]
    fn both_versions_are_accepted_for_every_audience() {
        let fixture = fixture();
        let own = "https://cordon.example";
        for audience in VENDOR_AUDIENCES.iter().copied().chain([own]) {
            for audience in [audience.to_owned(), format!("{audience}/")] {
                for version in [Version::V1, Version::V2] {
                    let token = fixture.validate(&fixture.token(version, &audience), NOW).unwrap();
                    let subject = Subject::App { permissions: app().permissions };
                    assert_eq!(token, Token { app: app().id.to_string(), subject });
                }
            }
        }
    }

    #[test]
    fn each_version_has_its_own_claims() {
        let fixture = fixture();
        let (_, v1) = parts(&fixture.token(Version::V1, AUDIENCE));
        let (_, v2) = parts(&fixture.token(Version::V2, AUDIENCE));
        let tenant = fixture.issuer.tenant;
        assert_eq!(v1["iss"], format!("https://cordon.example/{tenant}/"));
        assert_eq!(v2["iss"], format!("https://cordon.example/{tenant}/v2.0"));
        assert_eq!((&v1["appid"], &v1["azp"]), (&json!(app().id), &Value::Null));
        assert_eq!((&v2["appid"], &v2["azp"]), (&Value::Null, &json!(app().id)));
        assert_eq!(v1["roles"], json!(["Machine.Read.All", "Machine.RestrictExecution"]));
        assert_eq!(v2["exp"].as_i64().unwrap() - v2["nbf"].as_i64().unwrap(), 3600);
    }

    #[test]
    fn tokens_end_and_begin() {
        let fixture = fixture();
        let token = fixture.token(Version::V1, AUDIENCE);
        let at = |seconds| Timestamp::from_unix_seconds(NOW.unix_seconds() + seconds);
        assert!(fixture.validate(&token, at(3599)).is_ok());
        for seconds in [3600, 3601, -61] {
            assert!(matches!(fixture.validate(&token, at(seconds)), Err(TokenFault::Invalid(_))));
        }
        let now = NOW.unix_seconds();
        assert_eq!(fixture.refused(&fixture.changed("nbf", json!(now + 120))), "the token is not valid yet");
        assert_eq!(fixture.refused(&fixture.changed("exp", json!(now - 1))), "the token has expired");
    }

    #[test]
    fn every_claim_counts() {
        let fixture = fixture();
        for claim in ["exp", "nbf", "iss", "aud", "tid", "azp"] {
            fixture.refused(&fixture.changed(claim, Value::Null));
        }
        for (claim, value) in [
            ("iss", json!("https://evil.example")),
            ("iss", json!(["https://cordon.example"])),
            ("tid", json!(Uuid::from_u128(8))),
            ("exp", json!("9999999999")),
            ("exp", json!(1e300)),
            ("nbf", json!(-1.5)),
            ("azp", json!("not-an-id")),
        ] {
            fixture.refused(&fixture.changed(claim, value));
        }
        let other = fixture.validate(&fixture.changed("aud", json!("https://graph.microsoft.com")), NOW);
        let Err(TokenFault::WrongAudience { accepted }) = other else { panic!("{other:?}") };
        assert!(accepted.contains(&AUDIENCE.to_owned()));
    }

    #[test]
    fn a_persons_token_names_the_account_and_when_it_signed_in() {
        let fixture = fixture();
        for version in [Version::V1, Version::V2] {
            let signed = fixture.issuer.sign_for_user(version, &app(), &granted(), NOW).unwrap();
            let token = fixture.validate(&signed, NOW).unwrap();
            let subject = Subject::User {
                name: "ann@lab.example".to_owned(),
                id: Uuid::from_u128(11).to_string(),
                scopes: vec![Permission::MachineReadAll],
                groups: vec!["soc".to_owned()],
                signed_in_at: NOW.unix_seconds() - 600,
                local: true,
            };
            assert_eq!(token, Token { app: app().id.to_string(), subject });
            let id_token = fixture.issuer.sign_id(version, &app(), &granted(), NOW).unwrap();
            assert!(fixture.validate(&id_token, NOW).is_err(), "an id token grants nothing");
        }
    }

    #[test]
    fn unknown_roles_grant_nothing() {
        let fixture = fixture();
        let nothing = Subject::App { permissions: Vec::new() };
        let token = fixture.changed("roles", json!(["Machine.read.all", "Everything"]));
        assert_eq!(fixture.validate(&token, NOW).unwrap().subject, nothing);
        let token = fixture.changed("roles", Value::Null);
        assert_eq!(fixture.validate(&token, NOW).unwrap().subject, nothing);
    }

    #[test]
    fn unsigned_tokens_are_refused() {
        let fixture = fixture();
        let (header, claims) = parts(&fixture.token(Version::V2, AUDIENCE));
        for alg in ["none", "None", "NONE", "nOnE", ""] {
            let mut header = header.clone();
            header["alg"] = json!(alg);
            let body = unsigned(&header, &claims);
            for token in [body.clone(), format!("{body}."), format!("{body}.AAAA")] {
                fixture.refused(&token);
            }
        }
        let body = unsigned(&header, &claims);
        assert_eq!(fixture.refused(&format!("{body}.")), "the token's signature is wrong");
    }

    #[test]
    fn a_public_key_is_no_secret_to_sign_with() {
        let fixture = fixture();
        let (header, claims) = parts(&fixture.token(Version::V2, AUDIENCE));
        let public = serde_json::to_value(fixture.issuer.public_keys()).unwrap();
        let key = &public["keys"][0];
        let modulus = key["n"].as_str().unwrap();
        let secrets = [modulus.as_bytes().to_vec(), URL_SAFE_NO_PAD.decode(modulus).unwrap(), Vec::new()];
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let mut forged = Header::new(algorithm);
            forged.kid = Some(header["kid"].as_str().unwrap().to_owned());
            for secret in &secrets {
                let token =
                    jsonwebtoken::encode(&forged, &claims, &EncodingKey::from_secret(secret)).unwrap();
                assert_eq!(fixture.refused(&token), "the token is not signed with RS256");
            }
        }
    }

    #[test]
    fn keys_of_others_are_refused() {
        let (fixture, other) = (fixture(), fixture());
        let (header, claims) = parts(&fixture.token(Version::V2, AUDIENCE));
        let mut forged = Header::new(Algorithm::RS256);
        forged.kid = Some(header["kid"].as_str().unwrap().to_owned());
        let key = other.private_key();
        let token = jsonwebtoken::encode(&forged, &claims, &key).unwrap();
        assert_eq!(fixture.refused(&token), "the token's signature is wrong");
        for kid in [None, Some("../../ca".to_owned())] {
            forged.kid = kid;
            let token = jsonwebtoken::encode(&forged, &claims, &key).unwrap();
            assert_eq!(fixture.refused(&token), "the token's key is unknown");
        }
        assert_eq!(fixture.refused(&other.token(Version::V2, AUDIENCE)), "the token's key is unknown");
        // A key that comes along in the token is not asked either.
        forged.kid = Some(header["kid"].as_str().unwrap().to_owned());
        forged.jwk = other.issuer.public_keys().keys.into_iter().next();
        forged.jku = Some("https://evil.example/keys".to_owned());
        let token = jsonwebtoken::encode(&forged, &claims, &key).unwrap();
        assert_eq!(fixture.refused(&token), "the token's signature is wrong");
        forged.alg = Algorithm::PS256;
        let token = jsonwebtoken::encode(&forged, &claims, &key).unwrap();
        assert_eq!(fixture.refused(&token), "the token is not signed with RS256");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let fixture = fixture();
        let token = fixture.token(Version::V1, AUDIENCE);
        let long = "a".repeat(16 * 1024 + 1);
        for text in ["", ".", "..", "...", "a.b.c", &long, token.split_at(token.len() / 2).0, "\u{0}é.é.é"]
        {
            fixture.refused(text);
        }
        let flipped = token.replacen("eyJ", "eyK", 1);
        fixture.refused(&flipped);
    }

    #[test]
    fn a_token_outlives_the_rotation_of_its_key() {
        let fixture = fixture();
        let day = Duration::from_secs(24 * 60 * 60);
        let mut now = NOW;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 * 24 {
            let token = fixture.issuer.sign(Version::V1, &app(), AUDIENCE, now).unwrap();
            let (header, _) = parts(&token);
            seen.insert(header["kid"].as_str().unwrap().to_owned());
            now = now.plus(day / 24).minus(Duration::from_secs(1));
            fixture.issuer.refresh(now).unwrap();
            assert!(fixture.validate(&token, now).is_ok());
            let published = fixture.issuer.public_keys();
            assert!(published.find(header["kid"].as_str().unwrap()).is_some());
        }
        assert_eq!(seen.len(), 2, "one rotation in 40 days");
    }
}
