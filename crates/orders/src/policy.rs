//! Signed policies: an allow policy as every machine keeps it ahead of time.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::digest::Sha256Digest;
use domain::policy_settings::PolicySettings;
use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, VerifyError};
use crate::key::{SigningKey, TrustedKeys};
use crate::order::text_of;

const PAYLOAD_TYPE: &str = "application/vnd.cordon.policy.v1+json";

/// The allow policy inside an envelope that a trusted key signed. Rule comments are not part of what is signed:
/// machines do not need them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPolicy {
    policy: AllowPolicy,
    digest: Sha256Digest,
}

/// Signs a policy. Orders refer to it by [`Envelope::payload_digest`].
///
/// The bytes depend only on the policy, so signing it again gives the same digest.
pub fn sign_policy(policy: &AllowPolicy, key: &SigningKey) -> Envelope {
    let document = Document {
        name: policy.name.clone(),
        revision: policy.revision,
        profile: match policy.profile {
            Profile::OsOnly => ProfileName::OsOnly,
            Profile::OsAndApproved => ProfileName::OsAndApproved,
            Profile::SurvivalOnly => ProfileName::SurvivalOnly,
        },
        settings: policy.settings.entries_set().into_iter().collect(),
        rules: policy.rules.iter().map(RuleDocument::of).collect(),
    };
    Envelope::sign(PAYLOAD_TYPE, &serde_json::to_vec(&document).unwrap_or_default(), key)
}

impl VerifiedPolicy {
    /// The longest signed policy, in bytes: what [`domain::allow_policy::RULES_MAX`] rules of usual length need.
    pub const BYTES_MAX: usize = 4 * 1024 * 1024;

    /// Believes `bytes` when a trusted key signed them as a policy, and the policy is valid.
    ///
    /// # Errors
    /// [`VerifyError`], which says what is wrong.
    pub fn verify(bytes: &[u8], keys: &TrustedKeys) -> Result<Self, VerifyError> {
        let envelope = Envelope::from_bytes(bytes, Self::BYTES_MAX)?;
        let policy = envelope.document(PAYLOAD_TYPE, keys, Document::read)?;
        Ok(Self { policy, digest: envelope.payload_digest()? })
    }

    /// The policy.
    pub fn policy(&self) -> &AllowPolicy {
        &self.policy
    }

