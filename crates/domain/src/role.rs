//! Roles: what people may do, by the user groups that they belong to.

use crate::permission::{Right, Rights};

/// The name of the built-in role that holds every right and sees every machine. It cannot be deleted or weakened.
pub const ADMINISTRATOR: &str = "Administrator";

/// A role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name, which is its identity.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What it allows.
    pub rights: Rights,
    /// The user groups whose members have it, sorted: names of ours, or values of an issuer's `groups` claim.
    pub user_groups: Vec<String>,
    /// How many machines its members may restrict or unrestrict by bulk calls in an hour; none for the setting's number.
    pub bulk_machines_max: Option<u32>,
}

impl Role {
    /// Whether it is the built-in one.
    pub fn is_administrator(&self) -> bool {
        self.name == ADMINISTRATOR
    }

    /// Whether a member of these user groups has it.
    pub fn is_held_by(&self, user_groups: &[String]) -> bool {
        self.user_groups.iter().any(|group| user_groups.contains(group))
    }

    /// Whether it lifts the limit of bulk calls.
    pub fn is_unlimited(&self) -> bool {
        self.rights.contains(Right::BulkRemediation)
    }
}
