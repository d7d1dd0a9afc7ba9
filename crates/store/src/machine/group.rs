//! In which group each machine is. Which group that should be is decided by `domain::machine_group`.

use std::collections::HashMap;

use domain::machine::MachineId;
use rusqlite::types::Value;
use rusqlite::{params, params_from_iter};

use crate::row::{count, parsed};
use crate::sql::{ROWS_MAX, typed_rows};
use crate::{StoreError, Tx};

/// What rules look at, and the group that a machine is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineFacts {
    /// The machine.
    pub id: MachineId,
    /// The computer's DNS name.
    pub computer_dns_name: String,
    /// The operating system.
    pub os_platform: String,
    /// The tags, in no particular order.
    pub tags: Vec<String>,
    /// The id of its group.
    pub group: i64,
}

/// The facts of the machines behind the one with the id `after`, by id, at most `limit`.
///
/// # Errors
/// [`StoreError`].
pub fn machine_facts(
    tx: &Tx<'_>,
    after: Option<MachineId>,
    limit: u32,
) -> Result<Vec<MachineFacts>, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "SELECT id, computer_dns_name, os_platform, machine_group, \
         (SELECT string_agg(tag, '\n') FROM machine_tag WHERE machine_tag.machine = machine.id) AS tags \
         FROM machine WHERE id > $1 ORDER BY id LIMIT $2",
    )?;
    let after = after.map(|id| id.to_string()).unwrap_or_default();
    let mut rows = statement.query(params![after, limit])?;
    let mut facts = Vec::new();
    while let Some(row) = rows.next()? {
        let tags: Option<String> = row.get("tags")?;
        facts.push(MachineFacts {
            id: parsed(row, "id")?,
            computer_dns_name: row.get("computer_dns_name")?,
            os_platform: row.get("os_platform")?,
            tags: tags.iter().flat_map(|tags| tags.lines()).map(str::to_owned).collect(),
            group: row.get("machine_group")?,
        });
    }
    Ok(facts)
}

/// Puts machines, of which none is named twice, into groups. A group that is gone meanwhile gets none.
///
/// # Errors
/// [`StoreError`].
pub fn machine_group_assign(tx: &Tx<'_>, assigned: &[(MachineId, i64)]) -> Result<(), StoreError> {
    for chunk in assigned.chunks(ROWS_MAX) {
        let values =
            chunk.iter().flat_map(|(machine, group)| [Value::from(machine.to_string()), Value::from(*group)]);
        tx.0.execute(&assign(chunk.len()), params_from_iter(values))?;
    }
    Ok(())
}

fn assign(rows: usize) -> String {
    let rows = typed_rows(1, rows, &["TEXT", "BIGINT"]);
    format!(
        "WITH assigned (machine, new_group) AS (VALUES {rows}) \
         UPDATE machine SET machine_group = assigned.new_group FROM assigned \
         WHERE id IN (SELECT machine FROM assigned) AND id = assigned.machine \
         AND EXISTS (SELECT 1 FROM machine_group WHERE machine_group.id = assigned.new_group)"
    )
}

/// How many machines each group has, by its id; a group without machines is left out.
///
/// # Errors
/// [`StoreError`].
pub fn machine_group_sizes(tx: &Tx<'_>) -> Result<HashMap<i64, u64>, StoreError> {
    let mut statement = tx
        .0
        .prepare_cached("SELECT machine_group, count(*) AS machines FROM machine GROUP BY machine_group")?;
    let mut rows = statement.query([])?;
    let mut sizes = HashMap::new();
    while let Some(row) = rows.next()? {
        sizes.insert(row.get("machine_group")?, count(row, "machines")?);
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::plan_of;

    #[test]
    fn machines_are_assigned_by_their_id() {
        for rows in [1, ROWS_MAX] {
            let plan = plan_of(&assign(rows));
            assert!(
                plan.contains("SEARCH machine USING COVERING INDEX sqlite_autoindex_machine_1 (id=?)"),
                "{plan}"
            );
            assert!(!plan.contains("SCAN machine;"), "{plan}");
        }
    }
}
