//! Who asks, and what that allows: the one place that decides.

use std::borrow::Cow;

use domain::audit_entry::AuditEntry;
use domain::machine_group::MachineAccess;
use domain::permission::{Permission, Requirement, Right, Rights};

use crate::{Error, Result};

/// Who asks, with everything that decides what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub(crate) identity: Identity,
    /// What an application may do, or what a person's token names.
    pub(crate) permissions: Vec<Permission>,
    /// What the person's roles allow; everything for an application.
    pub(crate) rights: Rights,
    /// Whose machines it may know of.
    pub(crate) machines: MachineAccess,
    /// Whether these are all that there are.
    pub(crate) sees_all: bool,
    /// How many machines it may change by bulk calls in an hour, unless [`Caller::is_unlimited`].
    pub(crate) bulk_machines_max: u32,
    /// What its token said; none for callers without one.
    pub(crate) bearer: Option<Bearer>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Whoever may run the server's own command line.
    Operator,
    /// Cordon itself.
    System,
    /// An application by itself.
    App(String),
    /// A person, by means of an application.
    User { name: String, app: String },
}

impl Caller {
    /// Whoever may run the server's own command line.
    pub fn operator() -> Self {
        Self::unlimited(Identity::Operator)
    }

    /// Cordon itself, for what it does at a time of its own.
    pub(crate) fn system() -> Self {
        Self::unlimited(Identity::System)
    }

    fn unlimited(identity: Identity) -> Self {
        Self {
            identity,
            permissions: Permission::ALL.to_vec(),
            rights: Rights::all(),
            machines: MachineAccess::All,
            sees_all: true,
            bulk_machines_max: u32::MAX,
            bearer: None,
        }
    }

    /// The caller's name in actions and in the audit log: the person's name, else the application's id.
    pub fn name(&self) -> &str {
        match &self.identity {
            Identity::Operator => AuditEntry::OPERATOR,
            Identity::System => AuditEntry::SYSTEM,
            Identity::App(app) => app,
            Identity::User { name, .. } => name,
        }
    }

    /// The application that calls, for whose calls limits are counted.
    pub fn app(&self) -> &str {
        match &self.identity {
            Identity::Operator => AuditEntry::OPERATOR,
            Identity::System => AuditEntry::SYSTEM,
            Identity::App(app) | Identity::User { app, .. } => app,
        }
    }

    /// Refuses callers that do not meet `required`: the permission first, then the right of a role. Whoever administers
    /// who may do what can give itself everything, so that is for callers only that see every machine.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::MissingRight`], [`Error::Disallowed`].
    pub fn require(&self, required: Requirement) -> Result<()> {
        if !required.is_met_by(&self.permissions) {
            return Err(self.forbidden(required));
        }
        if !self.rights.contains(required.right) {
            return Err(Error::MissingRight(required.right));
        }
        if required == Requirement::ADMINISTER && !self.sees_all {
            return Err(Error::Disallowed("administration needs access to every machine group".to_owned()));
        }
        Ok(())
    }

    fn forbidden(&self, required: Requirement) -> Error {
        let delegated = matches!(self.identity, Identity::User { .. });
        let spelled = |permission: &Permission| {
            if delegated { permission.scope() } else { permission.name() }
        };
        Error::Forbidden {
            delegated,
            required: required.permissions.iter().map(spelled).collect(),
            held: self.permissions.iter().map(spelled).collect(),
            only_restricts: required == Requirement::READ
                && self.permissions.contains(&Permission::MachineRestrictExecution),
        }
    }

    /// Whether the limit of bulk calls does not apply: the permission lifts it, and a person needs the right besides.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.permissions.contains(&Permission::CordonBulkRemediation)
            && self.rights.contains(Right::BulkRemediation)
    }
}

/// What a believed token says of its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bearer {
    /// An application by itself.
    App {
        /// Its id: a GUID of ours, or an issuer and its name there.
        app: String,
        /// What it may do.
        permissions: Vec<Permission>,
    },
    /// A person, by means of an application.
    User {
        /// The application, likewise.
        app: String,
        /// The person's name.
        name: String,
        /// What the token was asked for.
        scopes: Vec<Permission>,
        /// The person's user groups, when another issuer says so.
        groups: Groups,
    },
}

/// Where a person's user groups are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// From the token.
    Claimed(Vec<String>),
    /// From the account of ours with this name, which was signed in to at this time.
    Account {
        /// In seconds since 1970: what was granted before the password was changed does not count.
        signed_in_at: i64,
    },
}

/// A name in a message: not longer than a person reads.
pub(crate) fn shown(name: &str) -> Cow<'_, str> {
    const CHARS_MAX: usize = 255;
    match name.char_indices().nth(CHARS_MAX) {
        None => Cow::Borrowed(name),
        Some((end, _)) => Cow::Owned(name.get(..end).unwrap_or_default().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_needs_the_scope_and_the_right() {
        let person = |permissions: &[Permission], rights: &[Right]| Caller {
            identity: Identity::User { name: "ann".to_owned(), app: "cli".to_owned() },
            permissions: permissions.to_vec(),
            rights: rights.iter().copied().collect(),
            machines: MachineAccess::All,
            sees_all: true,
            bulk_machines_max: 1,
            bearer: None,
        };
        let restrict = Permission::MachineRestrictExecution;
        let remediate = Right::ActiveRemediationActions;
        assert!(person(&[restrict], &[remediate]).require(Requirement::RESTRICT).is_ok());
        let no_right = person(&[restrict], &[Right::ViewData]).require(Requirement::RESTRICT);
        assert!(matches!(no_right, Err(Error::MissingRight(right)) if right == remediate));
        let no_scope = person(&[Permission::MachineReadAll], &[remediate]).require(Requirement::RESTRICT);
        let Err(Error::Forbidden { delegated, required, held, .. }) = no_scope else {
            panic!("{no_scope:?}")
        };
        assert!(delegated);
        assert_eq!((required, held), (vec!["Machine.RestrictExecution"], vec!["Machine.Read"]));
    }

    #[test]
    fn the_limit_of_bulk_calls_is_lifted_by_a_right_for_people_and_a_permission_for_apps() {
        let mut caller = Caller::operator();
        assert!(caller.is_unlimited());
        caller.identity = Identity::User { name: "u".to_owned(), app: "a".to_owned() };
        assert!(caller.is_unlimited());
        caller.rights = Rights::default();
        assert!(!caller.is_unlimited(), "the scope without the right");
        caller.rights = Rights::all();
        caller.permissions = vec![Permission::MachineRestrictExecution];
        assert!(!caller.is_unlimited(), "the right without the scope");
    }

    #[test]
    fn shown_names_are_short() {
        assert_eq!(shown("lab"), "lab");
        assert_eq!(shown(&"ü".repeat(300)), "ü".repeat(255));
    }
}
