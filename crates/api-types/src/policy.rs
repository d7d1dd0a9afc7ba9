//! Allow policies.

use domain::allow_policy::{self, AllowPolicy, Effect, Matcher, Profile};
use domain::digest::Sha256Digest;
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::date_time::DateTimeUtc;

/// An allow policy as people write it. Unknown keys are refused: a misspelled rule must not vanish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyDocument {
    /// Unique name.
    pub name: String,
    /// `os-only`, `os+approved` or `survival-only`.
    #[serde(default = "default_profile")]
    pub profile: String,
    /// Explicit rules; their order has no meaning.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Unique within the policy.
    pub id: String,
    /// `allow` or `deny`.
    pub effect: String,
    /// SHA-256 of the file's content, 64 hexadecimal digits.
    pub sha256: String,
    /// When given, the rule counts only for the file at this absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why the rule exists.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

/// A stored policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Unique name.
    pub name: String,
    /// Profile name.
    pub profile: String,
    /// The rules.
    pub rules: Vec<Rule>,
    /// Counts the saved versions, from 1.
    pub revision: u64,
    /// SHA-256 of the signed bytes, as orders and receipts name the policy.
    pub digest: String,
    /// When this revision was saved.
    pub last_update_date_time_utc: DateTimeUtc,
    /// Who saved it.
    pub last_update_by: String,
}

fn default_profile() -> String {
    profile_name(Profile::OsAndApproved).to_owned()
}

/// The profile's name on the wire.
pub fn profile_name(profile: Profile) -> &'static str {
    match profile {
        Profile::OsOnly => "os-only",
        Profile::OsAndApproved => "os+approved",
        Profile::SurvivalOnly => "survival-only",
    }
}

impl PolicyDocument {
    /// The domain's policy, with revision 0: the control plane counts revisions.
    ///
    /// # Errors
    /// A sentence that names the value that is wrong.
    pub fn read(self) -> Result<AllowPolicy, String> {
        let profile = [Profile::OsOnly, Profile::OsAndApproved, Profile::SurvivalOnly]
            .into_iter()
            .find(|profile| profile_name(*profile) == self.profile)
            .ok_or_else(|| {
                format!("profile {:?} is not one of os-only, os+approved, survival-only", self.profile)
            })?;
        let rules = self.rules.into_iter().map(Rule::read).collect::<Result<_, _>>()?;
        let policy = AllowPolicy { name: self.name, revision: 0, profile, rules };
        policy.validate().map_err(|error| error.to_string())?;
        Ok(policy)
    }
}

impl Policy {
    /// A stored revision.
    pub fn stored(
        policy: AllowPolicy,
        digest: Sha256Digest,
        updated_at: Timestamp,
        updated_by: String,
    ) -> Self {
        Self {
            name: policy.name,
            profile: profile_name(policy.profile).to_owned(),
            rules: policy.rules.into_iter().map(Rule::from).collect(),
            revision: policy.revision,
            digest: digest.to_string(),
            last_update_date_time_utc: updated_at.into(),
            last_update_by: updated_by,
        }
    }
}

impl Rule {
    fn read(self) -> Result<allow_policy::Rule, String> {
        let digest = self.sha256.parse().map_err(|error| format!("rule {:?}: sha256: {error}", self.id))?;
        let effect = match self.effect.as_str() {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            other => return Err(format!("rule {:?}: effect {other:?} is not allow or deny", self.id)),
        };
        let matcher = match self.path {
            None => Matcher::Sha256(digest),
            Some(path) => Matcher::PathSha256(path.into_bytes(), digest),
        };
        Ok(allow_policy::Rule { id: self.id, matcher, effect, comment: self.comment })
    }
}

impl From<allow_policy::Rule> for Rule {
    fn from(rule: allow_policy::Rule) -> Self {
        let (digest, path) = match rule.matcher {
            Matcher::Sha256(digest) => (digest, None),
            Matcher::PathSha256(path, digest) => (digest, Some(String::from_utf8_lossy(&path).into_owned())),
        };
        Self {
            id: rule.id,
            effect: match rule.effect {
                Effect::Allow => "allow",
                Effect::Deny => "deny",
            }
            .to_owned(),
            sha256: digest.to_string(),
            path,
            comment: rule.comment,
        }
    }
}
