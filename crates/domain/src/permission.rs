//! Permissions: what a caller may do.

use std::fmt;

/// One permission of an application, spelled as the vendor spells it; those with `Cordon` are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Permission {
    /// Read machines and machine actions.
    MachineReadAll,
    /// Read and change machines, read machine actions.
    MachineReadWriteAll,
    /// Restrict and unrestrict execution, cancel such actions. Does not imply reading.
    MachineRestrictExecution,
    /// Administer apps, enrollment tokens and policies, and read the audit log.
    CordonAdminister,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 4] = [
        Self::MachineReadAll,
        Self::MachineReadWriteAll,
        Self::MachineRestrictExecution,
        Self::CordonAdminister,
    ];

    /// The name in the token's `roles`.
    pub fn name(self) -> &'static str {
        match self {
            Self::MachineReadAll => "Machine.Read.All",
            Self::MachineReadWriteAll => "Machine.ReadWrite.All",
            Self::MachineRestrictExecution => "Machine.RestrictExecution",
            Self::CordonAdminister => "Cordon.Administer",
        }
    }

    /// The permission with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.name() == name)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an operation demands: one of these permissions is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement(pub &'static [Permission]);

impl Requirement {
    /// Reading machines, machine actions and executions.
    pub const READ: Self = Self(&[Permission::MachineReadAll, Permission::MachineReadWriteAll]);
    /// Reading allow policies, which both operators and administrators need.
    pub const READ_OR_ADMINISTER: Self =
        Self(&[Permission::MachineReadAll, Permission::MachineReadWriteAll, Permission::CordonAdminister]);
    /// Restricting, unrestricting and cancelling.
    pub const RESTRICT: Self = Self(&[Permission::MachineRestrictExecution]);
    /// Administration.
    pub const ADMINISTER: Self = Self(&[Permission::CordonAdminister]);

    /// Whether a caller that holds `held` meets the requirement.
    pub fn is_met_by(&self, held: &[Permission]) -> bool {
        self.0.iter().any(|permission| held.contains(permission))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for permission in Permission::ALL {
            assert_eq!(Permission::from_name(permission.name()), Some(permission));
        }
    }

    #[test]
    fn restricting_does_not_imply_reading() {
        assert!(!Requirement::READ.is_met_by(&[Permission::MachineRestrictExecution]));
        assert!(
            !Requirement::RESTRICT
                .is_met_by(&[Permission::MachineReadWriteAll, Permission::CordonAdminister])
        );
    }
}
