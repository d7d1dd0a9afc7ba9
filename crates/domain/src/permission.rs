//! Who may do what: permissions of applications and of people's tokens, and the rights that roles give to people.

use std::fmt;

/// One permission, spelled as the vendor spells it; those with `Cordon` are ours. An application holds it under
/// [`Permission::name`], a token that acts for a person names it by [`Permission::scope`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Permission {
    /// Read machines and machine actions.
    MachineReadAll,
    /// Read and change machines, read machine actions.
    MachineReadWriteAll,
    /// Restrict and unrestrict execution, cancel such actions. Does not imply reading.
    MachineRestrictExecution,
    /// Restrict and unrestrict more machines by one call than the blast-radius limit admits.
    CordonBulkRemediation,
    /// See the break-glass codes of machines.
    CordonBreakGlass,
    /// Administer apps, people, groups, enrollment tokens, policies and settings, and read the audit log.
    CordonAdminister,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 6] = [
        Self::MachineReadAll,
        Self::MachineReadWriteAll,
        Self::MachineRestrictExecution,
        Self::CordonBulkRemediation,
        Self::CordonBreakGlass,
        Self::CordonAdminister,
    ];

    /// The name in the `roles` of an application's token.
    pub fn name(self) -> &'static str {
        match self {
            Self::MachineReadAll => "Machine.Read.All",
            Self::MachineReadWriteAll => "Machine.ReadWrite.All",
            Self::MachineRestrictExecution => "Machine.RestrictExecution",
            Self::CordonBulkRemediation => "Cordon.BulkRemediation",
            Self::CordonBreakGlass => "Cordon.BreakGlass",
            Self::CordonAdminister => "Cordon.Administer",
        }
    }

    /// The name in the `scp` of a token that acts for a person.
    pub fn scope(self) -> &'static str {
        match self {
            Self::MachineReadAll => "Machine.Read",
            Self::MachineReadWriteAll => "Machine.ReadWrite",
            Self::MachineRestrictExecution
            | Self::CordonBulkRemediation
            | Self::CordonBreakGlass
            | Self::CordonAdminister => self.name(),
        }
    }

    /// The permission with this name in an application's token.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.name() == name)
    }

    /// The permission with this name in a person's token.
    pub fn from_scope(scope: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.scope() == scope)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One right that a role gives to people, in the words of the vendor's portal; the last two are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Right {
    /// Read machines, machine actions, execution events and policies.
    ViewData,
    /// Restrict, unrestrict, cancel.
    ActiveRemediationActions,
    /// The vendor's; nothing here demands it.
    AlertsInvestigation,
    /// Policies, enrollment tokens, tags.
    ManageSecuritySettings,
    /// Apps, people, roles, machine groups, settings, the audit log.
    ManagePortalSystemSettings,
    /// Restrict or unrestrict more machines by one call than the blast-radius limit admits.
    BulkRemediation,
    /// See the break-glass codes of machines.
    BreakGlass,
}

impl Right {
    /// Every right.
    pub const ALL: [Self; 7] = [
        Self::ViewData,
        Self::ActiveRemediationActions,
        Self::AlertsInvestigation,
        Self::ManageSecuritySettings,
        Self::ManagePortalSystemSettings,
        Self::BulkRemediation,
        Self::BreakGlass,
    ];

