//! Enrollment tokens, permissions and rate limits.

use super::*;

use control_plane::{BulkRequest, BulkTargets, KeyDraft, TagChange, UserChange, UserDraft};
use domain::allow_policy::{AllowPolicy, Profile};
use domain::machine_action::Kind;
use domain::policy_settings::PolicySettings;
use store::execution_event::EventFilter;
use store::list::MACHINES;

#[tokio::test]
async fn an_enrollment_token_is_counted_and_can_be_revoked() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let minute = Duration::from_secs(60);
    let (token, secret) =
        control.enrollment_token_create(&operator(), 2, minute, "lab".to_owned()).await.unwrap();
    let enroll = |number: u8| {
        let key = SigningKey::from_seed(&[number; 32]).public_key();
        control.machine_enroll(&secret, MachineId([number; 20]), key, "m", REMOTE)
    };
    assert_eq!(enroll(1).await.unwrap(), 1);
    assert_eq!(enroll(1).await.unwrap(), 2);
    assert!(matches!(enroll(1).await, Err(Error::Unauthenticated(_))));
    let listed = control.enrollment_token_list(&operator()).await.unwrap();
    assert_eq!((listed[0].id, listed[0].uses), (token.id, 2));

    let (token, secret) =
        control.enrollment_token_create(&operator(), 2, minute, String::new()).await.unwrap();
    control.enrollment_token_revoke(&operator(), token.id).await.unwrap();
    let key = SigningKey::from_seed(&[3; 32]).public_key();
    let refused = control.machine_enroll(&secret, MachineId([3; 20]), key, "m", REMOTE).await;
    assert!(matches!(refused, Err(Error::Unauthenticated(_))));
    assert!(control.enrollment_token_create(&operator(), 0, minute, String::new()).await.is_err());
}

