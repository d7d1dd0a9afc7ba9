//! Execution events.

use domain::execution_event::ExecutionEvent;
use domain::machine::MachineId;
use domain::machine_group::MachineAccess;
use store::execution_event::{
    EventFilter, PER_MACHINE_MAX, StoredExecutionEvent, execution_event_create, execution_event_list,
};
use store::machine::{machine_fetch, machine_group_assign};
use store::machine_group::machine_group_create;

use crate::fixture::{Database, enroll, group, machine_id, second};

fn of(machine: Option<MachineId>, top: u32) -> EventFilter {
    EventFilter { machine, top, ..EventFilter::default() }
}

async fn list(database: &Database, filter: EventFilter) -> Vec<StoredExecutionEvent> {
    database.read(move |tx| execution_event_list(tx, &filter, &MachineAccess::All)).await
}

fn event(number: i64) -> ExecutionEvent {
    ExecutionEvent {
        at: second(number),
        path: format!("/tmp/{number}"),
        sha256: (number % 2 == 0).then(|| "aa".to_owned()),
        cause: "unlisted".to_owned(),
        rule: None,
        pid: 7,
        ppid: -1,
        uid: Some(u32::MAX),
        parent_program: "/bin/sh".to_owned(),
        hook: "map".to_owned(),
        cgroup: Some("/system.slice/a.service".to_owned()),
        container: (number % 2 == 0).then(|| "ab".repeat(32)),
        interpreter: Some("/bin/bash".to_owned()),
        script: Some("/tmp/x.sh".to_owned()),
        policy: Some("default".to_owned()),
        policy_revision: Some(7),
        audited: number % 2 == 0,
        count: 3,
    }
}

#[tokio::test]
async fn events_are_listed_newest_first_of_one_machine_or_of_all() {
    let database = Database::new();
    database
        .write(|tx| {
            let (one, two) = (enroll(tx, 1)?, enroll(tx, 2)?);
            execution_event_create(tx, one, &[event(1), event(2)], 0)?;
            execution_event_create(tx, two, &[event(3)], 0)
        })
        .await;
    let all = list(&database, of(None, 100)).await;
    let events: Vec<_> = all.iter().map(|stored| stored.event.clone()).collect();
    assert_eq!(events, [event(3), event(2), event(1)]);
    assert_eq!((all[0].machine, all[0].computer_dns_name.as_str()), (machine_id(2), "host-2"));

    let of_one = list(&database, of(Some(machine_id(1)), 1)).await;
    assert_eq!(of_one, all[1..2]);
    let before = Some(of_one[0].id);
    let older = list(&database, EventFilter { before, ..of(Some(machine_id(1)), 9) }).await;
    assert_eq!(older, all[2..]);
    assert_eq!(list(&database, of(Some(machine_id(3)), 9)).await, []);
}

#[tokio::test]
async fn the_oldest_events_of_a_machine_make_room_and_those_of_others_stay() {
    let database = Database::new();
    database
        .write(|tx| {
            let (one, two) = (enroll(tx, 1)?, enroll(tx, 2)?);
            execution_event_create(tx, two, &[event(0)], 0)?;
            let events: Vec<_> = (1..=PER_MACHINE_MAX).map(event).collect();
            execution_event_create(tx, one, &events, 0)?;
            execution_event_create(tx, one, &[event(-1), event(-2)], 0)
        })
        .await;
    let kept = list(&database, of(Some(machine_id(1)), u32::MAX)).await;
    assert_eq!(kept.len(), usize::try_from(PER_MACHINE_MAX).unwrap());
    assert_eq!((kept[0].event.at, kept[kept.len() - 1].event.at), (second(-2), second(3)));
    assert_eq!(list(&database, of(Some(machine_id(2)), 9)).await.len(), 1);
}

#[tokio::test]
async fn a_filter_admits_what_it_says_of_machines_that_may_be_known() {
    let database = Database::new();
    // Machines report late and out of order.
    let lab = database
        .write(|tx| {
            let (one, two) = (enroll(tx, 1)?, enroll(tx, 2)?);
            let lab = machine_group_create(tx, &group("lab", 1))?;
            machine_group_assign(tx, &[(two, lab)])?;
            execution_event_create(tx, one, &[event(4), event(1), event(6)], 0)?;
            execution_event_create(tx, two, &[event(2), event(3), event(0)], 0)?;
            Ok(lab)
        })
        .await;
    let all = of(None, 100);
    let (one, of_lab) = (Some(machine_id(1)), MachineAccess::Groups(vec![lab]));
    let both = MachineAccess::Groups(vec![lab, 0, lab]);
    let sha256 = Some("aa".to_owned());
    let arrived = list(&database, all.clone()).await;
    let before = Some(arrived[2].id);
    for (filter, access, expected) in [
        (all.clone(), &both, &[0, 3, 2, 6, 1, 4][..]),
        (all.clone(), &of_lab, &[0, 3, 2]),
        (all.clone(), &MachineAccess::Groups(vec![]), &[]),
        (EventFilter { sha256: sha256.clone(), ..all.clone() }, &both, &[0, 2, 6, 4]),
        (EventFilter { sha256: sha256.clone(), before, ..all.clone() }, &both, &[6, 4]),
        (EventFilter { sha256: sha256.clone(), machine: one, ..all.clone() }, &both, &[6, 4]),
        (EventFilter { machine: one, ..all.clone() }, &of_lab, &[]),
        (EventFilter { since: Some(second(2)), ..all.clone() }, &both, &[3, 2, 6, 4]),
        (EventFilter { until: Some(second(2)), ..all.clone() }, &both, &[0, 1]),
        (EventFilter { since: Some(second(2)), until: Some(second(4)), ..all.clone() }, &both, &[3, 2]),
        (EventFilter { since: Some(second(1)), before, top: 2, ..all.clone() }, &both, &[6, 1]),
        (EventFilter { since: Some(second(2)), machine: one, ..all.clone() }, &both, &[6, 4]),
        (EventFilter { since: Some(second(1)), sha256, ..all }, &of_lab, &[2]),
    ] {
        let (asked, of) = (filter.clone(), access.clone());
        let found = database.read(move |tx| execution_event_list(tx, &asked, &of)).await;
        let times: Vec<_> = found.iter().map(|stored| stored.event.at.unix_seconds()).collect();
        assert_eq!(times, expected, "{filter:?} {access:?}");
    }
}

#[tokio::test]
async fn what_a_machine_lost_is_counted_and_no_count_is_too_high() {
    let database = Database::new();
    database.write(|tx| enroll(tx, 1)).await;
    let lost = async |dropped| {
        database.write(move |tx| execution_event_create(tx, machine_id(1), &[], dropped)).await;
        let machine = database.read(|tx| machine_fetch(tx, machine_id(1))).await.unwrap();
        machine.restriction.events_dropped
    };
    assert_eq!((lost(0).await, lost(5).await, lost(6).await), (0, 5, 11));
    assert_eq!(lost(u64::MAX).await, i64::MAX.unsigned_abs());
    assert_eq!(lost(1).await, i64::MAX.unsigned_abs());
}
