//! Many machines by one call: results, limits, replays.

use super::*;

use control_plane::{BulkOutcome, BulkPlan, BulkRequest, BulkTargets};
use domain::machine_action::{Kind, Phase};
use store::list::{MACHINE_ACTIONS, MACHINES};
use store::machine_action::machine_action_create_many;

fn of(kind: Kind, ids: &[MachineId]) -> BulkRequest {
    BulkRequest { kind, targets: BulkTargets::Ids(ids.to_vec()), request: request() }
}

fn keyed(ids: &[MachineId], key: &str) -> BulkRequest {
    let request = Request { idempotency_key: Some(key.to_owned()), ..request() };
    BulkRequest { request, ..of(Kind::Restrict, ids) }
}

/// The actions that a call made; none of its machines may be left out.
#[track_caller]
fn actions(outcome: &BulkOutcome) -> Vec<MachineActionId> {
    outcome.results.iter().map(|result| *result.outcome.as_ref().unwrap()).collect()
}

async fn count(deployment: &Deployment, filter: &str) -> u64 {
    let query = odata::parse(&format!("$top=1&$count=true&$filter={filter}"), &MACHINE_ACTIONS).unwrap();
    deployment.control.machine_action_list(&operator(), query).await.unwrap().count.unwrap()
}

#[tokio::test]
async fn thousands_of_machines_by_one_call() {
    let deployment = Deployment::start(GENEROUS).await;
    let ids = deployment.enroll_many(2500).await;
    let control = &deployment.control;
    let query = odata::parse("$filter=startswith(computerDnsName,'fleet-')", &MACHINES).unwrap();
    let bulk = BulkRequest {
        kind: Kind::Restrict,
        targets: BulkTargets::Query(query),
        request: Request { external_id: Some("IR-1".to_owned()), ..request() },
    };
    let plan = control.machine_bulk_plan(&operator(), bulk.clone()).await.unwrap();
    assert_eq!(plan, BulkPlan { total: 2500, offline: 2500, actions: 2500, ..BulkPlan::default() });
    assert_eq!(count(&deployment, "type ne 'Isolate'").await, 0, "a plan changes nothing");
    let outcome = control.machine_bulk(&operator(), bulk).await.unwrap();
    let made: HashSet<_> = actions(&outcome).into_iter().collect();
    let machines: Vec<_> = outcome.results.iter().map(|result| result.machine).collect();
    assert_eq!((made.len(), &machines), (2500, &ids));
    assert_eq!(outcome.results[7].computer_dns_name.as_deref(), Some("fleet-7"));
    assert_eq!(count(&deployment, "externalId eq 'IR-1'").await, 2500);
    assert_eq!(deployment.told.0.lock().unwrap().iter().collect::<HashSet<_>>().len(), 2500);
    let first = deployment.action_by_id(actions(&outcome)[0]).await;
    assert_eq!((first.bulk, first.policy.as_deref()), (Some(outcome.id), Some("default")));
    let entries = deployment.entries().await;
    let entry = entries.iter().rfind(|entry| entry.subject == ids[2499].to_string()).unwrap();
    assert_eq!((entry.operation.as_str(), entry.actor.as_str()), ("machine_restrict", operator().name()));
    assert!(entry.detail.contains(&outcome.id.to_string()), "{}", entry.detail);

    // The opposite kind takes over all of them.
    let outcome = control.machine_bulk(&operator(), of(Kind::Unrestrict, &ids)).await.unwrap();
    assert_eq!(actions(&outcome).len(), 2500);
    assert_eq!(count(&deployment, "status eq 'Cancelled'").await, 2500);
    assert_eq!(count(&deployment, "status eq 'Pending'").await, 2500);
}

