//! Sessions: a person signs in to an app, and the app renews what it was granted.
//!
//! Owns how codes, refresh tokens and device codes are made, how long they last, and that none counts twice. What a
//! token says is the server's. A session never grants more than its app may have and its account stands for at that
//! moment: a disabled account, another password or a revoked app end it at the next renewal, and `access` refuses the
//! tokens that are out at once.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::app::{App, CLI_APP_ID};
use domain::audit_entry::AuditEntry;
use domain::permission::Permission;
use domain::session::{
    Asked, CODE_VALIDITY, DEVICE_CODE_VALIDITY, Decision, DeviceCode, IDLE_MAX, POLL_INTERVAL, SESSION_MAX,
    Session,
};
use domain::time::Timestamp;
use domain::user::User;
use sha2::Digest as _;
use store::app::AppKey;
use store::session::{
    Code, RefreshToken, assertion_count, assertion_spend, device_code_by_user_code, device_code_count,
    device_code_create, device_code_decide, device_code_delete, device_code_fetch, device_code_polled,
    session_by_code, session_by_refresh_handle, session_code_spend, session_create, session_fetch,
    session_forget_expired, session_forget_oldest, session_renew, session_revoke,
};
use store::user::user_fetch;
use store::{StoreError, Tx};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use crate::{ControlPlane, Error, Result, audit, now, secret};

/// The most sessions of an account; the oldest go first.
const SESSIONS_PER_USER: u32 = 200;
/// The most devices that wait at a time.
const DEVICE_CODES_MAX: u64 = 20_000;
/// The most of one network: nobody can take up all that there are.
const DEVICE_CODES_PER_NETWORK: u64 = 50;
/// The most assertions of an app that are remembered: far more than an app needs that signs one an hour.
const ASSERTIONS_MAX: u64 = 10_000;
/// How long expired things stay, so that whoever uses them hears that they expired, and a second use is seen.
const KEPT_AFTER_EXPIRY: Duration = Duration::from_secs(60 * 60);
/// How much too early a poll may come: a device's clock and the network are not exact.
const POLL_TOLERANCE: Duration = Duration::from_secs(1);
/// How long a session stays that cannot be renewed, so that a second use of its code is seen.
const UNRENEWABLE_KEPT: Duration = Duration::from_secs(60 * 60);
const REFRESH_PREFIX: &str = "cordon-refresh-";

/// What whoever redeems an authorization code must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeBinding {
    /// Where the code is sent.
    pub redirect_uri: String,
    /// The challenge of PKCE by `S256`.
    pub challenge: String,
    /// Goes into the id token.
    pub nonce: Option<String>,
}

/// What an app was granted in the name of a person. Holds a secret: not to be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Granted {
    /// The person, as the account is now.
    pub user: User,
    /// The session.
    pub session: Uuid,
    /// What tokens are to say: what was asked for, as far as the app may have it.
    pub asked: Asked,
    /// When the person gave the password.
    pub signed_in_at: Timestamp,
    /// Of the authorization request, for the id token.
    pub nonce: Option<String>,
    /// The next refresh token, when one was asked for.
    pub refresh_token: Option<String>,
}

/// What a device is told that asks to be signed in on.
#[derive(Clone, PartialEq, Eq)]
pub enum DeviceBegun {
    /// It waits for a person.
    Waits {
        /// The device's own code. A secret: not to be printed.
        device_code: String,
        /// The code that the person types.
        user_code: String,
    },
    /// Too many devices of its network wait.
    TooManyOfNetwork,
    /// Too many devices wait.
    TooMany,
}

/// What a device is told that polls.
#[derive(Clone, PartialEq, Eq)]
pub enum Poll {
    /// The person did not decide yet.
    Pending,
    /// Likewise, and the device polls too often.
    SlowDown,
    /// The person declined.
    Declined,
    /// Nobody decided in time.
    Expired,
    /// The person approved.
    Granted(Box<Granted>),
}

/// What a transaction found that must be kept although the caller gets nothing.
enum Outcome<T> {
    Done(T),
    Refused(&'static str),
}

impl<T> Outcome<T> {
    fn into_result(self) -> Result<T> {
        match self {
            Self::Done(done) => Ok(done),
            Self::Refused(why) => Err(Error::Unauthenticated(why.to_owned())),
        }
    }
}

impl ControlPlane {
    /// The app that a person signs in to, or that signs an assertion, and its keys. The command line is one that needs
    /// no entry. None when there is none, or it was revoked.
    ///
    /// # Errors
    /// From the store.
    pub async fn app_for_sign_in(&self, id: Uuid) -> Result<Option<(App, Vec<AppKey>)>> {
        if id == CLI_APP_ID {
            return Ok(Some((command_line(), Vec::new())));
        }
        self.app_with_keys(id).await
    }

