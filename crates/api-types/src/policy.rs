//! Allow policies.

use domain::allow_policy::{self, AllowPolicy, Effect, Matcher, PolicyDiff, Profile};
use domain::digest::Sha256Digest;
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::date_time::DateTimeUtc;
use crate::policy_settings::PolicySettings;

/// An allow policy as people write it. Unknown keys are refused: a misspelled rule must not vanish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyDocument {
    /// Unique name.
    #[schema(pattern = "^[a-z0-9-]{1,64}$", examples("office"))]
    pub name: String,
    /// `os-only`, `os+approved` or `survival-only`.
    #[serde(default = "default_profile")]
    #[schema(pattern = r"^(os-only|os\+approved|survival-only)$", examples("os+approved"))]
    pub profile: String,
    /// How it treats what content alone does not decide.
    #[serde(default, skip_serializing_if = "PolicySettings::is_default")]
    pub settings: PolicySettings,
    /// Explicit rules; their order has no meaning.
    #[serde(default)]
    #[schema(max_items = 10_000)]
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Unique within the policy; at most 256 bytes of UTF-8.
    #[schema(min_length = 1, max_length = 256, examples("backup-tool"))]
    pub id: String,
    /// `allow` or `deny`.
    #[schema(pattern = "^(allow|deny)$", examples("allow"))]
    pub effect: String,
    /// SHA-256 of the file's content, 64 hexadecimal digits. This, or `fsVerity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        pattern = "^[0-9a-fA-F]{64}$",
        examples("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    )]
    pub sha256: Option<String>,
    /// The file's fs-verity digest of SHA-256, 64 hexadecimal digits, as `fsverity digest` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        pattern = "^[0-9a-fA-F]{64}$",
        examples("3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95")
    )]
    pub fs_verity: Option<String>,
    /// When given, with `sha256`, the rule counts only for the file at this absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096, pattern = r"^/[^\x00]*$", examples("/opt/backup/run"))]
    pub path: Option<String>,
    /// Why the rule exists; at most 256 bytes of UTF-8.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 256, examples("nightly backup"))]
    pub comment: String,
}

/// A stored policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Unique name.
    #[schema(examples("office"))]
    pub name: String,
    /// Profile name.
    #[schema(examples("os+approved"))]
    pub profile: String,
    /// The settings, those at their defaults too.
    #[serde(default)]
    #[schema(required = true)]
    pub settings: PolicySettings,
    /// The rules.
    pub rules: Vec<Rule>,
    /// Counts the saved versions, from 1.
    #[schema(examples(3))]
    pub revision: u64,
    /// SHA-256 of the signed bytes, as orders and receipts name the policy.
    #[schema(examples("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"))]
    pub digest: String,
    /// When this revision was saved.
    pub last_update_date_time_utc: DateTimeUtc,
    /// Who saved it.
    #[schema(examples("0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d"))]
    pub last_update_by: String,
}

/// What one revision of a policy says otherwise than another, and whom it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyChange {
    /// The policy's name.
    #[schema(examples("default"))]
    pub name: String,
    /// The revision that it comes from; null when there was none.
    #[schema(examples(2))]
    pub from_revision: Option<u64>,
    /// The revision that it comes to.
    #[schema(examples(3))]
    pub to_revision: u64,
    /// The profile before, when it differs.
    #[schema(examples("os-only"))]
    pub profile_before: Option<String>,
    /// The profile after, when it differs.
    #[schema(examples("os+approved"))]
    pub profile_after: Option<String>,
    /// The settings that differ.
    #[serde(default)]
    #[schema(required = true)]
    pub settings: Vec<SettingChange>,
    /// Rules that are new.
    pub added: Vec<Rule>,
    /// Rules that are gone.
    pub removed: Vec<Rule>,
    /// Rules that differ.
    pub changed: Vec<RuleChange>,
    /// The machine groups whose policy it is, by name.
    #[schema(examples("Finance"))]
    pub machine_groups: Vec<String>,
}