    /// The digest by which orders refer to it.
    pub fn digest(&self) -> Sha256Digest {
        self.digest
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: String,
    revision: u64,
    profile: ProfileName,
    /// The settings that are not at their defaults, by name. A gate that does not know one refuses the policy.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    settings: BTreeMap<String, String>,
    rules: Vec<RuleDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ProfileName {
    OsOnly,
    OsAndApproved,
    SurvivalOnly,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleDocument {
    id: String,
    effect: EffectName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// Instead of `sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fs_verity: Option<String>,
    /// Base64: a path need not be UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EffectName {
    Allow,
    Deny,
}

impl RuleDocument {
    fn of(rule: &Rule) -> Self {
        let (sha256, fs_verity, path) = match &rule.matcher {
            Matcher::Sha256(digest) => (Some(digest), None, None),
            Matcher::PathSha256(path, digest) => (Some(digest), None, Some(STANDARD.encode(path))),
            Matcher::FsVerity(digest) => (None, Some(digest), None),
        };
        let text = |digest: &Sha256Digest| digest.to_string();
        let effect = match rule.effect {
            Effect::Allow => EffectName::Allow,
            Effect::Deny => EffectName::Deny,
        };
        Self { id: rule.id.clone(), effect, sha256: sha256.map(text), fs_verity: fs_verity.map(text), path }
    }

    fn read(self) -> Result<Rule, String> {
        let digest = |text: String| text.parse::<Sha256Digest>().map_err(text_of);
        let matcher = match (self.sha256, self.fs_verity, self.path) {
            (Some(sha256), None, None) => Matcher::Sha256(digest(sha256)?),
            (Some(sha256), None, Some(path)) => {
                Matcher::PathSha256(STANDARD.decode(path).map_err(text_of)?, digest(sha256)?)
            }
            (None, Some(fs_verity), None) => Matcher::FsVerity(digest(fs_verity)?),
            (None, None, _) | (Some(_), Some(_), _) | (None, Some(_), Some(_)) => {
                return Err(format!("rule {:?} must name one content", self.id));
            }
        };
        let effect = match self.effect {
            EffectName::Allow => Effect::Allow,
            EffectName::Deny => Effect::Deny,
        };
        Ok(Rule { id: self.id, matcher, effect, comment: String::new() })
    }
}

impl Document {
    fn read(self) -> Result<AllowPolicy, String> {
        let policy = AllowPolicy {
            name: self.name,
            revision: self.revision,
            profile: match self.profile {
                ProfileName::OsOnly => Profile::OsOnly,
                ProfileName::OsAndApproved => Profile::OsAndApproved,
                ProfileName::SurvivalOnly => Profile::SurvivalOnly,
            },
            settings: PolicySettings::of_entries(self.settings).map_err(text_of)?,
            rules: self.rules.into_iter().map(RuleDocument::read).collect::<Result<_, _>>()?,
        };
        policy.validate().map_err(text_of)?;
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#""profile":"os-and-approved""#;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    fn policy() -> AllowPolicy {
        let rule =
            |id: &str, matcher, effect| Rule { id: id.to_owned(), matcher, effect, comment: String::new() };
        AllowPolicy {
            name: "default".to_owned(),
            revision: 3,
            profile: Profile::OsAndApproved,
            settings: PolicySettings::default(),
            rules: vec![
                rule("a", Matcher::Sha256(Sha256Digest([1; 32])), Effect::Allow),
                rule("b", Matcher::PathSha256(b"/opt/\xff".to_vec(), Sha256Digest([2; 32])), Effect::Deny),
            ],
        }
    }

    /// The bytes that are signed.
    fn payload(policy: &AllowPolicy) -> String {
        let envelope: serde_json::Value =
            serde_json::from_slice(&sign_policy(policy, &key()).to_bytes()).unwrap();
        String::from_utf8(STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap()).unwrap()
    }

    /// What a gate makes of such a payload, rightly signed.
    fn read(payload: &str) -> Result<AllowPolicy, String> {
        let envelope = Envelope::sign(PAYLOAD_TYPE, payload.as_bytes(), &key());
        let keys = TrustedKeys::new([key().public_key()]);
        let verified = VerifiedPolicy::verify(&envelope.to_bytes(), &keys).map_err(text_of)?;
        Ok(verified.policy().clone())
    }

    fn fault(payload: &str) -> String {
        let prefix = "signed, but not readable by this version: ";
        read(payload).unwrap_err().strip_prefix(prefix).expect("a fault of the payload").to_owned()
    }

    #[test]
    fn a_signed_policy_reads_back_with_a_steady_digest() {
        let policy = policy();
        let envelope = sign_policy(&policy, &key());
        let keys = TrustedKeys::new([key().public_key()]);
        let verified = VerifiedPolicy::verify(&envelope.to_bytes(), &keys).unwrap();
        assert_eq!(verified.policy(), &policy);
        assert_eq!(
            verified.digest(),
            sign_policy(&policy, &SigningKey::from_seed(&[2; 32])).payload_digest().unwrap()
        );
    }

    /// Policies that were signed before there were settings keep their digests, by which orders name them.
    #[test]
    fn what_has_no_settings_is_signed_as_it_always_was() {
        let (one, two) = ("01".repeat(32), "02".repeat(32));
        let expected = format!(
            r#"{{"name":"default","revision":3,{PROFILE},"rules":[{{"id":"a","effect":"allow","sha256":"{one}"}},"#
        ) + &format!(r#"{{"id":"b","effect":"deny","sha256":"{two}","path":"L29wdC//"}}]}}"#);
        assert_eq!(payload(&policy()), expected);
        assert_eq!(read(&expected).unwrap(), policy());
    }

    #[test]
    fn settings_and_fs_verity_have_their_bytes() {
        let mut policy = policy();
        let settings = [
            ("interpreters", "strict"),
            ("survivalCheck", "force"),
            ("guards.ptrace", "off"),
            ("notice.text", "Ask \"IT\""),
        ];
        policy.settings = PolicySettings::of_entries(settings).unwrap();
        policy.rules.truncate(1);
        policy.rules[0].matcher = Matcher::FsVerity(Sha256Digest([3; 32]));
        let settings = r#""settings":{"guards.ptrace":"off","interpreters":"strict","notice.text":"Ask \"IT\"","survivalCheck":"force"}"#;
        let rule = format!(r#"{{"id":"a","effect":"allow","fs_verity":"{}"}}"#, "03".repeat(32));
        let expected = format!(r#"{{"name":"default","revision":3,{PROFILE},{settings},"rules":[{rule}]}}"#);
        assert_eq!(payload(&policy), expected);
        assert_eq!(read(&expected).unwrap(), policy);
    }

    #[test]
    fn what_this_version_does_not_know_is_refused() {
        let with = |settings: &str, rules: &str| {
            fault(&format!(
                r#"{{"name":"p","revision":1,{PROFILE},"settings":{settings},"rules":[{rules}]}}"#
            ))
        };
        assert_eq!(with(r#"{"sandbox":"on"}"#, ""), r#"there is no setting "sandbox""#);
        assert_eq!(with(r#"{"dualUse":"sell"}"#, ""), r#"dualUse "sell" is not one of keep, remove"#);
        assert!(with(r#"{"notice.text":"\u001b[2J"}"#, "").contains("without control characters"));
        assert!(with(r#"{"allowUpdates":true}"#, "").starts_with("invalid type: boolean"));
        assert!(with(r#"{"allowUpdates":"true"}"#, "").starts_with("allowUpdates cannot be true yet"));
        let digest = "00".repeat(32);
        let rule = |content: &str| with("{}", &format!(r#"{{"id":"r","effect":"allow"{content}}}"#));
        let no_content = r#"rule "r" must name one content"#;
        assert_eq!(rule(""), no_content);
        assert_eq!(rule(r#","path":"L2E=""#), no_content);
        assert_eq!(rule(&format!(r#","sha256":"{digest}","fs_verity":"{digest}""#)), no_content);
        assert_eq!(rule(&format!(r#","path":"L2E=","fs_verity":"{digest}""#)), no_content);
    }
}