    /// Begins a session of a person who has just given the password, and makes the authorization code for the app.
    ///
    /// # Errors
    /// From the store.
    pub async fn session_begin_by_code(
        &self,
        user: &User,
        app: &App,
        asked: Asked,
        binding: CodeBinding,
    ) -> Result<String> {
        let secret = secret::generate("cordon-code-")?;
        let code = Code {
            digest: secret::digest(&secret),
            redirect_uri: binding.redirect_uri,
            challenge: binding.challenge,
            nonce: binding.nonce,
            spent_at: None,
        };
        let at = now();
        let session = begun(user, app, asked, at, at.plus(CODE_VALIDITY));
        let user = user.clone();
        self.0
            .store
            .write(move |tx| begin(tx, &session, &user, Some(&code), "an authorization code"))
            .await?;
        Ok(secret)
    }

    /// Redeems an authorization code, once. `narrowed` is what the app asks for now, if it says so.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] with the reason; a second use ends the session besides. [`Error::InvalidInput`] when
    /// nothing would be granted; from the store.
    pub async fn session_redeem_code(
        &self,
        app: &App,
        code: &str,
        redirect_uri: &str,
        verifier: &str,
        narrowed: Option<Asked>,
    ) -> Result<Granted> {
        const UNKNOWN: &str = "the code is unknown, or has expired";
        let (digest, challenge) = (secret::digest(code), challenge_of(verifier));
        let (app, redirect_uri) = (app.clone(), redirect_uri.to_owned());
        let refresh = Refresh::generate()?;
        let looked_up = digest.clone();
        // What is made up costs no write.
        if self.0.store.read(move |tx| session_by_code(tx, &looked_up)).await?.is_none() {
            return Err(Error::Unauthenticated(UNKNOWN.to_owned()));
        }
        self.0
            .store
            .write(move |tx| {
                let at = now();
                let Some((session, code)) = session_by_code(tx, &digest)? else {
                    return Ok(Outcome::Refused(UNKNOWN));
                };
                if code.spent_at.is_some() {
                    revoke(tx, &session, at, "its code was used twice")?;
                    return Ok(Outcome::Refused("the code was used already: what it granted is revoked"));
                }
                if session.app != app.id {
                    return Ok(Outcome::Refused("the code was made for another client"));
                }
                if code.redirect_uri != redirect_uri {
                    return Ok(Outcome::Refused(
                        "the redirect_uri is not the one of the authorization request",
                    ));
                }
                if !bool::from(challenge.as_bytes().ct_eq(code.challenge.as_bytes())) {
                    return Ok(Outcome::Refused("the code_verifier does not fit the code_challenge"));
                }
                if session.expires_at <= at {
                    return Ok(Outcome::Refused("the code has expired"));
                }
                if !session_code_spend(tx, session.id, at)? {
                    return Ok(Outcome::Refused("the code was used already"));
                }
                renewed(tx, session, &app, narrowed, at, refresh, code.nonce)
            })
            .await?
            .into_result()
    }

    /// Begins a session of a person whose password the app itself was given.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when nothing would be granted; from the store.
    pub async fn session_begin_by_password(&self, user: &User, app: &App, asked: Asked) -> Result<Granted> {
        let at = now();
        let session = begun(user, app, asked, at, at.plus(UNRENEWABLE_KEPT));
        let (user, app, refresh) = (user.clone(), app.clone(), Refresh::generate()?);
        self.0
            .store
            .write(move |tx| {
                begin(tx, &session, &user, None, "a password that the app was given")?;
                renewed(tx, session, &app, None, at, refresh, None)
            })
            .await?
            .into_result()
    }

