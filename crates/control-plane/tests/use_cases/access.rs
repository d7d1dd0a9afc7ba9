//! Machine groups bind people and limited apps: what is not theirs is as unknown as what is not there.

use super::*;

use control_plane::{BulkRequest, BulkTargets, TagChange};
use domain::execution_event::ExecutionEvent;
use domain::machine_action::Kind;
use store::execution_event::EventFilter;
use store::list::{MACHINE_ACTIONS, MACHINES};

/// Two machines, of which the callers may know the first only: a person, and an app.
struct Scene {
    deployment: Deployment,
    open: Machine,
    closed: Machine,
    callers: Vec<Caller>,
}

async fn scene() -> Scene {
    let deployment = Deployment::start(GENEROUS).await;
    let (open, closed) = (Machine::join(&deployment, 1).await, Machine::join(&deployment, 2).await);
    deployment.role("responder", &Right::ALL, &["soc"]).await;
    for (name, group, user_groups) in [("lab-1", "open", &["soc"][..]), ("lab-2", "closed", &["others"])] {
        deployment.group(group, &[(RuleProperty::Name, RuleOperator::Equals, name)], user_groups).await;
    }
    let callers = vec![
        deployment.person("ann@idp", &["soc"]),
        deployment.app_caller(&Permission::ALL, Some(&["open"])).await,
    ];
    Scene { deployment, open, closed, callers }
}

/// The text of an answer about something invisible is the text about something unknown, but for the id.
#[track_caller]
fn assert_unknown<T>(invisible: Result<T, Error>, unknown: Result<T, Error>, ids: [&str; 2]) {
    let invisible = refused(invisible, is_not_found).replace(ids[0], "ID");
    let unknown = refused(unknown, is_not_found).replace(ids[1], "ID");
    assert_eq!(invisible, unknown);
}

#[tokio::test]
async fn what_is_invisible_answers_as_what_is_unknown() {
    let Scene { deployment, open, closed, callers } = scene().await;
    let control = &deployment.control;
    let action = deployment.restrict(&closed).await.unwrap();
    let nothing = MachineActionId(Uuid::from_u128(1));
    let nowhere = numbered(1).to_string();
    let (id, action_id, unknown_action) =
        (closed.id.to_string(), action.id.0.to_string(), nothing.0.to_string());
    for caller in &callers {
        for (target, unknown) in [(id.as_str(), nowhere.as_str()), ("lab-2", "nowhere")] {
            let ids = [target, unknown];
            let fetch = async |target| control.machine_fetch(caller, target).await;
            assert_unknown(fetch(target).await, fetch(unknown).await, ids);
            let restrict = async |target| control.machine_restrict(caller, target, request()).await;
            assert_unknown(restrict(target).await, restrict(unknown).await, ids);
            let unrestrict = async |target| control.machine_unrestrict(caller, target, request()).await;
            assert_unknown(unrestrict(target).await, unrestrict(unknown).await, ids);
            let tag = async |target| control.machine_tag(caller, target, "t", TagChange::Add).await;
            assert_unknown(tag(target).await, tag(unknown).await, ids);
            let filter = || EventFilter { top: 1, ..EventFilter::default() };
            let events = async |target| control.execution_event_list(caller, Some(target), filter()).await;
            assert_unknown(events(target).await, events(unknown).await, ids);
        }
        let ids = [action_id.as_str(), unknown_action.as_str()];
        let fetch = async |id| control.machine_action_fetch(caller, id).await;
        assert_unknown(fetch(action.id).await, fetch(nothing).await, ids);
        let receipt = async |id| control.machine_action_receipt(caller, id).await;
        assert_unknown(receipt(action.id).await, receipt(nothing).await, ids);
        let cancel = async |id| control.machine_action_cancel(caller, id, "c".to_owned()).await;
        assert_unknown(cancel(action.id).await, cancel(nothing).await, ids);
        let bulk = async |id| {
            let targets = BulkTargets::Ids(vec![id]);
            let bulk = BulkRequest { kind: Kind::Unrestrict, targets, request: request() };
            let mut results = control.machine_bulk(caller, bulk).await.unwrap().results;
            let result = results.pop().unwrap();
            assert_eq!(result.computer_dns_name, None);
            result.outcome
        };
        assert_unknown(bulk(closed.id).await, bulk(numbered(1)).await, [&id, &nowhere]);
        control.machine_fetch(caller, &open.id.to_string()).await.unwrap();
    }
    assert_eq!(deployment.action(&action).await.phase.status(), Status::Pending);
    let seen = control.machine_fetch(&operator(), &id).await.unwrap();
    assert_eq!((seen.restriction.desired_generation, seen.tags.len()), (1, 0));
}

