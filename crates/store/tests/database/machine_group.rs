//! Machine groups, and the machines in them.

use std::collections::HashMap;

use domain::machine_group::{Condition, MachineGroup, RuleOperator, RuleProperty, UNGROUPED, UNGROUPED_ID};
use store::StoreError;
use store::machine::{
    MachineFacts, machine_facts, machine_fetch, machine_group_assign, machine_group_sizes, machine_tag_add,
};
use store::machine_group::{
    machine_group_create, machine_group_delete, machine_group_list, machine_group_ranks_set,
    machine_group_update,
};

use crate::fixture::{Database, enroll, group, machine_id};

fn ungrouped() -> MachineGroup {
    MachineGroup { id: UNGROUPED_ID, rank: None, ..group(UNGROUPED, 1) }
}

fn condition(property: RuleProperty, operator: RuleOperator, value: &str) -> Condition {
    Condition { property, operator, value: value.to_owned() }
}

#[tokio::test]
async fn groups_are_listed_by_rank_and_the_ungrouped_last() {
    let database = Database::new();
    assert_eq!(database.read(machine_group_list).await, [ungrouped()]);
    let mut servers = MachineGroup {
        description: "it's \"them\"".to_owned(),
        rule: RuleProperty::ALL
            .into_iter()
            .zip(RuleOperator::ALL)
            .map(|(property, operator)| condition(property, operator, "a%'"))
            .collect(),
        user_groups: vec!["Ops".to_owned(), "soc".to_owned()],
        policy: Some("servers".to_owned()),
        ..group("servers", 2)
    };
    let mut lab = group("lab", 1);
    let created = servers.clone();
    servers.id = database.write(move |tx| machine_group_create(tx, &created)).await;
    let created = lab.clone();
    lab.id = database.write(move |tx| machine_group_create(tx, &created)).await;
    let database = database.reopened();
    assert_eq!(database.read(machine_group_list).await, [lab.clone(), servers.clone(), ungrouped()]);

    for taken in [group("lab", 3), group("new", 2)] {
        let refused = database.store.write(move |tx| machine_group_create(tx, &taken)).await;
        assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");
    }
    let taken = MachineGroup { name: "servers".to_owned(), ..lab.clone() };
    let refused = database.store.write(move |tx| machine_group_update(tx, &taken)).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");

    // Twice the same condition is the condition; the rank is not changed this way.
    let changed = MachineGroup {
        name: "machines of the lab".to_owned(),
        rule: vec![condition(RuleProperty::Tag, RuleOperator::Equals, "x")],
        user_groups: vec!["soc".to_owned()],
        policy: None,
        ..servers
    };
    let update = MachineGroup { rank: Some(1), rule: [&changed.rule[..]; 2].concat(), ..changed.clone() };
    let everybody = MachineGroup { user_groups: vec!["all".to_owned()], ..ungrouped() };
    let of_ungrouped = everybody.clone();
    database
        .write(move |tx| machine_group_update(tx, &update).and(machine_group_update(tx, &of_ungrouped)))
        .await;
    // One that is not there.
    database.write(|tx| machine_group_update(tx, &MachineGroup { id: 99, ..group("gone", 9) })).await;
    assert_eq!(database.read(machine_group_list).await, [lab, changed, everybody]);
}

#[tokio::test]
async fn ranks_are_changed_together() {
    let database = Database::new();
    let ids = database
        .write(|tx| (1..=4).map(|rank| machine_group_create(tx, &group(&rank.to_string(), rank))).collect())
        .await;
    let [a, b, c, d]: [i64; 4] = Vec::try_into(ids).unwrap();
    let listed = async || {
        let groups = database.read(machine_group_list).await;
        groups.iter().map(|group| (group.id, group.rank)).collect::<Vec<_>>()
    };
    // The last becomes the first, and all others move.
    database.write(move |tx| machine_group_ranks_set(tx, &[(d, 1), (a, 2), (b, 3), (c, 4), (0, 5)])).await;
    let expected = [(d, Some(1)), (a, Some(2)), (b, Some(3)), (c, Some(4)), (0, None)];
    assert_eq!(listed().await, expected);
    for twice in [[(a, 7), (b, 7)], [(a, 3), (c, 1)]] {
        let refused = database.store.write(move |tx| machine_group_ranks_set(tx, &twice)).await;
        assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");
    }
    assert_eq!(listed().await, expected);
}

