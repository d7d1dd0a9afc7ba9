//! Apps: made, changed, revoked, authenticated.

use super::*;

use control_plane::KeyDraft;

#[tokio::test]
async fn an_app_is_known_by_its_secret_until_it_is_revoked() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let draft = || app_draft("soar", &[Permission::MachineRestrictExecution]);
    let (app, secret) = control.app_create(&operator(), draft()).await.unwrap();
    let secret = secret.unwrap();
    assert_eq!(control.app_authenticate(app.id, &secret).await.unwrap(), app);
    for (id, secret) in [(app.id, "wrong"), (Uuid::nil(), secret.as_str()), (app.id, "")] {
        refused(control.app_authenticate(id, secret).await, is_unauthenticated);
    }
    let twice = control.app_create(&operator(), draft()).await;
    refused(twice, |error| matches!(error, Error::AlreadyExists(_)));
    control.app_revoke(&operator(), app.id).await.unwrap();
    refused(control.caller(bearer(&app)), is_unauthenticated);
    refused(control.app_authenticate(app.id, &secret).await, is_unauthenticated);
    refused(control.app_revoke(&operator(), app.id).await, is_not_found);
    let is_revoked = |error: &Error| matches!(error, Error::BadRequest(why) if why.contains("revoked"));
    refused(control.app_update(&operator(), app.id, draft()).await, is_revoked);
    refused(control.app_secret_renew(&operator(), app.id).await, is_revoked);
    let deployment = deployment.restarted(GENEROUS).await;
    refused(deployment.control.caller(bearer(&app)), is_unauthenticated);
    assert_eq!(deployment.operations().await, ["policy_apply", "app_create", "app_revoke"]);
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let administer = |name: &str| app_draft(name, &[Permission::CordonAdminister]);
    let is_last = |error: &Error| matches!(error, Error::BadRequest(_));
    let (first, _) = control.app_create(&operator(), administer("first")).await.unwrap();
    // A public app has no secret with which to administer by itself.
    let public = AppDraft { is_public: true, ..administer("public") };
    control.app_create(&operator(), public).await.unwrap();
    refused(control.app_revoke(&operator(), first.id).await, is_last);
    let reads = app_draft("first", &[Permission::MachineReadAll]);
    refused(control.app_update(&operator(), first.id, reads.clone()).await, is_last);
    let (second, _) = control.app_create(&operator(), administer("second")).await.unwrap();
    control.app_update(&operator(), first.id, reads).await.unwrap();
    refused(control.app_revoke(&operator(), second.id).await, is_last);
    control.app_update(&operator(), first.id, administer("first")).await.unwrap();
    control.app_revoke(&operator(), second.id).await.unwrap();
    refused(control.app_revoke(&operator(), first.id).await, is_last);
}

#[tokio::test]
async fn what_an_app_may_changes_with_its_next_call() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    let app = deployment.app(&[Permission::MachineReadAll], None).await;
    let fetch = async || {
        let caller = control.caller(bearer(&app))?;
        control.machine_fetch(&caller, &machine.id.to_string()).await
    };
    fetch().await.unwrap();
    let change = async |draft: AppDraft| control.app_update(&operator(), app.id, draft).await.unwrap();
    change(app_draft("other", &[Permission::MachineRestrictExecution])).await;
    refused(fetch().await, |error| matches!(error, Error::Forbidden { only_restricts: true, .. }));
    deployment.group("labs", &[], &[]).await;
    let limited = AppDraft {
        machine_groups: Some(texts(&["labs", "labs"])),
        ..app_draft("other", &[Permission::MachineReadAll])
    };
    let changed = change(limited.clone()).await;
    assert_eq!(changed.machine_groups.as_ref().map(Vec::len), Some(1));
    refused(fetch().await, is_not_found);
    change(AppDraft { machine_groups: None, ..limited.clone() }).await;
    fetch().await.unwrap();
    for bad in [
        AppDraft { machine_groups: Some(texts(&["nowhere"])), ..limited.clone() },
        AppDraft { permissions: vec![], ..limited.clone() },
        AppDraft { is_public: true, ..limited.clone() },
        AppDraft { redirect_uris: texts(&["http://evil.example/"]), ..limited.clone() },
        AppDraft { redirect_uris: vec!["https://a.example/".to_owned(); 21], ..limited.clone() },
        AppDraft { name: " ".to_owned(), ..limited.clone() },
    ] {
        refused(control.app_update(&operator(), app.id, bad).await, is_invalid);
    }
    refused(control.app_update(&operator(), Uuid::nil(), limited.clone()).await, is_not_found);
    let other = deployment.app(&[Permission::MachineReadAll], None).await;
    let taken = AppDraft { name: other.name.clone(), ..limited };
    let taken = control.app_update(&operator(), app.id, taken).await;
    refused(taken, |error| matches!(error, Error::AlreadyExists(_)));
}

