//! Restrictions that end by themselves, requests that are made twice, and callers that wait.

use super::*;

use control_plane::{BulkRequest, BulkTargets};
use domain::machine_action::{Kind, Phase};
use domain::restriction::Reported;
use store::machine::{machine_desire, machine_reported};
use store::machine_action::machine_action_create;

fn lasting(seconds: u64) -> Request {
    Request { expires_in: Some(Duration::from_secs(seconds)), ..request() }
}

fn keyed(key: &str) -> Request {
    Request { idempotency_key: Some(key.to_owned()), ..request() }
}

fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

/// Restricts a machine as if by a call in the past, until `ends_at`; the action is in `phase`.
async fn restricted_until(deployment: &Deployment, machine: &Machine, ends_at: Timestamp, phase: Phase) {
    let template = deployment.restrict(machine).await.unwrap();
    deployment.control.machine_action_cancel(&operator(), template.id, "a model".to_owned()).await.unwrap();
    let policy = deployment.control.policy_fetch(&operator(), "default").await.unwrap();
    let machine = machine.id;
    deployment
        .store
        .write(move |tx| {
            let desired = Desired::Restricted;
            let generation =
                machine_desire(tx, machine, desired, Some(("default", policy.digest)), Some(ends_at))?;
            let mut action = MachineAction {
                id: MachineActionId(Uuid::now_v7()),
                ends_at: Some(ends_at),
                deadline: ends_at,
                phase,
                ..template
            };
            action.fence.generation = generation;
            if phase.is_final() {
                machine_reported(tx, machine, Reported::Restricted, generation, ends_at)?;
            }
            machine_action_create(tx, &action, "{}")
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn the_order_carries_the_end_and_the_deadline_is_not_after_it() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    let target = machine.id.to_string();
    for (seconds, deadline) in [(60, 60), (3600, 3600), (7200, 3600), (365 * 24 * 3600, 3600)] {
        let action = control.machine_restrict(&operator(), &target, lasting(seconds)).await.unwrap();
        let ends_at = action.created_at.plus(Duration::from_secs(seconds));
        assert_eq!(action.ends_at, Some(ends_at));
        assert_eq!(action.deadline, action.created_at.plus(Duration::from_secs(deadline)));
        let order = machine.obey(&deployment.order(&machine).await.unwrap());
        assert_eq!((order.ends_at, order.not_after), (Some(ends_at), action.deadline));
        let seen = control.machine_fetch(&operator(), &target).await.unwrap();
        assert_eq!(seen.restriction.ends_at, Some(ends_at));
        control.machine_action_cancel(&operator(), action.id, "next".to_owned()).await.unwrap();
    }
    for seconds in [0, 59, 365 * 24 * 3600 + 1] {
        refused(control.machine_restrict(&operator(), &target, lasting(seconds)).await, is_invalid);
    }
    refused(control.machine_unrestrict(&operator(), &target, lasting(60)).await, is_invalid);
}

#[tokio::test]
async fn what_is_over_is_lifted_by_an_ordinary_action() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    let ends_at = now().minus(Duration::from_secs(1));
    restricted_until(&deployment, &machine, ends_at, Phase::Enforced).await;
    // An end that has not come.
    let other = Machine::join(&deployment, 8).await;
    control.machine_restrict(&operator(), &other.id.to_string(), lasting(60)).await.unwrap();
    other.prove(&deployment).await;

    assert_eq!(control.machine_restrictions_end().await.unwrap(), 1);
    assert_eq!(control.machine_restrictions_end().await.unwrap(), 0);
    let query = odata::parse("$filter=requestor eq 'system'", &store::list::MACHINE_ACTIONS).unwrap();
    let actions = control.machine_action_list(&operator(), query).await.unwrap().rows;
    let [action] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((action.kind, action.machine, action.ends_at), (Kind::Unrestrict, machine.id, None));
    assert!(action.comment.contains(&ends_at.to_string()), "{}", action.comment);
    let entries = deployment.entries().await;
    let entry = entries.last().unwrap();
    assert_eq!((entry.operation.as_str(), entry.actor.as_str()), ("machine_unrestrict", "system"));
    // The machine, which has released itself long ago, proves it.
    machine.connect(&deployment, 2, false).await;
    machine.prove(&deployment).await;
    assert_eq!(deployment.action(action).await.phase.status(), Status::Succeeded);
    let seen = control.machine_fetch(&operator(), &machine.id.to_string()).await.unwrap();
    assert_eq!((seen.restriction.ends_at, seen.restriction.drifts()), (None, false));
}

#[tokio::test]
async fn a_restriction_that_is_over_before_it_was_delivered_times_out() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    restricted_until(&deployment, &machine, now().minus(Duration::from_secs(1)), Phase::Queued).await;
    assert_eq!(deployment.order(&machine).await, None, "what is over is not begun");
    assert_eq!(control.machine_actions_expire().await.unwrap(), 1);
    let seen = control.machine_fetch(&operator(), &machine.id.to_string()).await.unwrap();
    assert_eq!((seen.restriction.desired, seen.restriction.ends_at), (Desired::Released, None));
    assert_eq!(control.machine_restrictions_end().await.unwrap(), 0);
    assert_eq!(deployment.operations().await.last().unwrap(), "machine_action_expire");
}

