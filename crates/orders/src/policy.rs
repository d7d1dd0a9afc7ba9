//! Signed policies: an allow policy as every machine keeps it ahead of time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::digest::Sha256Digest;
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
        let payload = envelope.verify(PAYLOAD_TYPE, keys)?;
        let policy = serde_json::from_slice::<Document>(&payload)
            .map_err(text_of)
            .and_then(Document::read)
            .map_err(VerifyError::Unreadable)?;
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
    sha256: String,
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
        let (digest, path) = match &rule.matcher {
            Matcher::Sha256(digest) => (digest, None),
            Matcher::PathSha256(path, digest) => (digest, Some(STANDARD.encode(path))),
        };
        let effect = match rule.effect {
            Effect::Allow => EffectName::Allow,
            Effect::Deny => EffectName::Deny,
        };
        Self { id: rule.id.clone(), effect, sha256: digest.to_string(), path }
    }

    fn read(self) -> Result<Rule, String> {
        let digest = self.sha256.parse().map_err(text_of)?;
        let matcher = match self.path {
            None => Matcher::Sha256(digest),
            Some(path) => Matcher::PathSha256(STANDARD.decode(path).map_err(text_of)?, digest),
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
            rules: self.rules.into_iter().map(RuleDocument::read).collect::<Result<_, _>>()?,
        };
        policy.validate().map_err(text_of)?;
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_policy_reads_back_with_a_steady_digest() {
        let key = SigningKey::from_seed(&[1; 32]);
        let rule =
            |id: &str, matcher, effect| Rule { id: id.to_owned(), matcher, effect, comment: String::new() };
        let policy = AllowPolicy {
            name: "default".to_owned(),
            revision: 3,
            profile: Profile::OsAndApproved,
            rules: vec![
                rule("a", Matcher::Sha256(Sha256Digest([1; 32])), Effect::Allow),
                rule("b", Matcher::PathSha256(b"/opt/\xff".to_vec(), Sha256Digest([2; 32])), Effect::Deny),
            ],
        };
        let envelope = sign_policy(&policy, &key);
        let keys = TrustedKeys::new([key.public_key()]);
        let verified = VerifiedPolicy::verify(&envelope.to_bytes(), &keys).unwrap();
        assert_eq!(verified.policy(), &policy);
        assert_eq!(
            verified.digest(),
            sign_policy(&policy, &SigningKey::from_seed(&[2; 32])).payload_digest().unwrap()
        );
    }
}
