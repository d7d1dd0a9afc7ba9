//! How a caller's access to machine groups becomes a condition of a statement.

use domain::machine_group::MachineAccess;

/// The condition that a machine whose group is `column` may be known of. Holds numbers of ours only.
pub(crate) fn condition(access: &MachineAccess, column: &str) -> String {
    match access {
        MachineAccess::All => "1 = 1".to_owned(),
        MachineAccess::Groups(groups) if groups.is_empty() => "1 = 0".to_owned(),
        MachineAccess::Groups(groups) => {
            // In one order, so that the same groups are the same prepared statement.
            let mut groups = groups.clone();
            groups.sort_unstable();
            groups.dedup();
            let numbers: Vec<String> = groups.iter().map(i64::to_string).collect();
            format!("{column} IN ({})", numbers.join(", "))
        }
    }
}
