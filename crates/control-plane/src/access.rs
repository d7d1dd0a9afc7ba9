//! What callers may do at this moment: apps, roles, machine groups, accounts and settings, kept in memory.
//!
//! Every request asks here, so that what an administrator changes holds for the very next one, whatever a token says.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use domain::app::{App, CLI_APP_ID};
use domain::audit_entry::AuditEntry;
use domain::machine_group::{MachineAccess, MachineGroup};
use domain::permission::{Permission, Right, Rights};
use domain::role::Role;
use domain::settings::Settings;
use domain::user::User;
use store::Tx;
use store::app::app_list;
use store::machine_group::machine_group_list;
use store::role::role_list;
use store::user::user_list;
use uuid::Uuid;

use crate::caller::{Bearer, Caller, Groups, Identity};
use crate::settings::settings_of;
use crate::{ControlPlane, Error, Result};

/// One state of everything that decides what callers may do.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    apps: HashMap<Uuid, App>,
    roles: Vec<Role>,
    pub(crate) machine_groups: Vec<MachineGroup>,
    users: HashMap<String, User>,
    pub(crate) settings: Settings,
}

/// The newest state.
#[derive(Default)]
pub(crate) struct Access {
    newest: RwLock<(u64, Arc<Snapshot>)>,
    turns: AtomicU64,
    /// A change was written whose state could not be read.
    is_stale: AtomicBool,
}

impl Access {
    /// The newest state.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.newest.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// A number for a state that is about to be read: higher than those of all that were read before.
    fn turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Puts a state in force, unless one is that was read later. `before` is done just before, in the same order.
    fn put(&self, turn: u64, snapshot: Snapshot, before: impl FnOnce(&Snapshot)) {
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        if newest.0 < turn {
            before(&snapshot);
            *newest = (turn, Arc::new(snapshot));
        }
    }
}

impl ControlPlane {
    /// Reads anew what decides what callers may do. Whoever changed it calls this before answering.
    ///
    /// # Errors
    /// From the store.
    pub async fn access_refresh(&self) -> Result<()> {
        let turn = self.0.access.turn();
        let defaults = self.0.settings_default;
        let stale = &self.0.access.is_stale;
        stale.store(true, Ordering::SeqCst);
        let snapshot = self.0.store.read(move |tx| read(tx, defaults)).await?;
        stale.store(false, Ordering::SeqCst);
        self.0.access.put(turn, snapshot, |snapshot| {
            self.0.limiter.limit_set(&self.0.store, snapshot.settings.rate_limit);
        });
        Ok(())
    }

    /// Reads it anew when the last time failed: what was revoked then must not count for ever.
    ///
    /// # Errors
    /// From the store.
    pub async fn access_refresh_if_stale(&self) -> Result<()> {
        if self.0.access.is_stale.load(Ordering::SeqCst) { self.access_refresh().await } else { Ok(()) }
    }

    /// A caller with what it may do by now, for work that takes a while.
    pub(crate) fn caller_again(&self, caller: &Caller) -> Result<Caller> {
        caller.bearer.clone().map_or_else(|| Ok(caller.clone()), |bearer| self.caller(bearer))
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> Settings {
        self.0.access.snapshot().settings
    }

    /// The caller behind a believed token, with what it may do at this moment.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] when the app was revoked, or the account is disabled or its password was changed.
    pub fn caller(&self, bearer: Bearer) -> Result<Caller> {
        self.0.access.snapshot().caller(bearer)
    }
}

fn read(tx: &Tx<'_>, defaults: Settings) -> Result<Snapshot> {
    Ok(Snapshot {
        apps: app_list(tx)?.into_iter().map(|app| (app.id, app)).collect(),
        roles: role_list(tx)?,
        machine_groups: machine_group_list(tx)?,
        users: user_list(tx)?.into_iter().map(|user| (user.name.clone(), user)).collect(),
        settings: settings_of(tx, defaults)?,
    })
}

impl Snapshot {
    fn caller(&self, bearer: Bearer) -> Result<Caller> {
        let caller = match bearer.clone() {
            Bearer::App { app, permissions } => self.app_caller(app, permissions),
            Bearer::User { app, name, scopes, groups } => self.user_caller(app, name, scopes, groups),
        }?;
        let sees_all = self.machine_groups.iter().all(|group| caller.machines.admits(group.id));
        Ok(Caller { sees_all, bearer: Some(bearer), ..caller })
    }

