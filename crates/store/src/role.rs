//! Roles, and the user groups that have them.

use std::collections::HashMap;

use domain::permission::Rights;
use domain::role::Role;
use rusqlite::params;

use crate::row::{count, count_or_none};
use crate::{StoreError, Tx};

/// All roles, by name.
///
/// # Errors
/// [`StoreError`].
pub fn role_list(tx: &Tx<'_>) -> Result<Vec<Role>, StoreError> {
    let mut user_groups: HashMap<String, Vec<String>> = HashMap::new();
    let mut statement =
        tx.0.prepare_cached("SELECT role, user_group FROM role_user_group ORDER BY role, user_group")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        user_groups.entry(row.get("role")?).or_default().push(row.get("user_group")?);
    }
    let mut statement =
        tx.0.prepare_cached("SELECT name, description, rights, bulk_machines_max FROM role ORDER BY name")?;
    let mut rows = statement.query([])?;
    let mut roles = Vec::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get("name")?;
        roles.push(Role {
            description: row.get("description")?,
            rights: Rights::from_bits(count(row, "rights")?),
            user_groups: user_groups.remove(&name).unwrap_or_default(),
            bulk_machines_max: count_or_none(row, "bulk_machines_max")?,
            name,
        });
    }
    Ok(roles)
}

/// Keeps a role as it is given, in the place of one with its name.
///
/// # Errors
/// [`StoreError`].
pub fn role_save(tx: &Tx<'_>, role: &Role) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "INSERT INTO role (name, description, rights, bulk_machines_max) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (name) DO UPDATE SET description = excluded.description, rights = excluded.rights, \
         bulk_machines_max = excluded.bulk_machines_max",
    )?
    .execute(params![role.name, role.description, role.rights.bits(), role.bulk_machines_max])?;
    user_groups_delete(tx, &role.name)?;
    let mut insert = tx.0.prepare_cached(
        "INSERT INTO role_user_group (role, user_group) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )?;
    for group in &role.user_groups {
        insert.execute([&role.name, group])?;
    }
    Ok(())
}

/// Deletes a role; whether it was there.
///
/// # Errors
/// [`StoreError`].
pub fn role_delete(tx: &Tx<'_>, name: &str) -> Result<bool, StoreError> {
    user_groups_delete(tx, name)?;
    Ok(tx.0.prepare_cached("DELETE FROM role WHERE name = $1")?.execute([name])? == 1)
}

fn user_groups_delete(tx: &Tx<'_>, role: &str) -> Result<(), StoreError> {
    tx.0.prepare_cached("DELETE FROM role_user_group WHERE role = $1")?.execute([role])?;
    Ok(())
}
