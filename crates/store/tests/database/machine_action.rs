//! Machine actions, their orders and receipts.

use std::time::Duration;

use domain::machine_action::{Cancellation, Kind, MachineAction, MachineActionId, Phase, RequestSource};
use domain::restriction::Fence;
use store::machine_action::{
    machine_action_by_generation, machine_action_by_idempotency_key, machine_action_by_idempotency_key_many,
    machine_action_create, machine_action_fetch, machine_action_move, machine_action_open,
    machine_action_order, machine_action_overdue, machine_action_receipt, machine_action_receipt_keep,
    machine_action_reissue,
};
use store::{StoreError, store_epoch_fetch};
use uuid::Uuid;

use crate::fixture::{Database, action, enroll, machine_id, second};

/// A database with one machine, and an action of it.
async fn with_action() -> (Database, MachineAction) {
    let database = Database::new();
    let action = action(machine_id(1), 1);
    let created = action.clone();
    database
        .write(move |tx| enroll(tx, 1).and_then(|_| machine_action_create(tx, &created, "order-1")))
        .await;
    (database, action)
}

async fn fetch(database: &Database, id: MachineActionId) -> Option<MachineAction> {
    database.read(move |tx| machine_action_fetch(tx, id)).await
}

#[tokio::test]
async fn an_action_is_kept_with_its_order_and_receipt() {
    let database = Database::new();
    let full = MachineAction {
        kind: Kind::Unrestrict,
        phase: Phase::Superseded,
        source: RequestSource::Portal,
        external_id: Some("ticket 7".to_owned()),
        policy: None,
        ends_at: Some(second(77)),
        idempotency_key: Some("again".to_owned()),
        bulk: Some(Uuid::from_u128(5)),
        fence: Fence { store_epoch: 3, incarnation: 2, generation: 9 },
        ..action(machine_id(1), 9)
    };
    let created = full.clone();
    database
        .write(move |tx| enroll(tx, 1).and_then(|_| machine_action_create(tx, &created, "the order")))
        .await;
    let database = database.reopened();
    let id = full.id;
    assert_eq!(fetch(&database, id).await, Some(full));
    assert_eq!(fetch(&database, MachineActionId(Uuid::nil())).await, None);
    assert_eq!(database.read(move |tx| machine_action_order(tx, id)).await, "the order");
    assert_eq!(database.read(move |tx| machine_action_receipt(tx, id)).await, None);
    database.write(move |tx| machine_action_receipt_keep(tx, id, "the receipt", "the key")).await;
    let kept = database.read(move |tx| machine_action_receipt(tx, id)).await;
    assert_eq!(kept, Some(("the receipt".to_owned(), "the key".to_owned())));
}

#[tokio::test]
async fn a_machine_has_one_open_action() {
    let (database, first) = with_action().await;
    let machine = first.machine;
    let second_action = action(machine, 2);
    let refused = second_action.clone();
    let refused = database.store.write(move |tx| machine_action_create(tx, &refused, "order-2")).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");
    assert_eq!(database.read(move |tx| machine_action_open(tx, machine)).await, Some(first.clone()));

    // In one transaction the newer one takes the older one's place.
    let (older, newer) = (first.clone(), second_action.clone());
    database
        .write(move |tx| {
            assert!(machine_action_move(tx, &older, Phase::Superseded, None, None, second(5))?);
            machine_action_create(tx, &newer, "order-2")
        })
        .await;
    assert_eq!(database.read(move |tx| machine_action_open(tx, machine)).await, Some(second_action.clone()));
    let (end, ended) = (second_action.clone(), second_action.id);
    database.write(move |tx| machine_action_move(tx, &end, Phase::Enforced, None, None, second(6))).await;
    assert_eq!(database.read(move |tx| machine_action_open(tx, machine)).await, None);
    assert_eq!(fetch(&database, ended).await.unwrap().phase, Phase::Enforced);
}

