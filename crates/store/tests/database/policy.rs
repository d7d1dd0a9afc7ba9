//! Allow policies.

use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::digest::Sha256Digest;
use store::StoreError;
use store::policy::{
    StoredPolicy, policy_create, policy_digest, policy_fetch, policy_fetch_by_digest, policy_names,
};

use crate::fixture::{Database, second};

fn policy(name: &str, revision: u64, profile: Profile) -> StoredPolicy {
    let rule =
        |id: &str, matcher, effect| Rule { id: id.to_owned(), matcher, effect, comment: format!("why {id}") };
    let digest = u8::try_from(revision).unwrap();
    StoredPolicy {
        policy: AllowPolicy {
            name: name.to_owned(),
            revision,
            profile,
            rules: vec![
                rule("a", Matcher::Sha256(Sha256Digest([1; 32])), Effect::Deny),
                rule(
                    "b",
                    Matcher::PathSha256(b"/opt/\xff\xfe".to_vec(), Sha256Digest([2; 32])),
                    Effect::Allow,
                ),
            ],
        },
        digest: Sha256Digest([digest; 32]),
        updated_at: second(10),
        updated_by: "someone".to_owned(),
    }
}

#[tokio::test]
async fn every_revision_is_kept_and_the_newest_is_fetched() {
    let database = Database::new();
    let (first, second) =
        (policy("default", 9, Profile::OsAndApproved), policy("default", 10, Profile::SurvivalOnly));
    let other = policy("a-lab", 3, Profile::OsOnly);
    for saved in [first.clone(), second.clone(), other.clone()] {
        database.write(move |tx| policy_create(tx, &saved)).await;
    }
    let database = database.reopened();
    assert_eq!(database.read(|tx| policy_fetch(tx, "default")).await, Some(second.clone()));
    assert_eq!(database.read(|tx| policy_fetch(tx, "a-lab")).await, Some(other.clone()));
    assert_eq!(database.read(|tx| policy_fetch(tx, "none")).await, None);
    assert_eq!(database.read(|tx| policy_digest(tx, "default")).await, Some(second.digest));
    assert_eq!(database.read(|tx| policy_digest(tx, "none")).await, None);
    let digest = first.digest;
    assert_eq!(database.read(move |tx| policy_fetch_by_digest(tx, digest)).await, Some(first));
    assert_eq!(database.read(|tx| policy_fetch_by_digest(tx, Sha256Digest([99; 32]))).await, None);
    assert_eq!(database.read(policy_names).await, ["a-lab", "default"]);
}

#[tokio::test]
async fn a_revision_is_saved_once() {
    let database = Database::new();
    let saved = policy("default", 1, Profile::OsOnly);
    let again = StoredPolicy { digest: Sha256Digest([7; 32]), ..saved.clone() };
    let kept = saved.clone();
    database.write(move |tx| policy_create(tx, &saved)).await;
    let refused = database.store.write(move |tx| policy_create(tx, &again)).await;
    assert!(matches!(refused, Err(StoreError::Duplicate(_))), "{refused:?}");
    assert_eq!(database.read(|tx| policy_fetch(tx, "default")).await, Some(kept));
}
