//! Machines and their restriction.

use std::net::IpAddr;

use domain::digest::Sha256Digest;
use domain::machine::{Capabilities, IpAddress, Machine, MachineId, System};
use domain::restriction::{Desired, Reported, Restriction, Tier};
use domain::time::Timestamp;
use rusqlite::{OptionalExtension as _, Row, named_params, params};

use crate::row::{count, parsed, parsed_or_none, stored, time, time_or_none};
use crate::{StoreError, Tx};

pub(crate) const COLUMNS: &str = "id, incarnation, computer_dns_name, os_platform, os_version, os_build, \
    os_architecture, agent_version, ip_addresses, last_external_ip, connected_at, tier, tier_missing, first_seen, \
    last_seen, desired_restricted, desired_generation, wanted_generation, policy_name, policy_digest, reported_restricted, \
    reported_generation, reported_since, \
    (SELECT group_concat(tag, char(10)) FROM machine_tag WHERE machine_tag.machine = machine.id) AS tags";

/// The machine with this id.
///
/// # Errors
/// [`StoreError`].
pub fn machine_fetch(tx: &Tx<'_>, id: MachineId) -> Result<Option<Machine>, StoreError> {
    let mut statement = tx.0.prepare_cached(&format!("SELECT {COLUMNS} FROM machine WHERE id = $1"))?;
    let mut rows = statement.query([id.to_string()])?;
    rows.next()?.map(read).transpose()
}

/// The ids of the machines with this DNS name, at most eleven: more than ten are too many to list to a person.
///
/// # Errors
/// [`StoreError`].
pub fn machine_ids_by_name(tx: &Tx<'_>, name: &str) -> Result<Vec<MachineId>, StoreError> {
    let mut statement =
        tx.0.prepare_cached("SELECT id FROM machine WHERE computer_dns_name = $1 ORDER BY id LIMIT 11")?;
    let mut rows = statement.query([name])?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        ids.push(parsed(row, "id")?);
    }
    Ok(ids)
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
    tx.0.prepare_cached(
        "UPDATE machine SET computer_dns_name = :name, os_platform = :platform, os_version = :version, \
         os_build = :build, os_architecture = :architecture, agent_version = :agent, ip_addresses = :addresses, \
         last_ip_address = :last_ip, last_external_ip = :remote, connected_at = :now, last_seen = :now, \
         tier = :tier, tier_missing = :missing WHERE id = :id",
    )?
    .execute(named_params! {
        ":name": system.computer_dns_name,
        ":platform": system.os_platform,
        ":version": system.os_version,
        ":build": system.os_build,
        ":architecture": system.os_architecture,
        ":agent": system.agent_version,
        ":addresses": addresses.join("\n"),
        ":last_ip": last_ip.map(|ip| ip.address.to_string()),
        ":remote": remote.to_string(),
        ":now": now.ticks(),
        ":tier": capabilities.tier.map(Tier::name),
        ":missing": capabilities.missing,
        ":id": id.to_string(),
    })?;
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
        "UPDATE machine SET reported_since = CASE WHEN reported_restricted IS $2 THEN reported_since ELSE $4 END, \
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

/// Changes what is wanted of a machine; its generation rises by one. The new generation.
///
/// # Errors
/// [`StoreError`].
pub fn machine_desire(
    tx: &Tx<'_>,
    id: MachineId,
    desired: Desired,
    policy: Option<(&str, Sha256Digest)>,
) -> Result<u64, StoreError> {
    let mut statement = tx.0.prepare_cached(
        "UPDATE machine SET desired_restricted = $2, desired_generation = desired_generation + 1, \
         wanted_generation = desired_generation + 1, \
         policy_name = coalesce($3, policy_name), policy_digest = coalesce($4, policy_digest) WHERE id = $1 \
         RETURNING desired_generation",
    )?;
    let restricted = i64::from(desired == Desired::Restricted);
    let mut rows = statement.query(params![
        id.to_string(),
        restricted,
        policy.map(|(name, _)| name),
        policy.map(|(_, digest)| digest.to_string())
    ])?;
    let row = rows.next()?.ok_or_else(|| StoreError::Damaged(format!("machine {id} is gone")))?;
    count(row, "desired_generation")
}

/// Withdraws what was wanted: without a new order, the machine is wanted to be as it was last proved.
///
/// # Errors
/// [`StoreError`].
pub fn machine_desire_withdraw(tx: &Tx<'_>, id: MachineId) -> Result<(), StoreError> {
    tx.0.prepare_cached(
        "UPDATE machine SET desired_restricted = coalesce(reported_restricted, 0), \
         wanted_generation = reported_generation WHERE id = $1",
    )?
    .execute([id.to_string()])?;
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
            reported: match reported {
                None => Reported::Unknown,
                Some(0) => Reported::Released,
                Some(_) => Reported::Restricted,
            },
            reported_generation: count(row, "reported_generation")?,
            tier,
            since: time_or_none(row, "reported_since")?,
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