/// A policy as it was saved, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyApplied {
    /// The policy.
    #[serde(flatten)]
    pub policy: Policy,
    /// What it says otherwise than the revision before.
    pub change: PolicyChange,
}

/// A setting that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SettingChange {
    /// Its name: the keys that lead to it in the settings, with dots between.
    #[schema(examples("guards.ptrace"))]
    pub setting: String,
    /// Its value before.
    #[schema(examples("enforce"))]
    pub before: String,
    /// Its value after.
    #[schema(examples("audit"))]
    pub after: String,
}

/// A rule that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleChange {
    /// The rule before.
    pub before: Rule,
    /// The rule after.
    pub after: Rule,
}

impl PolicyChange {
    /// What differs between two revisions.
    pub fn between(
        name: String,
        from: Option<u64>,
        to: u64,
        diff: PolicyDiff,
        machine_groups: Vec<String>,
    ) -> Self {
        let profile = |profile| profile_name(profile).to_owned();
        let changed = diff.changed.into_iter();
        let setting = |(setting, before, after)| SettingChange { setting, before, after };
        Self {
            name,
            from_revision: from,
            to_revision: to,
            profile_before: diff.profile.map(|(before, _)| profile(before)),
            profile_after: diff.profile.map(|(_, after)| profile(after)),
            settings: diff.settings.into_iter().map(setting).collect(),
            added: diff.added.into_iter().map(Rule::from).collect(),
            removed: diff.removed.into_iter().map(Rule::from).collect(),
            changed: changed.map(|(old, new)| RuleChange { before: old.into(), after: new.into() }).collect(),
            machine_groups,
        }
    }
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
        let settings = self.settings.read().map_err(|error| format!("settings: {error}"))?;
        let rules = self.rules.into_iter().map(Rule::read).collect::<Result<_, _>>()?;
        let policy = AllowPolicy { name: self.name, revision: 0, profile, settings, rules };
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
            settings: policy.settings.into(),
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
        let digest = |key: &str, text: String| {
            text.parse::<Sha256Digest>().map_err(|error| format!("rule {:?}: {key}: {error}", self.id))
        };
        let effect = match self.effect.as_str() {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            other => return Err(format!("rule {:?}: effect {other:?} is not allow or deny", self.id)),
        };
        let matcher = match (self.sha256, self.fs_verity, self.path) {
            (Some(sha256), None, None) => Matcher::Sha256(digest("sha256", sha256)?),
            (Some(sha256), None, Some(path)) => {
                Matcher::PathSha256(path.into_bytes(), digest("sha256", sha256)?)
            }
            (None, Some(fs_verity), None) => Matcher::FsVerity(digest("fsVerity", fs_verity)?),
            (None, Some(_), Some(_)) => {
                return Err(format!("rule {:?}: an fs-verity digest counts at every path", self.id));
            }
            (None, None, _) | (Some(_), Some(_), _) => {
                return Err(format!("rule {:?} must have either sha256 or fsVerity", self.id));
            }
        };
        Ok(allow_policy::Rule { id: self.id, matcher, effect, comment: self.comment })
    }
}

impl From<allow_policy::Rule> for Rule {
    fn from(rule: allow_policy::Rule) -> Self {
        let (sha256, fs_verity, path) = match rule.matcher {
            Matcher::Sha256(digest) => (Some(digest), None, None),
            Matcher::PathSha256(path, digest) => {
                (Some(digest), None, Some(String::from_utf8_lossy(&path).into_owned()))
            }
            Matcher::FsVerity(digest) => (None, Some(digest), None),
        };
        Self {
            id: rule.id,
            effect: match rule.effect {
                Effect::Allow => "allow",
                Effect::Deny => "deny",
            }
            .to_owned(),
            sha256: sha256.map(|digest| digest.to_string()),
            fs_verity: fs_verity.map(|digest| digest.to_string()),
            path,
            comment: rule.comment,
        }
    }
}