#[tokio::test]
async fn machines_of_a_deleted_group_are_ungrouped_and_its_id_is_never_given_again() {
    let database = Database::new();
    let (kept, deleted) = database
        .write(|tx| {
            let condition = condition(RuleProperty::Name, RuleOperator::StartsWith, "host");
            let full = MachineGroup {
                rule: vec![condition],
                user_groups: vec!["soc".to_owned()],
                ..group("deleted", 2)
            };
            let ids = (machine_group_create(tx, &group("kept", 1))?, machine_group_create(tx, &full)?);
            machine_group_assign(
                tx,
                &[(enroll(tx, 1)?, ids.0), (enroll(tx, 2)?, ids.1), (enroll(tx, 3)?, ids.1)],
            )?;
            Ok(ids)
        })
        .await;
    let of = async |number| {
        let machine = database.read(move |tx| machine_fetch(tx, machine_id(number))).await.unwrap();
        (machine.group, machine.group_name)
    };
    assert_eq!(of(2).await, (deleted, "deleted".to_owned()));
    let sizes = database.read(machine_group_sizes).await;
    assert_eq!(sizes, HashMap::from([(kept, 1), (deleted, 2)]));

    assert!(database.write(move |tx| machine_group_delete(tx, deleted)).await);
    assert!(!database.write(move |tx| machine_group_delete(tx, deleted)).await);
    assert!(!database.write(|tx| machine_group_delete(tx, UNGROUPED_ID)).await);
    assert_eq!(of(1).await, (kept, "kept".to_owned()));
    assert_eq!(of(2).await, (UNGROUPED_ID, UNGROUPED.to_owned()));
    // What was decided before the group was deleted comes too late.
    database
        .write(move |tx| machine_group_assign(tx, &[(machine_id(2), deleted), (machine_id(3), kept)]))
        .await;
    assert_eq!((of(2).await.0, of(3).await.0), (UNGROUPED_ID, kept));
    let next = database.write(|tx| machine_group_create(tx, &group("next", 2))).await;
    assert!(next > deleted, "{next} after {deleted}");
}

#[tokio::test]
async fn facts_are_read_page_by_page_and_thousands_are_assigned_at_once() {
    let database = Database::new();
    let lab = database
        .write(|tx| {
            for number in 0..2500 {
                enroll(tx, number)?;
            }
            machine_tag_add(tx, machine_id(3), "b")?;
            machine_tag_add(tx, machine_id(3), "a")?;
            machine_group_create(tx, &group("lab", 1))
        })
        .await;
    database
        .write(move |tx| {
            let all: Vec<_> =
                (0..2500).filter(|number| number % 3 == 0).map(|n| (machine_id(n), lab)).collect();
            machine_group_assign(tx, &all).and(machine_group_assign(tx, &[]))
        })
        .await;
    let (mut after, mut read) = (None, Vec::new());
    loop {
        let page = database.read(move |tx| machine_facts(tx, after, 999)).await;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        read.extend(page);
    }
    for (number, facts) in (0..).zip(&mut read) {
        facts.tags.sort_unstable();
        let tags = if number == 3 { vec!["a".to_owned(), "b".to_owned()] } else { vec![] };
        let expected = MachineFacts {
            id: machine_id(number),
            computer_dns_name: format!("host-{number}"),
            os_platform: String::new(),
            tags,
            group: if number % 3 == 0 { lab } else { UNGROUPED_ID },
        };
        assert_eq!(*facts, expected);
    }
    assert_eq!(read.len(), 2500);
    let sizes = database.read(machine_group_sizes).await;
    assert_eq!(sizes, HashMap::from([(UNGROUPED_ID, 1666), (lab, 834)]));
}
