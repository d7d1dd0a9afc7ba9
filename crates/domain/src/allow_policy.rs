//! The predefined set: which programs may run on a restricted machine.

use std::collections::{HashMap, HashSet};

use crate::digest::Sha256Digest;
use crate::policy_settings::{PolicySettings, SettingError};

/// The most rules that one policy holds. Ten times what a hand-kept list reaches; larger sets belong in packages.
pub const RULES_MAX: usize = 10_000;
/// The longest policy name, rule id and comment, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// The longest path in a rule, in bytes: the kernel's `PATH_MAX`.
pub const PATH_BYTES_MAX: usize = 4096;

/// A named, revisioned set of rules and trust sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowPolicy {
    /// Unique name, `[a-z0-9-]{1,64}`.
    pub name: String,
    /// Counts the saved versions of this policy, from 1.
    pub revision: u64,
    /// Which sources of trust count besides the rules.
    pub profile: Profile,
    /// How it treats what content alone does not decide.
    pub settings: PolicySettings,
    /// Explicit rules; their order has no meaning.
    pub rules: Vec<Rule>,
}

/// Which sources of trust count besides the rules of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// What installed packages shipped, and nothing else: allow rules are ignored.
    OsOnly,
    /// What installed packages shipped, and what allow rules name. The default.
    OsAndApproved,
    /// Only the survival set: what keeps the machine alive and reachable.
    SurvivalOnly,
}

/// One entry of an allow policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unique within the policy; appears in decisions and events.
    pub id: String,
    /// Which files the rule is about.
    pub matcher: Matcher,
    /// What the rule says about them.
    pub effect: Effect,
    /// Why the rule exists, for people.
    pub comment: String,
}

/// Which files a rule is about. Each matcher binds content: a path alone never vouches for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matcher {
    /// This content, wherever it lies.
    Sha256(Sha256Digest),
    /// This content, only at this absolute path.
    PathSha256(Vec<u8>, Sha256Digest),
    /// The content with this fs-verity digest (SHA-256), wherever it lies: the kernel checks it at each read.
    FsVerity(Sha256Digest),
}

/// What a rule says about the files that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// They may run.
    Allow,
    /// They may not run, whatever other rules or packages say.
    Deny,
}

/// What is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The name is not `[a-z0-9-]{1,64}`.
    #[error("policy name {0:?} must be 1 to 64 of a-z, 0-9 and '-'")]
    Name(String),
    /// More than [`RULES_MAX`] rules.
    #[error("{0} rules, at most {RULES_MAX} are possible")]
    TooManyRules(usize),
    /// A rule's id is empty or too long.
    #[error("rule id {0:?} must have 1 to {TEXT_BYTES_MAX} bytes")]
    RuleId(String),
    /// Two rules share an id.
    #[error("rule id {0:?} appears twice")]
    DuplicateRuleId(String),
    /// A rule's comment is too long.
    #[error("the comment of rule {0:?} is longer than {TEXT_BYTES_MAX} bytes")]
    Comment(String),
    /// A rule's path is not absolute, too long, or holds a NUL byte.
    #[error("the path of rule {0:?} must be absolute, without NUL, and at most {PATH_BYTES_MAX} bytes")]
    Path(String),
    /// A setting is not what can be set.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

impl AllowPolicy {
    /// The name of the policy that every deployment has and that applies when none is named.
    pub const DEFAULT_NAME: &'static str = "default";

    /// Checks names, counts and lengths.
    ///
    /// # Errors
    /// The first [`PolicyError`] found: settings, then the rules in their order.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let name_ok = (1..=64).contains(&self.name.len())
            && self.name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !name_ok {
            return Err(PolicyError::Name(self.name.chars().take(64).collect()));
        }
        if self.rules.len() > RULES_MAX {
            return Err(PolicyError::TooManyRules(self.rules.len()));
        }
        self.settings.validate()?;
        let mut ids = HashSet::new();
        for rule in &self.rules {
            let id: String = rule.id.chars().take(TEXT_BYTES_MAX).collect();
            if !(1..=TEXT_BYTES_MAX).contains(&rule.id.len()) {
                return Err(PolicyError::RuleId(id));
            }
            if !ids.insert(rule.id.as_str()) {
                return Err(PolicyError::DuplicateRuleId(id));
            }
            if rule.comment.len() > TEXT_BYTES_MAX {
                return Err(PolicyError::Comment(id));
            }
            if let Matcher::PathSha256(path, _) = &rule.matcher
                && (!path.starts_with(b"/") || path.len() > PATH_BYTES_MAX || path.contains(&0))
            {
                return Err(PolicyError::Path(id));
            }
        }
        Ok(())
    }
}

