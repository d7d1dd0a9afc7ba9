//! The settings of an allow policy. Their names and values are the domain's.

use std::collections::BTreeMap;

use domain::policy_settings::{self, Guard, ManifestKey, SettingError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How an allow policy treats what a file's content alone does not decide. What a document leaves out is at its default;
/// replies hold everything. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicySettings {
    /// What interpreters may read as code: `open`, `default` or `strict`.
    #[schema(pattern = "^(open|default|strict)$", examples("default"))]
    pub interpreters: String,
    /// Executable memory without a file behind it: `audit` or `deny`.
    #[schema(pattern = "^(audit|deny)$", examples("audit"))]
    pub anonymous_code: String,
    /// Unlisted programs that run when the restriction begins: `report`, `freeze` or `kill`.
    #[schema(pattern = "^(report|freeze|kill)$", examples("report"))]
    pub running_programs: String,
    /// Containers: `existing` or `by-digest`; nothing holds `block` yet, so it is refused.
    #[schema(pattern = "^(existing|block|by-digest)$", examples("existing"))]
    pub containers: String,
    /// Packaged debuggers, compilers, relays and their like: `keep` or `remove`.
    #[schema(pattern = "^(keep|remove)$", examples("keep"))]
    pub dual_use: String,
    /// Whether package updates are listed while the machine is restricted, as far as their repository vouches for them;
    /// nothing holds `true` yet, so it is refused.
    #[schema(examples(false))]
    pub allow_updates: bool,
    /// A survival set that would not run: `refuse` or `force` the restriction.
    #[schema(pattern = "^(refuse|force)$", examples("refuse"))]
    pub survival_check: String,
    /// Public keys (Ed25519) whose signed manifests count, as `cordon manifest key` prints them: at most 8.
    #[schema(max_items = 8, examples(json!([])))]
    pub manifest_keys: Vec<String>,
    /// What each guard does, by its name: `enforce`, `audit` or `off`.
    #[schema(required = true, examples(json!({ "ptrace": "enforce" })))]
    pub guards: BTreeMap<String, String>,
    /// What people on the machine are told.
    #[schema(required = true)]
    pub notice: Notice,
}

/// What people on the machine are told while it is restricted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Notice {
    /// What is told, at most 256 bytes on one line; empty: Cordon's own words.
    #[schema(max_length = 256, examples("This computer is restricted while an incident is looked into."))]
    pub text: String,
    /// Whom to turn to, at most 256 bytes on one line; may be empty.
    #[schema(max_length = 256, examples("Help desk, 4711"))]
    pub contact: String,
    /// Whether nobody is told anything.
    #[schema(examples(false))]
    pub silent: bool,
}

impl Default for PolicySettings {
    fn default() -> Self {
        policy_settings::PolicySettings::default().into()
    }
}

impl From<policy_settings::PolicySettings> for PolicySettings {
    fn from(settings: policy_settings::PolicySettings) -> Self {
        let guard = |guard: Guard| (guard.name().to_owned(), settings.guards.mode(guard).name().to_owned());
        Self {
            interpreters: settings.interpreters.name().to_owned(),
            anonymous_code: settings.anonymous_code.name().to_owned(),
            running_programs: settings.running_programs.name().to_owned(),
            containers: settings.containers.name().to_owned(),
            dual_use: settings.dual_use.name().to_owned(),
            allow_updates: settings.allow_updates,
            survival_check: settings.survival_check.name().to_owned(),
            manifest_keys: settings.manifest_keys.iter().map(ManifestKey::to_string).collect(),
            guards: Guard::ALL.map(guard).into(),
            notice: Notice {
                text: settings.notice.text,
                contact: settings.notice.contact,
                silent: settings.notice.silent,
            },
        }
    }
}

impl PolicySettings {
    /// The domain's settings.
    ///
    /// # Errors
    /// [`SettingError`], which names the setting.
    pub fn read(&self) -> Result<policy_settings::PolicySettings, SettingError> {
        let Self {
            interpreters,
            anonymous_code,
            running_programs,
            containers,
            dual_use,
            allow_updates,
            survival_check,
            manifest_keys,
            guards,
            notice: Notice { text, contact, silent },
        } = self;
        let mut settings = policy_settings::PolicySettings::of_entries([
            ("interpreters", interpreters),
            ("anonymousCode", anonymous_code),
            ("runningPrograms", running_programs),
            ("containers", containers),
            ("dualUse", dual_use),
            ("survivalCheck", survival_check),
            ("notice.text", text),
            ("notice.contact", contact),
        ])?;
        // Joined, a text with a space in it would be two.
        for key in manifest_keys {
            settings.manifest_keys.push(key.parse()?);
        }
        settings.manifest_keys.sort_unstable();
        settings.allow_updates = *allow_updates;
        settings.notice.silent = *silent;
        for (guard, mode) in guards {
            settings.set(&format!("guards.{guard}"), mode)?;
        }
        settings.validate()?;
        Ok(settings)
    }

    /// Whether everything is at its default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every setting takes the way there and back, whatever its name.
    #[test]
    fn names_are_those_of_the_domain() {
        let mut all = policy_settings::PolicySettings::default();
        for (name, value) in [
            ("interpreters", "strict"),
            ("anonymousCode", "deny"),
            ("runningPrograms", "kill"),
            ("containers", "by-digest"),
            ("dualUse", "remove"),
            ("survivalCheck", "force"),
            ("manifestKeys", &format!("{} {}", "01".repeat(32), "02".repeat(32))),
            ("notice.text", "a"),
            ("notice.contact", "b"),
            ("notice.silent", "true"),
        ] {
            all.set(name, value).unwrap();
        }
        for guard in Guard::ALL {
            all.set(&format!("guards.{guard}"), "off").unwrap();
        }
        // Updates cannot be allowed yet.
        assert_eq!(all.entries_set().len(), all.entries().len() - 1);
        let sent = PolicySettings::from(all.clone());
        assert_eq!(sent.read().unwrap(), all);
        // The keys of the JSON are the names, too.
        let json = serde_json::to_value(&sent).unwrap();
        for (name, value) in all.entries() {
            let found = json.pointer(&format!("/{}", name.replace('.', "/"))).unwrap();
            let text =
                |found: &serde_json::Value| found.as_str().map_or_else(|| found.to_string(), str::to_owned);
            let found = found
                .as_array()
                .map_or_else(|| text(found), |found| found.iter().map(text).collect::<Vec<_>>().join(" "));
            assert_eq!(found, value);
        }
    }

    #[test]
    fn what_a_document_leaves_out_is_at_its_default() {
        let sent: PolicySettings = serde_json::from_str(r#"{"guards": {"kexec": "audit"}}"#).unwrap();
        let set = sent.read().unwrap().entries_set();
        assert_eq!(set, [("guards.kexec".to_owned(), "audit".to_owned())]);
        let refused: PolicySettings = serde_json::from_str(r#"{"guards": {"kexex": "audit"}}"#).unwrap();
        assert_eq!(refused.read().unwrap_err().to_string(), "there is no setting \"guards.kexex\"");
        assert!(serde_json::from_str::<PolicySettings>(r#"{"guard": {}}"#).is_err());
    }
}
