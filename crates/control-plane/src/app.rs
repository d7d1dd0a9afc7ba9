//! Applications: made, listed, changed, revoked, authenticated by their secrets and keys.

use domain::app::App;
use domain::permission::{Permission, Requirement};
use domain::time::Timestamp;
use store::app::{
    AppKey, app_create, app_fetch, app_key_create, app_key_delete, app_key_list, app_list, app_revoke,
    app_secret_set, app_update,
};
use store::machine_group::machine_group_list;
use store::{StoreError, Tx};
use uuid::Uuid;

use crate::{Caller, ControlPlane, Error, Result, audit, now, secret, text};

/// The most redirect URIs of an app.
const REDIRECT_URIS_MAX: usize = 20;
/// The longest redirect URI, in bytes.
const REDIRECT_URI_BYTES_MAX: usize = 512;
/// The most keys of an app: one in use, and what comes next.
const KEYS_MAX: usize = 10;

/// What an app is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppDraft {
    /// What people call it.
    pub name: String,
    /// What it may do, by itself and at most for a person.
    pub permissions: Vec<Permission>,
    /// Whether it holds no secret, so that it can act for people only. Cannot be changed.
    pub is_public: bool,
    /// Where people may be sent back to after they signed in.
    pub redirect_uris: Vec<String>,
    /// The machine groups that it is limited to, by name; none when it acts on all machines.
    pub machine_groups: Option<Vec<String>>,
    /// How many machines it may change by bulk calls in an hour; none for the setting's number.
    pub bulk_machines_max: Option<u32>,
}

/// A public key with which an app is to sign its assertions, checked by whoever read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDraft {
    /// SHA-256 of the public key (SPKI, DER), in hexadecimal digits.
    pub thumbprint: String,
    /// SHA-1 of the certificate, base64url, when it came in one.
    pub x5t: Option<String>,
    /// SHA-256 of the certificate, base64url, likewise.
    pub x5t_s256: Option<String>,
    /// The public key, PEM (SPKI).
    pub public_key: String,
    /// What people call it.
    pub comment: String,
    /// When the certificate ends.
    pub expires_at: Option<Timestamp>,
}

impl ControlPlane {
    /// Makes an app. The secret that comes with one that is not public is shown this once.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`], [`Error::AlreadyExists`]; from the store.
    pub async fn app_create(&self, caller: &Caller, draft: AppDraft) -> Result<(App, Option<String>)> {
        caller.require(Requirement::ADMINISTER)?;
        let draft = checked(draft)?;
        let secret = if draft.is_public { None } else { Some(secret::generate("cordon-secret-")?) };
        let digest = secret.as_deref().map(secret::digest).unwrap_or_default();
        let actor = caller.name().to_owned();
        let made = self
            .0
            .store
            .write(move |tx| {
                let app = App {
                    id: Uuid::new_v4(),
                    machine_groups: group_ids(tx, draft.machine_groups.as_deref())?,
                    name: draft.name,
                    permissions: draft.permissions,
                    is_public: draft.is_public,
                    redirect_uris: draft.redirect_uris,
                    bulk_machines_max: draft.bulk_machines_max,
                    created_at: now(),
                    revoked_at: None,
                };
                app_create(tx, &app, &digest).map_err(|error| name_taken(error, &app.name))?;
                audit::record(tx, app.created_at, &actor, "app_create", app.id, described(&app))?;
                Ok::<_, Error>(app)
            })
            .await?;
        self.access_refresh().await?;
        Ok((made, secret))
    }