#[tokio::test]
async fn a_withdrawn_action_leaves_the_end_that_was_before() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    let target = machine.id.to_string();
    let ends_at = async || control.machine_fetch(&operator(), &target).await.unwrap().restriction.ends_at;
    let proved = control.machine_restrict(&operator(), &target, lasting(3600)).await.unwrap();
    machine.prove(&deployment).await;
    assert_eq!(ends_at().await, proved.ends_at);
    for (kind, request) in
        [(Kind::Restrict, request()), (Kind::Restrict, lasting(60)), (Kind::Unrestrict, request())]
    {
        let action = match kind {
            Kind::Restrict => control.machine_restrict(&operator(), &target, request).await.unwrap(),
            Kind::Unrestrict => control.machine_unrestrict(&operator(), &target, request).await.unwrap(),
        };
        assert_eq!(ends_at().await, action.ends_at);
        control.machine_action_cancel(&operator(), action.id, "no".to_owned()).await.unwrap();
        assert_eq!(ends_at().await, proved.ends_at);
    }
    // A later restriction without an end has none.
    deployment.restrict(&machine).await.unwrap();
    machine.prove(&deployment).await;
    assert_eq!(ends_at().await, None);
}

#[tokio::test]
async fn the_same_request_again_is_answered_as_the_first_was() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    let target = machine.id.to_string();
    let first = Request {
        external_id: Some("IR-1".to_owned()),
        expires_in: Some(Duration::from_secs(3600)),
        policy: Some("default".to_owned()),
        ..keyed("k")
    };
    let restrict = async |caller: &Caller, request: &Request| {
        control.machine_restrict(caller, &target, request.clone()).await
    };
    let made = restrict(&operator(), &first).await.unwrap();
    assert_eq!(restrict(&operator(), &first).await.unwrap(), made);
    machine.prove(&deployment).await;
    assert_eq!(restrict(&operator(), &first).await.unwrap(), made, "as it was made, not as it is");
    assert_eq!(control.machine_restrict(&operator(), "LAB-7", first.clone()).await.unwrap(), made);
    let restricts = |operation: &String| operation == "machine_restrict";
    assert_eq!(deployment.operations().await.into_iter().filter(restricts).count(), 1);
    // Another request under the same key.
    for other in [
        Request { comment: "other".to_owned(), ..first.clone() },
        Request { external_id: None, ..first.clone() },
        Request { expires_in: Some(Duration::from_secs(60)), ..first.clone() },
        Request { expires_in: None, ..first.clone() },
        Request { policy: Some("other".to_owned()), ..first.clone() },
    ] {
        let why = refused(restrict(&operator(), &other).await, is_invalid);
        assert!(why.contains(&made.id.0.to_string()), "{why}");
    }
    refused(control.machine_unrestrict(&operator(), &target, keyed("k")).await, is_invalid);
    let another = Machine::join(&deployment, 8).await;
    refused(control.machine_restrict(&operator(), &another.id.to_string(), first.clone()).await, is_invalid);
    // Another caller's key is another key.
    let other = deployment.app_caller(&[Permission::MachineRestrictExecution], None).await;
    let theirs = restrict(&other, &first).await.unwrap();
    assert_ne!(theirs.id, made.id);
    assert_eq!(restrict(&other, &first).await.unwrap(), theirs);
    // Without a key, and with another one, the request is another one.
    let none = Request { idempotency_key: None, ..first.clone() };
    let is_active = |error: &Error| matches!(error, Error::ActiveAction(_));
    refused(restrict(&operator(), &none).await, is_active);
    refused(
        restrict(&operator(), &Request { idempotency_key: Some("k2".to_owned()), ..first }).await,
        is_active,
    );
    for key in ["", "a b", "ü", "a\u{7f}", &"x".repeat(256)] {
        refused(restrict(&operator(), &keyed(key)).await, is_invalid);
    }
    restrict(&other, &keyed(&"x".repeat(255))).await.unwrap_err();
}