#[tokio::test]
async fn each_machine_has_its_own_result() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let mut machines = Vec::new();
    for number in 1..6 {
        machines.push(Machine::join(&deployment, number).await);
    }
    let [plain, active, opposite, unable, restricted] = &machines[..] else { panic!() };
    let open = deployment.restrict(active).await.unwrap();
    let superseded = deployment.unrestrict(opposite).await.unwrap();
    deployment.restrict(restricted).await.unwrap();
    restricted.prove(&deployment).await;
    let system = System { os_platform: "Windows11".to_owned(), ..System::default() };
    let reported = unable.reports(0, false);
    let capable = Capabilities { tier: Some(Tier::Fanotify), missing: None };
    control.machine_connected(unable.id, system, capable, reported, REMOTE).await.unwrap();
    deployment.told.1.lock().unwrap().insert(plain.id);
    let ids: Vec<_> = machines.iter().map(|machine| machine.id).chain([numbered(1), plain.id]).collect();

    let plan = control.machine_bulk_plan(&operator(), of(Kind::Restrict, &ids)).await.unwrap();
    let expected = BulkPlan {
        total: 6,
        unknown: 1,
        online: 1,
        offline: 4,
        unsupported: 1,
        already_restricted: 1,
        already_active: 1,
        actions: 3,
        refusal: None,
    };
    assert_eq!(plan, expected);
    let outcome = control.machine_bulk(&operator(), of(Kind::Restrict, &ids)).await.unwrap();
    assert_eq!(outcome.results.len(), 6, "a machine that is named twice counts once");
    let result = |machine: MachineId| {
        &outcome.results.iter().find(|result| result.machine == machine).unwrap().outcome
    };
    let made = *result(plain.id).as_ref().unwrap();
    assert!(matches!(result(active.id), Err(Error::ActiveAction(id)) if *id == open.id));
    let newer = *result(opposite.id).as_ref().unwrap();
    assert!(matches!(result(unable.id), Err(Error::OsPlatformNotSupported(_))));
    assert!(result(restricted.id).is_ok());
    assert!(matches!(result(numbered(1)), Err(Error::NotFound { .. })));
    let superseded = deployment.action(&superseded).await;
    assert_eq!(superseded.phase.status(), Status::Cancelled);
    let comment = superseded.cancellation.unwrap().comment;
    assert!(comment.contains(&newer.0.to_string()), "{comment}");
    // Its order is as good as one that was made alone.
    plain.prove(&deployment).await;
    assert_eq!(deployment.action_by_id(made).await.phase.status(), Status::Succeeded);
    restricted.prove(&deployment).await;
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_refused_whole() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let ids = deployment.enroll_many(2).await;
    let with = |request| BulkRequest { request, ..of(Kind::Restrict, &ids) };
    for bad in [
        with(Request { policy: Some("nowhere".to_owned()), ..request() }),
        with(Request { expires_in: Some(Duration::from_secs(59)), ..request() }),
        with(Request { idempotency_key: Some("a b".to_owned()), ..request() }),
        with(Request { external_id: Some("x".repeat(257)), ..request() }),
        BulkRequest {
            request: Request { policy: Some("default".to_owned()), ..request() },
            ..of(Kind::Unrestrict, &ids)
        },
    ] {
        refused(control.machine_bulk(&operator(), bad).await, is_invalid);
    }
    let silent = with(Request { comment: " ".to_owned(), ..request() });
    let silent = control.machine_bulk(&operator(), silent).await;
    refused(silent, |error| matches!(error, Error::MissingParameter("Comment")));
    assert_eq!(count(&deployment, "type ne 'Isolate'").await, 0);
    let restricts = deployment.app_caller(&[Permission::MachineRestrictExecution], None).await;
    // Who may not read may not choose by what the machines are, nor be told how many there are.
    let query = BulkTargets::Query(odata::parse("", &MACHINES).unwrap());
    let bulk = BulkRequest { targets: query, ..of(Kind::Restrict, &[]) };
    let is_forbidden = |error: &Error| matches!(error, Error::Forbidden { .. });
    refused(control.machine_bulk(&restricts, bulk.clone()).await, is_forbidden);
    refused(control.machine_bulk_plan(&restricts, of(Kind::Restrict, &ids)).await, is_forbidden);
    actions(&control.machine_bulk(&restricts, of(Kind::Restrict, &ids[..1])).await.unwrap());
}

