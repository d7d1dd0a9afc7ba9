//! Execution events.

use domain::execution_event::ExecutionEvent;
use store::execution_event::{PER_MACHINE_MAX, execution_event_create, execution_event_list};

use crate::fixture::{Database, enroll, machine_id, second};

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
        count: 3,
    }
}

#[tokio::test]
async fn events_are_listed_newest_first_of_one_machine_or_of_all() {
    let database = Database::new();
    database
        .write(|tx| {
            let (one, two) = (enroll(tx, 1)?, enroll(tx, 2)?);
            execution_event_create(tx, one, &[event(1), event(2)])?;
            execution_event_create(tx, two, &[event(3)])
        })
        .await;
    let all = database.read(|tx| execution_event_list(tx, None, i64::MAX, 100)).await;
    let events: Vec<_> = all.iter().map(|stored| stored.event.clone()).collect();
    assert_eq!(events, [event(3), event(2), event(1)]);
    assert_eq!((all[0].machine, all[0].computer_dns_name.as_str()), (machine_id(2), "host-2"));

    let of_one = database.read(|tx| execution_event_list(tx, Some(machine_id(1)), i64::MAX, 1)).await;
    assert_eq!(of_one, all[1..2]);
    let before = of_one[0].id;
    let older = database.read(move |tx| execution_event_list(tx, Some(machine_id(1)), before, 9)).await;
    assert_eq!(older, all[2..]);
    assert_eq!(database.read(|tx| execution_event_list(tx, Some(machine_id(3)), i64::MAX, 9)).await, []);
}

#[tokio::test]
async fn the_oldest_events_of_a_machine_make_room_and_those_of_others_stay() {
    let database = Database::new();
    database
        .write(|tx| {
            let (one, two) = (enroll(tx, 1)?, enroll(tx, 2)?);
            execution_event_create(tx, two, &[event(0)])?;
            let events: Vec<_> = (1..=PER_MACHINE_MAX).map(event).collect();
            execution_event_create(tx, one, &events)?;
            execution_event_create(tx, one, &[event(-1), event(-2)])
        })
        .await;
    let kept = database.read(|tx| execution_event_list(tx, Some(machine_id(1)), i64::MAX, u32::MAX)).await;
    assert_eq!(kept.len(), usize::try_from(PER_MACHINE_MAX).unwrap());
    assert_eq!((kept[0].event.at, kept[kept.len() - 1].event.at), (second(-2), second(3)));
    assert_eq!(database.read(|tx| execution_event_list(tx, Some(machine_id(2)), i64::MAX, 9)).await.len(), 1);
}
