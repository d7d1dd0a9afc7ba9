//! From a policy and facts to a decision.

use std::sync::Arc;

use domain::allow_policy::{AllowPolicy, Effect, Matcher, PolicyError, Profile, Rule};
use domain::decision::{Decision, DecisionCause, ExecutionFacts, Reuse, Verdict};
use domain::digest::Sha256Digest;
use domain::policy_settings::{DualUse, PolicySettings};
use domain::program_class::ProgramClass;

use crate::manifests::Manifests;

/// A policy in the form that answers quickly.
#[derive(Debug, Clone)]
pub struct CompiledPolicy {
    profile: Profile,
    settings: PolicySettings,
    /// Sorted by content, then id: all rules about one content lie together, and the smallest id answers.
    rules: Box<[CompiledRule]>,
    manifests: Arc<Manifests>,
}

/// What evaluation needs of a rule: the comment is for people.
#[derive(Debug, Clone)]
struct CompiledRule {
    content: Content,
    effect: Effect,
    /// `None`: anywhere.
    place: Option<Box<[u8]>>,
    id: Box<str>,
}

/// What a rule knows a content by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Content {
    Sha256(Sha256Digest),
    FsVerity(Sha256Digest),
}

impl CompiledRule {
    fn new(rule: &Rule) -> Self {
        let (content, place) = match &rule.matcher {
            Matcher::Sha256(digest) => (Content::Sha256(*digest), None),
            Matcher::PathSha256(place, digest) => (Content::Sha256(*digest), Some(place.as_slice().into())),
            Matcher::FsVerity(digest) => (Content::FsVerity(*digest), None),
        };
        Self { content, effect: rule.effect, place, id: rule.id.as_str().into() }
    }
}

impl CompiledPolicy {
    /// Compiles a policy.
    ///
    /// # Errors
    /// [`PolicyError`] when it is not valid.
    pub fn compile(policy: &AllowPolicy) -> Result<Self, PolicyError> {
        policy.validate()?;
        let mut rules: Box<[_]> = policy.rules.iter().map(CompiledRule::new).collect();
        rules.sort_by(|a, b| (a.content, &a.id).cmp(&(b.content, &b.id)));
        Ok(Self {
            profile: policy.profile,
            settings: policy.settings.clone(),
            rules,
            manifests: Arc::default(),
        })
    }

    /// The same policy, with the manifests that its keys signed.
    #[must_use]
    pub fn with_manifests(self, manifests: Arc<Manifests>) -> Self {
        Self { manifests, ..self }
    }

    /// The set that applies when no policy can be read: packages and what keeps the machine alive, no rules, and the
    /// settings at their defaults.
    pub fn os_only() -> Self {
        Self {
            profile: Profile::OsOnly,
            settings: PolicySettings::default(),
            rules: Box::default(),
            manifests: Arc::default(),
        }
    }

    /// How it treats what content alone does not decide.
    pub fn settings(&self) -> &PolicySettings {
        &self.settings
    }

    /// Decides about one execution. The first of these that matches wins: survival set, deny rule, allow rule, manifest,
    /// package database (but for dual-use programs that are taken out of it), nothing.
    pub fn evaluate(&self, facts: &ExecutionFacts<'_>) -> Decision {
        let (verdict, cause) = self.verdict(facts);
        // Under another name the same file may be refused, or need not be: such a verdict is not to be repeated. What
        // one place allows is repeated, because the file stays the one that was allowed there.
        let hangs_on_name = self
            .about(Content::Sha256(facts.digest))
            .any(|rule| rule.place.is_some() && (verdict == Verdict::Deny || rule.effect == Effect::Deny));
        let reuse = if hangs_on_name { Reuse::Never } else { Reuse::SameInodeVersion };
        Decision { verdict, cause, reuse }
    }

