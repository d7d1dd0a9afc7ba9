//! Machines and their restriction.

use domain::digest::Sha256Digest;
use domain::machine::{Capabilities, Machine};
use domain::machine_group::{MachineAccess, UNGROUPED};
use domain::restriction::{Desired, Reported, Restriction, Tier};
use store::machine::{
    machine_connected, machine_desire, machine_desire_withdraw, machine_enroll, machine_fetch,
    machine_fetch_many, machine_gate_key, machine_group_assign, machine_ids_by_name, machine_reported,
    machine_tag_add, machine_tag_count, machine_tag_remove, machines_ending, machines_seen,
};
use store::machine_group::machine_group_create;

use crate::fixture::{Database, capabilities, enroll, group, machine_id, remote, second, system};

#[tokio::test]
async fn a_machine_is_kept_as_it_enrolled_and_connected() {
    let database = Database::new();
    let id = database.write(|tx| enroll(tx, 1)).await;
    let enrolled = database.read(move |tx| machine_fetch(tx, id)).await.unwrap();
    let expected = Machine {
        id,
        incarnation: 1,
        system: domain::machine::System { computer_dns_name: "host-1".to_owned(), ..Default::default() },
        capabilities: None,
        tags: vec![],
        group: 0,
        group_name: UNGROUPED.to_owned(),
        first_seen: second(100),
        last_seen: second(100),
        last_external_ip: None,
        restriction: Restriction {
            desired: Desired::Released,
            desired_generation: 0,
            wanted_generation: 0,
            policy_name: None,
            policy_digest: None,
            ends_at: None,
            broken_glass_at: None,
            reported: Reported::Unknown,
            reported_generation: 0,
            tier: None,
            since: None,
            events_dropped: 0,
        },
    };
    assert_eq!(enrolled, expected);

    database
        .write(move |tx| machine_connected(tx, id, &system(), &capabilities(), remote(), second(200)))
        .await;
    let database = database.reopened();
    let connected = database.read(move |tx| machine_fetch(tx, id)).await.unwrap();
    let restriction = Restriction { tier: Some(Tier::Fanotify), ..expected.restriction.clone() };
    let expected = Machine {
        system: system(),
        capabilities: Some(capabilities()),
        last_seen: second(200),
        last_external_ip: Some(remote()),
        restriction,
        ..expected
    };
    assert_eq!(connected, expected);

    let nothing = Capabilities { tier: None, missing: Some("no fanotify in this kernel".to_owned()) };
    let said = nothing.clone();
    database.write(move |tx| machine_connected(tx, id, &system(), &said, remote(), second(300))).await;
    let machine = database.read(move |tx| machine_fetch(tx, id)).await.unwrap();
    assert_eq!((machine.capabilities, machine.restriction.tier), (Some(nothing), None));
    assert_eq!(database.read(|tx| machine_fetch(tx, machine_id(2))).await, None);
}

#[tokio::test]
async fn enrolling_again_counts_the_incarnation_and_keeps_what_is_wanted() {
    let database = Database::new();
    let id = database.write(|tx| enroll(tx, 1)).await;
    let digest = Sha256Digest([5; 32]);
    database
        .write(move |tx| {
            machine_desire(tx, id, Desired::Restricted, Some(("default", digest)), None)?;
            machine_reported(tx, id, Reported::Restricted, 1, second(150))
        })
        .await;
    let incarnation =
        database.write(move |tx| machine_enroll(tx, id, "another-key", "renamed", second(300))).await;
    assert_eq!(incarnation, 2);
    let machine = database.read(move |tx| machine_fetch(tx, id)).await.unwrap();
    assert_eq!((machine.incarnation, machine.system.computer_dns_name.as_str()), (2, "renamed"));
    assert_eq!((machine.first_seen, machine.last_seen), (second(100), second(300)));
    let restriction = machine.restriction;
    assert_eq!((restriction.desired, restriction.wanted_generation), (Desired::Restricted, 1));
    assert_eq!(
        (restriction.reported, restriction.reported_generation, restriction.since),
        (Reported::Unknown, 0, None)
    );
    assert_eq!(database.read(move |tx| machine_gate_key(tx, id)).await.as_deref(), Some("another-key"));
    assert_eq!(database.read(|tx| machine_gate_key(tx, machine_id(9))).await, None);
}

