//! Many machines and their actions at once: the same as one by one.

use std::collections::HashMap;

use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::machine_action::{Cancellation, MachineAction, MachineActionId, Phase};
use domain::restriction::Desired;
use store::StoreError;
use store::machine::{
    DesireRow, machine_desire, machine_desire_many, machine_fetch_many, machine_group_assign,
};
use store::machine_action::{
    bulk_machines, machine_action_create, machine_action_create_many, machine_action_fetch,
    machine_action_open_many, machine_action_order, machine_action_supersede_many,
};
use store::machine_group::machine_group_create;
use uuid::Uuid;

use crate::fixture::{Database, action, enroll, group, machine_id, second};

const MACHINES: u32 = 2300;

/// A database with machines.
async fn with_machines() -> (Database, Vec<MachineId>) {
    let database = Database::new();
    let machines = database.write(|tx| (0..MACHINES).map(|number| enroll(tx, number)).collect()).await;
    (database, machines)
}

/// An action of each machine, and its order.
fn actions(machines: &[MachineId], generation: u64) -> Vec<(MachineAction, String)> {
    let bulk = Some(Uuid::from_u128(7));
    let ends_at = Some(second(9000));
    let made = |machine: &MachineId| MachineAction { bulk, ends_at, ..action(*machine, generation) };
    machines.iter().map(|machine| (made(machine), format!("order of {machine}"))).collect()
}

#[tokio::test]
async fn actions_of_thousands_are_made_and_superseded() {
    let (database, machines) = with_machines().await;
    let mut first = actions(&machines, 1);
    // These have none that is open.
    for (action, _) in first.iter_mut().take(10) {
        action.phase = Phase::Enforced;
    }
    let created = first.clone();
    database
        .write(move |tx| machine_action_create_many(tx, &created).and(machine_action_create_many(tx, &[])))
        .await;
    let (probe, order) = first[2000].clone();
    let id = probe.id;
    let kept =
        database.read(move |tx| Ok((machine_action_fetch(tx, id)?, machine_action_order(tx, id)?))).await;
    assert_eq!(kept, (Some(probe), order));

    let asked: Vec<_> = machines.iter().copied().chain([machine_id(99_999)]).collect();
    let mut open = database.read(move |tx| machine_action_open_many(tx, &asked)).await;
    open.sort_by_key(|action| action.machine);
    assert!(open.iter().eq(first[10..].iter().map(|(action, _)| action)));

    // All but the last get a newer action.
    let newer = actions(&machines[..machines.len() - 1], 2);
    let (made, of) = (newer.clone(), machines.clone());
    let (open, fetched) = database
        .write(move |tx| {
            let named: Vec<_> = made.iter().map(|(action, _)| (action.machine, action.id)).collect();
            machine_action_supersede_many(tx, &named, "soar", second(5000))?;
            machine_action_create_many(tx, &made)?;
            let fetched: Result<Vec<_>, StoreError> =
                first.iter().map(|(action, _)| machine_action_fetch(tx, action.id)).collect();
            Ok((machine_action_open_many(tx, &of)?, first.into_iter().zip(fetched?).collect::<Vec<_>>()))
        })
        .await;
    assert_eq!(open.len(), machines.len());
    for (index, ((before, _), after)) in fetched.into_iter().enumerate() {
        let expected = match newer.get(index) {
            Some((newer, _)) if index >= 10 => MachineAction {
                phase: Phase::Superseded,
                updated_at: second(5000),
                cancellation: Some(Cancellation {
                    requestor: "soar".to_owned(),
                    comment: format!("superseded by action {}", newer.id.0),
                    at: second(5000),
                }),
                ..before
            },
            _ => before,
        };
        assert_eq!(after, Some(expected), "machine {index}");
    }
}

#[tokio::test]
async fn of_actions_made_together_all_or_none_are_made() {
    let (database, machines) = with_machines().await;
    let busy = action(machines[2200], 1);
    database.write(move |tx| machine_action_create(tx, &busy, "order")).await;
    let made = actions(&machines, 2);
    let refused = database.store.write(move |tx| machine_action_create_many(tx, &made)).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");
    assert_eq!(database.read(move |tx| machine_action_open_many(tx, &machines)).await.len(), 1);
}

