//! Which machines had an address, and when.

use std::net::IpAddr;

use domain::machine::{IpAddress, MachineId, System};
use domain::machine_group::MachineAccess;
use store::machine::{
    machine_connected, machine_fetch, machine_group_assign, machine_ips_forget, machines_by_ip, machines_seen,
};
use store::machine_group::machine_group_create;
use store::{StoreError, Tx};

use crate::fixture::{Database, capabilities, enroll, group, machine_id, remote, second, system};

/// How far around a time machines are found, in seconds.
const AROUND: i64 = 15 * 60;

fn connect(tx: &Tx<'_>, id: MachineId, addresses: &[&str], at: i64) -> Result<(), StoreError> {
    let ip_addresses = addresses
        .iter()
        .map(|address| IpAddress { address: address.parse().unwrap(), mac: None, up: true })
        .collect();
    machine_connected(tx, id, &System { ip_addresses, ..system() }, &capabilities(), remote(), second(at))
}

async fn found(database: &Database, ip: &str, at: i64, access: MachineAccess) -> Vec<MachineId> {
    let ip: IpAddr = ip.parse().unwrap();
    let machines = database.read(move |tx| machines_by_ip(tx, ip, second(at), &access)).await;
    machines.into_iter().map(|machine| machine.id).collect()
}

#[tokio::test]
async fn a_machine_has_an_address_from_its_connection_until_it_was_last_seen() {
    let database = Database::new();
    let id = database
        .write(|tx| {
            let id = enroll(tx, 1)?;
            connect(tx, id, &["127.0.0.1", "::1", "10.0.0.4", "::ffff:10.0.0.5"], 10_000)?;
            machines_seen(tx, &[(id, second(20_000))])?;
            Ok(id)
        })
        .await;
    // It is still there: until it was last seen.
    for (ip, at, is) in [
        ("10.0.0.4", 10_000 - AROUND - 1, false),
        ("10.0.0.4", 10_000 - AROUND, true),
        ("10.0.0.4", 15_000, true),
        ("10.0.0.4", 20_000 + AROUND, true),
        ("10.0.0.4", 20_000 + AROUND + 1, false),
        ("10.0.0.5", 15_000, true),
        ("::ffff:10.0.0.4", 15_000, true),
        ("10.0.0.6", 15_000, false),
        ("127.0.0.1", 15_000, false),
        ("::1", 15_000, false),
    ] {
        let found = found(&database, ip, at, MachineAccess::All).await;
        assert_eq!(found, if is { vec![id] } else { vec![] }, "{ip} {at}");
    }

    // Later with one address less and another more.
    database
        .write(move |tx| {
            connect(tx, id, &["10.0.0.4", "fe80::1"], 100_000)?;
            machines_seen(tx, &[(id, second(200_000))])
        })
        .await;
    let database = database.reopened();
    for (ip, at, is) in [
        ("10.0.0.5", 20_000 + AROUND, true),
        ("10.0.0.5", 20_000 + AROUND + 1, false),
        ("10.0.0.5", 100_000, false),
        ("10.0.0.4", 10_000, true),
        ("10.0.0.4", 50_000, true),
        ("10.0.0.4", 200_000, true),
        ("fe80::1", 100_000 - AROUND - 1, false),
        ("FE80:0::1", 200_000, true),
    ] {
        let found = found(&database, ip, at, MachineAccess::All).await;
        assert_eq!(found, if is { vec![id] } else { vec![] }, "{ip} {at}");
    }
    // The machine comes whole.
    let by_ip = database
        .read(|tx| machines_by_ip(tx, "fe80::1".parse().unwrap(), second(200_000), &MachineAccess::All))
        .await;
    assert_eq!(by_ip.first(), database.read(move |tx| machine_fetch(tx, id)).await.as_ref());
}

#[tokio::test]
async fn an_address_goes_from_machine_to_machine_and_back() {
    let database = Database::new();
    let lab = database
        .write(|tx| {
            let (one, two) = (enroll(tx, 1)?, enroll(tx, 2)?);
            connect(tx, one, &["10.0.0.4"], 10_000)?;
            connect(tx, one, &[], 20_000)?;
            connect(tx, two, &["10.0.0.4"], 20_000)?;
            connect(tx, two, &["10.0.0.9"], 30_000)?;
            connect(tx, one, &["10.0.0.4"], 40_000)?;
            let lab = machine_group_create(tx, &group("lab", 1))?;
            machine_group_assign(tx, &[(two, lab)])?;
            Ok(lab)
        })
        .await;
    // Nobody was seen between the connections.
    for (at, expected) in [
        (10_000, &[1][..]),
        (15_000, &[]),
        (20_000, &[2]),
        (40_000, &[1]),
        (20_000 + AROUND, &[2]),
        (20_000 + AROUND + 1, &[]),
    ] {
        let expected: Vec<_> = expected.iter().copied().map(machine_id).collect();
        assert_eq!(found(&database, "10.0.0.4", at, MachineAccess::All).await, expected, "{at}");
    }
    for (groups, at, expected) in
        [(vec![lab], 20_000, vec![machine_id(2)]), (vec![lab], 10_000, vec![]), (vec![], 20_000, vec![])]
    {
        assert_eq!(found(&database, "10.0.0.4", at, MachineAccess::Groups(groups)).await, expected);
    }
}

#[tokio::test]
async fn at_most_64_addresses_of_a_machine_are_kept_the_current_ones_first() {
    let database = Database::new();
    let id = database.write(|tx| enroll(tx, 1)).await;
    let count = || {
        let of_it = "SELECT count(*), count(until), min(since) / 10000000 FROM machine_ip";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        database.outside().query_row(of_it, [], row).unwrap()
    };
    // A new address with each connection, and one that stays.
    database
        .write(move |tx| {
            (1..=100)
                .try_for_each(|number| connect(tx, id, &["10.9.9.9", &format!("10.0.0.{number}")], number))
        })
        .await;
    assert_eq!(count(), (64_u32, 62_u32, 1_i64));
    let kept = found(&database, "10.0.0.38", 38, MachineAccess::All).await;
    assert_eq!((kept, found(&database, "10.0.0.37", 37, MachineAccess::All).await), (vec![id], vec![]));

    // More at once.
    let many: Vec<_> = (0..200).map(|number| format!("10.1.0.{number}")).collect();
    database
        .write(move |tx| connect(tx, id, &many.iter().map(String::as_str).collect::<Vec<_>>(), 500))
        .await;
    assert_eq!(count(), (64, 0, 500));
}

#[tokio::test]
async fn addresses_of_the_past_are_forgotten() {
    let database = Database::new();
    database
        .write(|tx| {
            for number in 0..300 {
                let id = enroll(tx, number)?;
                for address in 0..40 {
                    connect(tx, id, &[&format!("10.0.0.{address}")], 1000 + address)?;
                }
            }
            Ok(())
        })
        .await;
    // The last address is current, the one before ended at 1038.
    for forgotten in [10_000, 300 * 38 - 10_000, 0] {
        assert_eq!(database.write(|tx| machine_ips_forget(tx, second(1038))).await, forgotten);
    }
    assert_eq!(found(&database, "10.0.0.37", 1037, MachineAccess::All).await, []);
    assert_eq!(found(&database, "10.0.0.38", 1038, MachineAccess::All).await.len(), 300);
    assert_eq!(found(&database, "10.0.0.39", 1039, MachineAccess::All).await.len(), 300);
}
