//! Machines and their restriction.

use domain::digest::Sha256Digest;
use domain::machine::{Capabilities, Machine};
use domain::restriction::{Desired, Reported, Restriction, Tier};
use store::machine::{
    machine_connected, machine_desire, machine_desire_withdraw, machine_enroll, machine_fetch,
    machine_gate_key, machine_ids_by_name, machine_reported, machines_seen,
};

use crate::fixture::{Database, capabilities, enroll, machine_id, remote, second, system};

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
        first_seen: second(100),
        last_seen: second(100),
        last_external_ip: None,
        restriction: Restriction {
            desired: Desired::Released,
            desired_generation: 0,
            wanted_generation: 0,
            policy_name: None,
            policy_digest: None,
            reported: Reported::Unknown,
            reported_generation: 0,
            tier: None,
            since: None,
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
            machine_desire(tx, id, Desired::Restricted, Some(("default", digest)))?;
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
    let restrict =
        move |tx: &store::Tx<'_>| machine_desire(tx, id, Desired::Restricted, Some(("default", digest)));
    assert_eq!(database.write(restrict).await, 1);
    assert_eq!(database.write(move |tx| machine_desire(tx, id, Desired::Released, None)).await, 2);
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

    let gone = database.store.write(|tx| machine_desire(tx, machine_id(9), Desired::Released, None)).await;
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
    let twins = database.read(|tx| machine_ids_by_name(tx, "twin")).await;
    assert_eq!(twins, (0..11).map(machine_id).collect::<Vec<_>>());
    assert_eq!(database.read(|tx| machine_ids_by_name(tx, "host-20")).await, [machine_id(20)]);
    assert_eq!(database.read(|tx| machine_ids_by_name(tx, "host-%")).await, []);
}