/// Every use case that asks for a permission: its name, and what it answers a caller.
async fn answers(control: &ControlPlane, caller: &Caller) -> Vec<(&'static str, Result<(), Error>)> {
    let id = MachineActionId(Uuid::from_u128(1));
    let nobody = Uuid::from_u128(2);
    let text = || "c".to_owned();
    let minute = Duration::from_secs(60);
    let policy = || AllowPolicy {
        name: text(),
        revision: 0,
        profile: Profile::OsOnly,
        settings: PolicySettings::default(),
        rules: Vec::new(),
    };
    let bulk =
        || BulkRequest { kind: Kind::Restrict, targets: BulkTargets::Ids(Vec::new()), request: request() };
    let machines = || odata::parse("", &MACHINES).unwrap();
    let actions = || odata::parse("", &store::list::MACHINE_ACTIONS).unwrap();
    let app = || app_draft("c", &[Permission::MachineReadAll]);
    let group = || group_draft("c", &[]);
    let key = || KeyDraft {
        thumbprint: text(),
        x5t: None,
        x5t_s256: None,
        public_key: text(),
        comment: text(),
        expires_at: None,
    };
    let user =
        || UserDraft { name: text(), display_name: text(), groups: vec![], password: Some("x".repeat(15)) };
    let events = EventFilter { top: 1, ..EventFilter::default() };
    let entries = AuditFilter { top: 1, ..AuditFilter::default() };
    let now = Timestamp::from(std::time::SystemTime::now());
    vec![
        ("machine_fetch", control.machine_fetch(caller, "m").await.map(drop)),
        ("machine_list", control.machine_list(caller, machines()).await.map(drop)),
        ("machine_list_by_ip", control.machine_list_by_ip(caller, REMOTE, now).await.map(drop)),
        ("break_glass_code_show", control.break_glass_code_show(caller, "m").await.map(drop)),
        ("machine_tag", control.machine_tag(caller, "m", "t", TagChange::Add).await.map(drop)),
        ("machine_restrict", control.machine_restrict(caller, "m", request()).await.map(drop)),
        ("machine_unrestrict", control.machine_unrestrict(caller, "m", request()).await.map(drop)),
        ("machine_bulk", control.machine_bulk(caller, bulk()).await.map(drop)),
        ("machine_bulk_plan", control.machine_bulk_plan(caller, bulk()).await.map(drop)),
        ("machine_action_fetch", control.machine_action_fetch(caller, id).await.map(drop)),
        ("machine_action_list", control.machine_action_list(caller, actions()).await.map(drop)),
        ("machine_action_receipt", control.machine_action_receipt(caller, id).await.map(drop)),
        ("machine_action_cancel", control.machine_action_cancel(caller, id, text()).await.map(drop)),
        ("execution_event_list", control.execution_event_list(caller, None, events).await.map(drop)),
        ("policy_list", control.policy_list(caller).await.map(drop)),
        ("policy_fetch", control.policy_fetch(caller, "p").await.map(drop)),
        ("policy_revisions", control.policy_revisions(caller, "p").await.map(drop)),
        ("policy_diff", control.policy_diff(caller, "p", None, None).await.map(drop)),
        ("policy_apply", control.policy_apply(caller, policy(), true).await.map(drop)),
        ("enrollment_token_list", control.enrollment_token_list(caller).await.map(drop)),
        (
            "enrollment_token_create",
            control.enrollment_token_create(caller, 1, minute, text()).await.map(drop),
        ),
        ("enrollment_token_revoke", control.enrollment_token_revoke(caller, nobody).await),
        ("app_list", control.app_list(caller).await.map(drop)),
        ("app_fetch", control.app_fetch(caller, nobody).await.map(drop)),
        ("app_create", control.app_create(caller, app()).await.map(drop)),
        ("app_update", control.app_update(caller, nobody, app()).await.map(drop)),
        ("app_secret_renew", control.app_secret_renew(caller, nobody).await.map(drop)),
        ("app_key_list", control.app_key_list(caller, nobody).await.map(drop)),
        ("app_key_add", control.app_key_add(caller, nobody, key()).await.map(drop)),
        ("app_key_remove", control.app_key_remove(caller, nobody, "t").await),
        ("app_revoke", control.app_revoke(caller, nobody).await),
        ("user_list", control.user_list(caller).await.map(drop)),
        ("user_fetch", control.user_fetch(caller, "u").await.map(drop)),
        ("user_create", control.user_create(caller, user()).await.map(drop)),
        ("user_update", control.user_update(caller, "u", UserChange::default()).await.map(drop)),
        ("user_delete", control.user_delete(caller, "u").await),
        ("role_list", control.role_list(caller).await.map(drop)),
        ("role_fetch", control.role_fetch(caller, "r").await.map(drop)),
        ("role_save", control.role_save(caller, role("c", &[], &[])).await.map(drop)),
        ("role_delete", control.role_delete(caller, "r").await),
        ("machine_group_list", control.machine_group_list(caller).await.map(drop)),
        ("machine_group_fetch", control.machine_group_fetch(caller, "g").await.map(drop)),
        ("machine_group_save", control.machine_group_save(caller, "c", group()).await.map(drop)),
        ("machine_group_preview", control.machine_group_preview(caller, "c", group()).await.map(drop)),
        ("machine_group_delete", control.machine_group_delete(caller, "g").await),
        ("settings_list", control.settings_list(caller).await.map(drop)),
        ("settings_update", control.settings_update(caller, vec![]).await),
        ("audit_entry_list", control.audit_entry_list(caller, entries).await.map(drop)),
    ]
}

const READS: [&str; 6] = [
    "machine_fetch",
    "machine_list",
    "machine_list_by_ip",
    "machine_action_fetch",
    "machine_action_list",
    "machine_action_receipt",
];
const POLICY_READS: [&str; 4] = ["policy_list", "policy_fetch", "policy_revisions", "policy_diff"];
const RESTRICTS: [&str; 4] =
    ["machine_restrict", "machine_unrestrict", "machine_bulk", "machine_action_cancel"];
const SECURITY: [&str; 4] =
    ["policy_apply", "enrollment_token_list", "enrollment_token_create", "enrollment_token_revoke"];

