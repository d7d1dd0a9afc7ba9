//! Machines and their restriction: what they said, what is wanted of them and what they report.
//!
//! Deliberately decides nothing: in which group a machine belongs, or when a restriction ends, is known elsewhere.

use std::net::IpAddr;

use domain::digest::Sha256Digest;
use domain::machine::{Capabilities, IpAddress, Machine, MachineId, System};
use domain::machine_group::MachineAccess;
use domain::restriction::{Desired, Reported, Restriction, Tier};
use domain::time::Timestamp;
use rusqlite::{OptionalExtension as _, Row, params, params_from_iter};

use crate::row::{count, parsed, parsed_or_none, stored, time, time_or_none};
use crate::sql::{ROWS_MAX, places};
use crate::{StoreError, Tx, access};

mod address;
mod group;
mod tag;

pub use address::{machine_ips_forget, machines_by_ip};
pub use group::{MachineFacts, machine_facts, machine_group_assign, machine_group_sizes};
pub use tag::{machine_tag_add, machine_tag_count, machine_tag_remove};

pub(crate) const COLUMNS: &str = "id, incarnation, computer_dns_name, os_platform, os_version, os_build, \
    os_architecture, agent_version, ip_addresses, last_external_ip, connected_at, tier, tier_missing, first_seen, \
    last_seen, desired_restricted, desired_generation, wanted_generation, policy_name, policy_digest, ends_at, \
    broken_glass_at, reported_restricted, reported_generation, reported_since, events_dropped, machine_group, \
    (SELECT name FROM machine_group WHERE machine_group.id = machine.machine_group) AS group_name, \
    (SELECT string_agg(tag, '\n') FROM machine_tag WHERE machine_tag.machine = machine.id) AS tags";

/// The most machines whose restrictions end that are named at once.
const ENDING_MAX: u32 = 100;

/// The machine with this id.
///
/// # Errors
/// [`StoreError`].
pub fn machine_fetch(tx: &Tx<'_>, id: MachineId) -> Result<Option<Machine>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!("SELECT {COLUMNS} FROM machine WHERE id = $1"))?;
    let mut rows = statement.query([id.to_string()])?;
    rows.next()?.map(read).transpose()
}

/// The machines with these ids, by id. Those that are not there are left out.
///
/// # Errors
/// [`StoreError`].
pub fn machine_fetch_many(tx: &Tx<'_>, ids: &[MachineId]) -> Result<Vec<Machine>, StoreError> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let mut machines = Vec::new();
    for chunk in ids.chunks(ROWS_MAX) {
        let mut statement = tx.0.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM machine WHERE id IN ({}) ORDER BY id",
            places(chunk.len())
        ))?;
        let mut rows = statement.query(params_from_iter(chunk.iter().map(MachineId::to_string)))?;
        while let Some(row) = rows.next()? {
            machines.push(read(row)?);
        }
    }
    Ok(machines)
}

/// The ids of the machines with this DNS name that the caller may know of, at most eleven: more than ten are too many
/// to list to a person.
///
/// # Errors
/// [`StoreError`].
pub fn machine_ids_by_name(
    tx: &Tx<'_>,
    name: &str,
    access: &MachineAccess,
) -> Result<Vec<MachineId>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!(
        "SELECT id FROM machine WHERE computer_dns_name = $1 AND {} ORDER BY id LIMIT 11",
        access::condition(access, "+machine_group")
    ))?;
    let mut rows = statement.query([name])?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        ids.push(parsed(row, "id")?);
    }
    Ok(ids)
}

/// The machines whose restriction is to have ended by itself, the longest overdue first, at most a hundred.
///
/// # Errors
/// [`StoreError`].
pub fn machines_ending(tx: &Tx<'_>, now: Timestamp) -> Result<Vec<Machine>, StoreError> {
    let mut statement = tx.0.prepare_cached(&ending())?;
    let mut rows = statement.query(params![now.ticks(), ENDING_MAX])?;
    let mut machines = Vec::new();
    while let Some(row) = rows.next()? {
        machines.push(read(row)?);
    }
    Ok(machines)
}

fn ending() -> String {
    format!(
        "SELECT {COLUMNS} FROM machine WHERE ends_at <= $1 AND desired_restricted = 1 ORDER BY ends_at LIMIT $2"
    )
}