    fn verdict(&self, facts: &ExecutionFacts<'_>) -> (Verdict, DecisionCause) {
        if facts.in_survival_set {
            return (Verdict::Allow, DecisionCause::SurvivalSet);
        }
        if let Some(rule) = self.matching(facts, Effect::Deny) {
            return (Verdict::Deny, DecisionCause::Rule(rule.id.to_string()));
        }
        if self.profile == Profile::OsAndApproved
            && let Some(rule) = self.matching(facts, Effect::Allow)
        {
            return (Verdict::Allow, DecisionCause::Rule(rule.id.to_string()));
        }
        if self.profile == Profile::OsAndApproved
            && let Some(name) = self.manifests.find(&facts.digest)
        {
            return (Verdict::Allow, DecisionCause::Manifest(name.to_owned()));
        }
        if self.profile != Profile::SurvivalOnly && facts.in_package_database {
            if self.settings.dual_use == DualUse::Remove && facts.classes.contains(ProgramClass::DualUse) {
                return (Verdict::Deny, DecisionCause::DualUse);
            }
            return (Verdict::Allow, DecisionCause::PackageDatabase);
        }
        (Verdict::Deny, DecisionCause::Unlisted)
    }

    /// The places that rules about this content name.
    pub fn places(&self, digest: &Sha256Digest) -> impl Iterator<Item = &[u8]> {
        self.about(Content::Sha256(*digest)).filter_map(|rule| rule.place.as_deref())
    }

    /// The places that rules name, whatever the content.
    pub fn all_places(&self) -> impl Iterator<Item = &[u8]> {
        self.rules.iter().filter_map(|rule| rule.place.as_deref())
    }

    /// The rule with the smallest id that says this of the file.
    fn matching(&self, facts: &ExecutionFacts<'_>, effect: Effect) -> Option<&CompiledRule> {
        let of = |content: Content| {
            self.about(content).find(|rule| {
                rule.effect == effect && rule.place.as_deref().is_none_or(|place| place == facts.path)
            })
        };
        let by_verity = facts.fs_verity.and_then(|digest| of(Content::FsVerity(digest)));
        of(Content::Sha256(facts.digest)).into_iter().chain(by_verity).min_by_key(|rule| &rule.id)
    }

