//! Allow policies.

use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::digest::Sha256Digest;
use domain::policy_settings::PolicySettings;
use store::StoreError;
use store::policy::{
    REVISION_RULES_MAX, StoredPolicy, policy_create, policy_digest, policy_fetch, policy_fetch_by_digest,
    policy_fetch_revision, policy_names, policy_revisions,
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
            settings: PolicySettings::of_entries([("dualUse", "remove"), ("notice.text", "Ask \"IT\"")])
                .unwrap(),
            rules: vec![
                rule("a", Matcher::Sha256(Sha256Digest([1; 32])), Effect::Deny),
                rule(
                    "b",
                    Matcher::PathSha256(b"/opt/\xff\xfe".to_vec(), Sha256Digest([2; 32])),
                    Effect::Allow,
                ),
                rule("c", Matcher::FsVerity(Sha256Digest([1; 32])), Effect::Allow),
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
async fn only_settings_that_are_set_are_stored_and_each_revision_has_its_own() {
    let database = Database::new();
    let first = policy("default", 1, Profile::OsOnly);
    let mut second = policy("default", 2, Profile::OsOnly);
    second.policy.settings = PolicySettings::default();
    for saved in [first.clone(), second.clone()] {
        database.write(move |tx| policy_create(tx, &saved)).await;
    }
    assert_eq!(database.read(|tx| policy_fetch_revision(tx, "default", 1)).await, Some(first));
    assert_eq!(database.read(|tx| policy_fetch(tx, "default")).await, Some(second));
    database
        .outside()
        .execute("UPDATE policy_setting SET value = 'sell' WHERE setting = 'dualUse'", [])
        .unwrap();
    let damaged = database.store.read(|tx| policy_fetch_revision(tx, "default", 1)).await;
    assert!(matches!(damaged, Err(StoreError::Damaged(_))), "{damaged:?}");
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

#[tokio::test]
async fn revisions_are_listed_newest_first_and_fetched_by_number() {
    let database = Database::new();
    let (first, newest) =
        (policy("default", 2, Profile::OsOnly), policy("default", 11, Profile::OsAndApproved));
    let other = policy("lab", 5, Profile::OsOnly);
    for saved in [newest.clone(), first.clone(), other] {
        database.write(move |tx| policy_create(tx, &saved)).await;
    }
    assert_eq!(database.read(|tx| policy_revisions(tx, "default")).await, [newest, first.clone()]);
    assert_eq!(database.read(|tx| policy_revisions(tx, "none")).await, []);
    assert_eq!(database.read(|tx| policy_fetch_revision(tx, "default", 2)).await, Some(first));
    assert_eq!(database.read(|tx| policy_fetch_revision(tx, "default", 3)).await, None);
    assert_eq!(database.read(|tx| policy_fetch_revision(tx, "default", u64::MAX)).await, None);
}

#[tokio::test]
async fn listed_revisions_fit_into_memory() {
    let database = Database::new();
    let rules: Vec<_> = (0..10_000_u32)
        .map(|number| Rule {
            id: number.to_string(),
            matcher: Matcher::Sha256(Sha256Digest([7; 32])),
            effect: Effect::Allow,
            comment: String::new(),
        })
        .collect();
    database
        .write(move |tx| {
            (1..=12_u8).try_for_each(|revision| {
                let mut saved = policy("default", revision.into(), Profile::OsOnly);
                saved.policy.rules.clone_from(&rules);
                policy_create(tx, &saved)
            })
        })
        .await;
    let revisions: Vec<_> = database
        .read(|tx| policy_revisions(tx, "default"))
        .await
        .iter()
        .map(|stored| stored.policy.revision)
        .collect();
    assert_eq!(revisions, (3..=12).rev().collect::<Vec<_>>());
    assert_eq!(revisions.len() * 10_000, REVISION_RULES_MAX);
}
