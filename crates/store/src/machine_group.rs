//! Machine groups, their rules, and the user groups that see their machines. Which machine is in which group is stored
//! with the machine.

use std::collections::HashMap;

use domain::machine_group::{Condition, MachineGroup, RuleOperator, RuleProperty, UNGROUPED_ID};
use rusqlite::params;

use crate::row::count_or_none;
use crate::{StoreError, Tx};

/// All groups by rank, that of the ungrouped last. Conditions are sorted.
///
/// # Errors
/// [`StoreError`].
pub fn machine_group_list(tx: &Tx<'_>) -> Result<Vec<MachineGroup>, StoreError> {
    let mut rules = conditions(tx)?;
    let mut user_groups = user_groups(tx)?;
    let mut statement = tx.0.prepare_cached(
        "SELECT id, name, description, rank, policy FROM machine_group \
         ORDER BY CASE WHEN rank IS NULL THEN 1 ELSE 0 END, rank, id",
    )?;
    let mut rows = statement.query([])?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get("id")?;
        groups.push(MachineGroup {
            id,
            name: row.get("name")?,
            description: row.get("description")?,
            rank: count_or_none(row, "rank")?,
            rule: rules.remove(&id).unwrap_or_default(),
            user_groups: user_groups.remove(&id).unwrap_or_default(),
            policy: row.get("policy")?,
        });
    }
    Ok(groups)
}

/// Records a group under a new id, which is never that of an earlier one; what id the group was given is ignored.
///
/// # Errors
/// [`StoreError::Duplicate`] when its name or its rank is taken.
pub fn machine_group_create(tx: &Tx<'_>, group: &MachineGroup) -> Result<i64, StoreError> {
    let id = tx
        .0
        .prepare_cached(
            "INSERT INTO machine_group (name, description, rank, policy) VALUES ($1, $2, $3, $4) RETURNING id",
        )?
        .query_row(params![group.name, group.description, group.rank, group.policy], |row| row.get(0))?;
    details_create(tx, id, group)?;
    Ok(id)
}

/// Changes the group with this id in all but its rank, for which there is [`machine_group_ranks_set`].
///
/// # Errors
/// [`StoreError::Duplicate`] when its name is taken.
pub fn machine_group_update(tx: &Tx<'_>, group: &MachineGroup) -> Result<(), StoreError> {
    let changed = tx
        .0
        .prepare_cached("UPDATE machine_group SET name = $2, description = $3, policy = $4 WHERE id = $1")?
        .execute(params![group.id, group.name, group.description, group.policy])?;
    if changed == 0 {
        return Ok(());
    }
    details_delete(tx, group.id)?;
    details_create(tx, group.id, group)
}

/// Deletes a group; whether it was there. Its machines are ungrouped until they are assigned again. That of the
/// ungrouped stays.
///
/// # Errors
/// [`StoreError`].
pub fn machine_group_delete(tx: &Tx<'_>, id: i64) -> Result<bool, StoreError> {
    if id == UNGROUPED_ID {
        return Ok(false);
    }
    details_delete(tx, id)?;
    let deleted = tx.0.prepare_cached("DELETE FROM machine_group WHERE id = $1")?.execute([id])?;
    tx.0.prepare_cached("UPDATE machine SET machine_group = $2 WHERE machine_group = $1")?
        .execute([id, UNGROUPED_ID])?;
    Ok(deleted == 1)
}

/// Gives groups, by id, other ranks. That of the ungrouped gets none.
///
/// # Errors
/// [`StoreError::Duplicate`] when a rank is given twice, or is that of a group that is not among these.
pub fn machine_group_ranks_set(tx: &Tx<'_>, ranks: &[(i64, u32)]) -> Result<(), StoreError> {
    // Without a rank first: on the way from one order to another, two groups would have the same.
    let mut clear = tx.0.prepare_cached("UPDATE machine_group SET rank = NULL WHERE id = $1")?;
    for (id, _) in ranks {
        clear.execute([id])?;
    }
    let mut set = tx.0.prepare_cached("UPDATE machine_group SET rank = $2 WHERE id = $1 AND id <> $3")?;
    for (id, rank) in ranks {
        set.execute(params![id, rank, UNGROUPED_ID])?;
    }
    Ok(())
}

fn conditions(tx: &Tx<'_>) -> Result<HashMap<i64, Vec<Condition>>, StoreError> {
    let mut statement =
        tx.0.prepare_cached("SELECT machine_group, property, operator, value FROM machine_group_condition")?;
    let mut rows = statement.query([])?;
    let mut rules: HashMap<i64, Vec<Condition>> = HashMap::new();
    while let Some(row) = rows.next()? {
        let (property, operator): (String, String) = (row.get("property")?, row.get("operator")?);
        // Left out, a condition would let a rule take more machines or fewer.
        let condition = Condition {
            property: RuleProperty::from_name(&property)
                .ok_or_else(|| StoreError::Damaged(format!("property {property:?}")))?,
            operator: RuleOperator::from_name(&operator)
                .ok_or_else(|| StoreError::Damaged(format!("operator {operator:?}")))?,
            value: row.get("value")?,
        };
        rules.entry(row.get("machine_group")?).or_default().push(condition);
    }
    rules.values_mut().for_each(|rule| rule.sort_unstable());
    Ok(rules)
}

fn user_groups(tx: &Tx<'_>) -> Result<HashMap<i64, Vec<String>>, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "SELECT machine_group, user_group FROM machine_group_user_group ORDER BY user_group",
    )?;
    let mut rows = statement.query([])?;
    let mut user_groups: HashMap<i64, Vec<String>> = HashMap::new();
    while let Some(row) = rows.next()? {
        user_groups.entry(row.get("machine_group")?).or_default().push(row.get("user_group")?);
    }
    Ok(user_groups)
}

fn details_create(tx: &Tx<'_>, id: i64, group: &MachineGroup) -> Result<(), StoreError> {
    let mut insert = tx.0.prepare_cached(
        "INSERT INTO machine_group_condition (machine_group, property, operator, value) \
         VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )?;
    for condition in &group.rule {
        insert.execute(params![id, condition.property.name(), condition.operator.name(), condition.value])?;
    }
    let mut insert = tx.0.prepare_cached(
        "INSERT INTO machine_group_user_group (machine_group, user_group) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )?;
    for user_group in &group.user_groups {
        insert.execute(params![id, user_group])?;
    }
    Ok(())
}

fn details_delete(tx: &Tx<'_>, id: i64) -> Result<(), StoreError> {
    tx.0.prepare_cached("DELETE FROM machine_group_condition WHERE machine_group = $1")?.execute([id])?;
    tx.0.prepare_cached("DELETE FROM machine_group_user_group WHERE machine_group = $1")?.execute([id])?;
    Ok(())
}