#[tokio::test]
async fn a_renewed_secret_replaces_the_old_one() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let draft = app_draft("soar", &[Permission::MachineReadAll]);
    let (app, secret) = control.app_create(&operator(), draft.clone()).await.unwrap();
    let renewed = control.app_secret_renew(&operator(), app.id).await.unwrap();
    refused(control.app_authenticate(app.id, &secret.unwrap()).await, is_unauthenticated);
    control.app_authenticate(app.id, &renewed).await.unwrap();
    refused(control.app_secret_renew(&operator(), Uuid::nil()).await, is_not_found);
    let public = AppDraft { is_public: true, name: "cli".to_owned(), ..draft };
    let (public, secret) = control.app_create(&operator(), public).await.unwrap();
    assert_eq!(secret, None);
    refused(control.app_authenticate(public.id, "").await, is_unauthenticated);
    let no_secret = control.app_secret_renew(&operator(), public.id).await;
    refused(no_secret, |error| matches!(error, Error::BadRequest(_)));
}

#[tokio::test]
async fn keys_of_an_app() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let app = deployment.app(&[Permission::MachineReadAll], None).await;
    let key = |thumbprint: &str| KeyDraft {
        thumbprint: thumbprint.to_owned(),
        x5t: None,
        x5t_s256: None,
        public_key: "PEM".to_owned(),
        comment: " laptop ".to_owned(),
        expires_at: None,
    };
    let old = KeyDraft { expires_at: Some(Timestamp::from_unix_seconds(1)), ..key("00") };
    control.app_key_add(&operator(), app.id, old).await.unwrap();
    let added = control.app_key_add(&operator(), app.id, key("aa")).await.unwrap();
    assert_eq!(added.comment, "laptop");
    let again = control.app_key_add(&operator(), app.id, key("aa")).await;
    refused(again, |error| matches!(error, Error::AlreadyExists(_)));
    assert_eq!(control.app_key_list(&operator(), app.id).await.unwrap().len(), 2);
    // What has expired verifies nothing.
    let (_, usable) = control.app_with_keys(app.id).await.unwrap().unwrap();
    assert_eq!(usable, [added]);
    for n in 2..10 {
        control.app_key_add(&operator(), app.id, key(&format!("{n:02}"))).await.unwrap();
    }
    refused(control.app_key_add(&operator(), app.id, key("bb")).await, is_invalid);
    control.app_key_remove(&operator(), app.id, "AA").await.unwrap();
    refused(control.app_key_remove(&operator(), app.id, "aa").await, is_not_found);
    refused(control.app_key_list(&operator(), Uuid::nil()).await, is_not_found);
    refused(control.app_key_add(&operator(), Uuid::nil(), key("aa")).await, is_not_found);
    control.app_revoke(&operator(), app.id).await.unwrap();
    assert_eq!(control.app_with_keys(app.id).await.unwrap(), None);
}