    fn app_caller(&self, app: String, mut permissions: Vec<Permission>) -> Result<Caller> {
        let own = self.own_app(&app)?;
        if let Some(own) = own {
            permissions.retain(|permission| own.permissions.contains(permission));
        }
        let limit = own.and_then(|own| own.bulk_machines_max);
        Ok(Caller {
            identity: Identity::App(app),
            permissions,
            // Rights are people's.
            rights: Rights::all(),
            machines: own.map_or(MachineAccess::All, machines_of),
            sees_all: false,
            bulk_machines_max: limit.unwrap_or(self.settings.blast_radius.machines_max),
            bearer: None,
        })
    }

    fn user_caller(
        &self,
        app: String,
        name: String,
        mut scopes: Vec<Permission>,
        groups: Groups,
    ) -> Result<Caller> {
        let own = self.own_app(&app)?;
        if let Some(own) = own {
            scopes.retain(|scope| own.permissions.contains(scope));
        }
        let user_groups = match groups {
            Groups::Claimed(groups) => {
                self.require_foreign_name(&name)?;
                groups
            }
            Groups::Account { signed_in_at } => self.account(&name, signed_in_at)?.groups.clone(),
        };
        let roles: Vec<_> = self.roles.iter().filter(|role| role.is_held_by(&user_groups)).collect();
        let machines = if roles.iter().any(|role| role.is_administrator()) {
            MachineAccess::All
        } else if roles.is_empty() {
            MachineAccess::Groups(Vec::new())
        } else {
            let open = self.machine_groups.iter().filter(|group| group.is_open_to(&user_groups));
            MachineAccess::Groups(open.map(|group| group.id).collect())
        };
        let default_limit = self.settings.blast_radius.machines_max;
        // A role that does not let restrict has no say in how many.
        let remediating = roles.iter().filter(|role| role.rights.contains(Right::ActiveRemediationActions));
        let limits = remediating.map(|role| role.bulk_machines_max.unwrap_or(default_limit));
        let of_roles = limits.max().unwrap_or(default_limit);
        let of_app = own.and_then(|own| own.bulk_machines_max);
        Ok(Caller {
            identity: Identity::User { name, app },
            permissions: scopes,
            rights: roles.iter().fold(Rights::default(), |rights, role| rights.union(role.rights)),
            machines: own.map_or(MachineAccess::All, machines_of).both(machines),
            sees_all: false,
            bulk_machines_max: of_app.map_or(of_roles, |of_app| of_app.min(of_roles)),
            bearer: None,
        })
    }

    /// Refuses a name of another issuer that would be taken for somebody else's in actions and in the audit log.
    fn require_foreign_name(&self, name: &str) -> Result<()> {
        if is_reserved(name) || self.users.contains_key(&name.to_lowercase()) {
            return Err(Error::Unauthenticated("the name in the token is somebody else's here".to_owned()));
        }
        Ok(())
    }

    /// The app with this id; none for apps of other issuers and for the command line, which needs no entry.
    fn own_app(&self, id: &str) -> Result<Option<&App>> {
        let Ok(id) = id.parse::<Uuid>() else { return Ok(None) };
        match self.apps.get(&id) {
            Some(app) if app.revoked_at.is_none() => Ok(Some(app)),
            Some(_) => Err(Error::Unauthenticated("the application was revoked".to_owned())),
            None if id == CLI_APP_ID => Ok(None),
            None => Err(Error::Unauthenticated("the application is unknown".to_owned())),
        }
    }

