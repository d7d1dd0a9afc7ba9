//! An action's life: made, offered, proved; superseded, cancelled, timed out, refused.

use super::*;

#[tokio::test]
async fn an_action_succeeds_by_a_receipt_and_nothing_else() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let action = deployment.restrict(&machine).await.unwrap();
    assert_eq!(action.phase.status(), Status::Pending);
    assert_eq!(*deployment.told.0.lock().unwrap(), [machine.id]);

    // That the machine says it is restricted proves nothing.
    deployment.control.machine_reported(machine.id, machine.reports(0, true)).await.unwrap();
    assert_eq!(deployment.action(&action).await.phase.status(), Status::Pending);

    let current = deployment.order(&machine).await.unwrap();
    let order = machine.obey(&current);
    assert_eq!((order.action, order.desired), (action.id, Desired::Restricted));
    let policy = deployment.control.policy_envelope(current.policy.unwrap()).await.unwrap().unwrap();
    let keys = TrustedKeys::new(deployment.control.order_keys());
    assert_eq!(VerifiedPolicy::verify(policy.as_bytes(), &keys).unwrap().policy().name, "default");

    let forged = Machine { gate: SigningKey::from_seed(&[99; 32]), ..Machine::join(&deployment, 8).await };
    let forged = Machine { id: machine.id, ..forged }.receipt(&order, Outcome::Enforced);
    let refused = deployment.control.receipt_accept(machine.id, &forged).await.unwrap_err();
    assert!(matches!(refused, Error::MachineMisbehaves(_)), "{refused}");
    assert_eq!(deployment.action(&action).await.phase.status(), Status::Pending);

    machine.prove(&deployment).await;
    let done = deployment.action(&action).await;
    assert_eq!(done.phase.status(), Status::Succeeded);
    assert_eq!(deployment.order(&machine).await, None);
    let receipt = deployment.control.machine_action_receipt(&operator(), action.id).await.unwrap();
    assert_eq!(receipt.public_key, machine.gate.public_key().to_string());
    let seen = deployment.control.machine_fetch(&operator(), "LAB-7").await.unwrap();
    assert!(!seen.restriction.drifts());
}

#[tokio::test]
async fn the_same_kind_is_refused_and_the_opposite_kind_supersedes() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let first = deployment.restrict(&machine).await.unwrap();
    let again = deployment.restrict(&machine).await.unwrap_err();
    assert!(matches!(again, Error::ActiveAction(id) if id == first.id), "{again}");

    let second = deployment.unrestrict(&machine).await.unwrap();
    let first = deployment.action(&first).await;
    assert_eq!(first.phase.status(), Status::Cancelled);
    assert!(first.cancellation.unwrap().comment.contains(&second.id.0.to_string()));
    assert_eq!(deployment.order(&machine).await.unwrap().action, second.id);
    machine.prove(&deployment).await;
    assert_eq!(deployment.action(&second).await.phase.status(), Status::Succeeded);

    let third = deployment.unrestrict(&machine).await.unwrap();
    machine.prove(&deployment).await;
    assert_eq!(deployment.action(&third).await.phase.status(), Status::Succeeded);
}

#[tokio::test]
async fn a_superseded_actions_receipt_moves_nothing() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let first = deployment.restrict(&machine).await.unwrap();
    let order = machine.obey(&deployment.order(&machine).await.unwrap());
    deployment.unrestrict(&machine).await.unwrap();
    let late = machine.receipt(&order, Outcome::Enforced);
    assert_eq!(deployment.control.receipt_accept(machine.id, &late).await.unwrap(), 1);
    assert_eq!(deployment.action(&first).await.phase.status(), Status::Cancelled);
    // It did happen, and shows until the newer order is proved.
    let seen = deployment.control.machine_fetch(&operator(), "lab-7").await.unwrap();
    assert!(seen.restriction.drifts());
    machine.prove(&deployment).await;
    let seen = deployment.control.machine_fetch(&operator(), "lab-7").await.unwrap();
    assert!(!seen.restriction.drifts());
}

#[tokio::test]
async fn a_cancelled_action_is_not_offered_and_leaves_no_drift() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let action = deployment.restrict(&machine).await.unwrap();
    let caller = operator();
    let cancel =
        |comment: &str| deployment.control.machine_action_cancel(&caller, action.id, comment.to_owned());
    assert!(matches!(cancel(" ").await, Err(Error::MissingParameter("Comment"))));
    let cancelled = cancel("false alarm").await.unwrap();
    assert_eq!(cancelled.phase.status(), Status::Cancelled);
    assert_eq!(cancelled.cancellation.unwrap().comment, "false alarm");
    assert_eq!(deployment.order(&machine).await, None);
    let seen = deployment.control.machine_fetch(&operator(), "lab-7").await.unwrap();
    assert_eq!((seen.restriction.drifts(), seen.restriction.desired), (false, Desired::Released));
    let twice = cancel("again").await.unwrap_err();
    assert!(matches!(&twice, Error::BadRequest(message) if message.contains("Cancelled")), "{twice}");

    // The next generation is above the cancelled one.
    let next = deployment.restrict(&machine).await.unwrap();
    assert_eq!(next.fence.generation, action.fence.generation + 1);
    machine.prove(&deployment).await;
    assert_eq!(deployment.action(&next).await.phase.status(), Status::Succeeded);
}

#[tokio::test]
async fn an_action_past_its_deadline_times_out_and_its_order_is_withdrawn() {
    let brief = Settings { action_deadline: Duration::ZERO, ..GENEROUS };
    let deployment = Deployment::start(brief).await;
    let machine = Machine::join(&deployment, 7).await;
    let action = deployment.restrict(&machine).await.unwrap();
    assert_eq!(deployment.control.machine_actions_expire().await.unwrap(), 1);
    assert_eq!(deployment.action(&action).await.phase.status(), Status::TimeOut);
    assert_eq!(deployment.order(&machine).await, None);
    assert_eq!(deployment.control.machine_actions_expire().await.unwrap(), 0);
}