    /// Renews a session by its newest refresh token, which is replaced by the next one.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] with the reason; an older token ends the session besides, because somebody else has
    /// the newer one. [`Error::InvalidInput`] when nothing would be granted; from the store.
    pub async fn session_renew(&self, app: &App, token: &str, narrowed: Option<Asked>) -> Result<Granted> {
        const UNKNOWN: &str = "the refresh token is unknown, or its session has ended";
        let Some((handle, _)) = token.strip_prefix(REFRESH_PREFIX).and_then(|token| token.split_once('.'))
        else {
            return Err(Error::Unauthenticated(UNKNOWN.to_owned()));
        };
        let (handle_digest, digest) = (secret::digest(handle), secret::digest(token));
        let looked_up = handle_digest.clone();
        // What is made up costs no write.
        if self.0.store.read(move |tx| session_by_refresh_handle(tx, &looked_up)).await?.is_none() {
            return Err(Error::Unauthenticated(UNKNOWN.to_owned()));
        }
        let (app, refresh) = (app.clone(), Refresh::next(handle)?);
        self.0
            .store
            .write(move |tx| {
                let at = now();
                let Some((session, newest)) = session_by_refresh_handle(tx, &handle_digest)? else {
                    return Ok(Outcome::Refused(UNKNOWN));
                };
                if session.revoked_at.is_some() {
                    return Ok(Outcome::Refused("the session was revoked: sign in again"));
                }
                if !bool::from(digest.as_bytes().ct_eq(newest.digest.as_bytes())) {
                    revoke(tx, &session, at, "a refresh token was used twice")?;
                    return Ok(Outcome::Refused(
                        "the refresh token was used already: the session is revoked",
                    ));
                }
                if session.app != app.id {
                    return Ok(Outcome::Refused("the refresh token was given to another client"));
                }
                if session.expires_at <= at {
                    return Ok(Outcome::Refused("the session has expired: sign in again"));
                }
                renewed(tx, session, &app, narrowed, at, refresh, None)
            })
            .await?
            .into_result()
    }

    /// Makes the two codes of a device that is to be signed in on. `address` is where it asks from, and `network` whom it
    /// counts for.
    ///
    /// # Errors
    /// From the store.
    pub async fn device_code_create(
        &self,
        app: &App,
        asked: Asked,
        address: String,
        network: String,
    ) -> Result<DeviceBegun> {
        let (device_code, user_code) = (secret::generate("cordon-device-")?, user_code()?);
        let at = now();
        let code = DeviceCode {
            app: app.id,
            asked,
            address,
            created_at: at,
            expires_at: at.plus(DEVICE_CODE_VALIDITY),
            interval: POLL_INTERVAL,
            polled_at: None,
            decision: None,
        };
        let digest = secret::digest(&device_code);
        let user_code_digest = secret::digest(&plain_user_code(&user_code));
        self.0
            .store
            .write(move |tx| {
                session_forget_expired(tx, at.minus(KEPT_AFTER_EXPIRY))?;
                let (all, of_network) = device_code_count(tx, &network, at)?;
                if of_network >= DEVICE_CODES_PER_NETWORK {
                    return Ok(DeviceBegun::TooManyOfNetwork);
                }
                if all >= DEVICE_CODES_MAX {
                    return Ok(DeviceBegun::TooMany);
                }
                device_code_create(tx, &code, &network, &digest, &user_code_digest)?;
                Ok(DeviceBegun::Waits { device_code, user_code })
            })
            .await
    }

    /// The device that waits with this code of a person, however the person spells it.
    ///
    /// # Errors
    /// From the store.
    pub async fn device_code_waiting(&self, user_code: &str) -> Result<Option<DeviceCode>> {
        let digest = secret::digest(&plain_user_code(user_code));
        self.0.store.read(move |tx| waiting(tx, &digest, now())).await
    }

    /// Approves a device in the name of a person who has just given the password; whether it still waits.
    ///
    /// # Errors
    /// From the store.
    pub async fn device_code_approve(&self, user_code: &str, app: &App, user: &User) -> Result<bool> {
        let digest = secret::digest(&plain_user_code(user_code));
        let (app, user) = (app.clone(), user.clone());
        self.0
            .store
            .write(move |tx| {
                let at = now();
                let Some(code) = waiting(tx, &digest, at)?.filter(|code| code.app == app.id) else {
                    return Ok(false);
                };
                let how = format!("a device code that {} asked for", code.address);
                let session = begun(&user, &app, code.asked, at, code.expires_at.plus(KEPT_AFTER_EXPIRY));
                begin(tx, &session, &user, None, &how)?;
                Ok(device_code_decide(tx, &digest, Decision::Approved(session.id), at)?)
            })
            .await
    }