    fn account(&self, name: &str, signed_in_at: i64) -> Result<&User> {
        let refused = |why: &str| Err(Error::Unauthenticated(why.to_owned()));
        match self.users.get(name) {
            None => refused("the account is unknown"),
            Some(user) if !user.is_enabled() => refused("the account is disabled"),
            Some(user) if signed_in_at < user.password_changed_at.unix_seconds() => {
                refused("the account's password was changed: sign in again")
            }
            Some(user) => Ok(user),
        }
    }
}

/// Whether a name is one that others have in actions and in the audit log: Cordon itself, apps, machines.
pub(crate) fn is_reserved(name: &str) -> bool {
    let name = name.trim();
    [AuditEntry::SYSTEM, AuditEntry::OPERATOR].iter().any(|own| own.eq_ignore_ascii_case(name))
        || name.parse::<Uuid>().is_ok()
        || name.starts_with("machine ")
        || name.starts_with("enrollment-token ")
}

fn machines_of(app: &App) -> MachineAccess {
    app.machine_groups.clone().map_or(MachineAccess::All, MachineAccess::Groups)
}

#[cfg(test)]
mod tests {
    use domain::machine_group::{UNGROUPED, UNGROUPED_ID};
    use domain::permission::Requirement;
    use domain::role::ADMINISTRATOR;
    use domain::time::Timestamp;

    use super::*;

    const APP: Uuid = Uuid::from_u128(7);

    fn role(name: &str, rights: &[Right], user_groups: &[&str]) -> Role {
        Role {
            name: name.to_owned(),
            description: String::new(),
            rights: rights.iter().copied().collect(),
            user_groups: user_groups.iter().map(|group| (*group).to_owned()).collect(),
            bulk_machines_max: None,
        }
    }

    fn machine_group(id: i64, user_groups: &[&str]) -> MachineGroup {
        MachineGroup {
            id,
            name: if id == UNGROUPED_ID { UNGROUPED.to_owned() } else { format!("g{id}") },
            description: String::new(),
            rank: u32::try_from(id).ok().filter(|rank| *rank > 0),
            rule: Vec::new(),
            user_groups: user_groups.iter().map(|group| (*group).to_owned()).collect(),
            policy: None,
        }
    }

    fn snapshot() -> Snapshot {
        let app = App {
            id: APP,
            name: "connector".to_owned(),
            permissions: vec![Permission::MachineReadAll, Permission::MachineRestrictExecution],
            is_public: false,
            redirect_uris: Vec::new(),
            machine_groups: None,
            bulk_machines_max: None,
            created_at: Timestamp::default(),
            revoked_at: None,
        };
        let user = User {
            id: Uuid::from_u128(8),
            name: "ann".to_owned(),
            display_name: "Ann".to_owned(),
            groups: vec!["soc".to_owned()],
            created_at: Timestamp::default(),
            password_changed_at: Timestamp::from_unix_seconds(100),
            disabled_at: None,
            locked_until: None,
        };
        Snapshot {
            apps: HashMap::from([(APP, app)]),
            roles: vec![
                role(ADMINISTRATOR, &Right::ALL, &["admins"]),
                role("analyst", &[Right::ViewData], &["soc"]),
                role("responder", &[Right::ActiveRemediationActions], &["soc", "ir"]),
            ],
            machine_groups: vec![
                machine_group(1, &["ir"]),
                machine_group(2, &["soc"]),
                machine_group(0, &[]),
            ],
            users: HashMap::from([("ann".to_owned(), user)]),
            settings: Settings::default(),
        }
    }

    fn person(groups: &[&str]) -> Bearer {
        Bearer::User {
            app: CLI_APP_ID.to_string(),
            name: "bob@idp".to_owned(),
            scopes: Permission::ALL.to_vec(),
            groups: Groups::Claimed(groups.iter().map(|group| (*group).to_owned()).collect()),
        }
    }

    #[test]
    fn roles_and_machine_groups_by_user_group() {
        let snapshot = snapshot();
        for (groups, rights, machines) in [
            (&[][..], &[][..], MachineAccess::Groups(vec![])),
            (&["nobody"], &[], MachineAccess::Groups(vec![])),
            (&["ir"], &[Right::ActiveRemediationActions], MachineAccess::Groups(vec![1, 0])),
            (
                &["soc"],
                &[Right::ViewData, Right::ActiveRemediationActions],
                MachineAccess::Groups(vec![2, 0]),
            ),
            (&["admins"], &Right::ALL, MachineAccess::All),
        ] {
            let caller = snapshot.caller(person(groups)).unwrap();
            assert_eq!(caller.rights.iter().collect::<Vec<_>>(), rights, "{groups:?}");
            assert_eq!(caller.machines, machines, "{groups:?}");
        }
    }

