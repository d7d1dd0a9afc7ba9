//! People with accounts of this deployment: made, changed, deleted, and authenticated by their passwords.

use std::sync::OnceLock;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use domain::permission::Requirement;
use domain::time::Timestamp;
use domain::user::{PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN, User};
use store::user::{
    user_create, user_delete, user_failed, user_failures, user_fetch, user_list, user_network_known,
    user_network_seen, user_password_set, user_signed_in, user_update,
};
use store::{StoreError, Tx};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::access::is_reserved;
use crate::{Caller, ControlPlane, Error, Result, audit, now, secret, text};

/// The longest name of an account, in characters.
const NAME_CHARS_MAX: usize = 128;
/// The most accounts: more people belong into a directory with an issuer of its own.
const USERS_MAX: usize = 10_000;
/// Wrong passwords in a row that lock an account.
const FAILURES_MAX: u32 = 10;
/// For how long.
const LOCKED_FOR: Duration = Duration::from_secs(15 * 60);
/// From how many networks an account is known.
const NETWORKS_MAX: u32 = 20;
/// For how long.
const NETWORK_KNOWN_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How many passwords are hashed at a time: each takes 19 MiB.
static HASHING: Semaphore = Semaphore::const_new(2);
/// How many are hashed or wait for it.
static HASHING_OR_WAITING: Semaphore = Semaphore::const_new(2 + 64);

/// What an account is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserDraft {
    /// What the person signs in with.
    pub name: String,
    /// How the person is called; the name when empty.
    pub display_name: String,
    /// The user groups that the person belongs to.
    pub groups: Vec<String>,
    /// The password; one is made when there is none.
    pub password: Option<String>,
}

/// What is to change of an account; none stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserChange {
    /// How the person is called.
    pub display_name: Option<String>,
    /// The user groups that the person belongs to.
    pub groups: Option<Vec<String>>,
    /// Whether the person may act.
    pub enabled: Option<bool>,
    /// A new password. What was granted before counts no more.
    pub password: Option<String>,
}

