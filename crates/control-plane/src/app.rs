//! Applications: made, listed, revoked, authenticated.

use std::sync::PoisonError;

use domain::app::App;
use domain::permission::{Permission, Requirement};
use store::StoreError;
use store::app::{app_create, app_fetch, app_list, app_revoke};
use uuid::Uuid;

use crate::{Caller, ControlPlane, Error, Result, audit, now, secret};

/// The longest name of an app, in characters.
const NAME_CHARS_MAX: usize = 128;

impl ControlPlane {
    /// Makes an app. The secret that comes with it is shown this once.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`], [`Error::AlreadyExists`]; from the store.
    pub async fn app_create(
        &self,
        caller: &Caller,
        name: String,
        permissions: Vec<Permission>,
    ) -> Result<(App, String)> {
        caller.require(Requirement::ADMINISTER)?;
        let name = name.trim().to_owned();
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
            return Err(Error::InvalidInput(format!(
                "the name of an app has 1 to {NAME_CHARS_MAX} printable characters"
            )));
        }
        if permissions.is_empty() {
            return Err(Error::InvalidInput("an app without permissions can do nothing".to_owned()));
        }
        let secret = secret::generate("cordon-secret-")?;
        let digest = secret::digest(&secret);
        let app = App { id: Uuid::new_v4(), name, permissions, created_at: now(), revoked_at: None };
        let (actor, made) = (caller.name(), app.clone());
        self.0
            .store
            .write(move |tx| {
                app_create(tx, &made, &digest).map_err(|error| {
                    if let StoreError::Duplicate(_) = error {
                        Error::AlreadyExists(format!("an app named {:?} exists", made.name))
                    } else {
                        error.into()
                    }
                })?;
                let permissions: Vec<_> = made.permissions.iter().map(|p| p.name()).collect();
                let detail = format!("name {:?}, permissions {}", made.name, permissions.join(" "));
                Ok::<_, Error>(audit::record(tx, made.created_at, &actor, "app_create", made.id, detail)?)
            })
            .await?;
        Ok((app, secret))
    }

    /// All apps, oldest first.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn app_list(&self, caller: &Caller) -> Result<Vec<App>> {
        caller.require(Requirement::ADMINISTER)?;
        self.0.store.read(|tx| Ok(app_list(tx)?)).await
    }

    /// Revokes an app: it gets no tokens from then on, and those that it has are refused.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::BadRequest`] when it is the last one that can administer;
    /// from the store.
    pub async fn app_revoke(&self, caller: &Caller, id: Uuid) -> Result<()> {
        caller.require(Requirement::ADMINISTER)?;
        let actor = caller.name();
        self.0
            .store
            .write(move |tx| {
                let apps = app_list(tx)?;
                let administers = |app: &&App| {
                    app.revoked_at.is_none() && app.permissions.contains(&Permission::CordonAdminister)
                };
                let mut administrators = apps.iter().filter(administers).map(|app| app.id);
                if administrators.next() == Some(id) && administrators.next().is_none() {
                    return Err(Error::BadRequest(
                        "this is the last app that can administer Cordon: make another one first".to_owned(),
                    ));
                }
                let at = now();
                if !app_revoke(tx, id, at)? {
                    return Err(Error::NotFound { entity: "App", id: id.to_string() });
                }
                Ok(audit::record(tx, at, &actor, "app_revoke", id, "")?)
            })
            .await?;
        self.0.revoked_apps.write().unwrap_or_else(PoisonError::into_inner).insert(id);
        Ok(())
    }

    /// Whether an app was revoked; asked for each token that arrives.
    pub fn app_is_revoked(&self, id: Uuid) -> bool {
        self.0.revoked_apps.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
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
            Some((app, _)) if matches && app.revoked_at.is_none() => Ok(app),
            _ => Err(Error::Unauthenticated("unknown application, or wrong secret".to_owned())),
        }
    }
}