    /// All apps, oldest first.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn app_list(&self, caller: &Caller) -> Result<Vec<App>> {
        caller.require(Requirement::ADMINISTER)?;
        self.0.store.read(|tx| Ok(app_list(tx)?)).await
    }

    /// The app with this id.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn app_fetch(&self, caller: &Caller, id: Uuid) -> Result<App> {
        caller.require(Requirement::ADMINISTER)?;
        self.0.store.read(move |tx| existing(tx, id)).await
    }

    /// Changes an app. What it may do holds from its next call on.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::InvalidInput`], [`Error::AlreadyExists`],
    /// [`Error::BadRequest`] when it is the last one that can administer, or is revoked; from the store.
    pub async fn app_update(&self, caller: &Caller, id: Uuid, draft: AppDraft) -> Result<App> {
        caller.require(Requirement::ADMINISTER)?;
        let draft = checked(draft)?;
        let actor = caller.name().to_owned();
        let changed = self
            .0
            .store
            .write(move |tx| {
                let known = usable(tx, id)?;
                if draft.is_public != known.is_public {
                    let message = "whether an app is public cannot be changed: make another one";
                    return Err(Error::InvalidInput(message.to_owned()));
                }
                if !draft.permissions.contains(&Permission::CordonAdminister) {
                    require_another_administrator(tx, id)?;
                }
                let app = App {
                    machine_groups: group_ids(tx, draft.machine_groups.as_deref())?,
                    name: draft.name,
                    permissions: draft.permissions,
                    redirect_uris: draft.redirect_uris,
                    bulk_machines_max: draft.bulk_machines_max,
                    ..known
                };
                app_update(tx, &app).map_err(|error| name_taken(error, &app.name))?;
                audit::record(tx, now(), &actor, "app_update", id, described(&app))?;
                Ok(app)
            })
            .await?;
        self.access_refresh().await?;
        Ok(changed)
    }

    /// Gives an app another secret, shown this once; the old one counts no more.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::BadRequest`] for a public or revoked one; from the store.
    pub async fn app_secret_renew(&self, caller: &Caller, id: Uuid) -> Result<String> {
        caller.require(Requirement::ADMINISTER)?;
        let secret = secret::generate("cordon-secret-")?;
        let (digest, actor) = (secret::digest(&secret), caller.name().to_owned());
        self.0
            .store
            .write(move |tx| {
                if usable(tx, id)?.is_public {
                    return Err(Error::BadRequest("a public app has no secret".to_owned()));
                }
                app_secret_set(tx, id, &digest)?;
                Ok(audit::record(tx, now(), &actor, "app_secret_renew", id, "")?)
            })
            .await?;
        Ok(secret)
    }

    /// The keys with which an app signs its assertions.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn app_key_list(&self, caller: &Caller, id: Uuid) -> Result<Vec<AppKey>> {
        caller.require(Requirement::ADMINISTER)?;
        self.0
            .store
            .read(move |tx| {
                existing(tx, id)?;
                Ok(app_key_list(tx, id)?)
            })
            .await
    }

    /// Lets an app sign its assertions with one more key.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::InvalidInput`], [`Error::AlreadyExists`],
    /// [`Error::BadRequest`] for a public or revoked app; from the store.
    pub async fn app_key_add(&self, caller: &Caller, id: Uuid, draft: KeyDraft) -> Result<AppKey> {
        caller.require(Requirement::ADMINISTER)?;
        let key = AppKey {
            thumbprint: draft.thumbprint,
            x5t: draft.x5t,
            x5t_s256: draft.x5t_s256,
            public_key: draft.public_key,
            comment: text::description("a key", &draft.comment)?,
            created_at: now(),
            expires_at: draft.expires_at,
        };
        let (actor, added) = (caller.name().to_owned(), key.clone());
        self.0
            .store
            .write(move |tx| {
                if usable(tx, id)?.is_public {
                    return Err(Error::BadRequest("a public app signs nothing".to_owned()));
                }
                let keys = app_key_list(tx, id)?;
                if keys.len() >= KEYS_MAX {
                    return Err(Error::InvalidInput(format!("an app has at most {KEYS_MAX} keys")));
                }
                if keys.iter().any(|known| known.thumbprint == key.thumbprint) {
                    return Err(Error::AlreadyExists("the app has this key already".to_owned()));
                }
                app_key_create(tx, id, &key)?;
                let detail = format!("SHA-256 {}, {:?}", key.thumbprint, key.comment);
                Ok(audit::record(tx, key.created_at, &actor, "app_key_add", id, detail)?)
            })
            .await?;
        Ok(added)
    }

    /// Takes a key from an app.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn app_key_remove(&self, caller: &Caller, id: Uuid, thumbprint: &str) -> Result<()> {
        caller.require(Requirement::ADMINISTER)?;
        let (actor, thumbprint) = (caller.name().to_owned(), thumbprint.to_ascii_lowercase());
        self.0
            .store
            .write(move |tx| {
                if !app_key_delete(tx, id, &thumbprint)? {
                    let id = crate::caller::shown(&thumbprint).into_owned();
                    return Err(Error::NotFound { entity: "Key", id });
                }
                Ok(audit::record(tx, now(), &actor, "app_key_remove", id, format!("SHA-256 {thumbprint}"))?)
            })
            .await
    }

    /// Revokes an app: it gets no tokens from then on, and those that it has are refused.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::BadRequest`] when it is the last one that can administer;
    /// from the store.
    pub async fn app_revoke(&self, caller: &Caller, id: Uuid) -> Result<()> {
        caller.require(Requirement::ADMINISTER)?;
        let actor = caller.name().to_owned();
        self.0
            .store
            .write(move |tx| {
                require_another_administrator(tx, id)?;
                let at = now();
                if !app_revoke(tx, id, at)? {
                    return Err(Error::NotFound { entity: "App", id: id.to_string() });
                }
                Ok(audit::record(tx, at, &actor, "app_revoke", id, "")?)
            })
            .await?;
        self.access_refresh().await
    }

    /// The app with this id and secret.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], the same for an unknown app and for a wrong secret; from the store.
    pub async fn app_authenticate(&self, id: Uuid, secret: &str) -> Result<App> {
        let found = self.0.store.read(move |tx| Ok::<_, Error>(app_fetch(tx, id)?)).await?;
        // An unknown app costs the same comparison, so that time does not tell which ids exist.
        let digest = found.as_ref().map_or("", |(_, digest)| digest.as_str());
        let matches = secret::matches(secret, digest);
        match found {
            Some((app, _)) if matches && app.revoked_at.is_none() && !app.is_public => Ok(app),
            _ => Err(Error::Unauthenticated("unknown application, or wrong secret".to_owned())),
        }
    }

    /// The app with this id and the keys with which it may sign, for whoever checks an assertion of it or lets a person
    /// sign in to it. None when there is none, or it was revoked.
    ///
    /// # Errors
    /// From the store.
    pub async fn app_with_keys(&self, id: Uuid) -> Result<Option<(App, Vec<AppKey>)>> {
        self.0
            .store
            .read(move |tx| {
                let Some((app, _)) = app_fetch(tx, id)?.filter(|(app, _)| app.revoked_at.is_none()) else {
                    return Ok(None);
                };
                let at = now();
                let mut keys = app_key_list(tx, id)?;
                keys.retain(|key| key.expires_at.is_none_or(|expires_at| at < expires_at));
                Ok(Some((app, keys)))
            })
            .await
    }
}