    /// The right's name, as the portal shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ViewData => "View data",
            Self::ActiveRemediationActions => "Active remediation actions",
            Self::AlertsInvestigation => "Alerts investigation",
            Self::ManageSecuritySettings => "Manage security settings",
            Self::ManagePortalSystemSettings => "Manage portal system settings",
            Self::BulkRemediation => "Bulk remediation",
            Self::BreakGlass => "Break-glass codes",
        }
    }

    /// The right with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.name() == name)
    }

    fn bit(self) -> u32 {
        match self {
            Self::ViewData => 1,
            Self::ActiveRemediationActions => 1 << 1,
            Self::AlertsInvestigation => 1 << 2,
            Self::ManageSecuritySettings => 1 << 3,
            Self::ManagePortalSystemSettings => 1 << 4,
            Self::BulkRemediation => 1 << 5,
            Self::BreakGlass => 1 << 6,
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights(u32);

impl Rights {
    /// Every right.
    pub fn all() -> Self {
        Right::ALL.into_iter().collect()
    }

    /// Whether the set holds a right.
    pub fn contains(self, right: Right) -> bool {
        self.0 & right.bit() != 0
    }

    /// The rights of both sets.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The rights in the set, in the order of [`Right::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.contains(*right))
    }

    /// The set as a number, for storage.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The set of a stored number; bits that stand for no right are dropped.
    pub fn from_bits(bits: u32) -> Self {
        Self(bits & Self::all().0)
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        Self(rights.into_iter().fold(0, |bits, right| bits | right.bit()))
    }
}

/// What an operation demands: one of these permissions is enough, and of a person the right besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement {
    /// One of these.
    pub permissions: &'static [Permission],
    /// A role of the person must hold it.
    pub right: Right,
}

impl Requirement {
    /// Reading machines, machine actions and executions.
    pub const READ: Self = Self {
        permissions: &[Permission::MachineReadAll, Permission::MachineReadWriteAll],
        right: Right::ViewData,
    };
    /// Reading allow policies, which both operators and administrators need.
    pub const READ_OR_ADMINISTER: Self = Self {
        permissions: &[
            Permission::MachineReadAll,
            Permission::MachineReadWriteAll,
            Permission::CordonAdminister,
        ],
        right: Right::ViewData,
    };
    /// Changing what people say of machines: tags.
    pub const WRITE: Self =
        Self { permissions: &[Permission::MachineReadWriteAll], right: Right::ManageSecuritySettings };
    /// Restricting, unrestricting and cancelling.
    pub const RESTRICT: Self =
        Self { permissions: &[Permission::MachineRestrictExecution], right: Right::ActiveRemediationActions };
    /// Seeing a machine's break-glass code.
    pub const BREAK_GLASS: Self =
        Self { permissions: &[Permission::CordonBreakGlass], right: Right::BreakGlass };
    /// Administration of what machines may run and how they enroll.
    pub const ADMINISTER_SECURITY: Self =
        Self { permissions: &[Permission::CordonAdminister], right: Right::ManageSecuritySettings };
    /// Administration of who may do what, and of the server.
    pub const ADMINISTER: Self =
        Self { permissions: &[Permission::CordonAdminister], right: Right::ManagePortalSystemSettings };

    /// Whether a caller that holds `held` holds one of the permissions.
    pub fn is_met_by(&self, held: &[Permission]) -> bool {
        self.permissions.iter().any(|permission| held.contains(permission))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for permission in Permission::ALL {
            assert_eq!(Permission::from_name(permission.name()), Some(permission));
            assert_eq!(Permission::from_scope(permission.scope()), Some(permission));
        }
        for right in Right::ALL {
            assert_eq!(Right::from_name(right.name()), Some(right));
        }
    }

    #[test]
    fn the_names_of_applications_and_of_people_are_not_mixed_up() {
        assert_eq!(Permission::from_scope("Machine.Read.All"), None);
        assert_eq!(Permission::from_name("Machine.Read"), None);
    }

    #[test]
    fn restricting_does_not_imply_reading() {
        assert!(!Requirement::READ.is_met_by(&[Permission::MachineRestrictExecution]));
        assert!(
            !Requirement::RESTRICT
                .is_met_by(&[Permission::MachineReadWriteAll, Permission::CordonAdminister])
        );
    }

    #[test]
    fn rights_are_a_set() {
        let rights: Rights = [Right::BulkRemediation, Right::ViewData].into_iter().collect();
        assert_eq!(rights.iter().collect::<Vec<_>>(), [Right::ViewData, Right::BulkRemediation]);
        assert_eq!(Rights::from_bits(rights.bits()), rights);
        assert_eq!(Rights::from_bits(u32::MAX), Rights::all());
        assert!(!rights.contains(Right::ActiveRemediationActions));
    }
}