/// The Ed25519 public key of the machine's gate, as text.
///
/// # Errors
/// [`StoreError`].
pub fn machine_gate_key(tx: &Tx<'_>, id: MachineId) -> Result<Option<String>, StoreError> {
    let mut statement = tx.0.prepare_cached("SELECT gate_key FROM machine WHERE id = $1")?;
    Ok(statement.query_row([id.to_string()], |row| row.get(0)).optional()?)
}

/// Enrolls a machine, or the same machine again; its new incarnation. The restriction that was wanted stays wanted.
///
/// # Errors
/// [`StoreError`].
pub fn machine_enroll(
    tx: &Tx<'_>,
    id: MachineId,
    gate_key: &str,
    name: &str,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "INSERT INTO machine (id, incarnation, gate_key, computer_dns_name, os_platform, os_version, os_build, \
         os_architecture, agent_version, ip_addresses, first_seen, last_seen, desired_restricted, desired_generation, \
         wanted_generation, reported_generation) VALUES ($1, 1, $2, $3, '', '', '', '', '', '', $4, $4, 0, 0, 0, 0) \
         ON CONFLICT (id) DO UPDATE SET incarnation = incarnation + 1, gate_key = $2, computer_dns_name = $3, \
         last_seen = $4, reported_restricted = NULL, reported_generation = 0, reported_since = NULL \
         RETURNING incarnation",
    )?;
    let mut rows = statement.query(params![id.to_string(), gate_key, name, now.ticks()])?;
    let row = rows.next()?.ok_or_else(|| StoreError::Damaged("no row came back".to_owned()))?;
    count(row, "incarnation")
}

/// Records what a machine said of itself when it connected.
///
/// # Errors
/// [`StoreError`].
pub fn machine_connected(
    tx: &Tx<'_>,
    id: MachineId,
    system: &System,
    capabilities: &Capabilities,
    remote: IpAddr,
    now: Timestamp,
) -> Result<(), StoreError> {
    let addresses: Vec<String> = system.ip_addresses.iter().map(address_line).collect();
    let last_ip = system.ip_addresses.iter().find(|ip| ip.up && !ip.address.is_loopback());
    address::record(tx, id, &system.ip_addresses, now)?;
    tx.0.prepare_cached(
        "UPDATE machine SET computer_dns_name = $2, os_platform = $3, os_version = $4, os_build = $5, \
         os_architecture = $6, agent_version = $7, ip_addresses = $8, last_ip_address = $9, last_external_ip = $10, \
         connected_at = $11, last_seen = $11, tier = $12, tier_missing = $13 WHERE id = $1",
    )?
    .execute(params![
        id.to_string(),
        system.computer_dns_name,
        system.os_platform,
        system.os_version,
        system.os_build,
        system.os_architecture,
        system.agent_version,
        addresses.join("\n"),
        last_ip.map(|ip| ip.address.to_string()),
        remote.to_string(),
        now.ticks(),
        capabilities.tier.map(Tier::name),
        capabilities.missing
    ])?;
    Ok(())
}

/// Records what a machine reports of its restriction. `since` moves only when the state does.
///
/// # Errors
/// [`StoreError`].
pub fn machine_reported(
    tx: &Tx<'_>,
    id: MachineId,
    reported: Reported,
    generation: u64,
    now: Timestamp,
) -> Result<(), StoreError> {
    let restricted = match reported {
        Reported::Unknown => None,
        Reported::Released => Some(0_i64),
        Reported::Restricted => Some(1),
    };
    tx.0.prepare_cached(
        "UPDATE machine SET reported_since = CASE WHEN reported_restricted IS NOT DISTINCT FROM $2 \
         THEN reported_since ELSE $4 END, \
         reported_restricted = $2, reported_generation = $3, last_seen = $4 WHERE id = $1",
    )?
    .execute(params![id.to_string(), restricted, stored(generation), now.ticks()])?;
    Ok(())
}

/// Records when machines were last heard, all in one statement's worth of work each.
///
/// # Errors
/// [`StoreError`].
pub fn machines_seen(tx: &Tx<'_>, seen: &[(MachineId, Timestamp)]) -> Result<(), StoreError> {
    let mut statement =
        tx.0.prepare_cached("UPDATE machine SET last_seen = $2 WHERE id = $1 AND last_seen < $2")?;
    for (id, at) in seen {
        statement.execute(params![id.to_string(), at.ticks()])?;
    }
    Ok(())
}