fn checked(draft: AppDraft) -> Result<AppDraft> {
    if draft.permissions.is_empty() {
        return Err(Error::InvalidInput("an app without permissions can do nothing".to_owned()));
    }
    if draft.redirect_uris.len() > REDIRECT_URIS_MAX {
        return Err(Error::InvalidInput(format!("an app has at most {REDIRECT_URIS_MAX} redirect URIs")));
    }
    if let Some(bad) = draft.redirect_uris.iter().find(|uri| !is_redirect_uri(uri)) {
        return Err(Error::InvalidInput(format!(
            "the redirect URI {:?} is not https, nor http to 127.0.0.1 or localhost, without a fragment",
            crate::caller::shown(bad)
        )));
    }
    let mut permissions = draft.permissions;
    permissions.sort_unstable();
    permissions.dedup();
    Ok(AppDraft { name: text::name("an app", &draft.name)?, permissions, ..draft })
}

/// Where a code may be sent: only to where nobody listens in (RFC 8252, section 7.3 for the loopback).
fn is_redirect_uri(uri: &str) -> bool {
    const LOOPBACK: [&str; 3] = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    let is_loopback = LOOPBACK.iter().any(|start| {
        uri.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    });
    let is_https =
        uri.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    (is_loopback || is_https)
        && uri.len() <= REDIRECT_URI_BYTES_MAX
        && !uri.contains(['#', '@', '\\'])
        && uri.bytes().all(|byte| byte.is_ascii_graphic())
}

