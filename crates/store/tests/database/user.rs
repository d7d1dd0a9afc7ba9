//! People with an account.

use domain::user::User;
use store::StoreError;
use store::user::{
    user_create, user_delete, user_failed, user_failures, user_fetch, user_list, user_network_known,
    user_network_seen, user_password_set, user_signed_in, user_update,
};
use uuid::Uuid;

use crate::fixture::{Database, second};

fn user(name: &str, groups: &[&str]) -> User {
    User {
        id: Uuid::new_v4(),
        name: name.to_owned(),
        display_name: format!("The {name}"),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        created_at: second(1),
        password_changed_at: second(2),
        disabled_at: None,
        locked_until: None,
    }
}

#[tokio::test]
async fn an_account_is_kept_changed_and_deleted() {
    let database = Database::new();
    let (wanda, ada) = (user("wanda", &[]), user("ada@soc.example", &["Ops", "soc"]));
    for created in [wanda.clone(), ada.clone()] {
        database.write(move |tx| user_create(tx, &created, "$argon2id$x")).await;
    }
    let database = database.reopened();
    assert_eq!(database.read(user_list).await, [ada.clone(), wanda.clone()]);
    let fetched = database.read(|tx| user_fetch(tx, "ada@soc.example")).await;
    assert_eq!(fetched, Some((ada.clone(), "$argon2id$x".to_owned())));
    assert_eq!(database.read(|tx| user_fetch(tx, "nobody")).await, None);
    let taken = user("wanda", &[]);
    let refused = database.store.write(move |tx| user_create(tx, &taken, "y")).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");

    let changed = User {
        display_name: "Ada".to_owned(),
        groups: vec!["audit".to_owned()],
        disabled_at: Some(second(9)),
        ..ada.clone()
    };
    let update = User { groups: [&changed.groups[..]; 2].concat(), ..changed.clone() };
    database.write(move |tx| user_update(tx, &update)).await;
    // One that is not there.
    database.write(|tx| user_update(tx, &user("gone", &["soc"]))).await;
    assert_eq!(database.read(user_list).await, [changed.clone(), wanda.clone()]);

    for there in [true, false] {
        assert_eq!(database.write(move |tx| user_delete(tx, ada.id)).await, there);
    }
    assert_eq!(database.read(user_list).await, [wanda]);
}

#[tokio::test]
async fn wrong_passwords_are_counted_until_a_right_or_new_one() {
    let database = Database::new();
    let ada = user("ada", &[]);
    let (created, id) = (ada.clone(), ada.id);
    database.write(move |tx| user_create(tx, &created, "old")).await;
    let state = async || {
        let failures = database.read(move |tx| user_failures(tx, id)).await;
        let (user, hash) = database.read(|tx| user_fetch(tx, "ada")).await.unwrap();
        (failures, user, hash)
    };
    let failed = || database.write(move |tx| user_failed(tx, id, 5, Some(second(60))));
    failed().await;
    let locked = User { locked_until: Some(second(60)), ..ada.clone() };
    assert_eq!(state().await, (5, locked, "old".to_owned()));
    database.write(move |tx| user_signed_in(tx, id)).await;
    assert_eq!(state().await, (0, ada.clone(), "old".to_owned()));
    failed().await;
    database.write(move |tx| user_password_set(tx, id, "new", second(70))).await;
    let changed = User { password_changed_at: second(70), ..ada };
    assert_eq!(state().await, (0, changed, "new".to_owned()));
    assert_eq!(database.read(|tx| user_failures(tx, Uuid::nil())).await, 0);
}

#[tokio::test]
async fn the_newest_networks_of_an_account_are_known() {
    let database = Database::new();
    let ada = user("ada", &[]);
    let id = ada.id;
    database.write(move |tx| user_create(tx, &ada, "x")).await;
    let seen = async |network, at| {
        database.write(move |tx| user_network_seen(tx, id, network, second(at), 2)).await;
    };
    let known = async |network, since| {
        database.read(move |tx| user_network_known(tx, id, network, second(since))).await
    };
    for (network, at) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
        seen(network, at).await;
    }
    assert!(known("a", 3).await && !known("a", 4).await);
    assert!(known("c", 0).await && !known("b", 0).await, "the oldest is forgotten");
    assert!(database.write(move |tx| user_delete(tx, id)).await);
    seen("a", 5).await;
    assert!(!known("a", 0).await);
}
