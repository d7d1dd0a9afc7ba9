//! Accounts: made, changed, deleted, authenticated; and what they may do from one call to the next.

use super::*;

use control_plane::{UserChange, UserDraft};

const PASSWORD: &str = "correct horse battery";
const NETWORK: &str = "192.0.2.7";
const ELSEWHERE: &str = "198.51.100.9";

fn draft(name: &str, groups: &[&str]) -> UserDraft {
    UserDraft {
        name: name.to_owned(),
        display_name: String::new(),
        groups: texts(groups),
        password: Some(PASSWORD.to_owned()),
    }
}

/// The token of an account that signed in at a time.
fn token(name: &str, signed_in_at: i64) -> Bearer {
    Bearer::User {
        app: CLI_APP_ID.to_string(),
        name: name.to_owned(),
        scopes: Permission::ALL.to_vec(),
        groups: Groups::Account { signed_in_at },
    }
}

const LATER: i64 = 4_000_000_000;

#[tokio::test]
async fn an_account_is_made_changed_and_deleted() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let caller = operator();
    let (made, password) =
        control.user_create(&caller, draft("Ann@Example.org", &["soc", "a", "soc"])).await.unwrap();
    assert_eq!((made.name.as_str(), made.display_name.as_str()), ("ann@example.org", "ann@example.org"));
    assert_eq!((made.groups.clone(), password), (texts(&["a", "soc"]), None));
    assert_eq!(control.user_fetch(&caller, "ANN@example.ORG").await.unwrap(), made);
    let twice = control.user_create(&caller, draft("ann@example.org", &[])).await;
    refused(twice, |error| matches!(error, Error::AlreadyExists(_)));
    // Without a password one is made, which can be used.
    let (bob, password) =
        control.user_create(&caller, UserDraft { password: None, ..draft("bob", &[]) }).await.unwrap();
    control.user_authenticate("bob", &password.unwrap(), NETWORK).await.unwrap();
    assert_eq!(control.user_list(&caller).await.unwrap(), [made.clone(), bob]);

    let change = UserChange { display_name: Some(" Ann ".to_owned()), ..UserChange::default() };
    let changed = control.user_update(&caller, "Ann@example.org", change).await.unwrap();
    assert_eq!((changed.display_name.as_str(), &changed.groups), ("Ann", &made.groups));
    assert_eq!(changed.password_changed_at, made.password_changed_at);
    refused(control.user_update(&caller, "nobody", UserChange::default()).await, is_not_found);
    refused(control.user_fetch(&caller, "nobody").await, is_not_found);
    control.user_delete(&caller, "ANN@example.org").await.unwrap();
    refused(control.user_delete(&caller, "ann@example.org").await, is_not_found);
    refused(control.user_authenticate("ann@example.org", PASSWORD, NETWORK).await, is_unauthenticated);
    assert_eq!(
        deployment.operations().await,
        ["policy_apply", "user_create", "user_create", "user_update", "user_delete"]
    );
    let text = format!("{:?}", deployment.entries().await);
    assert!(!text.contains(PASSWORD) && !text.contains("argon2"), "{text}");
}

