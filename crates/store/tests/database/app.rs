//! Apps.

use domain::app::App;
use domain::permission::Permission;
use store::StoreError;
use store::app::{app_create, app_fetch, app_list, app_revoke};
use uuid::Uuid;

use crate::fixture::{Database, second};

fn app(name: &str, created: i64) -> App {
    App {
        id: Uuid::new_v4(),
        name: name.to_owned(),
        permissions: vec![Permission::MachineReadAll, Permission::CordonAdminister],
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
