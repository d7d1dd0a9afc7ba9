//! Allow policies: applied, compared, chosen.

use super::*;

use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::digest::Sha256Digest;
use domain::policy_settings::PolicySettings;

fn rule(id: &str, digest: u8) -> Rule {
    Rule {
        id: id.to_owned(),
        matcher: Matcher::Sha256(Sha256Digest([digest; 32])),
        effect: Effect::Allow,
        comment: String::new(),
    }
}

fn policy(name: &str, profile: Profile, rules: &[(&str, u8)]) -> AllowPolicy {
    let rules = rules.iter().map(|(id, digest)| rule(id, *digest)).collect();
    AllowPolicy { name: name.to_owned(), revision: 0, profile, settings: PolicySettings::default(), rules }
}

#[tokio::test]
async fn a_policy_gets_a_revision_only_when_it_says_something_else() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let before = control.policy_fetch(&operator(), "default").await.unwrap();
    assert_eq!(before.policy.revision, 1);
    let wanted = || policy("default", Profile::OsOnly, &[("tool", 9), ("a-tool", 8)]);
    let saved = control.policy_apply(&operator(), wanted(), false).await.unwrap();
    assert_eq!((saved.policy.policy.revision, saved.from), (2, Some(1)));
    assert_eq!(saved.diff.profile, Some((before.policy.profile, Profile::OsOnly)));
    assert_eq!(saved.diff.added.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>(), ["a-tool", "tool"]);
    // Without a group's own policy, it is that of all.
    assert_eq!(saved.machine_groups, ["Ungrouped machines (default)"]);
    let again = control.policy_apply(&operator(), wanted(), false).await.unwrap();
    assert_eq!((again.policy, again.from), (saved.policy.clone(), Some(2)));
    assert_eq!(again.diff, domain::allow_policy::PolicyDiff::default());
    assert_eq!(control.policy_list(&operator()).await.unwrap(), std::slice::from_ref(&saved.policy));
    // Machines may still need what they were ordered to hold.
    for digest in [before.digest, saved.policy.digest] {
        assert!(control.policy_envelope(digest).await.unwrap().is_some());
    }
    assert_eq!(control.policy_envelope(Sha256Digest([0; 32])).await.unwrap(), None);
    assert_eq!(deployment.operations().await, ["policy_apply", "policy_apply"]);
}

#[tokio::test]
async fn a_dry_run_says_what_saving_then_does_and_saves_nothing() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let wanted = || policy("office", Profile::OsOnly, &[("tool", 9)]);
    let tried = control.policy_apply(&operator(), wanted(), true).await.unwrap();
    assert_eq!((tried.policy.policy.revision, tried.from), (1, None));
    refused(control.policy_fetch(&operator(), "office").await, is_not_found);
    assert_eq!(control.policy_envelope(tried.policy.digest).await.unwrap(), None);
    assert_eq!(deployment.operations().await, ["policy_apply"]);
    let saved = control.policy_apply(&operator(), wanted(), false).await.unwrap();
    assert_eq!((&saved.policy.policy, saved.policy.digest), (&tried.policy.policy, tried.policy.digest));
    assert_eq!(saved.diff, tried.diff);
    let bad = AllowPolicy { name: "NO".to_owned(), ..wanted() };
    for dry_run in [true, false] {
        refused(control.policy_apply(&operator(), bad.clone(), dry_run).await, is_invalid);
    }
}

#[tokio::test]
async fn settings_are_part_of_what_a_policy_says() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let mut wanted = policy("office", Profile::OsOnly, &[]);
    let plain = control.policy_apply(&operator(), wanted.clone(), false).await.unwrap();
    wanted.settings.set("guards.ptrace", "audit").unwrap();
    let saved = control.policy_apply(&operator(), wanted.clone(), false).await.unwrap();
    assert_eq!((saved.from, saved.policy.policy.revision), (Some(1), 2));
    assert_ne!(saved.policy.digest, plain.policy.digest);
    let changed = ("guards.ptrace".to_owned(), "enforce".to_owned(), "audit".to_owned());
    assert_eq!(saved.diff.settings, [changed]);
    let again = control.policy_apply(&operator(), wanted.clone(), false).await.unwrap();
    assert_eq!(again.policy, saved.policy);
    // Both stay what machines were ordered to hold.
    for digest in [plain.policy.digest, saved.policy.digest] {
        let envelope = control.policy_envelope(digest).await.unwrap().unwrap();
        let envelope = orders::Envelope::from_bytes(envelope.as_bytes(), 1 << 20).unwrap();
        assert_eq!(envelope.payload_digest().unwrap(), digest);
    }
    wanted.settings.notice.text = "two\nlines".to_owned();
    let why = refused(control.policy_apply(&operator(), wanted, false).await, is_invalid);
    assert!(why.contains("notice.text"), "{why}");
}

