//! What tokens say, and their signing: tokens of apps, tokens of people, id tokens.
//!
//! A person's token names the account; what the account may do is looked up at each request, so that a change counts for
//! tokens that are out. Its groups and scopes tell the app what to expect.

use control_plane::Granted;
use domain::app::App;
use domain::time::Timestamp;
use jsonwebtoken::{Algorithm, Header};
use serde::Serialize;
use uuid::Uuid;

use super::{Issuer, TOKEN_VALIDITY, Version};

/// The most groups in a person's token: few enough for a header of a request.
const GROUPS_MAX: usize = 100;

/// A token could not be signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    /// There is no key: the folder of keys was emptied.
    #[error("there is no key to sign with")]
    NoKey,
    /// The library refuses.
    #[error("cannot sign a token")]
    Refused(#[source] jsonwebtoken::errors::Error),
}

/// The claims of a token that grants access.
#[derive(Serialize)]
struct AccessClaims<'a> {
    aud: &'a str,
    iss: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    tid: Uuid,
    /// The app, in tokens of version 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    appid: Option<Uuid>,
    /// The app, in tokens of version 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    azp: Option<Uuid>,
    oid: Uuid,
    sub: Uuid,
    uti: String,
    ver: &'static str,
    #[serde(flatten)]
    subject: SubjectClaims<'a>,
}

/// Whom a token acts for.
#[derive(Serialize)]
#[serde(untagged)]
enum SubjectClaims<'a> {
    App {
        roles: Vec<&'static str>,
    },
    User {
        idtyp: &'static str,
        scp: String,
        upn: &'a str,
        preferred_username: &'a str,
        name: &'a str,
        groups: &'a [String],
        auth_time: i64,
        sid: Uuid,
    },
}

/// The claims of a token that tells an app who signed in.
#[derive(Serialize)]
struct IdClaims<'a> {
    aud: Uuid,
    iss: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    tid: Uuid,
    oid: Uuid,
    sub: Uuid,
    auth_time: i64,
    upn: &'a str,
    preferred_username: &'a str,
    name: &'a str,
    sid: Uuid,
    ver: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
}

impl Issuer {
    /// A token with which `app` acts by itself.
    ///
    /// # Errors
    /// [`SignError`].
    pub(super) fn sign(
        &self,
        version: Version,
        app: &App,
        audience: &str,
        now: Timestamp,
    ) -> Result<String, SignError> {
        let roles = app.permissions.iter().map(|permission| permission.name()).collect();
        let subject = SubjectClaims::App { roles };
        self.signed(&self.access_claims(version, (app.id, app.id), audience, subject, now), now)
    }

    /// A token with which `app` acts for a person.
    ///
    /// # Errors
    /// [`SignError`].
    pub(super) fn sign_for_user(
        &self,
        version: Version,
        app: &App,
        granted: &Granted,
        now: Timestamp,
    ) -> Result<String, SignError> {
        let Granted { user, asked, .. } = granted;
        let scopes: Vec<_> = asked.permissions.iter().map(|permission| permission.scope()).collect();
        let subject = SubjectClaims::User {
            idtyp: "user",
            scp: scopes.join(" "),
            upn: &user.name,
            preferred_username: &user.name,
            name: &user.display_name,
            groups: user.groups.get(..GROUPS_MAX).unwrap_or(&user.groups),
            auth_time: granted.signed_in_at.unix_seconds(),
            sid: granted.session,
        };
        self.signed(&self.access_claims(version, (app.id, user.id), &asked.audience, subject, now), now)
    }

    /// A token that tells `app` who signed in, and grants nothing.
    ///
    /// # Errors
    /// [`SignError`].
    pub(super) fn sign_id(
        &self,
        version: Version,
        app: &App,
        granted: &Granted,
        now: Timestamp,
    ) -> Result<String, SignError> {
        let user = &granted.user;
        let claims = IdClaims {
            aud: app.id,
            iss: self.name(version),
            iat: now.unix_seconds(),
            nbf: now.unix_seconds(),
            exp: now.plus(TOKEN_VALIDITY).unix_seconds(),
            tid: self.tenant,
            oid: user.id,
            sub: user.id,
            auth_time: granted.signed_in_at.unix_seconds(),
            upn: &user.name,
            preferred_username: &user.name,
            name: &user.display_name,
            sid: granted.session,
            ver: version_claim(version),
            nonce: granted.nonce.as_deref(),
        };
        self.signed(&claims, now)
    }

    fn access_claims<'a>(
        &self,
        version: Version,
        (app, subject_id): (Uuid, Uuid),
        audience: &'a str,
        subject: SubjectClaims<'a>,
        now: Timestamp,
    ) -> AccessClaims<'a> {
        let (appid, azp) = match version {
            Version::V1 => (Some(app), None),
            Version::V2 => (None, Some(app)),
        };
        AccessClaims {
            aud: audience,
            iss: self.name(version),
            iat: now.unix_seconds(),
            nbf: now.unix_seconds(),
            exp: now.plus(TOKEN_VALIDITY).unix_seconds(),
            tid: self.tenant,
            appid,
            azp,
            oid: subject_id,
            sub: subject_id,
            uti: Uuid::new_v4().simple().to_string(),
            ver: version_claim(version),
            subject,
        }
    }

    fn signed(&self, claims: &impl Serialize, now: Timestamp) -> Result<String, SignError> {
        let keys = self.keys();
        let key = keys.signing(now).ok_or(SignError::NoKey)?;
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(key.id.clone());
        jsonwebtoken::encode(&header, claims, &key.private).map_err(SignError::Refused)
    }
}

fn version_claim(version: Version) -> &'static str {
    match version {
        Version::V1 => "1.0",
        Version::V2 => "2.0",
    }
}
