//! Roles: made, changed, deleted.

use domain::permission::{Requirement, Rights};
use domain::role::{ADMINISTRATOR, Role};
use store::Tx;
use store::role::{role_delete, role_list, role_save};

use crate::{Caller, ControlPlane, Error, Result, audit, now, text};

/// The most roles: each request of a person looks at all.
const ROLES_MAX: usize = 1000;

impl ControlPlane {
    /// All roles, by name.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn role_list(&self, caller: &Caller) -> Result<Vec<Role>> {
        caller.require(Requirement::ADMINISTER)?;
        self.0.store.read(|tx| Ok(role_list(tx)?)).await
    }

    /// The role with this name.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn role_fetch(&self, caller: &Caller, name: &str) -> Result<Role> {
        caller.require(Requirement::ADMINISTER)?;
        let name = name.to_owned();
        self.0.store.read(move |tx| existing(tx, &name)).await
    }

    /// Makes a role, or changes the one with its name. Of the built-in role only the user groups, the description and
    /// the limit can be changed.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`], [`Error::Disallowed`]; from the store.
    pub async fn role_save(&self, caller: &Caller, role: Role) -> Result<Role> {
        caller.require(Requirement::ADMINISTER)?;
        let role = Role {
            name: text::name("a role", &role.name)?,
            description: text::description("a role", &role.description)?,
            rights: role.rights,
            user_groups: text::user_groups(role.user_groups)?,
            bulk_machines_max: role.bulk_machines_max,
        };
        if role.is_administrator() && role.rights != Rights::all() {
            return Err(Error::Disallowed(format!("the role {ADMINISTRATOR} holds every right")));
        }
        let (actor, saved) = (caller.name().to_owned(), role.clone());
        self.0
            .store
            .write(move |tx| {
                let roles = role_list(tx)?;
                if let Some(known) = roles.iter().find(|known| known.name == role.name) {
                    if *known == role {
                        return Ok(());
                    }
                } else if roles.len() >= ROLES_MAX {
                    return Err(Error::InvalidInput(format!("at most {ROLES_MAX} roles are possible")));
                }
                role_save(tx, &role)?;
                let rights: Vec<_> = role.rights.iter().map(|right| right.name()).collect();
                let detail = format!(
                    "rights {rights:?}, user groups {:?}, machines an hour in bulk {:?}",
                    role.user_groups, role.bulk_machines_max
                );
                Ok(audit::record(tx, now(), &actor, "role_save", &role.name, detail)?)
            })
            .await?;
        self.access_refresh().await?;
        Ok(saved)
    }

    /// Deletes a role.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::Disallowed`] for the built-in one; from the store.
    pub async fn role_delete(&self, caller: &Caller, name: &str) -> Result<()> {
        caller.require(Requirement::ADMINISTER)?;
        if name == ADMINISTRATOR {
            return Err(Error::Disallowed(format!("the role {ADMINISTRATOR} is built in")));
        }
        let (actor, name) = (caller.name().to_owned(), name.to_owned());
        self.0
            .store
            .write(move |tx| {
                if !role_delete(tx, &name)? {
                    return Err(Error::NotFound { entity: "Role", id: name });
                }
                Ok(audit::record(tx, now(), &actor, "role_delete", &name, "")?)
            })
            .await?;
        self.access_refresh().await
    }
}

fn existing(tx: &Tx<'_>, name: &str) -> Result<Role> {
    let found = role_list(tx)?.into_iter().find(|role| role.name == name);
    found.ok_or_else(|| Error::NotFound { entity: "Role", id: crate::caller::shown(name).into_owned() })
}