    /// Declines a device; whether it still waits. Whoever has the code may.
    ///
    /// # Errors
    /// From the store.
    pub async fn device_code_decline(&self, user_code: &str) -> Result<bool> {
        let digest = secret::digest(&plain_user_code(user_code));
        self.0
            .store
            .write(move |tx| {
                let at = now();
                let Some(code) = waiting(tx, &digest, at)? else { return Ok(false) };
                let detail = format!("{} had asked for it", code.address);
                audit::record(tx, at, AuditEntry::SYSTEM, "device_code_decline", code.app, detail)?;
                Ok(device_code_decide(tx, &digest, Decision::Declined, at)?)
            })
            .await
    }

    /// What a device is told that polls. Once it was granted something, its code is spent. Polls that change nothing, such
    /// as those that come too early, cost no write.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] when the code is not one of this app, or the account counts no more;
    /// [`Error::InvalidInput`] when nothing would be granted; from the store.
    pub async fn device_code_poll(
        &self,
        app: &App,
        device_code: &str,
        narrowed: Option<Asked>,
    ) -> Result<Poll> {
        let digest = secret::digest(device_code);
        let (looked_up, id) = (digest.clone(), app.id);
        let found = self.0.store.read(move |tx| polled(tx, &looked_up, id, now())).await?;
        if let Polled::Answer(answer) = found {
            return answer.into_result();
        }
        let (app, refresh) = (app.clone(), Refresh::generate()?);
        self.0
            .store
            .write(move |tx| {
                let at = now();
                let session = match polled(tx, &digest, app.id, at)? {
                    Polled::Answer(answer) => return Ok::<_, Error>(answer),
                    Polled::Waits => {
                        device_code_polled(tx, &digest, at)?;
                        return Ok(Outcome::Done(Poll::Pending));
                    }
                    Polled::Approved(session) => session_fetch(tx, session)?,
                };
                device_code_delete(tx, &digest)?;
                let Some(session) = session else { return Ok(Outcome::Done(Poll::Expired)) };
                Ok(match renewed(tx, session, &app, narrowed, at, refresh, None)? {
                    Outcome::Done(granted) => Outcome::Done(Poll::Granted(Box::new(granted))),
                    Outcome::Refused(why) => Outcome::Refused(why),
                })
            })
            .await?
            .into_result()
    }