#[tokio::test]
async fn what_is_wanted_rises_by_one_and_can_be_withdrawn() {
    let database = Database::new();
    let id = database.write(|tx| enroll(tx, 1)).await;
    let digest = Sha256Digest([5; 32]);
    let restrict = move |tx: &store::Tx<'_>| {
        machine_desire(tx, id, Desired::Restricted, Some(("default", digest)), None)
    };
    assert_eq!(database.write(restrict).await, 1);
    assert_eq!(database.write(move |tx| machine_desire(tx, id, Desired::Released, None, None)).await, 2);
    let restriction = database.read(move |tx| machine_fetch(tx, id)).await.unwrap().restriction;
    assert_eq!(
        (restriction.desired, restriction.desired_generation, restriction.wanted_generation),
        (Desired::Released, 2, 2)
    );
    assert_eq!(
        (restriction.policy_name.as_deref(), restriction.policy_digest),
        (Some("default"), Some(digest))
    );

    assert_eq!(database.write(restrict).await, 3);
    database
        .write(move |tx| {
            machine_reported(tx, id, Reported::Released, 2, second(150))?;
            machine_desire_withdraw(tx, id)
        })
        .await;
    let restriction = database.read(move |tx| machine_fetch(tx, id)).await.unwrap().restriction;
    assert_eq!(
        (restriction.desired, restriction.desired_generation, restriction.wanted_generation),
        (Desired::Released, 3, 2)
    );
    assert!(!restriction.drifts());

    let gone =
        database.store.write(|tx| machine_desire(tx, machine_id(9), Desired::Released, None, None)).await;
    assert!(gone.is_err(), "{gone:?}");
}

#[tokio::test]
async fn the_reported_state_has_a_since_that_moves_with_it_only() {
    let database = Database::new();
    let id = database.write(|tx| enroll(tx, 1)).await;
    for (reported, generation, at, since) in [
        (Reported::Released, 0, 200, 200),
        (Reported::Released, 1, 210, 200),
        (Reported::Restricted, 2, 220, 220),
        (Reported::Restricted, 3, 230, 220),
        (Reported::Released, 4, 240, 240),
    ] {
        database.write(move |tx| machine_reported(tx, id, reported, generation, second(at))).await;
        let machine = database.read(move |tx| machine_fetch(tx, id)).await.unwrap();
        let restriction = machine.restriction;
        assert_eq!((restriction.reported, restriction.reported_generation), (reported, generation));
        assert_eq!((restriction.since, machine.last_seen), (Some(second(since)), second(at)));
    }
}

#[tokio::test]
async fn last_seen_never_goes_back() {
    let database = Database::new();
    let (one, two) = database.write(|tx| Ok((enroll(tx, 1)?, enroll(tx, 2)?))).await;
    database
        .write(move |tx| {
            machines_seen(tx, &[(one, second(300)), (two, second(50)), (machine_id(9), second(1))])
        })
        .await;
    let seen = database
        .read(move |tx| {
            Ok([machine_fetch(tx, one)?, machine_fetch(tx, two)?].map(|machine| machine.unwrap().last_seen))
        })
        .await;
    assert_eq!(seen, [second(300), second(100)]);
}

#[tokio::test]
async fn machines_of_one_name_are_found_up_to_eleven() {
    let database = Database::new();
    database
        .write(|tx| {
            for number in 0..15 {
                machine_enroll(tx, machine_id(number), "key", "twin", second(1))?;
            }
            enroll(tx, 20)
        })
        .await;
    let twins = database.read(|tx| machine_ids_by_name(tx, "twin", &MachineAccess::All)).await;
    assert_eq!(twins, (0..11).map(machine_id).collect::<Vec<_>>());
    assert_eq!(
        database.read(|tx| machine_ids_by_name(tx, "host-20", &MachineAccess::All)).await,
        [machine_id(20)]
    );
    assert_eq!(database.read(|tx| machine_ids_by_name(tx, "host-%", &MachineAccess::All)).await, []);
}