/// Changes what is wanted of a machine; its generation rises by one. The new generation. Only a restriction has an
/// end: a release clears it.
///
/// # Errors
/// [`StoreError`].
pub fn machine_desire(
    tx: &Tx<'_>,
    id: MachineId,
    desired: Desired,
    policy: Option<(&str, Sha256Digest)>,
    ends_at: Option<Timestamp>,
) -> Result<u64, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "UPDATE machine SET desired_restricted = $2, desired_generation = desired_generation + 1, \
         wanted_generation = desired_generation + 1, policy_name = coalesce($3, policy_name), \
         policy_digest = coalesce($4, policy_digest), ends_at = $5, broken_glass_at = NULL WHERE id = $1 RETURNING desired_generation",
    )?;
    let mut rows = statement.query(params![
        id.to_string(),
        i64::from(desired == Desired::Restricted),
        policy.map(|(name, _)| name),
        policy.map(|(_, digest)| digest.to_string()),
        end_of(desired, ends_at)
    ])?;
    let row = rows.next()?.ok_or_else(|| StoreError::Damaged(format!("machine {id} is gone")))?;
    count(row, "desired_generation")
}

/// What becomes wanted of one of many machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesireRow {
    /// The machine.
    pub id: MachineId,
    /// Its desired generation when the change was decided upon.
    pub generation_before: u64,
    /// The policy that applies, by name and digest; the machine's own stays when there is none.
    pub policy: Option<(String, Sha256Digest)>,
    /// When the restriction ends by itself.
    pub ends_at: Option<Timestamp>,
    /// The group that the machine was in when it was read: a machine that is in another one meanwhile is not changed.
    pub group: i64,
}

/// Like [`machine_desire`], for many machines, of which none is named twice. The ids of those that were changed, in
/// the order given: the others are gone, or somebody else changed what is wanted of them meanwhile.
///
/// # Errors
/// [`StoreError`].
pub fn machine_desire_many(
    tx: &Tx<'_>,
    desired: Desired,
    rows: &[DesireRow],
) -> Result<Vec<MachineId>, StoreError> {
    let mut statement = tx.0.prepare_cached(DESIRE_IF_UNCHANGED)?;
    let mut changed = Vec::with_capacity(rows.len());
    for DesireRow { id, generation_before, policy, ends_at, group } in rows {
        let rows = statement.execute(params![
            id.to_string(),
            i64::from(desired == Desired::Restricted),
            policy.as_ref().map(|(name, _)| name),
            policy.as_ref().map(|(_, digest)| digest.to_string()),
            end_of(desired, *ends_at),
            stored(*generation_before),
            group
        ])?;
        if rows == 1 {
            changed.push(*id);
        }
    }
    Ok(changed)
}

const DESIRE_IF_UNCHANGED: &str = "UPDATE machine SET desired_restricted = $2, \
    desired_generation = desired_generation + 1, wanted_generation = desired_generation + 1, \
    policy_name = coalesce($3, policy_name), policy_digest = coalesce($4, policy_digest), ends_at = $5, \
    broken_glass_at = NULL WHERE id = $1 AND desired_generation = $6 AND +machine_group = $7";

fn end_of(desired: Desired, ends_at: Option<Timestamp>) -> Option<i64> {
    match desired {
        Desired::Restricted => ends_at.map(Timestamp::ticks),
        Desired::Released => None,
    }
}

/// Withdraws what was wanted: without a new order, the machine is wanted to be as it was last proved. A restriction
/// that it is in then has the policy of its own action, and ends when that says.
///
/// # Errors
/// [`StoreError`].
pub fn machine_desire_withdraw(tx: &Tx<'_>, id: MachineId) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "UPDATE machine SET desired_restricted = coalesce(reported_restricted, 0), \
         wanted_generation = reported_generation, ends_at = CASE WHEN reported_restricted = 1 THEN \
         (SELECT proved.ends_at FROM machine_action AS proved WHERE proved.machine = machine.id \
         AND proved.generation = machine.reported_generation ORDER BY proved.store_epoch DESC LIMIT 1) END, \
         policy_name = coalesce(CASE WHEN reported_restricted = 1 THEN \
         (SELECT proved.policy FROM machine_action AS proved WHERE proved.machine = machine.id \
         AND proved.generation = machine.reported_generation ORDER BY proved.store_epoch DESC LIMIT 1) END, \
         policy_name) WHERE id = $1",
    )?
    .execute([id.to_string()])?;
    Ok(())
}