    /// Records the use of an assertion that an app has signed; whether it is the first.
    ///
    /// # Errors
    /// [`Error::BadRequest`] when the app signs too many; from the store.
    pub async fn assertion_spend(&self, app: Uuid, jti: &str, expires_at: Timestamp) -> Result<bool> {
        let digest = secret::digest(jti);
        self.0
            .store
            .write(move |tx| {
                session_forget_expired(tx, now().minus(KEPT_AFTER_EXPIRY))?;
                if assertion_count(tx, app)? >= ASSERTIONS_MAX {
                    return Err(Error::BadRequest(format!(
                        "the application has used {ASSERTIONS_MAX} assertions within two hours: use its tokens longer"
                    )));
                }
                Ok(assertion_spend(tx, app, &digest, expires_at)?)
            })
            .await
    }
}

/// Cordon's own command line.
fn command_line() -> App {
    App {
        id: CLI_APP_ID,
        name: "Cordon command line".to_owned(),
        permissions: Permission::ALL.to_vec(),
        is_public: true,
        redirect_uris: Vec::new(),
        machine_groups: None,
        bulk_machines_max: None,
        created_at: Timestamp::default(),
        revoked_at: None,
    }
}

fn begun(user: &User, app: &App, asked: Asked, at: Timestamp, expires_at: Timestamp) -> Session {
    Session {
        id: Uuid::new_v4(),
        app: app.id,
        user: user.id,
        user_name: user.name.clone(),
        asked,
        // A password counts from the second after it was set.
        signed_in_at: at.max(user.password_changed_at),
        expires_at,
        revoked_at: None,
    }
}

/// Begins a session, if the account is still as it was when the password was checked: that takes a while, in which the
/// password can be changed or the account disabled.
fn begin(tx: &Tx<'_>, session: &Session, user: &User, code: Option<&Code>, how: &str) -> Result<()> {
    let is_same = |now: &User| {
        (now.id, now.password_changed_at, now.disabled_at)
            == (user.id, user.password_changed_at, user.disabled_at)
    };
    if !user_fetch(tx, &user.name)?.is_some_and(|(now, _)| is_same(&now)) {
        return Err(Error::Unauthenticated("the account was changed meanwhile: sign in again".to_owned()));
    }
    session_forget_expired(tx, session.signed_in_at.minus(KEPT_AFTER_EXPIRY))?;
    session_create(tx, session, code)?;
    session_forget_oldest(tx, session.user, SESSIONS_PER_USER)?;
    let detail = format!("session {}, by {how}", session.id);
    Ok(audit::record(tx, session.signed_in_at, &session.user_name, "user_sign_in", session.app, detail)?)
}

fn revoke(tx: &Tx<'_>, session: &Session, at: Timestamp, why: &str) -> Result<()> {
    if session_revoke(tx, session.id, at)? {
        let detail = format!("{why}; account {:?}, app {}", session.user_name, session.app);
        audit::record(tx, at, AuditEntry::SYSTEM, "session_revoke", session.id, detail)?;
    }
    Ok(())
}

/// Renews a session that may be: what it grants now, and its next refresh token.
fn renewed(
    tx: &Tx<'_>,
    session: Session,
    app: &App,
    narrowed: Option<Asked>,
    at: Timestamp,
    refresh: Refresh,
    nonce: Option<String>,
) -> Result<Outcome<Granted>> {
    if session.revoked_at.is_some() {
        return Ok(Outcome::Refused("the session was revoked: sign in again"));
    }
    let counts = |user: &User| {
        user.id == session.user && user.is_enabled() && user.password_changed_at <= session.signed_in_at
    };
    let user = user_fetch(tx, &session.user_name)?.map(|(user, _)| user).filter(counts);
    let Some(user) = user else {
        return Ok(Outcome::Refused(
            "the account is gone or disabled, or its password was changed: sign in again",
        ));
    };
    let asked = granted(session.asked, app, narrowed);
    if asked.permissions.is_empty() {
        return Err(Error::InvalidInput("nothing of what is asked for was granted".to_owned()));
    }
    let expires_at = if asked.offline {
        at.plus(IDLE_MAX).min(session.signed_in_at.plus(SESSION_MAX))
    } else {
        at.plus(UNRENEWABLE_KEPT)
    };
    session_renew(tx, session.id, asked.offline.then_some(&refresh.digests), expires_at)?;
    Ok(Outcome::Done(Granted {
        user,
        session: session.id,
        refresh_token: asked.offline.then_some(refresh.token),
        asked,
        signed_in_at: session.signed_in_at,
        nonce,
    }))
}

/// What a session grants to its app at this moment, or less if the app asks for less.
fn granted(session: Asked, app: &App, narrowed: Option<Asked>) -> Asked {
    let mut asked = session;
    if asked.everything {
        asked.permissions.clone_from(&app.permissions);
    }
    asked.permissions.retain(|permission| app.permissions.contains(permission));
    if let Some(narrowed) = narrowed {
        if !narrowed.everything {
            asked.permissions.retain(|permission| narrowed.permissions.contains(permission));
            asked.everything = false;
        }
        asked.audience = narrowed.audience;
    }
    asked
}

fn waiting(tx: &Tx<'_>, user_code_digest: &str, at: Timestamp) -> Result<Option<DeviceCode>> {
    let found = device_code_by_user_code(tx, user_code_digest)?;
    Ok(found.filter(|code| code.decision.is_none() && at < code.expires_at))
}

/// What a poll finds.
enum Polled {
    /// What there is to say, and nothing to be changed.
    Answer(Outcome<Poll>),
    /// Nobody decided yet.
    Waits,
    /// A person approved; the session that was begun.
    Approved(Uuid),
}

fn polled(tx: &Tx<'_>, digest: &str, app: Uuid, at: Timestamp) -> Result<Polled> {
    let Some(code) = device_code_fetch(tx, digest)?.filter(|code| code.app == app) else {
        return Ok(Polled::Answer(Outcome::Refused("the device code is unknown, or was used")));
    };
    let done = |poll| Ok(Polled::Answer(Outcome::Done(poll)));
    // Counted from the last poll that was not too early: those that are cost nothing.
    let is_early = code.polled_at.is_some_and(|polled| at.since(polled) + POLL_TOLERANCE < code.interval);
    match code.decision {
        Some(Decision::Declined) => done(Poll::Declined),
        Some(Decision::Approved(_)) | None if code.expires_at <= at => done(Poll::Expired),
        Some(Decision::Approved(session)) => Ok(Polled::Approved(session)),
        None if is_early => done(Poll::SlowDown),
        None => Ok(Polled::Waits),
    }
}

/// A refresh token and what the store keeps of it.
struct Refresh {
    token: String,
    digests: RefreshToken,
}

impl Refresh {
    /// The first of a session.
    fn generate() -> Result<Self> {
        Self::next(&secret::generate("")?)
    }