fn group_ids(tx: &Tx<'_>, names: Option<&[String]>) -> Result<Option<Vec<i64>>> {
    let Some(names) = names else { return Ok(None) };
    let groups = machine_group_list(tx)?;
    let id = |name: &String| {
        let found = groups.iter().find(|group| group.name == *name).map(|group| group.id);
        let shown = crate::caller::shown(name);
        found.ok_or_else(|| Error::InvalidInput(format!("there is no machine group {shown:?}")))
    };
    let mut ids = names.iter().map(id).collect::<Result<Vec<_>>>()?;
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(ids))
}

fn name_taken(error: StoreError, name: &str) -> Error {
    if matches!(error, StoreError::Duplicate(_)) {
        return Error::AlreadyExists(format!("an app named {name:?} exists"));
    }
    error.into()
}

fn existing(tx: &Tx<'_>, id: Uuid) -> Result<App> {
    let found = app_fetch(tx, id)?.map(|(app, _)| app);
    found.ok_or_else(|| Error::NotFound { entity: "App", id: id.to_string() })
}

fn usable(tx: &Tx<'_>, id: Uuid) -> Result<App> {
    let app = existing(tx, id)?;
    if app.revoked_at.is_some() {
        return Err(Error::BadRequest("the app was revoked".to_owned()));
    }
    Ok(app)
}

/// Refuses to let go of the last app that can administer.
fn require_another_administrator(tx: &Tx<'_>, id: Uuid) -> Result<()> {
    let apps = app_list(tx)?;
    let administers = |app: &&App| {
        app.revoked_at.is_none() && !app.is_public && app.permissions.contains(&Permission::CordonAdminister)
    };
    let mut administrators = apps.iter().filter(administers).map(|app| app.id);
    if administrators.next() == Some(id) && administrators.next().is_none() {
        return Err(Error::BadRequest(
            "this is the last app that can administer Cordon: make another one first".to_owned(),
        ));
    }
    Ok(())
}

fn described(app: &App) -> String {
    let permissions: Vec<_> = app.permissions.iter().map(|permission| permission.name()).collect();
    let mut text = format!("name {:?}, permissions {}", app.name, permissions.join(" "));
    if app.is_public {
        text += ", public";
    }
    if !app.redirect_uris.is_empty() {
        text += &format!(", redirect URIs {:?}", app.redirect_uris);
    }
    if let Some(groups) = &app.machine_groups {
        text += &format!(", machine groups {groups:?}");
    }
    if let Some(max) = app.bulk_machines_max {
        text += &format!(", at most {max} machines an hour in bulk");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::is_redirect_uri;

    #[test]
    fn codes_are_sent_where_nobody_listens_in() {
        for uri in
            ["https://soar.example/callback", "http://127.0.0.1", "http://localhost:8080/x", "http://[::1]/"]
        {
            assert!(is_redirect_uri(uri), "{uri}");
        }
        let long = format!("https://{}", "x".repeat(600));
        for uri in [
            "http://soar.example/callback",
            "http://127.0.0.1.evil.example/",
            "http://localhost.evil.example",
            "https://",
            "https:///x",
            "javascript:alert(1)",
            "https://soar.example/#x",
            "https://soar.example/a b",
            "http://localhost:x@evil.example/",
            "https://soar.example\\@evil.example/",
            &long,
        ] {
            assert!(!is_redirect_uri(uri), "{uri}");
        }
    }
}