#[tokio::test]
async fn an_account_that_makes_no_sense_is_refused() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let long = "x".repeat(129);
    for name in ["", " ", "a b", "a/b", "ü", "a\nb", &long] {
        refused(control.user_create(&operator(), draft(name, &[])).await, is_invalid);
    }
    let huge = "x".repeat(1025);
    for password in ["", "14 characters.", &huge] {
        let bad = UserDraft { password: Some(password.to_owned()), ..draft("ann", &[]) };
        refused(control.user_create(&operator(), bad).await, is_invalid);
    }
    refused(control.user_create(&operator(), draft("ann", &["a\nb"])).await, is_invalid);
    control.user_create(&operator(), draft("ann", &[])).await.unwrap();
    for bad in [
        UserChange { password: Some("short".to_owned()), ..UserChange::default() },
        UserChange { display_name: Some(" ".to_owned()), ..UserChange::default() },
        UserChange { groups: Some(texts(&[""])), ..UserChange::default() },
    ] {
        refused(control.user_update(&operator(), "ann", bad).await, is_invalid);
    }
    assert_eq!(control.user_list(&operator()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_account_counts_as_it_is_at_each_call() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    deployment.role("reader", &[Right::ViewData], &["readers"]).await;
    let (ann, _) = control.user_create(&operator(), draft("ann", &["readers"])).await.unwrap();
    let signed_in_at = ann.password_changed_at.unix_seconds();
    let read = async |signed_in_at| {
        let caller = control.caller(token("ann", signed_in_at))?;
        control.machine_fetch(&caller, &machine.id.to_string()).await
    };
    let change = async |change: UserChange| control.user_update(&operator(), "ann", change).await.unwrap();
    let no_right = |error: &Error| matches!(error, Error::MissingRight(Right::ViewData));
    read(signed_in_at).await.unwrap();
    refused(read(signed_in_at - 1).await, is_unauthenticated);

    change(UserChange { groups: Some(vec![]), ..UserChange::default() }).await;
    refused(read(signed_in_at).await, no_right);
    change(UserChange { groups: Some(texts(&["readers"])), ..UserChange::default() }).await;
    read(signed_in_at).await.unwrap();
    change(UserChange { enabled: Some(false), ..UserChange::default() }).await;
    refused(read(signed_in_at).await, is_unauthenticated);
    refused(control.user_authenticate("ann", PASSWORD, NETWORK).await, is_unauthenticated);
    // What was granted before stays refused.
    let enabled = change(UserChange { enabled: Some(true), ..UserChange::default() }).await;
    refused(read(signed_in_at).await, is_unauthenticated);
    let signed_in_at = enabled.password_changed_at.unix_seconds();
    read(signed_in_at).await.unwrap();
    control.user_authenticate("ann", PASSWORD, NETWORK).await.unwrap();

    deployment.role("reader", &[Right::AlertsInvestigation], &["readers"]).await;
    refused(read(signed_in_at).await, no_right);
    deployment.role("reader", &[Right::ViewData], &["others"]).await;
    refused(read(signed_in_at).await, no_right);
    deployment.role("reader", &[Right::ViewData], &["readers"]).await;
    read(signed_in_at).await.unwrap();
    control.role_delete(&operator(), "reader").await.unwrap();
    refused(read(signed_in_at).await, no_right);
    deployment.role("reader", &[Right::ViewData], &["readers"]).await;

    let password = Some("another password".to_owned());
    let changed = change(UserChange { password, ..UserChange::default() }).await;
    let changed_at = changed.password_changed_at.unix_seconds();
    refused(read(changed_at - 1).await, is_unauthenticated);
    read(LATER).await.unwrap();
    refused(control.user_authenticate("ann", PASSWORD, NETWORK).await, is_unauthenticated);
    control.user_authenticate("ann", "another password", NETWORK).await.unwrap();
    control.user_delete(&operator(), "ann").await.unwrap();
    refused(read(LATER).await, is_unauthenticated);
}

#[tokio::test]
async fn ten_wrong_passwords_lock_an_account_until_it_gets_another() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    control.user_create(&operator(), draft("ann", &[])).await.unwrap();
    let wrong = async |count: usize| {
        for _ in 0..count {
            refused(control.user_authenticate("ann", "wrong", ELSEWHERE).await, is_unauthenticated);
        }
    };
    wrong(9).await;
    // The right one counts the wrong ones anew.
    control.user_authenticate("ann", PASSWORD, NETWORK).await.unwrap();
    wrong(9).await;
    control.user_authenticate("ann", PASSWORD, NETWORK).await.unwrap();
    wrong(10).await;
    let locked = refused(control.user_authenticate("ann", PASSWORD, ELSEWHERE).await, is_unauthenticated);
    let unknown = refused(control.user_authenticate("nobody", PASSWORD, ELSEWHERE).await, is_unauthenticated);
    assert_eq!(locked, unknown);
    // Not for the person, where the person signed in before; and that frees nobody else.
    refused(control.user_authenticate("ann", "wrong", NETWORK).await, is_unauthenticated);
    control.user_authenticate("ann", PASSWORD, NETWORK).await.unwrap();
    refused(control.user_authenticate("ann", PASSWORD, ELSEWHERE).await, is_unauthenticated);
    let ann = control.user_fetch(&operator(), "ann").await.unwrap();
    assert!(ann.locked_until.unwrap() > Timestamp::from(std::time::SystemTime::now()));
    let lock = deployment.entries().await.into_iter().find(|entry| entry.operation == "user_lock").unwrap();
    assert_eq!((lock.actor.as_str(), lock.subject.as_str()), (AuditEntry::SYSTEM, "ann"));

    let password = Some("another password".to_owned());
    let change = UserChange { password, ..UserChange::default() };
    let freed = control.user_update(&operator(), "ann", change).await.unwrap();
    assert_eq!(freed.locked_until, None);
    control.user_authenticate("ann", "another password", NETWORK).await.unwrap();
    refused(control.user_authenticate("ann", &"x".repeat(10_000), NETWORK).await, is_unauthenticated);
}