    /// The next of the session with this handle.
    fn next(handle: &str) -> Result<Self> {
        let token = format!("{REFRESH_PREFIX}{handle}.{}", secret::generate("")?);
        let digests = RefreshToken { handle_digest: secret::digest(handle), digest: secret::digest(&token) };
        Ok(Self { token, digests })
    }
}

/// RFC 7636, section 4.6.
fn challenge_of(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(verifier))
}

/// A code for a person to type: consonants only, so that no two look alike and no word comes up (RFC 8628, section
/// 6.1). 20^8 are 34 bits, enough for a quarter of an hour and callers who are counted.
fn user_code() -> Result<String> {
    const ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
    const SIGNS: usize = 8;
    let mut code = String::with_capacity(SIGNS + 1);
    while code.len() < SIGNS + 1 {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(|error| {
            Error::Internal(StoreError::Unsupported(format!("no random numbers from the system: {error}")))
        })?;
        // Above 240, the first signs would come more often than the others.
        for byte in bytes.into_iter().filter(|byte| *byte < 240).take(SIGNS + 1 - code.len()) {
            if code.len() == SIGNS / 2 {
                code.push('-');
            } else if let Some(sign) = ALPHABET.get(usize::from(byte % 20)) {
                code.push(char::from(*sign));
            }
        }
    }
    Ok(code)
}

/// The signs that count of a person's code.
fn plain_user_code(text: &str) -> String {
    const CHARS_MAX: usize = 32;
    text.chars().take(CHARS_MAX).filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(permissions: &[Permission], everything: bool) -> Asked {
        Asked {
            audience: "https://a".to_owned(),
            permissions: permissions.to_vec(),
            everything,
            openid: false,
            offline: true,
        }
    }

    #[test]
    fn a_challenge_is_that_of_the_standard() {
        // RFC 7636, appendix B.
        let challenge = challenge_of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn codes_for_people_are_easy_to_read_and_lenient_to_type() {
        for _ in 0..200 {
            let code = user_code().unwrap();
            let (left, right) = code.split_once('-').unwrap();
            assert_eq!((left.len(), right.len()), (4, 4), "{code}");
            assert!(code.chars().all(|c| c == '-' || !"AEIOUY0123456789".contains(c)), "{code}");
            assert_eq!(plain_user_code(&format!(" {} ", code.to_lowercase())), plain_user_code(&code));
        }
        assert_eq!(plain_user_code("wdjb mjht"), "WDJBMJHT");
        assert_eq!(plain_user_code(&"ü-".repeat(1000)), "");
    }

    #[test]
    fn a_session_grants_what_was_asked_and_the_app_may_have() {
        use Permission::{CordonAdminister, MachineReadAll, MachineRestrictExecution};
        let app = App { permissions: vec![MachineReadAll, MachineRestrictExecution], ..command_line() };
        for (session, narrowed, expected) in [
            (asked(&[MachineReadAll, CordonAdminister], false), None, vec![MachineReadAll]),
            (asked(&[], true), None, vec![MachineReadAll, MachineRestrictExecution]),
            (asked(&[], true), Some(asked(&[MachineReadAll, CordonAdminister], false)), vec![MachineReadAll]),
            (asked(&[MachineReadAll], false), Some(asked(&[MachineRestrictExecution], false)), vec![]),
            (asked(&[MachineReadAll], false), Some(asked(&app.permissions, true)), vec![MachineReadAll]),
        ] {
            let case = format!("{session:?} {narrowed:?}");
            assert_eq!(granted(session, &app, narrowed).permissions, expected, "{case}");
        }
    }

    #[test]
    fn refresh_tokens_of_a_session_share_their_handle() {
        let first = Refresh::generate().unwrap();
        let handle = first.token.strip_prefix(REFRESH_PREFIX).unwrap().split_once('.').unwrap().0;
        let second = Refresh::next(handle).unwrap();
        assert_eq!(first.digests.handle_digest, second.digests.handle_digest);
        assert_ne!(first.digests.digest, second.digests.digest);
        assert_eq!(second.digests.digest, secret::digest(&second.token));
    }
}