/// What one version of a policy says otherwise than another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyDiff {
    /// The profile before and after, when it differs.
    pub profile: Option<(Profile, Profile)>,
    /// The settings that differ: name, value before, value after.
    pub settings: Vec<(String, String, String)>,
    /// Rules that are new.
    pub added: Vec<Rule>,
    /// Rules that are gone.
    pub removed: Vec<Rule>,
    /// Rules that differ, before and after.
    pub changed: Vec<(Rule, Rule)>,
}

impl PolicyDiff {
    /// What `after` says otherwise than `before`; of a first version every rule is new, and settings are compared with
    /// their defaults.
    pub fn between(before: Option<&AllowPolicy>, after: &AllowPolicy) -> Self {
        let rules_before = before.map_or(&[][..], |before| &before.rules);
        let old: HashMap<&str, &Rule> = rules_before.iter().map(|rule| (rule.id.as_str(), rule)).collect();
        let new: HashSet<&str> = after.rules.iter().map(|rule| rule.id.as_str()).collect();
        let settings_before = before.map(|before| before.settings.clone()).unwrap_or_default();
        let settings = settings_before.entries().into_iter().zip(after.settings.entries());
        let mut diff = Self {
            settings: settings
                .filter(|(old, new)| old != new)
                .map(|((name, old), (_, new))| (name, old, new))
                .collect(),
            profile: before.map(|before| (before.profile, after.profile)).filter(|(old, new)| old != new),
            ..Self::default()
        };
        for rule in &after.rules {
            match old.get(rule.id.as_str()) {
                None => diff.added.push(rule.clone()),
                Some(old) if *old != rule => diff.changed.push(((*old).clone(), rule.clone())),
                Some(_) => {}
            }
        }
        diff.removed = rules_before.iter().filter(|rule| !new.contains(rule.id.as_str())).cloned().collect();
        diff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(profile: Profile, rules: &[(&str, Effect)]) -> AllowPolicy {
        let rule = |(id, effect): &(&str, Effect)| Rule {
            id: (*id).to_owned(),
            matcher: Matcher::Sha256(Sha256Digest([7; 32])),
            effect: *effect,
            comment: String::new(),
        };
        let rules = rules.iter().map(rule).collect();
        AllowPolicy { name: "p".to_owned(), revision: 1, profile, settings: PolicySettings::default(), rules }
    }

    #[test]
    fn a_diff_names_what_came_went_and_changed() {
        let before = policy(
            Profile::OsOnly,
            &[("gone", Effect::Allow), ("kept", Effect::Allow), ("turned", Effect::Allow)],
        );
        let mut after = policy(
            Profile::OsAndApproved,
            &[("kept", Effect::Allow), ("new", Effect::Deny), ("turned", Effect::Deny)],
        );
        after.settings.set("dualUse", "remove").unwrap();
        let diff = PolicyDiff::between(Some(&before), &after);
        let setting = |old: &str, new: &str| vec![("dualUse".to_owned(), old.to_owned(), new.to_owned())];
        assert_eq!(diff.settings, setting("keep", "remove"));
        assert_eq!(PolicyDiff::between(None, &after).settings, diff.settings);
        assert_eq!(diff.profile, Some((Profile::OsOnly, Profile::OsAndApproved)));
        assert_eq!(diff.added, [after.rules[1].clone()]);
        assert_eq!(diff.removed, [before.rules[0].clone()]);
        assert_eq!(diff.changed, [(before.rules[2].clone(), after.rules[2].clone())]);
        assert_eq!(PolicyDiff::between(Some(&after), &after), PolicyDiff::default());
        assert_eq!(PolicyDiff::between(None, &after).added, after.rules);
    }
}