#[tokio::test]
async fn a_name_finds_only_machines_that_may_be_known() {
    let database = Database::new();
    let lab = database
        .write(|tx| {
            for number in 0..15 {
                machine_enroll(tx, machine_id(number), "key", "twin", second(1))?;
            }
            let lab = machine_group_create(tx, &group("lab", 1))?;
            machine_group_assign(tx, &[(machine_id(3), lab), (machine_id(14), lab)])?;
            Ok(lab)
        })
        .await;
    for (access, expected) in [
        (MachineAccess::Groups(vec![lab]), vec![3, 14]),
        (MachineAccess::Groups(vec![]), vec![]),
        (MachineAccess::Groups(vec![lab, 0]), (0..11).collect()),
    ] {
        let found = database.read(move |tx| machine_ids_by_name(tx, "twin", &access)).await;
        assert_eq!(found, expected.into_iter().map(machine_id).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn many_machines_are_fetched_by_their_ids() {
    let database = Database::new();
    database.write(|tx| (0..1500).try_for_each(|number| enroll(tx, number).map(drop))).await;
    let ids: Vec<_> = (0..1700).rev().chain(0..10).map(machine_id).collect();
    let machines = database.read(move |tx| machine_fetch_many(tx, &ids)).await;
    assert!(machines.iter().map(|machine| machine.id).eq((0..1500).map(machine_id)));
    let one = database.read(|tx| machine_fetch(tx, machine_id(7))).await;
    assert_eq!(machines.get(7), one.as_ref());
    assert_eq!(database.read(|tx| machine_fetch_many(tx, &[])).await, []);
}

#[tokio::test]
async fn restrictions_that_end_are_named_longest_overdue_first() {
    let database = Database::new();
    database
        .write(|tx| {
            for (number, ends_at) in [(1, Some(50)), (2, Some(40)), (3, Some(51)), (4, None), (5, Some(30))] {
                let id = enroll(tx, number)?;
                machine_desire(tx, id, Desired::Restricted, None, ends_at.map(second))?;
            }
            // A release has no end, whatever is said.
            machine_desire(tx, machine_id(5), Desired::Released, None, Some(second(30))).map(drop)
        })
        .await;
    let ending = database.read(|tx| machines_ending(tx, second(50))).await;
    assert_eq!(ending.iter().map(|machine| machine.id).collect::<Vec<_>>(), [machine_id(2), machine_id(1)]);
    assert_eq!(ending[0].restriction.ends_at, Some(second(40)));
    let released = database.read(|tx| machine_fetch(tx, machine_id(5))).await.unwrap();
    assert_eq!(released.restriction.ends_at, None);

    database
        .write(|tx| {
            (100..250).try_for_each(|number| {
                let id = enroll(tx, number)?;
                machine_desire(tx, id, Desired::Restricted, None, Some(second(1))).map(drop)
            })
        })
        .await;
    assert_eq!(database.read(|tx| machines_ending(tx, second(50))).await.len(), 100);
}

#[tokio::test]
async fn a_machine_has_each_tag_once() {
    let database = Database::new();
    let id = database.write(|tx| enroll(tx, 1)).await;
    for (tag, added) in [("b", true), ("a", true), ("b", false), ("B", true)] {
        assert_eq!(database.write(move |tx| machine_tag_add(tx, id, tag)).await, added, "{tag}");
    }
    let machine = database.read(move |tx| machine_fetch(tx, id)).await.unwrap();
    assert_eq!(machine.tags, ["B", "a", "b"]);
    assert_eq!(database.read(move |tx| machine_tag_count(tx, id)).await, 3);
    for removed in [true, false] {
        assert_eq!(database.write(move |tx| machine_tag_remove(tx, id, "a")).await, removed);
    }
    assert_eq!(database.read(move |tx| machine_tag_count(tx, id)).await, 2);
    assert_eq!(database.read(|tx| machine_tag_count(tx, machine_id(9))).await, 0);
    let unknown = database.store.write(|tx| machine_tag_add(tx, machine_id(9), "a")).await;
    assert!(unknown.is_err(), "{unknown:?}");
}