#[tokio::test]
async fn of_many_actions_for_one_machine_at_once_one_is_made() {
    let database = Database::new();
    let machine = database.write(|tx| enroll(tx, 1)).await;
    let tries: Vec<_> = (1..=40)
        .map(|generation| {
            let (store, action) = (database.store.clone(), action(machine, generation));
            tokio::spawn(
                async move { store.write(move |tx| machine_action_create(tx, &action, "order")).await },
            )
        })
        .collect();
    let mut made = 0;
    for one in tries {
        match one.await.unwrap() {
            Ok(()) => made += 1,
            Err(error) => assert!(matches!(error, StoreError::Duplicate(_)), "{error:?}"),
        }
    }
    assert_eq!(made, 1);
}

#[tokio::test]
async fn no_two_actions_of_a_machine_share_a_generation() {
    let (database, first) = with_action().await;
    let refused = MachineAction { phase: Phase::Enforced, ..action(first.machine, 1) };
    let refused = database.store.write(move |tx| machine_action_create(tx, &refused, "order")).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");
    let unknown = action(machine_id(9), 1);
    let refused = database.store.write(move |tx| machine_action_create(tx, &unknown, "order")).await;
    assert!(refused.is_err(), "an action of a machine that is not there");
}

#[tokio::test]
async fn a_phase_moves_forward_from_where_it_was_read() {
    let (database, queued) = with_action().await;
    let id = queued.id;
    let from = queued.clone();
    let moved = database
        .write(move |tx| machine_action_move(tx, &from, Phase::Offered, None, None, second(2000)))
        .await;
    assert!(moved);
    let offered = fetch(&database, id).await.unwrap();
    let expected = MachineAction { phase: Phase::Offered, updated_at: second(2000), ..queued.clone() };
    assert_eq!(offered, expected);

    // Read before the move, so it is of a phase that is no more.
    let stale = queued.clone();
    let moved = database
        .write(move |tx| machine_action_move(tx, &stale, Phase::Cancelled, None, None, second(2001)))
        .await;
    assert!(!moved);
    // Backward.
    let from = offered.clone();
    let moved = database
        .write(move |tx| machine_action_move(tx, &from, Phase::Queued, None, None, second(2001)))
        .await;
    assert!(!moved);
    assert_eq!(fetch(&database, id).await.unwrap(), offered);

    let cancellation =
        Cancellation { requestor: "someone".to_owned(), comment: "not needed".to_owned(), at: second(2002) };
    let (from, cancelled) = (offered.clone(), cancellation.clone());
    let moved = database
        .write(move |tx| {
            machine_action_move(tx, &from, Phase::Cancelled, None, Some(&cancelled), second(2002))
        })
        .await;
    assert!(moved);
    let ended = fetch(&database, id).await.unwrap();
    assert_eq!((ended.phase, &ended.cancellation), (Phase::Cancelled, &Some(cancellation)));
    // Final phases never change.
    for to in Phase::ALL {
        let from = ended.clone();
        assert!(
            !database.write(move |tx| machine_action_move(tx, &from, to, None, None, second(3000))).await
        );
    }
    assert_eq!(fetch(&database, id).await.unwrap(), ended);
}

#[tokio::test]
async fn a_failure_says_why() {
    let (database, queued) = with_action().await;
    let id = queued.id;
    let why = Some("the canary ran");
    database
        .write(move |tx| machine_action_move(tx, &queued, Phase::ProbeFailed, why, None, second(2000)))
        .await;
    let failed = fetch(&database, id).await.unwrap();
    assert_eq!((failed.phase, failed.failure.as_deref()), (Phase::ProbeFailed, why));
}

#[tokio::test]
async fn an_action_is_found_by_its_generation_in_the_newest_store_epoch() {
    let (database, first) = with_action().await;
    let machine = first.machine;
    let restored = MachineAction {
        phase: Phase::Enforced,
        fence: Fence { store_epoch: 2, incarnation: 1, generation: 1 },
        ..action(machine, 1)
    };
    let created = restored.clone();
    let find = move |tx: &store::Tx<'_>| machine_action_by_generation(tx, machine, 1);
    assert_eq!(database.read(find).await, Some(first));
    database.write(move |tx| machine_action_create(tx, &created, "order")).await;
    assert_eq!(database.read(find).await, Some(restored));
    assert_eq!(database.read(move |tx| machine_action_by_generation(tx, machine, 2)).await, None);
    assert_eq!(database.read(store_epoch_fetch).await, 1);
}

