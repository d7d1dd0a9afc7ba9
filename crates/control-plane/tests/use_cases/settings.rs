//! Settings: changed while the server runs, and in force with the next call.

use super::*;

#[tokio::test]
async fn settings_are_set_and_taken_back() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let caller = operator();
    let values = async |control: &ControlPlane| {
        let settings = control.settings_list(&operator()).await.unwrap();
        settings.into_iter().map(|setting| (setting.name, setting.value, setting.is_set)).collect::<Vec<_>>()
    };
    let before = values(control).await;
    assert_eq!(
        before,
        [
            ("rateLimitPerMinute", 1000, false),
            ("rateLimitPerHour", 1000, false),
            ("actionDeadlineSeconds", 3600, false),
            ("bulkMachinesPerHour", 100, false),
            ("bulkGroupPercentPerHour", 25, false),
        ]
    );
    let change = |name: &str, value| (name.to_owned(), value);
    let changes = vec![change("rateLimitPerMinute", Some(7)), change("actionDeadlineSeconds", Some(60))];
    control.settings_update(&caller, changes).await.unwrap();
    let deployment = deployment.restarted(GENEROUS).await;
    let control = &deployment.control;
    let after = values(control).await;
    assert_eq!(after[0], ("rateLimitPerMinute", 7, true));
    assert_eq!(after[2], ("actionDeadlineSeconds", 60, true));
    assert_eq!((after[1], after[3], after[4]), (before[1], before[3], before[4]));
    let machine = Machine::join(&deployment, 7).await;
    let action = deployment.restrict(&machine).await.unwrap();
    assert_eq!(action.deadline.since(action.created_at), Duration::from_secs(60));
    let back = vec![change("rateLimitPerMinute", None), change("actionDeadlineSeconds", None)];
    control.settings_update(&caller, back).await.unwrap();
    assert_eq!(values(control).await, before);
    let updates = deployment.entries().await.into_iter().filter(|entry| entry.operation == "setting_update");
    let updates: Vec<_> = updates.map(|entry| (entry.subject, entry.detail)).collect();
    let entry = |subject: &str, detail: &str| (subject.to_owned(), detail.to_owned());
    assert_eq!(
        updates,
        [
            entry("rateLimitPerMinute", "7"),
            entry("actionDeadlineSeconds", "60"),
            entry("rateLimitPerMinute", "default"),
            entry("actionDeadlineSeconds", "default"),
        ]
    );
}

#[tokio::test]
async fn of_changes_with_a_wrong_one_none_is_made() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    for (name, value) in [
        ("rateLimitPerMinute", 0),
        ("rateLimitPerHour", 10_000_001),
        ("actionDeadlineSeconds", 0),
        ("bulkGroupPercentPerHour", 101),
        ("nothing", 1),
    ] {
        let changes = vec![("bulkMachinesPerHour".to_owned(), Some(1)), (name.to_owned(), Some(value))];
        let why = refused(control.settings_update(&operator(), changes).await, is_invalid);
        assert!(why.contains(name), "{why}");
    }
    assert!(control.settings_list(&operator()).await.unwrap().iter().all(|setting| !setting.is_set));
    assert_eq!(deployment.operations().await, ["policy_apply"]);
}

#[tokio::test]
async fn another_rate_limit_counts_the_calls_that_were_made() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    let set = async |control: &ControlPlane, value| {
        let changes = vec![("rateLimitPerMinute".to_owned(), Some(value))];
        control.settings_update(&operator(), changes).await.unwrap();
    };
    let is_limited = |error: &Error| matches!(error, Error::RateLimited(_));
    let is_active = |error: &Error| matches!(error, Error::ActiveAction(_));
    deployment.restrict(&machine).await.unwrap();
    for _ in 0..4 {
        refused(deployment.restrict(&machine).await, is_active);
    }
    set(control, 5).await;
    refused(deployment.restrict(&machine).await, is_limited);
    set(control, 7).await;
    refused(deployment.restrict(&machine).await, is_active);
    refused(deployment.restrict(&machine).await, is_active);
    refused(deployment.restrict(&machine).await, is_limited);
    let deployment = deployment.restarted(GENEROUS).await;
    refused(deployment.restrict(&machine).await, is_limited);
    set(&deployment.control, 8).await;
    refused(deployment.restrict(&machine).await, is_active);
    refused(deployment.restrict(&machine).await, is_limited);
}