impl ControlPlane {
    /// All accounts, by name.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn user_list(&self, caller: &Caller) -> Result<Vec<User>> {
        caller.require(Requirement::ADMINISTER)?;
        self.0.store.read(|tx| Ok(user_list(tx)?)).await
    }

    /// The account with this name.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn user_fetch(&self, caller: &Caller, name: &str) -> Result<User> {
        caller.require(Requirement::ADMINISTER)?;
        let name = name.to_lowercase();
        self.0.store.read(move |tx| existing(tx, &name)).await
    }

    /// Makes an account. A password that was made for it comes with it, and is shown this once.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`], [`Error::AlreadyExists`]; from the store.
    pub async fn user_create(&self, caller: &Caller, draft: UserDraft) -> Result<(User, Option<String>)> {
        caller.require(Requirement::ADMINISTER)?;
        let name = draft.name;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '@');
        if !(1..=NAME_CHARS_MAX).contains(&name.chars().count()) || !name.chars().all(is_plain) {
            return Err(Error::InvalidInput(format!(
                "the name of an account has 1 to {NAME_CHARS_MAX} letters, digits and . _ - + @"
            )));
        }
        let name = name.to_ascii_lowercase();
        if is_reserved(&name) {
            return Err(Error::InvalidInput(
                "the name would be taken for somebody else's in the records".to_owned(),
            ));
        }
        let display_name = if draft.display_name.trim().is_empty() { &name } else { &draft.display_name };
        let display_name = text::name("a person", display_name)?;
        let groups = text::user_groups(draft.groups)?;
        let (password, made) = match draft.password {
            Some(password) => (checked(password)?, None),
            None => {
                let made = secret::password()?;
                (made.clone(), Some(made))
            }
        };
        let hash = hash(password).await?;
        let at = now();
        let user = User {
            id: Uuid::new_v4(),
            name,
            display_name,
            groups,
            created_at: at,
            password_changed_at: at,
            disabled_at: None,
            locked_until: None,
        };
        let (actor, saved) = (caller.name().to_owned(), user.clone());
        self.0
            .store
            .write(move |tx| {
                if user_list(tx)?.len() >= USERS_MAX {
                    return Err(Error::InvalidInput(format!("at most {USERS_MAX} accounts are possible")));
                }
                user_create(tx, &user, &hash).map_err(|error| {
                    if matches!(error, StoreError::Duplicate(_)) {
                        return Error::AlreadyExists(format!("an account named {:?} exists", user.name));
                    }
                    error.into()
                })?;
                let detail = format!("user groups {:?}", user.groups);
                Ok(audit::record(tx, at, &actor, "user_create", &user.name, detail)?)
            })
            .await?;
        self.access_refresh().await?;
        Ok((saved, made))
    }

    /// Changes an account.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`], [`Error::NotFound`]; from the store.
    pub async fn user_update(&self, caller: &Caller, name: &str, change: UserChange) -> Result<User> {
        caller.require(Requirement::ADMINISTER)?;
        let display_name = change.display_name.map(|name| text::name("a person", &name)).transpose()?;
        let groups = change.groups.map(text::user_groups).transpose()?;
        let hash = match change.password {
            Some(password) => Some(hash(checked(password)?).await?),
            None => None,
        };
        let (actor, name) = (caller.name().to_owned(), name.to_lowercase());
        let changed = self
            .0
            .store
            .write(move |tx| {
                let at = now();
                let mut user = existing(tx, &name)?;
                let mut detail = Vec::new();
                if let Some(display_name) = display_name {
                    detail.push(format!("called {display_name:?}"));
                    user.display_name = display_name;
                }
                if let Some(groups) = groups {
                    detail.push(format!("user groups {groups:?}"));
                    user.groups = groups;
                }
                if let Some(enabled) = change.enabled {
                    detail.push(if enabled { "enabled" } else { "disabled" }.to_owned());
                    if !enabled && user.is_enabled() {
                        user.disabled_at = Some(at);
                        // What was granted before is not to come back when the account does.
                        user.password_changed_at = next_second(at);
                    } else if enabled {
                        user.disabled_at = None;
                    }
                }
                user_update(tx, &user)?;
                if let Some(hash) = hash {
                    detail.push("another password".to_owned());
                    user_password_set(tx, user.id, &hash, next_second(at))?;
                }
                audit::record(tx, at, &actor, "user_update", &user.name, detail.join(", "))?;
                existing(tx, &user.name)
            })
            .await?;
        self.access_refresh().await?;
        Ok(changed)
    }

    /// Deletes an account. What it did stays in the records.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn user_delete(&self, caller: &Caller, name: &str) -> Result<()> {
        caller.require(Requirement::ADMINISTER)?;
        let (actor, name) = (caller.name().to_owned(), name.to_lowercase());
        self.0
            .store
            .write(move |tx| {
                let user = existing(tx, &name)?;
                user_delete(tx, user.id)?;
                Ok::<_, Error>(audit::record(tx, now(), &actor, "user_delete", &user.name, "")?)
            })
            .await?;
        self.access_refresh().await
    }

    /// The person with this name and password, who signs in from `network`. After [`FAILURES_MAX`] wrong ones in a row the
    /// account is locked for a quarter of an hour, and not even the right one counts, except from a network from which the
    /// person signed in within [`NETWORK_KNOWN_FOR`]: whoever guesses from elsewhere is not to keep the person out. Such a
    /// sign-in leaves the lock as it is. How often may be guessed from one network is the caller's to limit.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], the same for an unknown account, a wrong password, a locked and a disabled account;
    /// [`Error::Busy`]; from the store.
    pub async fn user_authenticate(&self, name: &str, password: &str, network: &str) -> Result<User> {
        let refused =
            || Error::Unauthenticated("unknown account, wrong password, or the account is locked".to_owned());
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(refused());
        }
        let (name, network) = (name.trim().to_lowercase(), network.to_owned());
        let from = network.clone();
        let found = self.0.store.read(move |tx| {
            let Some((user, hash)) = user_fetch(tx, &name)? else { return Ok(None) };
            let known = user_network_known(tx, user.id, &from, now().minus(NETWORK_KNOWN_FOR))?;
            Ok::<_, Error>(Some((user, hash, known)))
        });
        let (user, expected) =
            found.await?.map_or((None, None), |(user, hash, known)| (Some((user, known)), Some(hash)));
        // An unknown account costs the same work, so that time does not tell which exist.
        let matches = verify(password.to_owned(), expected).await?;
        let at = now();
        let is_locked = |user: &User| user.locked_until.is_some_and(|until| at < until);
        let user = user.filter(|(user, known)| user.is_enabled() && (*known || !is_locked(user)));
        let Some((user, _)) = user else {
            // As long as counting the failure of one that may try.
            self.0.store.write(|_| Ok::<_, Error>(())).await?;
            return Err(refused());
        };
        let is_locked = is_locked(&user);
        let id = user.id;
        let name = user.name.clone();
        self.0
            .store
            .write(move |tx| {
                if matches {
                    user_network_seen(tx, id, &network, at, NETWORKS_MAX)?;
                }
                match (is_locked, matches) {
                    (true, _) => Ok(()),
                    (false, true) => Ok(user_signed_in(tx, id)?),
                    (false, false) => failed(tx, id, &name, at),
                }
            })
            .await?;
        if matches { Ok(user) } else { Err(refused()) }
    }
}

