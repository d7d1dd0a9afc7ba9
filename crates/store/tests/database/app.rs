//! Apps.

use domain::app::App;
use domain::permission::Permission;
use store::StoreError;
use store::app::{
    AppKey, app_create, app_fetch, app_key_create, app_key_delete, app_key_list, app_list, app_revoke,
    app_secret_set, app_update,
};
use uuid::Uuid;

use crate::fixture::{Database, second};

fn app(name: &str, created: i64) -> App {
    App {
        id: Uuid::new_v4(),
        name: name.to_owned(),
        permissions: vec![Permission::MachineReadAll, Permission::CordonAdminister],
        is_public: false,
        redirect_uris: vec![],
        machine_groups: None,
        bulk_machines_max: None,
        created_at: second(created),
        revoked_at: None,
    }
}

#[tokio::test]
async fn an_app_is_kept_with_the_digest_of_its_secret() {
    let database = Database::new();
    let (second_app, first_app) = (app("b", 2), app("a", 1));
    let (b, a) = (second_app.clone(), first_app.clone());
    database.write(move |tx| app_create(tx, &b, "digest-b").and(app_create(tx, &a, "digest-a"))).await;
    let database = database.reopened();
    let id = first_app.id;
    let fetched = database.read(move |tx| app_fetch(tx, id)).await;
    assert_eq!(fetched, Some((first_app.clone(), "digest-a".to_owned())));
    assert_eq!(database.read(move |tx| app_fetch(tx, Uuid::nil())).await, None);
    assert_eq!(database.read(app_list).await, [first_app, second_app]);
}

#[tokio::test]
async fn an_app_is_revoked_once_and_its_name_is_free_again() {
    let database = Database::new();
    let old = app("responder", 1);
    let id = old.id;
    database.write(move |tx| app_create(tx, &old, "x")).await;
    let again = app("responder", 2);
    let taken = again.clone();
    let refused = database.store.write(move |tx| app_create(tx, &taken, "y")).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");

    assert!(database.write(move |tx| app_revoke(tx, id, second(5))).await);
    assert!(!database.write(move |tx| app_revoke(tx, id, second(6))).await);
    assert!(!database.write(move |tx| app_revoke(tx, Uuid::nil(), second(6))).await);
    let (revoked, _) = database.read(move |tx| app_fetch(tx, id)).await.unwrap();
    assert_eq!(revoked.revoked_at, Some(second(5)));
    database.write(move |tx| app_create(tx, &again, "y")).await;
    assert_eq!(database.read(app_list).await.len(), 2);
}

#[tokio::test]
async fn all_of_an_app_can_be_changed_but_its_id_and_kind() {
    let database = Database::new();
    let made = App {
        is_public: true,
        redirect_uris: vec!["http://127.0.0.1/".to_owned(), "https://soc.example/a?b=c d".to_owned()],
        machine_groups: Some(vec![]),
        bulk_machines_max: Some(0),
        ..app("console", 1)
    };
    let (created, id) = (made.clone(), made.id);
    database.write(move |tx| app_create(tx, &created, "").and(app_create(tx, &app("other", 2), "x"))).await;
    assert_eq!(database.read(move |tx| app_fetch(tx, id)).await, Some((made.clone(), String::new())));

    let changed = App {
        name: "portal".to_owned(),
        permissions: vec![],
        redirect_uris: vec![],
        machine_groups: Some(vec![7, 0, i64::MAX]),
        bulk_machines_max: Some(u32::MAX),
        ..made.clone()
    };
    let update = changed.clone();
    database.write(move |tx| app_update(tx, &update).and(app_secret_set(tx, id, "another"))).await;
    let database = database.reopened();
    assert_eq!(
        database.read(move |tx| app_fetch(tx, id)).await,
        Some((changed.clone(), "another".to_owned()))
    );

    let taken = App { name: "other".to_owned(), ..changed };
    let refused = database.store.write(move |tx| app_update(tx, &taken)).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");
}

#[tokio::test]
async fn an_app_has_keys_of_its_own() {
    let database = Database::new();
    let key = |thumbprint: &str, created| AppKey {
        thumbprint: thumbprint.to_owned(),
        x5t: None,
        x5t_s256: None,
        public_key: "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n".to_owned(),
        comment: "build server".to_owned(),
        created_at: second(created),
        expires_at: None,
    };
    let with_certificate = AppKey {
        x5t: Some("x5t".to_owned()),
        x5t_s256: Some("x5t-s256".to_owned()),
        expires_at: Some(second(99)),
        ..key("aa", 2)
    };
    let (one, other) = (app("one", 1), app("other", 1));
    let (one_id, other_id) = (one.id, other.id);
    let (first, last) = (key("bb", 1), with_certificate.clone());
    database
        .write(move |tx| {
            app_create(tx, &one, "x")?;
            app_create(tx, &other, "x")?;
            app_key_create(tx, one_id, &last)?;
            app_key_create(tx, one_id, &first)?;
            app_key_create(tx, other_id, &first)
        })
        .await;
    assert_eq!(database.read(move |tx| app_key_list(tx, one_id)).await, [key("bb", 1), with_certificate]);
    let again = database.store.write(move |tx| app_key_create(tx, one_id, &key("aa", 3))).await;
    assert!(matches!(again, Err(StoreError::Duplicate(_))), "{again:?}");
    let unknown = database.store.write(move |tx| app_key_create(tx, Uuid::nil(), &key("aa", 3))).await;
    assert!(unknown.is_err(), "a key of no app");

    assert!(database.write(move |tx| app_key_delete(tx, one_id, "bb")).await);
    assert!(!database.write(move |tx| app_key_delete(tx, one_id, "bb")).await);
    assert_eq!(database.read(move |tx| app_key_list(tx, other_id)).await, [key("bb", 1)]);
}