    #[test]
    fn an_account_counts_as_it_is_now() {
        let mut snapshot = snapshot();
        let ann = |signed_in_at| Bearer::User {
            app: CLI_APP_ID.to_string(),
            name: "ann".to_owned(),
            scopes: vec![Permission::MachineReadAll],
            groups: Groups::Account { signed_in_at },
        };
        let caller = snapshot.caller(ann(100)).unwrap();
        assert!(caller.require(Requirement::READ).is_ok());
        assert!(snapshot.caller(ann(99)).is_err(), "signed in with an older password");
        snapshot.users.get_mut("ann").unwrap().disabled_at = Some(Timestamp::default());
        assert!(snapshot.caller(ann(100)).is_err());
        snapshot.users.clear();
        assert!(snapshot.caller(ann(100)).is_err());
    }

    #[test]
    fn an_app_counts_as_it_is_now() {
        let mut snapshot = snapshot();
        let bearer = |app: &str| Bearer::App { app: app.to_owned(), permissions: Permission::ALL.to_vec() };
        let caller = snapshot.caller(bearer(&APP.to_string())).unwrap();
        assert_eq!(caller.permissions, [Permission::MachineReadAll, Permission::MachineRestrictExecution]);
        assert_eq!(caller.machines, MachineAccess::All);
        let foreign = snapshot.caller(bearer("https://idp.example|soar")).unwrap();
        assert_eq!(foreign.permissions, Permission::ALL);
        snapshot.apps.get_mut(&APP).unwrap().machine_groups = Some(vec![2]);
        let caller = snapshot.caller(bearer(&APP.to_string())).unwrap();
        assert_eq!(caller.machines, MachineAccess::Groups(vec![2]));
        snapshot.apps.get_mut(&APP).unwrap().revoked_at = Some(Timestamp::default());
        assert!(snapshot.caller(bearer(&APP.to_string())).is_err());
        assert!(snapshot.caller(bearer(&Uuid::from_u128(9).to_string())).is_err());
    }

    #[test]
    fn a_person_sees_through_an_app_what_both_may_see() {
        let mut snapshot = snapshot();
        snapshot.apps.get_mut(&APP).unwrap().machine_groups = Some(vec![1, 0]);
        let Bearer::User { name, scopes, groups, .. } = person(&["soc"]) else { panic!() };
        let caller = snapshot.caller(Bearer::User { app: APP.to_string(), name, scopes, groups }).unwrap();
        assert_eq!(caller.machines, MachineAccess::Groups(vec![0]));
        assert!(!caller.permissions.contains(&Permission::CordonAdminister));
    }

    #[test]
    fn an_older_state_never_replaces_a_newer() {
        let access = Access::default();
        let (first, second) = (access.turn(), access.turn());
        access.put(second, snapshot(), |_| ());
        access.put(first, Snapshot::default(), |_| panic!("an older state does nothing"));
        assert_eq!(access.snapshot().roles.len(), 3);
    }

    #[test]
    fn nobody_of_another_issuer_is_taken_for_somebody_here() {
        let snapshot = snapshot();
        for (name, is_refused) in [
            ("bob@idp", false),
            ("Ann", true),
            ("system", true),
            ("Operator", true),
            ("00000000-0000-0000-0000-000000000007", true),
            ("machine 0f", true),
        ] {
            let Bearer::User { app, scopes, groups, .. } = person(&["soc"]) else { panic!() };
            let bearer = Bearer::User { app, name: name.to_owned(), scopes, groups };
            assert_eq!(snapshot.caller(bearer).is_err(), is_refused, "{name}");
        }
    }

    #[test]
    fn administration_is_for_callers_that_see_every_machine() {
        let mut snapshot = snapshot();
        snapshot.roles[1].rights = Rights::all();
        let limited = snapshot.caller(person(&["soc"])).unwrap();
        assert!(matches!(limited.require(Requirement::ADMINISTER), Err(Error::Disallowed(_))));
        let everywhere = snapshot.caller(person(&["soc", "ir"])).unwrap();
        assert!(everywhere.require(Requirement::ADMINISTER).is_ok());
    }
}