/// The start of the next second: tokens tell in whole seconds when somebody signed in, and what was granted in the same
/// second before does not count.
fn next_second(at: Timestamp) -> Timestamp {
    Timestamp::from_unix_seconds(at.unix_seconds().saturating_add(1))
}

/// Counts a wrong password.
fn failed(tx: &Tx<'_>, id: Uuid, name: &str, at: Timestamp) -> Result<()> {
    let failures = user_failures(tx, id)?.saturating_add(1);
    if failures < FAILURES_MAX {
        return Ok(user_failed(tx, id, failures, None)?);
    }
    user_failed(tx, id, 0, Some(at.plus(LOCKED_FOR)))?;
    let detail = format!("{failures} wrong passwords");
    let actor = domain::audit_entry::AuditEntry::SYSTEM;
    Ok(audit::record(tx, at, actor, "user_lock", name, detail)?)
}

fn existing(tx: &Tx<'_>, name: &str) -> Result<User> {
    let not_found = || Error::NotFound { entity: "User", id: crate::caller::shown(name).into_owned() };
    user_fetch(tx, name)?.map(|(user, _)| user).ok_or_else(not_found)
}

fn checked(password: String) -> Result<String> {
    if password.chars().count() < PASSWORD_CHARS_MIN || password.len() > PASSWORD_BYTES_MAX {
        return Err(Error::InvalidInput(format!(
            "a password has at least {PASSWORD_CHARS_MIN} characters and at most {PASSWORD_BYTES_MAX} bytes"
        )));
    }
    Ok(password)
}

/// The hash of a password, as the store keeps it: Argon2id with the crate's defaults, those of OWASP (19 MiB, 2 passes).
async fn hash(password: String) -> Result<String> {
    hashing(move || {
        let hash = Argon2::default().hash_password(password.as_bytes());
        hash.map(|hash| hash.to_string()).map_err(|error| fault(&error))
    })
    .await
}

/// Whether a password has this hash. Without a hash the work is done all the same.
async fn verify(password: String, expected: Option<String>) -> Result<bool> {
    hashing(move || {
        static NOBODY: OnceLock<Option<String>> = OnceLock::new();
        let nobody = || {
            let hash = Argon2::default().hash_password(b"nobody has this password");
            hash.ok().map(|hash| hash.to_string())
        };
        let is_known = expected.is_some();
        let Some(expected) = expected.or_else(|| NOBODY.get_or_init(nobody).clone()) else {
            return Ok(false);
        };
        let hash = argon2::PasswordHash::new(&expected).map_err(|error| fault(&error))?;
        Ok(Argon2::default().verify_password(password.as_bytes(), &hash).is_ok() && is_known)
    })
    .await
}

/// Runs `work` on a thread that may block, a few at a time. Whoever finds too many waiting does not wait.
async fn hashing<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let _place = HASHING_OR_WAITING
        .try_acquire()
        .map_err(|_full| Error::Busy("too many passwords are being checked at the moment: try again"))?;
    let _permit = HASHING.acquire().await.map_err(|closed| fault(&closed))?;
    tokio::task::spawn_blocking(work).await.map_err(|error| fault(&error))?
}

fn fault(error: &dyn std::fmt::Display) -> Error {
    Error::Internal(StoreError::Unsupported(format!("a password cannot be hashed: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_behind_too_many() {
        let places = u32::try_from(HASHING_OR_WAITING.available_permits()).unwrap();
        let others = HASHING_OR_WAITING.try_acquire_many(places).unwrap();
        let refused = hash("correct horse battery".to_owned()).await;
        assert!(matches!(refused, Err(Error::Busy(_))), "{refused:?}");
        drop(others);
        let hash = hash("correct horse battery".to_owned()).await.unwrap();
        assert!(verify("correct horse battery".to_owned(), Some(hash)).await.unwrap());
    }
}