#[tokio::test]
async fn revisions_are_listed_and_compared() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let caller = operator();
    for rules in [&[("a", 1)][..], &[("a", 2), ("b", 1)], &[("b", 1), ("c", 1)]] {
        control.policy_apply(&caller, policy("office", Profile::OsOnly, rules), false).await.unwrap();
    }
    let revisions = control.policy_revisions(&caller, "office").await.unwrap();
    assert_eq!(revisions.iter().map(|stored| stored.policy.revision).collect::<Vec<_>>(), [3, 2, 1]);
    let ids = |rules: &[Rule]| rules.iter().map(|rule| rule.id.clone()).collect::<Vec<_>>();
    let newest = control.policy_diff(&caller, "office", None, None).await.unwrap();
    assert_eq!((newest.from, newest.policy.policy.revision), (Some(2), 3));
    assert_eq!((ids(&newest.diff.added), ids(&newest.diff.removed)), (texts(&["c"]), texts(&["a"])));
    let second = control.policy_diff(&caller, "office", None, Some(2)).await.unwrap();
    assert_eq!((second.from, ids(&second.diff.added)), (Some(1), texts(&["b"])));
    assert_eq!(second.diff.changed, [(rule("a", 1), rule("a", 2))]);
    let whole = control.policy_diff(&caller, "office", Some(0), None).await.unwrap();
    assert_eq!((whole.from, ids(&whole.diff.added)), (None, texts(&["b", "c"])));
    let backward = control.policy_diff(&caller, "office", Some(3), Some(1)).await.unwrap();
    assert_eq!((ids(&backward.diff.added), ids(&backward.diff.removed)), (texts(&["a"]), texts(&["b", "c"])));
    let first = control.policy_diff(&caller, "office", None, Some(1)).await.unwrap();
    assert_eq!((first.from, ids(&first.diff.added)), (None, texts(&["a"])));
    for (name, from, to) in [
        ("office", Some(9), None),
        ("office", None, Some(9)),
        ("office", None, Some(0)),
        ("nowhere", None, None),
    ] {
        refused(control.policy_diff(&caller, name, from, to).await, is_not_found);
    }
    refused(control.policy_revisions(&caller, "nowhere").await, is_not_found);
}

#[tokio::test]
async fn a_restriction_takes_the_named_policy_then_the_groups_then_the_default() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let caller = operator();
    let machine = Machine::join(&deployment, 7).await;
    let target = machine.id.to_string();
    for (name, digest) in [("office", 1), ("strict", 2)] {
        control.policy_apply(&caller, policy(name, Profile::OsOnly, &[("a", digest)]), false).await.unwrap();
    }
    let restrict = async |named: Option<&str>| {
        let request = Request { policy: named.map(str::to_owned), ..request() };
        let action = control.machine_restrict(&caller, &target, request).await?;
        let current = deployment.order(&machine).await.unwrap();
        let order = machine.obey(&current);
        let newest = control.policy_fetch(&caller, action.policy.as_deref().unwrap()).await.unwrap();
        assert_eq!((order.policy, current.policy), (Some(newest.digest), Some(newest.digest)));
        control.machine_action_cancel(&caller, action.id, "next".to_owned()).await.unwrap();
        Ok::<_, Error>(action.policy.unwrap())
    };
    assert_eq!(restrict(None).await.unwrap(), "default");
    let rule = [(RuleProperty::Name, RuleOperator::Equals, "lab-7")];
    let draft = MachineGroupDraft { policy: Some("office".to_owned()), ..group_draft("offices", &rule) };
    control.machine_group_save(&caller, "offices", draft).await.unwrap();
    assert_eq!(restrict(None).await.unwrap(), "office");
    assert_eq!(restrict(Some("strict")).await.unwrap(), "strict");
    let why = refused(restrict(Some("nowhere")).await, is_invalid);
    assert!(why.contains("nowhere"), "{why}");
    let named = Request { policy: Some("office".to_owned()), ..request() };
    refused(control.machine_unrestrict(&caller, &target, named).await, is_invalid);
    // The group shows whom a change of its policy is about.
    let change = control.policy_diff(&caller, "office", None, None).await.unwrap();
    assert_eq!(change.machine_groups, ["offices"]);
    let bad = MachineGroupDraft { policy: Some("nowhere".to_owned()), ..group_draft("offices", &rule) };
    refused(control.machine_group_save(&caller, "offices", bad).await, is_invalid);
}