#[tokio::test]
async fn lists_and_counts_leave_out_what_is_invisible() {
    let Scene { deployment, open, closed, callers } = scene().await;
    let control = &deployment.control;
    for machine in [&open, &closed] {
        deployment.restrict(machine).await.unwrap();
        let event = ExecutionEvent {
            at: Timestamp::default(),
            path: "/tmp/x".to_owned(),
            cause: "unlisted".to_owned(),
            count: 1,
            ..ExecutionEvent::default()
        };
        control.execution_events_store(machine.id, vec![event], 0).await.unwrap();
    }
    let everyone = operator();
    for (caller, visible) in callers.iter().zip([1, 1]).chain([(&everyone, 2)]) {
        let query = || odata::parse("$count=true", &MACHINES).unwrap();
        let page = control.machine_list(caller, query()).await.unwrap();
        assert_eq!((page.rows.len(), page.count), (visible, Some(visible as u64)));
        let query = odata::parse("$count=true", &MACHINE_ACTIONS).unwrap();
        let page = control.machine_action_list(caller, query).await.unwrap();
        assert_eq!((page.rows.len(), page.count), (visible, Some(visible as u64)));
        let filter = EventFilter { top: 10, ..EventFilter::default() };
        let events = control.execution_event_list(caller, None, filter).await.unwrap();
        assert_eq!(events.len(), visible);
        let bulk = BulkRequest {
            kind: Kind::Restrict,
            targets: BulkTargets::Query(odata::parse("", &MACHINES).unwrap()),
            request: request(),
        };
        let plan = control.machine_bulk_plan(caller, bulk).await.unwrap();
        assert_eq!(plan.total, visible as u64);
    }
}

#[tokio::test]
async fn a_name_that_only_one_visible_machine_has_is_enough() {
    let Scene { deployment, open, closed, callers } = scene().await;
    deployment.group("open", &[(RuleProperty::Tag, RuleOperator::Equals, "open")], &["soc"]).await;
    deployment.group("closed", &[(RuleProperty::Tag, RuleOperator::Equals, "closed")], &["others"]).await;
    for (machine, tag) in [(&open, "open"), (&closed, "closed")] {
        machine.connect_as(&deployment, "twin", 0, false).await;
        let target = machine.id.to_string();
        deployment.control.machine_tag(&operator(), &target, tag, TagChange::Add).await.unwrap();
    }
    for caller in &callers {
        let found = deployment.control.machine_fetch(caller, "twin").await.unwrap();
        assert_eq!(found.id, open.id);
    }
    refused(deployment.control.machine_fetch(&operator(), "twin").await, is_invalid);
}

#[tokio::test]
async fn a_change_of_groups_holds_for_the_next_call() {
    let Scene { deployment, open, closed, .. } = scene().await;
    let control = &deployment.control;
    let sees = async |machine: &Machine| {
        let caller = deployment.person("ann@idp", &["soc"]);
        control.machine_fetch(&caller, &machine.id.to_string()).await.is_ok()
    };
    assert_eq!((sees(&open).await, sees(&closed).await), (true, false));
    let rule = |name| [(RuleProperty::Name, RuleOperator::Equals, name)];
    // Without user groups it is open to everybody who has a role.
    deployment.group("closed", &rule("lab-2"), &[]).await;
    assert!(sees(&closed).await);
    let nobody = deployment.person("eve@idp", &["unknown"]);
    assert!(matches!(control.machine_fetch(&nobody, "lab-2").await, Err(Error::MissingRight(_))));
    deployment.group("closed", &rule("lab-2"), &["others"]).await;
    assert!(!sees(&closed).await);
    control.machine_group_delete(&operator(), "closed").await.unwrap();
    assert!(sees(&closed).await, "that of the ungrouped is open");
    let ungrouped = MachineGroupDraft {
        user_groups: texts(&["others"]),
        ..group_draft(domain::machine_group::UNGROUPED, &[])
    };
    control.machine_group_save(&operator(), domain::machine_group::UNGROUPED, ungrouped).await.unwrap();
    assert!(!sees(&closed).await);
}

#[tokio::test]
async fn a_replay_needs_the_same_access() {
    let Scene { deployment, open, callers, .. } = scene().await;
    let control = &deployment.control;
    let keyed = || Request { idempotency_key: Some("k".to_owned()), ..request() };
    let target = open.id.to_string();
    control.machine_restrict(&callers[0], &target, keyed()).await.unwrap();
    deployment.group("open", &[(RuleProperty::Name, RuleOperator::Equals, "lab-1")], &["others"]).await;
    let caller = deployment.person("ann@idp", &["soc"]);
    refused(control.machine_restrict(&caller, &target, keyed()).await, is_not_found);
}