#[tokio::test]
async fn what_a_caller_may_change_in_an_hour_is_limited() {
    let radius = BlastRadius { machines_max: 10, group_percent_max: 100 };
    let deployment = Deployment::start(Settings { blast_radius: radius, ..GENEROUS }).await;
    let control = &deployment.control;
    let ids = deployment.enroll_many(40).await;
    let caller = deployment
        .app_caller(&[Permission::MachineRestrictExecution, Permission::MachineReadAll], None)
        .await;
    let restrict = async |caller: &Caller, ids: &[MachineId]| {
        control.machine_bulk(caller, of(Kind::Restrict, ids)).await
    };
    let why = refused(restrict(&caller, &ids[..11]).await, is_disallowed);
    assert!(
        why.contains("11 machines") && why.contains("change 10") && why.contains("Bulk remediation"),
        "{why}"
    );
    let plan = control.machine_bulk_plan(&caller, of(Kind::Restrict, &ids[..11])).await.unwrap();
    assert_eq!((plan.actions, plan.refusal), (11, Some(why)));
    assert_eq!(count(&deployment, "type ne 'Isolate'").await, 0);
    // What a single call changes does not count.
    control.machine_restrict(&caller, &ids[39].to_string(), request()).await.unwrap();
    actions(&restrict(&caller, &ids[..6]).await.unwrap());
    refused(restrict(&caller, &ids[6..11]).await, is_disallowed);
    // A machine counts once: what was done can be undone.
    actions(&control.machine_bulk(&caller, of(Kind::Unrestrict, &ids[..6])).await.unwrap());
    // Lifting counts too.
    actions(&control.machine_bulk(&caller, of(Kind::Unrestrict, &ids[6..10])).await.unwrap());
    refused(restrict(&caller, &ids[10..11]).await, is_disallowed);
    refused(control.machine_bulk(&caller, of(Kind::Unrestrict, &ids[10..11])).await, is_disallowed);
    actions(&restrict(&caller, &ids[..10]).await.unwrap());
    // For nobody else.
    let other = deployment.app_caller(&[Permission::MachineRestrictExecution], None).await;
    actions(&restrict(&other, &ids[10..20]).await.unwrap());
    // A limit of the app's own, and none for who holds the permission.
    let draft =
        AppDraft { bulk_machines_max: Some(2), ..app_draft("two", &[Permission::MachineRestrictExecution]) };
    let (two, _) = control.app_create(&operator(), draft).await.unwrap();
    let two = control.caller(bearer(&two)).unwrap();
    refused(restrict(&two, &ids[20..23]).await, is_disallowed);
    actions(&restrict(&two, &ids[20..22]).await.unwrap());
    let unlimited = [Permission::MachineRestrictExecution, Permission::CordonBulkRemediation];
    let unlimited = deployment.app_caller(&unlimited, None).await;
    actions(&restrict(&unlimited, &ids[23..39]).await.unwrap());
    let more = vec![("bulkMachinesPerHour".to_owned(), Some(11))];
    control.settings_update(&operator(), more).await.unwrap();
    let caller =
        control.caller(Bearer::App { app: caller.app().to_owned(), permissions: Permission::ALL.to_vec() });
    actions(&control.machine_bulk(&caller.unwrap(), of(Kind::Unrestrict, &ids[10..11])).await.unwrap());
}