#[tokio::test]
async fn what_is_wanted_of_thousands_changes_as_of_one_unless_it_changed_meanwhile() {
    let (database, machines) = with_machines().await;
    let row = |id: MachineId, number: u8| DesireRow {
        id,
        generation_before: 0,
        policy: number.is_multiple_of(2).then(|| (format!("policy-{number}"), Sha256Digest([number; 32]))),
        ends_at: number.is_multiple_of(3).then(|| second(9000 + i64::from(number))),
        group: 0,
    };
    let rows: Vec<_> = (0_u8..200).cycle().zip(&machines).map(|(number, id)| row(*id, number)).collect();
    let (meanwhile, gone) = ([machines[5], machines[2250]], row(machine_id(99_999), 1));
    let all = rows.clone();
    let mut changed = database
        .write(move |tx| {
            for id in meanwhile {
                machine_desire(tx, id, Desired::Released, None, None)?;
            }
            machine_desire_many(tx, Desired::Restricted, &[all, vec![gone]].concat())
        })
        .await;
    changed.sort_unstable();
    let expected: Vec<_> = machines.iter().copied().filter(|id| !meanwhile.contains(id)).collect();
    assert_eq!(changed, expected);

    // Another database, one by one.
    let (single, _) = with_machines().await;
    single
        .write(move |tx| {
            for row in rows {
                let policy = row.policy.as_ref().map(|(name, digest)| (name.as_str(), *digest));
                if meanwhile.contains(&row.id) {
                    machine_desire(tx, row.id, Desired::Released, None, None)?;
                } else {
                    machine_desire(tx, row.id, Desired::Restricted, policy, row.ends_at)?;
                }
            }
            Ok(())
        })
        .await;
    let all = async |database: &Database| {
        let machines = machines.clone();
        database.read(move |tx| machine_fetch_many(tx, &machines)).await
    };
    assert_eq!(all(&database).await, all(&single).await);

    // Released again, with ends that a release has not: the policy stays.
    let release: Vec<_> = machines
        .iter()
        .map(|id| DesireRow {
            id: *id,
            generation_before: 1,
            policy: None,
            ends_at: Some(second(1)),
            group: 0,
        })
        .collect();
    let changed = database.write(move |tx| machine_desire_many(tx, Desired::Released, &release)).await;
    assert_eq!(changed.len(), machines.len());
    let of = machines.clone();
    single
        .write(move |tx| {
            of.iter().try_for_each(|id| machine_desire(tx, *id, Desired::Released, None, None).map(drop))
        })
        .await;
    assert_eq!(all(&database).await, all(&single).await);
    assert_eq!(database.write(|tx| machine_desire_many(tx, Desired::Released, &[])).await, []);
}

#[tokio::test]
async fn machines_of_bulk_calls_are_counted_once_by_their_group_of_today() {
    let database = Database::new();
    let lab = database
        .write(|tx| {
            let lab = machine_group_create(tx, &group("lab", 1))?;
            let bulk = Some(Uuid::from_u128(7));
            let make = |number, generation, requestor: &str, bulk, at| {
                let made = MachineAction {
                    id: MachineActionId(Uuid::new_v4()),
                    phase: Phase::Cancelled,
                    requestor: requestor.to_owned(),
                    bulk,
                    created_at: second(at),
                    ..action(machine_id(number), generation)
                };
                machine_action_create(tx, &made, "order")
            };
            for number in 1..=5 {
                enroll(tx, number)?;
            }
            make(1, 1, "soar", bulk, 100)?;
            make(1, 2, "soar", bulk, 200)?;
            make(2, 1, "soar", bulk, 100)?;
            make(3, 1, "soar", bulk, 99)?;
            make(4, 1, "soar", None, 150)?;
            make(5, 1, "other", bulk, 150)?;
            make(5, 2, "soar", bulk, 150)?;
            machine_group_assign(tx, &[(machine_id(2), lab), (machine_id(3), lab)])?;
            Ok(lab)
        })
        .await;
    for (requestor, since, expected) in [
        ("soar", 100, HashMap::from([(0, 2), (lab, 1)])),
        ("soar", 99, HashMap::from([(0, 2), (lab, 2)])),
        ("soar", 151, HashMap::from([(0, 1)])),
        ("other", 0, HashMap::from([(0, 1)])),
        ("nobody", 0, HashMap::new()),
    ] {
        let machines = database.read(move |tx| bulk_machines(tx, requestor, second(since))).await;
        let mut counts = HashMap::new();
        for group in machines.into_values() {
            *counts.entry(group).or_insert(0) += 1;
        }
        assert_eq!(counts, expected, "{requestor} {since}");
    }
}