#[tokio::test]
async fn what_the_gate_refuses_fails_and_is_not_offered_again() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let action = deployment.restrict(&machine).await.unwrap();
    let order = machine.obey(&deployment.order(&machine).await.unwrap());
    let receipt = machine.receipt(&order, Outcome::Rejected("no policy".to_owned()));
    deployment.control.receipt_accept(machine.id, &receipt).await.unwrap();
    let failed = deployment.action(&action).await;
    assert_eq!((failed.phase.status(), failed.failure.as_deref()), (Status::Failed, Some("no policy")));
    assert_eq!(deployment.order(&machine).await, None);
}

#[tokio::test]
async fn a_machine_that_enrolls_again_gets_the_order_that_is_still_wanted() {
    let deployment = Deployment::start(GENEROUS).await;
    let mut machine = Machine::join(&deployment, 7).await;
    let action = deployment.restrict(&machine).await.unwrap();
    machine.prove(&deployment).await;
    let proved = deployment.action(&action).await;

    machine.enroll(&deployment).await;
    machine.connect(&deployment, 0, false).await;
    let order = machine.obey(&deployment.order(&machine).await.unwrap());
    assert_eq!((order.fence.incarnation, order.desired), (2, Desired::Restricted));
    assert_eq!(order.fence.generation, action.fence.generation);
    machine.prove(&deployment).await;
    assert_eq!(deployment.order(&machine).await, None);
    // The action was final, and stays as it was.
    let after = deployment.action(&action).await;
    assert_eq!((after.phase, after.updated_at), (proved.phase, proved.updated_at));
}

#[tokio::test]
async fn a_gate_of_an_earlier_enrollment_shows_as_drift() {
    let deployment = Deployment::start(GENEROUS).await;
    let mut machine = Machine::join(&deployment, 7).await;
    machine.enroll(&deployment).await;
    let old = ReportedState { incarnation: 1, generation: 9, restricted: true };
    deployment.control.machine_reported(machine.id, old).await.unwrap();
    let seen = deployment.control.machine_fetch(&operator(), "lab-7").await.unwrap();
    assert_eq!((seen.restriction.reported_generation, seen.restriction.drifts()), (0, true));
}

#[tokio::test]
async fn what_a_machine_cannot_do_is_refused_ahead_and_lifting_never_is() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let connect = |platform: &str, tier: Option<Tier>| {
        let system = System {
            computer_dns_name: "lab-7".to_owned(),
            os_platform: platform.to_owned(),
            ..System::default()
        };
        let capabilities = Capabilities { tier, missing: Some("the kernel has no fanotify".to_owned()) };
        deployment.control.machine_connected(
            machine.id,
            system,
            capabilities,
            machine.reports(0, false),
            REMOTE,
        )
    };
    connect("Linux", None).await.unwrap();
    let refused = deployment.restrict(&machine).await.unwrap_err();
    assert!(
        matches!(&refused, Error::ClientVersionNotSupported(message) if message.contains("no fanotify")),
        "{refused}"
    );
    connect("Plan9", Some(Tier::Fanotify)).await.unwrap();
    assert!(matches!(deployment.restrict(&machine).await, Err(Error::OsPlatformNotSupported(_))));
    deployment.unrestrict(&machine).await.unwrap();
}

#[tokio::test]
async fn every_change_has_its_audit_entry() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    deployment.restrict(&machine).await.unwrap();
    machine.prove(&deployment).await;
    let action = deployment.unrestrict(&machine).await.unwrap();
    deployment.control.machine_action_cancel(&operator(), action.id, "no".to_owned()).await.unwrap();
    assert_eq!(
        deployment.operations().await,
        [
            "policy_apply",
            "enrollment_token_create",
            "machine_enroll",
            "machine_restrict",
            "machine_action_succeed",
            "machine_unrestrict",
            "machine_action_cancel"
        ]
    );
}

#[tokio::test]
async fn a_machine_without_a_known_id_is_not_found_and_names_may_be_ambiguous() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let other = Machine::join(&deployment, 8).await;
    let caller = operator();
    let restrict = |target: &'static str| deployment.control.machine_restrict(&caller, target, request());
    assert!(matches!(restrict("nobody").await, Err(Error::NotFound { entity: "Machine", .. })));
    let system = System { computer_dns_name: "LAB-7".to_owned(), ..System::default() };
    let reported = other.reports(0, false);
    deployment
        .control
        .machine_connected(other.id, system, Capabilities::default(), reported, REMOTE)
        .await
        .unwrap();
    let ambiguous = restrict("lab-7").await.unwrap_err().to_string();
    assert!(ambiguous.contains(&machine.id.to_string()) && ambiguous.contains(&other.id.to_string()));
}

#[tokio::test]
async fn an_order_whose_receipt_got_lost_is_sent_until_there_is_one() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let action = deployment.restrict(&machine).await.unwrap();
    let sent = deployment.order(&machine).await;
    // The gate has the order, died, and reports its generation after it has started again.
    machine.connect(&deployment, 1, true).await;
    assert_eq!(deployment.order(&machine).await, sent);
    machine.prove(&deployment).await;
    assert_eq!(deployment.action(&action).await.phase.status(), Status::Succeeded);
    assert_eq!(deployment.order(&machine).await, None);
}

#[tokio::test]
async fn a_generation_that_was_never_ordered_is_drift() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    machine.connect(&deployment, 9, false).await;
    let seen = deployment.control.machine_fetch(&operator(), "lab-7").await.unwrap();
    assert!(seen.restriction.drifts());
}