    fn about(&self, content: Content) -> impl Iterator<Item = &CompiledRule> {
        let start = self.rules.partition_point(|rule| rule.content < content);
        self.rules.iter().skip(start).take_while(move |rule| rule.content == content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::program_class::ProgramClasses;
    use proptest::prelude::*;

    fn rule(id: &str, path: Option<&str>, content: u8, effect: Effect) -> Rule {
        let digest = Sha256Digest([content; 32]);
        let matcher = match path {
            None => Matcher::Sha256(digest),
            Some(path) => Matcher::PathSha256(path.as_bytes().to_vec(), digest),
        };
        Rule { id: id.to_owned(), matcher, effect, comment: String::new() }
    }

    fn policy(profile: Profile, rules: Vec<Rule>) -> CompiledPolicy {
        CompiledPolicy::compile(&AllowPolicy {
            settings: PolicySettings::default(),
            name: "p".to_owned(),
            revision: 1,
            profile,
            rules,
        })
        .unwrap()
    }

    const DUAL_USE: [ProgramClass; 1] = [ProgramClass::DualUse];

    /// Facts in short: content, path, then `p` for packaged, `d` for dual-use, `s` for survival set, and `v` for an fs-verity digest with the bytes of the content's. Answer: verdict and cause.
    fn check(policy: &CompiledPolicy, content: u8, path: &str, flags: &str, expected: &str) {
        let facts = ExecutionFacts {
            digest: Sha256Digest([content; 32]),
            fs_verity: flags.contains('v').then_some(Sha256Digest([content; 32])),
            path: path.as_bytes(),
            in_package_database: flags.contains('p'),
            classes: if flags.contains('d') { DUAL_USE.into_iter().collect() } else { ProgramClasses::NONE },
            in_survival_set: flags.contains('s'),
        };
        let decision = policy.evaluate(&facts);
        let id = if let DecisionCause::Rule(id) | DecisionCause::Manifest(id) = &decision.cause {
            id.as_str()
        } else {
            ""
        };
        assert_eq!(format!("{:?} {} {id}", decision.verdict, decision.cause.code()).trim_end(), expected);
    }

    #[test]
    fn precedence_table() {
        let rules = || {
            vec![
                rule("allow-1", None, 1, Effect::Allow),
                rule("allow-1-again", None, 1, Effect::Allow),
                rule("allow-2-here", Some("/opt/x"), 2, Effect::Allow),
                rule("deny-3", None, 3, Effect::Deny),
                rule("allow-3", None, 3, Effect::Allow),
                rule("deny-4-here", Some("/usr/bin/y"), 4, Effect::Deny),
            ]
        };
        let approved = policy(Profile::OsAndApproved, rules());
        check(&approved, 1, "/anywhere", "", "Allow rule allow-1");
        check(&approved, 2, "/opt/x", "", "Allow rule allow-2-here");
        check(&approved, 2, "/tmp/x", "", "Deny unlisted");
        check(&approved, 3, "/usr/bin/z", "p", "Deny rule deny-3");
        check(&approved, 3, "/usr/bin/z", "ps", "Allow survival-set");
        check(&approved, 4, "/usr/bin/y", "p", "Deny rule deny-4-here");
        check(&approved, 4, "/usr/bin/other", "p", "Allow package-database");
        check(&approved, 9, "/home/me/evil", "", "Deny unlisted");
        let os_only = policy(Profile::OsOnly, rules());
        check(&os_only, 1, "/anywhere", "", "Deny unlisted");
        check(&os_only, 9, "/usr/bin/ls", "p", "Allow package-database");
        check(&os_only, 3, "/usr/bin/z", "p", "Deny rule deny-3");
        let survival = policy(Profile::SurvivalOnly, rules());
        check(&survival, 9, "/usr/bin/ls", "p", "Deny unlisted");
        check(&survival, 9, "/usr/sbin/sshd", "ps", "Allow survival-set");
    }

    #[test]
    fn dual_use_programs_are_taken_out_of_packages_only() {
        let rules = || vec![rule("allow-1", None, 1, Effect::Allow), rule("deny-2", None, 2, Effect::Deny)];
        let with = |profile: Profile, dual_use: DualUse| {
            let settings = PolicySettings { dual_use, ..PolicySettings::default() };
            let policy = AllowPolicy { name: "p".to_owned(), revision: 1, profile, settings, rules: rules() };
            CompiledPolicy::compile(&policy).unwrap()
        };
        let removed = with(Profile::OsAndApproved, DualUse::Remove);
        check(&removed, 9, "/usr/bin/gdb", "pd", "Deny dual-use");
        check(&removed, 9, "/usr/bin/ls", "p", "Allow package-database");
        check(&removed, 1, "/usr/bin/gdb", "pd", "Allow rule allow-1");
        check(&removed, 2, "/usr/bin/gdb", "pd", "Deny rule deny-2");
        check(&removed, 9, "/usr/bin/gdb", "pds", "Allow survival-set");
        check(&removed, 9, "/tmp/gdb", "d", "Deny unlisted");
        check(&with(Profile::OsOnly, DualUse::Remove), 1, "/usr/bin/gdb", "pd", "Deny dual-use");
        check(&with(Profile::SurvivalOnly, DualUse::Remove), 9, "/usr/bin/gdb", "pd", "Deny unlisted");
        check(
            &with(Profile::OsAndApproved, DualUse::Keep),
            9,
            "/usr/bin/gdb",
            "pd",
            "Allow package-database",
        );
    }

    #[test]
    fn an_fs_verity_digest_and_a_content_are_two_things() {
        let verity = |id: &str, content: u8, effect: Effect| Rule {
            matcher: Matcher::FsVerity(Sha256Digest([content; 32])),
            ..rule(id, None, content, effect)
        };
        let policy = policy(
            Profile::OsAndApproved,
            vec![
                rule("allow-1", None, 1, Effect::Allow),
                verity("allow-2", 2, Effect::Allow),
                verity("deny-1", 1, Effect::Deny),
                verity("a-deny-3", 3, Effect::Deny),
                rule("b-deny-3", None, 3, Effect::Deny),
            ],
        );
        check(&policy, 1, "/x", "", "Allow rule allow-1");
        check(&policy, 1, "/x", "v", "Deny rule deny-1");
        check(&policy, 2, "/x", "", "Deny unlisted");
        check(&policy, 2, "/x", "v", "Allow rule allow-2");
        check(&policy, 3, "/x", "", "Deny rule b-deny-3");
        check(&policy, 3, "/x", "v", "Deny rule a-deny-3");
    }

    #[test]
    fn manifests_come_after_rules_and_before_packages() {
        let rules = || vec![rule("allow-1", None, 1, Effect::Allow), rule("deny-2", None, 2, Effect::Deny)];
        let digests = [1, 2, 3].map(|content| Sha256Digest([content; 32]));
        let manifests = Arc::new(Manifests::new([("acme", &digests[..])]));
        let with = |profile| policy(profile, rules()).with_manifests(Arc::clone(&manifests));
        let approved = with(Profile::OsAndApproved);
        check(&approved, 1, "/x", "", "Allow rule allow-1");
        check(&approved, 2, "/x", "p", "Deny rule deny-2");
        check(&approved, 3, "/x", "p", "Allow manifest acme");
        check(&approved, 4, "/x", "", "Deny unlisted");
        check(&with(Profile::OsOnly), 3, "/x", "", "Deny unlisted");
        check(&with(Profile::OsOnly), 3, "/x", "p", "Allow package-database");
        check(&with(Profile::SurvivalOnly), 3, "/x", "p", "Deny unlisted");
    }

    fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
        let one = (0..4_u8, prop::option::of(0..3_u8), any::<bool>());
        prop::collection::vec(one, 0..12).prop_map(|rules| {
            let effect = |deny: bool| if deny { Effect::Deny } else { Effect::Allow };
            // Place 2 is a rule about an fs-verity digest.
            let make = |(i, (content, place, deny)): (usize, (u8, Option<u8>, bool))| {
                let path = place.filter(|place| *place < 2).map(|place| format!("/p{place}"));
                let mut made = rule(&format!("r{i:02}"), path.as_deref(), content, effect(deny));
                if place == Some(2) {
                    made.matcher = Matcher::FsVerity(Sha256Digest([content; 32]));
                }
                made
            };
            rules.into_iter().enumerate().map(make).collect()
        })
    }

    fn any_profile() -> impl Strategy<Value = Profile> {
        prop::sample::select(vec![Profile::OsOnly, Profile::OsAndApproved, Profile::SurvivalOnly])
    }

    fn facts(content: u8, packaged: bool, survival: bool) -> ExecutionFacts<'static> {
        ExecutionFacts {
            digest: Sha256Digest([content; 32]),
            fs_verity: (content % 2 == 1).then_some(Sha256Digest([content; 32])),
            path: b"/p0",
            in_package_database: packaged,
            classes: ProgramClasses::NONE,
            in_survival_set: survival,
        }
    }

