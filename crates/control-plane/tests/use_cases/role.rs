//! Roles: made, changed, deleted, and the one that is built in.

use super::*;

#[tokio::test]
async fn a_role_is_made_changed_and_deleted() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let caller = operator();
    let wanted = Role {
        description: " at night ".to_owned(),
        bulk_machines_max: Some(5),
        ..role(" responder ", &[Right::ViewData, Right::ActiveRemediationActions], &["soc", "a", "soc"])
    };
    let saved = control.role_save(&caller, wanted).await.unwrap();
    assert_eq!((saved.name.as_str(), saved.description.as_str()), ("responder", "at night"));
    assert_eq!((saved.user_groups.clone(), saved.bulk_machines_max), (texts(&["a", "soc"]), Some(5)));
    assert_eq!(control.role_fetch(&caller, "responder").await.unwrap(), saved);
    // The same again is no change.
    control.role_save(&caller, saved.clone()).await.unwrap();
    control.role_save(&caller, Role { bulk_machines_max: None, ..saved }).await.unwrap();
    let names: Vec<_> = control.role_list(&caller).await.unwrap().into_iter().map(|role| role.name).collect();
    assert_eq!(names, [ADMINISTRATOR, "responder"]);
    control.role_delete(&caller, "responder").await.unwrap();
    refused(control.role_delete(&caller, "responder").await, is_not_found);
    refused(control.role_fetch(&caller, "responder").await, is_not_found);
    assert_eq!(deployment.operations().await, ["policy_apply", "role_save", "role_save", "role_delete"]);
}

#[tokio::test]
async fn the_built_in_role_holds_every_right_and_stays() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    refused(control.role_delete(&operator(), ADMINISTRATOR).await, is_disallowed);
    let fewer = role(ADMINISTRATOR, &[Right::ViewData], &["admins"]);
    refused(control.role_save(&operator(), fewer).await, is_disallowed);
    deployment.role(ADMINISTRATOR, &Right::ALL, &["admins"]).await;
    let machine = Machine::join(&deployment, 7).await;
    deployment.group("closed", &[(RuleProperty::Name, RuleOperator::StartsWith, "lab")], &["others"]).await;
    // Every machine group is open to it.
    let admin = deployment.person("ann@idp", &["admins"]);
    control.machine_fetch(&admin, &machine.id.to_string()).await.unwrap();
    control.settings_list(&admin).await.unwrap();
}

#[tokio::test]
async fn a_role_that_makes_no_sense_is_refused() {
    let deployment = Deployment::start(GENEROUS).await;
    let long = "x".repeat(129);
    for bad in [
        role("", &[], &[]),
        role("a\nb", &[], &[]),
        role(&long, &[], &[]),
        role("a", &[], &[""]),
        Role { description: "x".repeat(1025), ..role("a", &[], &[]) },
    ] {
        refused(deployment.control.role_save(&operator(), bad).await, is_invalid);
    }
    assert_eq!(deployment.operations().await, ["policy_apply"]);
}