/// The use cases that an app with one permission may use.
fn allowed(permission: Permission) -> impl Fn(&str) -> bool {
    move |name| {
        let reads = READS.contains(&name) || name == "execution_event_list" || POLICY_READS.contains(&name);
        match permission {
            Permission::MachineReadAll => reads,
            Permission::MachineReadWriteAll => reads || name == "machine_tag",
            Permission::MachineRestrictExecution => RESTRICTS.contains(&name),
            Permission::CordonBulkRemediation => false,
            Permission::CordonBreakGlass => name == "break_glass_code_show",
            Permission::CordonAdminister => {
                let other = READS.contains(&name) || RESTRICTS.contains(&name);
                let others =
                    ["execution_event_list", "machine_tag", "machine_bulk_plan", "break_glass_code_show"];
                !other && !others.contains(&name)
            }
        }
    }
}

#[tokio::test]
async fn every_use_case_asks_apps_for_a_permission() {
    let deployment = Deployment::start(GENEROUS).await;
    for permission in Permission::ALL {
        let caller = deployment.app_caller(&[permission], None).await;
        let allowed = allowed(permission);
        for (name, answer) in answers(&deployment.control, &caller).await {
            let is_forbidden = matches!(answer, Err(Error::Forbidden { .. }));
            assert_eq!(is_forbidden, !allowed(name), "{name} with {permission}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn every_use_case_asks_people_for_a_right() {
    let deployment = Deployment::start(GENEROUS).await;
    for right in Right::ALL {
        deployment.role("one", &[right], &["one"]).await;
        let caller = deployment.person("ann@idp", &["one"]);
        for (name, answer) in answers(&deployment.control, &caller).await {
            let reads =
                READS.contains(&name) || name == "execution_event_list" || POLICY_READS.contains(&name);
            let expected = if reads {
                right == Right::ViewData
            } else if RESTRICTS.contains(&name) {
                right == Right::ActiveRemediationActions
            } else if name == "break_glass_code_show" {
                right == Right::BreakGlass
            } else if name == "machine_bulk_plan" {
                // It restricts and reads: one right alone is never enough.
                false
            } else if SECURITY.contains(&name) || name == "machine_tag" {
                right == Right::ManageSecuritySettings
            } else {
                right == Right::ManagePortalSystemSettings
            };
            let lacks = matches!(answer, Err(Error::MissingRight(_)));
            assert_eq!(lacks, !expected, "{name} with {right}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_person_without_a_role_may_nothing() {
    let deployment = Deployment::start(GENEROUS).await;
    let caller = deployment.person("ann@idp", &["unknown"]);
    for (name, answer) in answers(&deployment.control, &caller).await {
        assert!(matches!(answer, Err(Error::MissingRight(_))), "{name}: {answer:?}");
    }
    assert!(!deployment.operations().await.contains(&"machine_group_save".to_owned()));
}

#[tokio::test]
async fn rate_limits_hold_over_a_restart_and_are_counted_per_operation() {
    let strict = Settings { rate_limit: RateLimit::per_minute_and_hour(2, 100), ..GENEROUS };
    let deployment = Deployment::start(strict).await;
    let machine = Machine::join(&deployment, 7).await;
    deployment.restrict(&machine).await.unwrap();
    deployment.restrict(&machine).await.unwrap_err();
    let refused = deployment.restrict(&machine).await.unwrap_err();
    let Error::RateLimited(exceeded) = &refused else { panic!("{refused}") };
    assert!(exceeded.retry_after <= Duration::from_secs(60));
    deployment.unrestrict(&machine).await.unwrap();

    let deployment = deployment.restarted(strict).await;
    assert!(matches!(deployment.restrict(&machine).await, Err(Error::RateLimited(_))));
    // The other operation is counted apart: one call is left.
    assert!(matches!(deployment.unrestrict(&machine).await, Err(Error::ActiveAction(_))));
    assert!(matches!(deployment.unrestrict(&machine).await, Err(Error::RateLimited(_))));
}
