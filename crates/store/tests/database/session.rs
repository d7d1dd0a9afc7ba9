//! Sessions, device codes and used assertions.

use std::time::Duration;

use domain::permission::Permission;
use domain::session::{Asked, Decision, DeviceCode, Session};
use store::StoreError;
use store::session::{
    Code, RefreshToken, assertion_count, assertion_spend, device_code_by_user_code, device_code_count,
    device_code_create, device_code_decide, device_code_delete, device_code_fetch, device_code_polled,
    session_by_code, session_by_refresh_handle, session_code_spend, session_create, session_fetch,
    session_forget_expired, session_forget_oldest, session_renew, session_revoke,
};
use uuid::Uuid;

use crate::fixture::{Database, second};

fn asked() -> Asked {
    Asked {
        audience: "https://api.example".to_owned(),
        permissions: vec![Permission::MachineReadAll, Permission::CordonAdminister],
        everything: true,
        openid: false,
        offline: true,
    }
}

fn session(user: Uuid, at: i64) -> Session {
    Session {
        id: Uuid::new_v4(),
        app: Uuid::from_u128(7),
        user,
        user_name: "ann".to_owned(),
        asked: asked(),
        signed_in_at: second(at),
        expires_at: second(at + 60),
        revoked_at: None,
    }
}

fn device_code() -> DeviceCode {
    DeviceCode {
        app: Uuid::from_u128(7),
        asked: asked(),
        address: "192.0.2.7".to_owned(),
        created_at: second(1),
        expires_at: second(900),
        interval: Duration::from_secs(5),
        polled_at: None,
        decision: None,
    }
}

#[tokio::test]
async fn a_session_is_found_by_its_code_and_its_refresh_token() {
    let database = Database::new();
    let kept = session(Uuid::from_u128(8), 100);
    let code = Code {
        digest: "c".to_owned(),
        redirect_uri: "https://soar.example/".to_owned(),
        challenge: "ch".to_owned(),
        nonce: Some("n".to_owned()),
        spent_at: None,
    };
    let (created, with) = (kept.clone(), code.clone());
    database.write(move |tx| session_create(tx, &created, Some(&with))).await;
    let database = database.reopened();
    let id = kept.id;
    assert_eq!(database.read(move |tx| session_fetch(tx, id)).await, Some(kept.clone()));
    let found = database.read(|tx| session_by_code(tx, "c")).await;
    assert_eq!(found, Some((kept.clone(), code.clone())));
    for first in [true, false] {
        assert_eq!(database.write(move |tx| session_code_spend(tx, id, second(110))).await, first);
    }
    let (_, spent) = database.read(|tx| session_by_code(tx, "c")).await.unwrap();
    assert_eq!(spent, Code { spent_at: Some(second(110)), ..code });

    let token = RefreshToken { handle_digest: "h".to_owned(), digest: "1".to_owned() };
    for digest in ["1", "2"] {
        let token = RefreshToken { digest: digest.to_owned(), ..token.clone() };
        let renewed = token.clone();
        database.write(move |tx| session_renew(tx, id, Some(&renewed), second(500))).await;
        let found = database.read(|tx| session_by_refresh_handle(tx, "h")).await.unwrap();
        assert_eq!(found, (Session { expires_at: second(500), ..kept.clone() }, token));
    }
    for first in [true, false] {
        assert_eq!(database.write(move |tx| session_revoke(tx, id, second(120))).await, first);
    }
    let revoked = database.read(move |tx| session_fetch(tx, id)).await.unwrap();
    assert_eq!(revoked.revoked_at, Some(second(120)));
    assert_eq!(database.read(|tx| session_by_code(tx, "x")).await, None);
    assert_eq!(database.read(|tx| session_by_refresh_handle(tx, "x")).await, None);
}

#[tokio::test]
async fn the_oldest_sessions_of_an_account_and_the_expired_ones_are_forgotten() {
    let database = Database::new();
    let (ann, bob) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let sessions: Vec<Session> =
        (0..4).map(|at| session(ann, at)).chain([session(bob, 0), session(bob, 900)]).collect();
    for session in sessions.clone() {
        database.write(move |tx| session_create(tx, &session, None)).await;
    }
    let left = async || {
        let mut left = Vec::new();
        for (index, session) in sessions.iter().enumerate() {
            let id = session.id;
            if database.read(move |tx| session_fetch(tx, id)).await.is_some() {
                left.push(index);
            }
        }
        left
    };
    database.write(move |tx| session_forget_oldest(tx, ann, 2)).await;
    assert_eq!(left().await, [2, 3, 4, 5]);
    database.write(|tx| session_forget_expired(tx, second(63))).await;
    assert_eq!(left().await, [3, 5], "what expires at this moment is kept");
}

#[tokio::test]
async fn a_device_is_decided_once() {
    let database = Database::new();
    let created = device_code();
    database.write(move |tx| device_code_create(tx, &created, "n", "d", "u")).await;
    let refused = database.store.write(|tx| device_code_create(tx, &device_code(), "n", "e", "u")).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");
    let waiting =
        async |network, at| database.read(move |tx| device_code_count(tx, network, second(at))).await;
    assert_eq!(waiting("n", 899).await, (1, 1));
    assert_eq!(waiting("another", 899).await, (1, 0));
    assert_eq!(waiting("n", 900).await, (0, 0), "it expired");
    database.write(|tx| device_code_polled(tx, "d", second(5))).await;
    let polled = DeviceCode { polled_at: Some(second(5)), ..device_code() };
    assert_eq!(database.read(|tx| device_code_fetch(tx, "d")).await, Some(polled.clone()));
    let approved = Decision::Approved(Uuid::from_u128(9));
    for (decision, first) in [(approved, true), (Decision::Declined, false)] {
        assert_eq!(database.write(move |tx| device_code_decide(tx, "u", decision, second(6))).await, first);
    }
    assert_eq!(waiting("n", 6).await, (0, 0), "it was decided");
    let decided = DeviceCode { decision: Some(approved), ..polled };
    assert_eq!(database.read(|tx| device_code_by_user_code(tx, "u")).await, Some(decided));
    for there in [true, false] {
        assert_eq!(database.write(|tx| device_code_delete(tx, "d")).await, there);
    }

    database.write(|tx| device_code_create(tx, &device_code(), "n", "d", "u")).await;
    database.write(|tx| device_code_decide(tx, "u", Decision::Declined, second(6))).await;
    let declined = database.read(|tx| device_code_fetch(tx, "d")).await.unwrap();
    assert_eq!(declined.decision, Some(Decision::Declined));
    assert_eq!(waiting("n", 6).await, (0, 0));
    database.write(|tx| session_forget_expired(tx, second(901))).await;
    assert_eq!(database.read(|tx| device_code_fetch(tx, "d")).await, None);
}

#[tokio::test]
async fn an_assertion_is_spent_once_by_each_app() {
    let database = Database::new();
    let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    for (app, first) in [(one, true), (one, false), (other, true)] {
        assert_eq!(database.write(move |tx| assertion_spend(tx, app, "j", second(60))).await, first);
    }
    assert_eq!(database.read(move |tx| assertion_count(tx, one)).await, 1);
    database.write(|tx| session_forget_expired(tx, second(61))).await;
    assert_eq!(database.read(move |tx| assertion_count(tx, one)).await, 0);
}
