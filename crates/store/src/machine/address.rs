//! Which IP addresses machines had, and when, as they said when they connected.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use domain::machine::{IpAddress, Machine, MachineId};
use domain::machine_group::MachineAccess;
use domain::time::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::{COLUMNS, read};
use crate::{StoreError, Tx, access};

/// The most addresses that are kept of one machine, those of the past included.
const PER_MACHINE_MAX: u32 = 64;
/// How far from the time that is asked about a machine may have had the address.
const AROUND: Duration = Duration::from_secs(15 * 60);
/// The most machines that are found by an address.
const FOUND_MAX: u32 = 1000;
/// The most addresses that are forgotten at once.
const FORGOTTEN_MAX: u32 = 10_000;

/// Records the addresses that a machine has from `now` on, before its row says so. Those that are gone ended when it
/// was last seen.
pub(super) fn record(
    tx: &Tx<'_>,
    id: MachineId,
    addresses: &[IpAddress],
    now: Timestamp,
) -> Result<(), StoreError> {
    let machine = id.to_string();
    let last_seen: Option<i64> =
        tx.0.prepare_cached("SELECT last_seen FROM machine WHERE id = $1")?
            .query_row([&machine], |row| row.get(0))
            .optional()?;
    let Some(last_seen) = last_seen else { return Ok(()) };
    let ips = addresses.iter().map(|ip| ip.address.to_canonical()).filter(|ip| !ip.is_loopback());
    let has: BTreeSet<String> = ips.map(|ip| ip.to_string()).collect();
    // In their order, so that the same addresses are the same ones.
    let has: BTreeSet<String> = has.into_iter().take(PER_MACHINE_MAX as usize).collect();
    let had: BTreeSet<String> =
        tx.0.prepare_cached("SELECT ip FROM machine_ip WHERE machine = $1 AND until IS NULL")?
            .query_map([&machine], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
    if has == had {
        return Ok(());
    }
    let mut end = tx.0.prepare_cached(
        "UPDATE machine_ip SET until = $3 WHERE machine = $1 AND ip = $2 AND until IS NULL",
    )?;
    for ip in had.difference(&has) {
        end.execute(params![machine, ip, last_seen])?;
    }
    let mut begin = tx.0.prepare_cached(
        "INSERT INTO machine_ip (machine, ip, since) VALUES ($1, $2, $3) \
         ON CONFLICT (machine, ip, since) DO UPDATE SET until = NULL",
    )?;
    for ip in has.difference(&had) {
        begin.execute(params![machine, ip, now.ticks()])?;
    }
    // The current ones stay, and of the others the last.
    tx.0.prepare_cached(
        "DELETE FROM machine_ip WHERE machine = $1 AND (machine, ip, since) NOT IN \
         (SELECT machine, ip, since FROM machine_ip WHERE machine = $1 \
         ORDER BY CASE WHEN until IS NULL THEN 0 ELSE 1 END, until DESC, since DESC, ip LIMIT $2)",
    )?
    .execute(params![machine, PER_MACHINE_MAX])?;
    Ok(())
}

/// The machines that the caller may know of and that had an address at some time within a quarter of an hour before or
/// after `at`, by id, at most a thousand. A machine has its last addresses until it was last seen.
///
/// # Errors
/// [`StoreError`].
pub fn machines_by_ip(
    tx: &Tx<'_>,
    ip: IpAddr,
    at: Timestamp,
    access: &MachineAccess,
) -> Result<Vec<Machine>, StoreError> {
    let mut statement = tx.0.prepare_cached(&by_ip(access))?;
    let mut rows = statement.query(params![
        ip.to_canonical().to_string(),
        at.minus(AROUND).ticks(),
        at.plus(AROUND).ticks(),
        FOUND_MAX
    ])?;
    let mut machines = Vec::new();
    while let Some(row) = rows.next()? {
        machines.push(read(row)?);
    }
    Ok(machines)
}

fn by_ip(access: &MachineAccess) -> String {
    format!(
        "SELECT {COLUMNS} FROM machine WHERE id IN \
         (SELECT owner.id FROM machine_ip JOIN machine AS owner ON owner.id = machine_ip.machine \
         WHERE machine_ip.ip = $1 AND machine_ip.since <= $3 \
         AND coalesce(machine_ip.until, owner.last_seen) >= $2) \
         AND {} ORDER BY id LIMIT $4",
        access::condition(access, "+machine.machine_group")
    )
}

/// Forgets addresses that machines had until a time before this one, at most 10,000: how many.
///
/// # Errors
/// [`StoreError`].
pub fn machine_ips_forget(tx: &Tx<'_>, before: Timestamp) -> Result<usize, StoreError> {
    let forgotten =
        tx.0.prepare_cached(
            "DELETE FROM machine_ip WHERE (machine, ip, since) IN \
             (SELECT machine, ip, since FROM machine_ip WHERE until < $1 LIMIT $2)",
        )?
        .execute(params![before.ticks(), FORGOTTEN_MAX])?;
    Ok(forgotten)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::plan_of;

    #[test]
    fn machines_are_found_by_the_address() {
        for access in [MachineAccess::All, MachineAccess::Groups(vec![1, 2])] {
            let plan = plan_of(&by_ip(&access));
            assert!(
                plan.starts_with("SEARCH machine USING INDEX sqlite_autoindex_machine_1 (id=?)"),
                "{plan}"
            );
            assert!(
                plan.contains("SEARCH machine_ip USING INDEX machine_ip_ip (ip=? AND since<?)"),
                "{plan}"
            );
            assert!(!plan.contains("SCAN"), "{plan}");
        }
    }
}
