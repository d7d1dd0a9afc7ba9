//! Enrollment tokens.

use domain::enrollment_token::EnrollmentToken;
use store::enrollment_token::{
    enrollment_token_create, enrollment_token_fetch, enrollment_token_list, enrollment_token_revoke,
    enrollment_token_spend,
};
use uuid::Uuid;

use crate::fixture::{Database, second};

fn token(created: i64) -> EnrollmentToken {
    EnrollmentToken {
        id: Uuid::new_v4(),
        comment: "lab".to_owned(),
        uses_max: 2,
        uses: 0,
        created_at: second(created),
        expires_at: second(900),
        revoked_at: None,
    }
}

#[tokio::test]
async fn a_token_is_found_by_the_digest_of_its_secret() {
    let database = Database::new();
    let (old, new) = (token(1), token(2));
    let (first, second) = (old.clone(), new.clone());
    database
        .write(move |tx| {
            enrollment_token_create(tx, &first, "d1").and(enrollment_token_create(tx, &second, "d2"))
        })
        .await;
    assert_eq!(database.read(|tx| enrollment_token_fetch(tx, "d1")).await, Some(old.clone()));
    assert_eq!(database.read(|tx| enrollment_token_fetch(tx, "d3")).await, None);
    assert_eq!(database.read(enrollment_token_list).await, [new, old]);
}

#[tokio::test]
async fn a_token_is_spent_as_often_as_it_may_be_however_many_try() {
    let database = Database::new();
    let token = token(1);
    let id = token.id;
    database.write(move |tx| enrollment_token_create(tx, &token, "d")).await;
    let tries = (0..20).map(|_| {
        let store = database.store.clone();
        tokio::spawn(async move { store.write(move |tx| enrollment_token_spend(tx, id)).await.unwrap() })
    });
    let tries: Vec<_> = tries.collect();
    let mut spent = 0;
    for one in tries {
        spent += u32::from(one.await.unwrap());
    }
    assert_eq!(spent, 2);
    let token = database.read(|tx| enrollment_token_fetch(tx, "d")).await.unwrap();
    assert_eq!((token.uses, token.is_usable(second(3))), (2, false));
}

#[tokio::test]
async fn a_token_is_revoked_once() {
    let database = Database::new();
    let token = token(1);
    let id = token.id;
    database.write(move |tx| enrollment_token_create(tx, &token, "d")).await;
    assert!(database.write(move |tx| enrollment_token_revoke(tx, id, second(7))).await);
    assert!(!database.write(move |tx| enrollment_token_revoke(tx, id, second(8))).await);
    let token = database.read(|tx| enrollment_token_fetch(tx, "d")).await.unwrap();
    assert_eq!((token.revoked_at, token.is_usable(second(3))), (Some(second(7)), false));
}