/// Puts off the end of a restriction that has come already: it was tried to lift it, in vain.
///
/// # Errors
/// [`StoreError`].
pub fn machine_end_postpone(
    tx: &Tx<'_>,
    id: MachineId,
    now: Timestamp,
    until: Timestamp,
) -> Result<(), StoreError> {
    tx.0.prepare_cached("UPDATE machine SET ends_at = $3 WHERE id = $1 AND ends_at <= $2")?
        .execute(params![id.to_string(), now.ticks(), until.ticks()])?;
    Ok(())
}

pub(crate) fn read(row: &Row<'_>) -> Result<Machine, StoreError> {
    let tags: Option<String> = row.get("tags")?;
    let mut tags: Vec<String> = tags.iter().flat_map(|tags| tags.lines()).map(str::to_owned).collect();
    tags.sort_unstable();
    let addresses: String = row.get("ip_addresses")?;
    let tier_name: Option<String> = row.get("tier")?;
    let tier = tier_name.as_deref().and_then(Tier::from_name);
    let connected = row.get::<_, Option<i64>>("connected_at")?.is_some();
    let reported: Option<i64> = row.get("reported_restricted")?;
    Ok(Machine {
        id: parsed(row, "id")?,
        incarnation: count(row, "incarnation")?,
        system: System {
            computer_dns_name: row.get("computer_dns_name")?,
            os_platform: row.get("os_platform")?,
            os_version: row.get("os_version")?,
            os_build: row.get("os_build")?,
            os_architecture: row.get("os_architecture")?,
            agent_version: row.get("agent_version")?,
            ip_addresses: addresses.lines().filter_map(address_of).collect(),
        },
        capabilities: if connected {
            Some(Capabilities { tier, missing: row.get("tier_missing")? })
        } else {
            None
        },
        tags,
        group: row.get("machine_group")?,
        group_name: row.get("group_name")?,
        first_seen: time(row, "first_seen")?,
        last_seen: time(row, "last_seen")?,
        last_external_ip: parsed_or_none(row, "last_external_ip")?,
        restriction: Restriction {
            desired: if row.get::<_, i64>("desired_restricted")? == 1 {
                Desired::Restricted
            } else {
                Desired::Released
            },
            desired_generation: count(row, "desired_generation")?,
            wanted_generation: count(row, "wanted_generation")?,
            policy_name: row.get("policy_name")?,
            policy_digest: parsed_or_none(row, "policy_digest")?,
            ends_at: time_or_none(row, "ends_at")?,
            broken_glass_at: time_or_none(row, "broken_glass_at")?,
            reported: match reported {
                None => Reported::Unknown,
                Some(0) => Reported::Released,
                Some(_) => Reported::Restricted,
            },
            reported_generation: count(row, "reported_generation")?,
            tier,
            since: time_or_none(row, "reported_since")?,
            events_dropped: count(row, "events_dropped")?,
        },
    })
}

fn address_line(ip: &IpAddress) -> String {
    let state = if ip.up { "up" } else { "down" };
    format!("{} {} {state}", ip.address, ip.mac.as_deref().filter(|mac| !mac.is_empty()).unwrap_or("-"))
}

fn address_of(line: &str) -> Option<IpAddress> {
    let mut words = line.split(' ');
    let (address, mac, state) = (words.next()?, words.next()?, words.next()?);
    let mac = (mac != "-").then(|| mac.to_owned());
    Some(IpAddress { address: address.parse().ok()?, mac, up: state == "up" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{SORTS, plan_of};

    #[test]
    fn plans() {
        let plan = plan_of(&ending());
        assert!(plan.starts_with("SEARCH machine USING INDEX machine_ends (ends_at<?)"), "{plan}");
        assert!(!plan.contains(SORTS), "{plan}");
        let plan = plan_of(DESIRE_IF_UNCHANGED);
        assert_eq!(plan, "SEARCH machine USING INDEX sqlite_autoindex_machine_1 (id=?)");
    }
}