#[tokio::test]
async fn an_hour_later_the_limit_is_free_again() {
    let radius = BlastRadius { machines_max: 2, group_percent_max: 100 };
    let deployment = Deployment::start(Settings { blast_radius: radius, ..GENEROUS }).await;
    let control = &deployment.control;
    let ids = deployment.enroll_many(4).await;
    for (seconds, is_free) in [(3500, false), (3610, true)] {
        let caller = deployment.app_caller(&[Permission::MachineRestrictExecution], None).await;
        // Two machines that this caller changed so long ago.
        let model = control.machine_restrict(&operator(), &ids[0].to_string(), request()).await.unwrap();
        control.machine_action_cancel(&operator(), model.id, "a model".to_owned()).await.unwrap();
        let requestor = caller.name().to_owned();
        let changed = ids[..2].iter().zip([1000, 1001]).map(|(machine, generation)| {
            let mut action = MachineAction {
                id: MachineActionId(Uuid::now_v7()),
                machine: *machine,
                phase: Phase::Cancelled,
                bulk: Some(Uuid::from_u128(9)),
                requestor: requestor.clone(),
                created_at: model.created_at.minus(Duration::from_secs(seconds)),
                ..model.clone()
            };
            action.fence.generation = generation + seconds;
            (action, "{}".to_owned())
        });
        let changed: Vec<_> = changed.collect();
        deployment.store.write(move |tx| machine_action_create_many(tx, &changed)).await.unwrap();
        let outcome = control.machine_bulk(&caller, of(Kind::Restrict, &ids[2..3])).await;
        assert_eq!(outcome.is_ok(), is_free, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_part_of_a_group_is_the_limit_too() {
    let radius = BlastRadius { machines_max: 1000, group_percent_max: 25 };
    let deployment = Deployment::start(Settings { blast_radius: radius, ..GENEROUS }).await;
    let control = &deployment.control;
    let ids = deployment.enroll_many(48).await;
    // fleet-0, fleet-40 to fleet-47: nine machines; the rest are thirty-nine.
    let rule = [
        (RuleProperty::Name, RuleOperator::StartsWith, "fleet-4"),
        (RuleProperty::Name, RuleOperator::Equals, "fleet-0"),
    ];
    deployment.group("small", &rule, &[]).await;
    let caller = deployment.app_caller(&[Permission::MachineRestrictExecution], None).await;
    let restrict = async |ids: &[MachineId]| control.machine_bulk(&caller, of(Kind::Restrict, ids)).await;
    let why = refused(restrict(&ids[42..45]).await, is_disallowed);
    assert!(why.contains("\"small\"") && why.contains("25 %"), "{why}");
    actions(&restrict(&ids[42..44]).await.unwrap());
    refused(restrict(&ids[44..45]).await, is_disallowed);
    // Of the others nine can be changed.
    refused(restrict(&ids[5..15]).await, is_disallowed);
    actions(&restrict(&ids[5..14]).await.unwrap());
    // Always one, of however small a group.
    deployment.group("alone", &[(RuleProperty::Name, RuleOperator::Equals, "fleet-39")], &[]).await;
    actions(&restrict(&ids[39..40]).await.unwrap());
}

#[tokio::test]
async fn a_persons_limit_is_the_highest_of_the_roles() {
    let radius = BlastRadius { machines_max: 3, group_percent_max: 100 };
    let deployment = Deployment::start(Settings { blast_radius: radius, ..GENEROUS }).await;
    let control = &deployment.control;
    let ids = deployment.enroll_many(60).await;
    let responder = |max| Role {
        bulk_machines_max: max,
        ..role(&format!("r{max:?}"), &[Right::ActiveRemediationActions], &[&format!("g{max:?}")])
    };
    for max in [None, Some(1), Some(5)] {
        control.role_save(&operator(), responder(max)).await.unwrap();
    }
    deployment.role("bulk", &[Right::BulkRemediation], &["bulk"]).await;
    for (number, (groups, max)) in [
        (&["gNone"][..], 3),
        (&["gSome(1)"], 1),
        (&["gSome(1)", "gSome(5)"], 5),
        (&["gNone", "gSome(1)"], 3),
        (&["gSome(1)", "bulk"], 9),
    ]
    .into_iter()
    .enumerate()
    {
        let ids = &ids[number * 12..];
        let caller = deployment.person(&format!("person-{number}@idp"), groups);
        if max < 9 {
            let more = of(Kind::Restrict, &ids[..=max]);
            refused(control.machine_bulk(&caller, more).await, is_disallowed);
        }
        actions(&control.machine_bulk(&caller, of(Kind::Restrict, &ids[..max])).await.unwrap());
    }
}

#[tokio::test]
async fn the_same_key_replays_also_at_the_limit() {
    let radius = BlastRadius { machines_max: 3, group_percent_max: 100 };
    let deployment = Deployment::start(Settings { blast_radius: radius, ..GENEROUS }).await;
    let control = &deployment.control;
    let ids = deployment.enroll_many(6).await;
    let caller = deployment.app_caller(&[Permission::MachineRestrictExecution], None).await;
    let made = actions(&control.machine_bulk(&caller, keyed(&ids[..3], "k")).await.unwrap());
    // What it made counts once.
    let again = control.machine_bulk(&caller, keyed(&ids[..3], "k")).await.unwrap();
    assert_eq!(actions(&again), made);
    refused(control.machine_bulk(&caller, keyed(&ids[..4], "k")).await, is_disallowed);
    assert_eq!(count(&deployment, "type ne 'Isolate'").await, 3);
    // A call that broke off is carried on by the same key.
    let first = actions(&control.machine_bulk(&operator(), keyed(&ids[3..4], "k")).await.unwrap());
    let both = actions(&control.machine_bulk(&operator(), keyed(&ids[3..5], "k")).await.unwrap());
    assert_eq!((first[0], both.len()), (both[0], 2));
    let other = BulkRequest {
        request: Request { comment: "other".to_owned(), ..keyed(&[], "k").request },
        ..of(Kind::Restrict, &ids[3..4])
    };
    let refusal = control.machine_bulk(&operator(), other).await.unwrap().results.pop().unwrap();
    refused(refusal.outcome, is_invalid);
    // A key of a bulk call is none for a single one, nor the other way.
    let single = Request { idempotency_key: Some("k".to_owned()), ..request() };
    refused(control.machine_restrict(&operator(), &ids[3].to_string(), single.clone()).await, is_invalid);
    let single = Request { idempotency_key: Some("single".to_owned()), ..single };
    control.machine_restrict(&operator(), &ids[5].to_string(), single).await.unwrap();
    let refusal = control.machine_bulk(&operator(), keyed(&ids[5..6], "single")).await.unwrap();
    refused(refusal.results.into_iter().next().unwrap().outcome, is_invalid);
}

#[tokio::test]
async fn machines_that_others_change_meanwhile_get_their_action_all_the_same() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let ids = deployment.enroll_many(300).await;
    let caller = operator();
    let single = async {
        for id in &ids {
            // The opposite kind never collides, so that each of these makes or takes over.
            drop(control.machine_unrestrict(&caller, &id.to_string(), request()).await);
        }
    };
    let (outcome, ()) = tokio::join!(control.machine_bulk(&caller, of(Kind::Restrict, &ids)), single);
    assert_eq!(actions(&outcome.unwrap()).len(), 300);
    for id in &ids {
        let machine = control.machine_fetch(&caller, &id.to_string()).await.unwrap();
        let order = control.order_current(*id).await.unwrap().unwrap();
        assert_eq!(order.generation, machine.restriction.desired_generation);
        assert_eq!(machine.restriction.desired_generation, 2);
    }
}

#[tokio::test]
async fn two_calls_at_once_do_not_both_use_what_is_left() {
    let radius = BlastRadius { machines_max: 10, group_percent_max: 100 };
    let deployment = Deployment::start(Settings { blast_radius: radius, ..GENEROUS }).await;
    let ids = deployment.enroll_many(40).await;
    let caller = deployment.app_caller(&[Permission::MachineRestrictExecution], None).await;
    let call = |ids: &[MachineId]| {
        let (control, caller, bulk) = (deployment.control.clone(), caller.clone(), of(Kind::Restrict, ids));
        tokio::spawn(async move { control.machine_bulk(&caller, bulk).await.is_ok() })
    };
    let calls: Vec<_> = ids[..36].chunks(6).map(call).collect();
    let mut made = 0;
    for call in calls {
        made += usize::from(call.await.unwrap());
    }
    assert_eq!(made, 1);
    assert_eq!(count(&deployment, "type ne 'Isolate'").await, 6);
}