#[tokio::test]
async fn an_order_can_be_signed_again_for_another_fence() {
    let (database, first) = with_action().await;
    let id = first.id;
    let fence = Fence { store_epoch: 4, incarnation: 7, generation: 1 };
    database.write(move |tx| machine_action_reissue(tx, id, fence, "order-1b")).await;
    assert_eq!(fetch(&database, id).await.unwrap(), MachineAction { fence, ..first });
    assert_eq!(database.read(move |tx| machine_action_order(tx, id)).await, "order-1b");
}

#[tokio::test]
async fn open_actions_behind_their_deadline_are_overdue_oldest_first() {
    let database = Database::new();
    let (late, later, in_time, ended) = database
        .write(|tx| {
            let made = [
                (1, 50, Phase::Queued),
                (2, 30, Phase::Applying),
                (3, 100, Phase::Queued),
                (4, 20, Phase::Enforced),
            ]
            .map(|(number, deadline, phase)| MachineAction {
                phase,
                deadline: second(deadline),
                ..action(machine_id(number), 1)
            });
            for (number, action) in (1..).zip(&made) {
                enroll(tx, number)?;
                machine_action_create(tx, action, "order")?;
            }
            Ok(made.into())
        })
        .await;
    assert_eq!(
        database.read(|tx| machine_action_overdue(tx, second(100))).await,
        [later.clone(), late.clone()]
    );
    assert_eq!(database.read(|tx| machine_action_overdue(tx, second(30))).await, []);
    let beyond = second(100).plus(Duration::from_nanos(100));
    assert_eq!(database.read(move |tx| machine_action_overdue(tx, beyond)).await, [later, late, in_time]);
    assert_eq!(ended.phase, Phase::Enforced);
}

#[tokio::test]
async fn a_repeated_request_is_known_by_its_key() {
    let database = Database::new();
    let made = |number, generation, phase, requestor: &str, key: Option<&str>| MachineAction {
        phase,
        requestor: requestor.to_owned(),
        idempotency_key: key.map(str::to_owned),
        ..action(machine_id(number), generation)
    };
    let ended = Phase::Enforced;
    let actions = [
        made(1, 5, ended, "soar", Some("k")),
        made(2, 4, Phase::Queued, "soar", Some("k")),
        made(1, 2, ended, "other", Some("k")),
        made(1, 3, Phase::Queued, "soar", None),
        // Without a key there may be any number.
        made(1, 4, ended, "soar", None),
    ];
    let created = actions.clone();
    database
        .write(move |tx| {
            enroll(tx, 1)?;
            enroll(tx, 2)?;
            created.iter().try_for_each(|action| machine_action_create(tx, action, "order"))
        })
        .await;
    for (requestor, key, expected) in
        [("soar", "k", Some(0)), ("other", "k", Some(2)), ("soar", "", None), ("nobody", "k", None)]
    {
        let found = database.read(move |tx| machine_action_by_idempotency_key(tx, requestor, key)).await;
        assert_eq!(found.as_ref(), expected.and_then(|index: usize| actions.get(index)), "{requestor} {key}");
    }
    for (requestor, machines, expected) in [
        ("soar", vec![1, 2, 3], vec![0, 1]),
        ("soar", vec![2], vec![1]),
        ("other", vec![1, 2], vec![2]),
        ("other", vec![2], vec![]),
        ("nobody", vec![1, 2], vec![]),
    ] {
        let ids: Vec<_> = machines.iter().copied().map(machine_id).collect();
        let mut found =
            database.read(move |tx| machine_action_by_idempotency_key_many(tx, requestor, "k", &ids)).await;
        found.sort_unstable_by_key(|action| action.machine);
        let expected: Vec<_> =
            expected.iter().filter_map(|index: &usize| actions.get(*index).cloned()).collect();
        assert_eq!(found, expected, "{requestor} {machines:?}");
    }
    let again = made(1, 9, ended, "soar", Some("k"));
    let refused = database.store.write(move |tx| machine_action_create(tx, &again, "order")).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");
}