    proptest! {
        /// What a cache may repeat for one name must hold for every name, but an allowed file stays allowed.
        #[test]
        fn what_is_repeated_holds_under_any_name(
            profile in any_profile(), rules in any_rules(), content in 0..4_u8, packaged: bool
        ) {
            let compiled = policy(profile, rules);
            let [here, there] = [&b"/p0"[..], b"/p1"].map(|path| {
                compiled.evaluate(&ExecutionFacts { path, ..facts(content, packaged, false) })
            });
            if here.reuse == Reuse::SameInodeVersion && here.verdict == Verdict::Deny {
                prop_assert_eq!(&here, &there);
            }
            if there.verdict == Verdict::Deny && there.cause != DecisionCause::Unlisted {
                prop_assert!(here.verdict == Verdict::Deny || here.reuse == Reuse::Never);
            }
        }

        #[test]
        fn adding_a_deny_never_allows_more(
            profile in any_profile(), rules in any_rules(), content in 0..4_u8,
            added in 0..4_u8, place in prop::option::of(0..2_u8), packaged: bool
        ) {
            let facts = facts(content, packaged, false);
            let before = policy(profile, rules.clone()).evaluate(&facts);
            let mut more = rules;
            more.push(rule("zz", place.map(|p| format!("/p{p}")).as_deref(), added, Effect::Deny));
            let after = policy(profile, more).evaluate(&facts);
            prop_assert!(before.verdict == Verdict::Allow || after.verdict == Verdict::Deny);
        }

        #[test]
        fn the_order_of_rules_has_no_meaning(
            profile in any_profile(), rules in any_rules(), content in 0..4_u8, packaged: bool, survival: bool
        ) {
            let facts = facts(content, packaged, survival);
            let mut reversed = rules.clone();
            reversed.reverse();
            let (a, b) = (policy(profile, rules), policy(profile, reversed));
            prop_assert_eq!(a.evaluate(&facts), b.evaluate(&facts));
        }

        #[test]
        fn the_survival_set_always_runs(profile in any_profile(), rules in any_rules(), content in 0..4_u8) {
            let decision = policy(profile, rules).evaluate(&facts(content, false, true));
            prop_assert_eq!((decision.verdict, decision.cause), (Verdict::Allow, DecisionCause::SurvivalSet));
        }

        /// Contents 0 to 3 have rules; content 9 never has one.
        #[test]
        fn what_nothing_vouches_for_never_runs(profile in any_profile(), rules in any_rules()) {
            let decision = policy(profile, rules).evaluate(&facts(9, false, false));
            prop_assert_eq!(decision, Decision::settled(Verdict::Deny, DecisionCause::Unlisted));
        }

        /// The evaluation in words, over all rules, without sorting or searching.
        #[test]
        fn agrees_with_a_plain_reading(
            profile in any_profile(), rules in any_rules(), content in 0..4_u8, packaged: bool
        ) {
            let facts = facts(content, packaged, false);
            let smallest = |effect: Effect| {
                let matching = rules.iter().filter(|rule| rule.effect == effect && match &rule.matcher {
                    Matcher::Sha256(digest) => *digest == facts.digest,
                    Matcher::PathSha256(path, digest) => *digest == facts.digest && path == facts.path,
                    Matcher::FsVerity(digest) => Some(*digest) == facts.fs_verity,
                });
                matching.map(|rule| rule.id.clone()).min()
            };
            let expected = match (smallest(Effect::Deny), smallest(Effect::Allow)) {
                (Some(id), _) => (Verdict::Deny, DecisionCause::Rule(id)),
                (None, Some(id)) if profile == Profile::OsAndApproved => (Verdict::Allow, DecisionCause::Rule(id)),
                (None, _) if packaged && profile != Profile::SurvivalOnly => {
                    (Verdict::Allow, DecisionCause::PackageDatabase)
                }
                (None, _) => (Verdict::Deny, DecisionCause::Unlisted),
            };
            let decision = policy(profile, rules.clone()).evaluate(&facts);
            prop_assert_eq!((decision.verdict, decision.cause), expected);
        }
    }

    #[test]
    fn an_invalid_policy_is_not_compiled() {
        let rules = vec![rule("same", None, 1, Effect::Allow), rule("same", None, 2, Effect::Deny)];
        let policy = AllowPolicy {
            name: "p".to_owned(),
            revision: 1,
            profile: Profile::OsOnly,
            settings: PolicySettings::default(),
            rules,
        };
        assert_eq!(
            CompiledPolicy::compile(&policy).unwrap_err(),
            PolicyError::DuplicateRuleId("same".to_owned())
        );
    }
}