#[tokio::test]
async fn of_the_same_request_many_times_at_once_one_action_is_made() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let call = |_| {
        let (control, target) = (deployment.control.clone(), machine.id.to_string());
        tokio::spawn(
            async move { control.machine_restrict(&operator(), &target, keyed("k")).await.unwrap().id },
        )
    };
    let calls: Vec<_> = (0..20).map(call).collect();
    let mut made = HashSet::new();
    for call in calls {
        made.insert(call.await.unwrap());
    }
    assert_eq!(made.len(), 1);
}

/// Waits for an action while `end` ends it; the action then.
async fn woken(deployment: &Deployment, action: &MachineAction, end: impl Future<Output = ()>) -> Status {
    let wait = deployment.control.machine_action_wait(action.clone(), Duration::from_secs(3600));
    let both = async { tokio::join!(wait, end).0.unwrap() };
    let waited = tokio::time::timeout(Duration::from_secs(20), both).await;
    waited.expect("nobody woke who waits").phase.status()
}

#[tokio::test]
async fn who_waits_is_woken_by_every_end() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    let caller = operator();
    let restrict = async || deployment.restrict(&machine).await.unwrap();

    let action = restrict().await;
    assert_eq!(woken(&deployment, &action, machine.prove(&deployment)).await, Status::Succeeded);
    assert_eq!(woken(&deployment, &action, async {}).await, Status::Succeeded, "at once when it is final");

    let action = restrict().await;
    let refuse = async {
        let order = machine.obey(&deployment.order(&machine).await.unwrap());
        let receipt = machine.receipt(&order, Outcome::Rejected("no".to_owned()));
        control.receipt_accept(machine.id, &receipt).await.unwrap();
    };
    assert_eq!(woken(&deployment, &action, refuse).await, Status::Failed);

    let action = restrict().await;
    let cancel = async {
        control.machine_action_cancel(&caller, action.id, "no".to_owned()).await.unwrap();
    };
    assert_eq!(woken(&deployment, &action, cancel).await, Status::Cancelled);

    let action = restrict().await;
    let supersede = async {
        deployment.unrestrict(&machine).await.unwrap();
    };
    assert_eq!(woken(&deployment, &action, supersede).await, Status::Cancelled);
    machine.prove(&deployment).await;

    let action = restrict().await;
    let supersede = async {
        let targets = BulkTargets::Ids(vec![machine.id]);
        let bulk = BulkRequest { kind: Kind::Unrestrict, targets, request: request() };
        control.machine_bulk(&caller, bulk).await.unwrap();
    };
    assert_eq!(woken(&deployment, &action, supersede).await, Status::Cancelled);

    let brief = vec![("actionDeadlineSeconds".to_owned(), Some(1))];
    control.settings_update(&caller, brief).await.unwrap();
    let action = restrict().await;
    let expire = async {
        while control.machine_actions_expire().await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(woken(&deployment, &action, expire).await, Status::TimeOut);
}

#[tokio::test]
async fn who_waits_in_vain_gets_the_action_as_it_is() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let action = deployment.restrict(&machine).await.unwrap();
    for wait in [Duration::ZERO, Duration::from_millis(20)] {
        let waited = deployment.control.machine_action_wait(action.clone(), wait).await.unwrap();
        assert_eq!(waited, action);
    }
}
