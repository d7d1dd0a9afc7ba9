//! Apps, enrollment tokens, policies, permissions and rate limits.

use super::*;

use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::digest::Sha256Digest;

#[tokio::test]
async fn an_app_is_known_by_its_secret_until_it_is_revoked() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let permissions = vec![Permission::MachineRestrictExecution];
    let (app, secret) = control.app_create(&operator(), "soar".to_owned(), permissions).await.unwrap();
    assert_eq!(control.app_authenticate(app.id, &secret).await.unwrap(), app);
    for (id, secret) in [(app.id, "wrong"), (Uuid::nil(), secret.as_str()), (app.id, "")] {
        let refused = control.app_authenticate(id, secret).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthenticated(_)), "{refused}");
    }
    let twice = control
        .app_create(&operator(), "soar".to_owned(), vec![Permission::MachineReadAll])
        .await
        .unwrap_err();
    assert!(matches!(twice, Error::AlreadyExists(_)), "{twice}");
    control.app_revoke(&operator(), app.id).await.unwrap();
    assert!(control.app_is_revoked(app.id));
    assert!(control.app_authenticate(app.id, &secret).await.is_err());
    let deployment = deployment.restarted(GENEROUS).await;
    assert!(deployment.control.app_is_revoked(app.id));
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let administer = || vec![Permission::CordonAdminister];
    let (first, _) = control.app_create(&operator(), "first".to_owned(), administer()).await.unwrap();
    assert!(matches!(control.app_revoke(&operator(), first.id).await, Err(Error::BadRequest(_))));
    let (second, _) = control.app_create(&operator(), "second".to_owned(), administer()).await.unwrap();
    control.app_revoke(&operator(), first.id).await.unwrap();
    assert!(matches!(control.app_revoke(&operator(), second.id).await, Err(Error::BadRequest(_))));
}

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

#[tokio::test]
async fn a_policy_gets_a_revision_only_when_it_says_something_else() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let rule = Rule {
        id: "tool".to_owned(),
        matcher: Matcher::Sha256(Sha256Digest([9; 32])),
        effect: Effect::Allow,
        comment: String::new(),
    };
    let policy = AllowPolicy {
        name: AllowPolicy::DEFAULT_NAME.to_owned(),
        revision: 0,
        profile: Profile::OsAndApproved,
        rules: vec![rule],
    };
    let before = control.policy_fetch(&operator(), "default").await.unwrap();
    let saved = control.policy_apply(&operator(), policy.clone()).await.unwrap();
    assert_eq!((before.policy.revision, saved.policy.revision), (1, 2));
    let again = control.policy_apply(&operator(), policy).await.unwrap();
    assert_eq!(again, saved);
    assert_eq!(control.policy_list(&operator()).await.unwrap(), std::slice::from_ref(&saved));
    // Machines may still need what they were ordered to hold.
    for digest in [before.digest, saved.digest] {
        assert!(control.policy_envelope(digest).await.unwrap().is_some());
    }
    assert_eq!(control.policy_envelope(Sha256Digest([0; 32])).await.unwrap(), None);
}

#[tokio::test]
async fn permissions_are_checked_in_every_use_case() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let holds = |permission| Caller { app: Uuid::from_u128(1), permissions: vec![permission] };
    let restricts = holds(Permission::MachineRestrictExecution);
    let reads = holds(Permission::MachineReadAll);
    let id = MachineActionId(Uuid::from_u128(1));
    let forbidden = |result: Result<(), Error>| matches!(result, Err(Error::Forbidden { .. }));
    let comment = || "c".to_owned();
    assert!(forbidden(control.machine_fetch(&restricts, "m").await.map(drop)));
    assert!(forbidden(control.machine_action_fetch(&restricts, id).await.map(drop)));
    assert!(forbidden(control.machine_action_receipt(&restricts, id).await.map(drop)));
    assert!(forbidden(control.machine_restrict(&reads, "m", request()).await.map(drop)));
    assert!(forbidden(control.machine_unrestrict(&reads, "m", request()).await.map(drop)));
    assert!(forbidden(control.machine_action_cancel(&reads, id, comment()).await.map(drop)));
    assert!(forbidden(control.execution_event_list(&restricts, None, None, 1).await.map(drop)));
    for caller in [&restricts, &reads] {
        assert!(forbidden(control.app_list(caller).await.map(drop)));
        assert!(forbidden(control.app_create(caller, comment(), vec![]).await.map(drop)));
        assert!(forbidden(control.app_revoke(caller, Uuid::nil()).await));
        assert!(forbidden(control.enrollment_token_list(caller).await.map(drop)));
        let minute = Duration::from_secs(60);
        assert!(forbidden(control.enrollment_token_create(caller, 1, minute, comment()).await.map(drop)));
        assert!(forbidden(control.enrollment_token_revoke(caller, Uuid::nil()).await));
        assert!(forbidden(control.audit_entry_list(caller, None, 1).await.map(drop)));
    }
    assert!(forbidden(control.policy_list(&restricts).await.map(drop)));
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
