//! Documents that people write: policies, machine groups, roles and settings, one in each TOML or JSON file.
//!
//! They are read and checked here, so that a fault is told with the file and line that it is on, before anything is sent.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::Read as _;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use api_types::machine_group::MachineGroupDocument;
use api_types::policy::PolicyDocument;
use api_types::role::Role;
use api_types::settings::SettingsUpdate;
use domain::machine_group::UNGROUPED;
use domain::permission::Rights;
use domain::role::ADMINISTRATOR;
use serde::de::value::MapAccessDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, IgnoredAny, IntoDeserializer as _, MapAccess, Visitor,
};
use serde::{Deserialize, Deserializer};

/// What the files look like.
pub(crate) const HELP: &str = r#"Each file, *.toml or *.json, holds one document, with the keys of the API. A folder is read with
the folders in it.

  kind = "policy"                         kind = "machine-group"
  name = "default"                        name = "Finance"
  profile = "os+approved"                 rank = 1                # optional
  [[rules]]                               policy = "default"      # optional
  id = "backup-agent"                     userGroups = ["responders"]
  effect = "allow"                        [[rule]]
  sha256 = "<64 hexadecimal digits>"      property = "tag"
  path = "/opt/backup/agent" # optional   operator = "equals"
                                          value = "finance"

  kind = "role"                           kind = "settings"
  name = "Tier 1"                         bulkMachinesPerHour = 500
  rights = ["View data"]
  userGroups = ["responders"]

Policies come first, then machine groups by rank, roles, settings. Apps and accounts hold secrets,
and are no documents: see cordon app and cordon user.

Nothing is deleted without --prune. With it, what the server has of the kinds that the files hold,
and the files do not have, is deleted, and such settings are taken back; but nothing that is built
in, and no policy.

cordon diff ends with 0 when there is nothing that cordon apply would do, and with 6 when there is."#;

/// The longest file, in bytes; the most files; and how deep folders may be.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const FILES_MAX: usize = 10_000;
const DEPTH_MAX: usize = 16;

/// The language of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// `*.toml`.
    Toml,
    /// `*.json`.
    Json,
}

/// What a document is about, in the order in which documents are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// An allow policy.
    Policy,
    /// A machine group.
    MachineGroup,
    /// A role.
    Role,
    /// The settings.
    Settings,
}

/// A document.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    /// An allow policy.
    Policy(PolicyDocument),
    /// A machine group.
    MachineGroup(MachineGroupDocument),
    /// A role.
    Role(Role),
    /// The settings.
    Settings(SettingsUpdate),
}

/// A document and the file that it is from.
#[derive(Debug, Clone)]
pub(crate) struct Sourced {
    /// The file, for messages.
    pub(crate) source: String,
    /// The document.
    pub(crate) document: Document,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Policy, Self::MachineGroup, Self::Role, Self::Settings];

    /// The value of the key `kind`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::MachineGroup => "machine-group",
            Self::Role => "role",
            Self::Settings => "settings",
        }
    }
}

impl Document {
    /// What it is about.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Policy(_) => Kind::Policy,
            Self::MachineGroup(_) => Kind::MachineGroup,
            Self::Role(_) => Kind::Role,
            Self::Settings(_) => Kind::Settings,
        }
    }

    /// The name of what it is about; empty for the settings.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Policy(policy) => &policy.name,
            Self::MachineGroup(group) => &group.name,
            Self::Role(role) => &role.name,
            Self::Settings(_) => "",
        }
    }

    fn rank(&self) -> Option<u32> {
        match self {
            Self::MachineGroup(group) => group.rank,
            Self::Policy(_) | Self::Role(_) | Self::Settings(_) => None,
        }
    }

    /// Whether the values are possible, as far as that can be known here.
    fn check(&self) -> Result<(), String> {
        let name = self.name();
        if name.trim() != name || (name.is_empty() && self.kind() != Kind::Settings) {
            return Err(format!("name {name:?} must not be empty, nor begin or end with a blank"));
        }
        match self {
            Self::Policy(policy) => policy.clone().read().map(drop),
            Self::MachineGroup(group) => {
                if group.rank == Some(0) {
                    return Err("rank 0: the highest rank is 1".to_owned());
                }
                if group.name == UNGROUPED && (group.rank.is_some() || !group.rule.is_empty()) {
                    return Err(format!("the group {UNGROUPED:?} is built in: it has no rank and no rule"));
                }
                group.rule.iter().try_for_each(|condition| condition.clone().read().map(drop))
            }
            Self::Role(role) => {
                let role = role.clone().read()?;
                if role.name == ADMINISTRATOR && role.rights != Rights::all() {
                    return Err(format!("the role {ADMINISTRATOR} is built in: it has every right"));
                }
                Ok(())
            }
            Self::Settings(_) => Ok(()),
        }
    }
}

/// Reads all documents of files and folders, in the order in which they are applied.
///
/// # Errors
/// The first fault, with the file that it is in.
pub(crate) fn read_all(paths: &[PathBuf]) -> Result<Vec<Sourced>> {
    let mut files = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            collect(path, DEPTH_MAX, &mut files)?;
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    files.dedup();
    if files.is_empty() {
        bail!("there is no *.toml and no *.json file in it");
    }
    let mut documents = Vec::with_capacity(files.len());
    for file in &files {
        let source = file.display().to_string();
        let document = parse_any(&read_text(file)?, language(file)?, &source)?;
        documents.push(Sourced { source, document });
    }
    check_together(&documents)?;
    documents.sort_by(|a, b| order(&a.document).cmp(&order(&b.document)));
    Ok(documents)
}

fn order(document: &Document) -> (Kind, u32, &str) {
    (document.kind(), document.rank().unwrap_or(u32::MAX), document.name())
}

fn check_together(documents: &[Sourced]) -> Result<()> {
    let (mut names, mut ranks) = (HashMap::new(), HashMap::new());
    for Sourced { source, document } in documents {
        let (kind, name) = (document.kind(), document.name());
        if let Some(other) = names.insert((kind, name), source) {
            bail!("{source}: {} {name:?} is in {other} too", kind.name());
        }
        if let Some(rank) = document.rank()
            && let Some(other) = ranks.insert(rank, source)
        {
            bail!("{source}: another machine group has rank {rank} in {other}");
        }
    }
    Ok(())
}

/// The files of a folder and the folders in it, but no hidden ones.
fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    ensure!(depth > 0, "{}: folders are nested too deeply", folder.display());
    let cannot_read = || format!("cannot read {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(cannot_read)? {
        let entry = entry.with_context(cannot_read)?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let metadata = std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            collect(&path, depth - 1, files)?;
        } else if language(&path).is_ok() {
            files.push(path);
        }
        ensure!(files.len() <= FILES_MAX, "more than {FILES_MAX} files");
    }
    Ok(())
}

/// Reads a file, or standard input when the path is `-`.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let is_input = path == Path::new("-");
    let cannot_read = || {
        if is_input {
            "cannot read standard input".to_owned()
        } else {
            format!("cannot read {}", path.display())
        }
    };
    let mut text = String::new();
    let read = if is_input {
        std::io::stdin().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path).with_context(cannot_read)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    };
    let bytes = read.with_context(cannot_read)?;
    ensure!(bytes as u64 <= FILE_BYTES_MAX, "{}: more than {FILE_BYTES_MAX} bytes", cannot_read());
    Ok(text)
}

/// The language of a file, by its name.
pub(crate) fn language(path: &Path) -> Result<Language> {
    match path.extension().and_then(OsStr::to_str) {
        Some("toml") => Ok(Language::Toml),
        Some("json") => Ok(Language::Json),
        _ => bail!("{} must be called *.toml or *.json, which tells how to read it", path.display()),
    }
}

fn parse_any(text: &str, language: Language, source: &str) -> Result<Document> {
    let names = || Kind::ALL.map(Kind::name).join(", ");
    let Tagged { kind, .. } = parse::<Tagged<IgnoredAny>>(text, language, source)?;
    let Some(kind) = kind else { bail!("{source}: the key `kind` is missing; it is one of {}", names()) };
    let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) else {
        bail!("{source}: kind {kind:?} is not one of {}", names());
    };
    let document = match kind {
        Kind::Policy => Document::Policy(parse::<Tagged<_>>(text, language, source)?.document),
        Kind::MachineGroup => Document::MachineGroup(parse::<Tagged<_>>(text, language, source)?.document),
        Kind::Role => Document::Role(parse::<Tagged<_>>(text, language, source)?.document),
        Kind::Settings => Document::Settings(parse::<Tagged<_>>(text, language, source)?.document),
    };
    if let Err(fault) = document.check() {
        bail!("{source}: {fault}");
    }
    Ok(document)
}

/// Reads one value; an error is one line, with the place that it is at.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, language: Language, source: &str) -> Result<T> {
    match language {
        Language::Toml => toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let (line, column) = position(before);
            anyhow::anyhow!("{source}:{line}:{column}: {}", error.message())
        }),
        Language::Json => serde_json::from_str(text).map_err(|error| {
            let message = error.to_string();
            let message = message.split_once(" at line ").map_or(message.as_str(), |(message, _)| message);
            anyhow::anyhow!("{source}:{}:{}: {message}", error.line(), error.column())
        }),
    }
}

/// Line and column, from 1, of what follows `before`.
fn position(before: &str) -> (usize, usize) {
    let line = before.rsplit_once('\n').map_or(before, |(_, line)| line);
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// A document that may have the key `kind` beside its own. By hand, since serde's ways to tag lose where a fault is, or
/// take unknown keys.
pub(crate) struct Tagged<T> {
    /// The key's value.
    pub(crate) kind: Option<String>,
    /// The rest.
    pub(crate) document: T,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Tagged<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TaggedVisitor(PhantomData))
    }
}

struct TaggedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TaggedVisitor<T> {
    type Value = Tagged<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Tagged<T>, A::Error> {
        let mut kind = None;
        let untagged = Untagged { map, kind: &mut kind };
        let document = T::deserialize(MapAccessDeserializer::new(untagged))?;
        Ok(Tagged { kind, document })
    }
}

/// A map without the key `kind`, which it sets aside.
struct Untagged<'a, A> {
    map: A,
    kind: &'a mut Option<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Untagged<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let mut seed = seed;
        loop {
            match self.map.next_key_seed(Key(seed))? {
                None => return Ok(None),
                Some(KeyRead::Other(key)) => return Ok(Some(key)),
                Some(KeyRead::Kind(unused)) => {
                    seed = unused;
                    if self.kind.replace(self.map.next_value()?).is_some() {
                        return Err(de::Error::duplicate_field("kind"));
                    }
                }
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// Reads a key by `K`, unless it is `kind`. The error is made while the key is read, so that it has the key's place.
struct Key<K>(K);

enum KeyRead<K, V> {
    Kind(K),
    Other(V),
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for Key<K> {
    type Value = KeyRead<K, K::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let key = String::deserialize(deserializer)?;
        if key == "kind" {
            return Ok(KeyRead::Kind(self.0));
        }
        self.0.deserialize(key.into_deserializer()).map(KeyRead::Other)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, language: Language, expected: &Expect) {
        let outcome = match parse_any(text, language, "FILE") {
            Ok(document) => format!("{} {:?}", document.kind().name(), document.name()),
            Err(error) => format!("{error:#}"),
        };
        assert!(!outcome.contains('\n'), "an error is one line");
        expected.assert_eq(&outcome);
    }

    #[test]
    fn every_kind_in_both_languages() {
        let group = "kind = \"machine-group\"\nname = \"Finance\"\nrank = 1\nuserGroups = [\"a\"]\n[[rule]]\n\
                     property = \"tag\"\noperator = \"equals\"\nvalue = \"finance\"\n";
        check(group, Language::Toml, &expect![[r#"machine-group "Finance""#]]);
        check("name = \"p\"\nkind = \"policy\"\n", Language::Toml, &expect![[r#"policy "p""#]]);
        check(
            r#"{"name": "Tier 1", "rights": ["View data"], "kind": "role"}"#,
            Language::Json,
            &expect![[r#"role "Tier 1""#]],
        );
        check("kind = \"settings\"\nbulkMachinesPerHour = 5\n", Language::Toml, &expect![[r#"settings """#]]);
    }

    #[test]
    fn faults_name_the_place_and_the_key() {
        check(
            "kind = \"role\"\nname = \"r\"\nright = []\n",
            Language::Toml,
            &expect![
                "FILE:3:1: unknown field `right`, expected one of `name`, `description`, `rights`, `userGroups`, `bulkMachinesMax`"
            ],
        );
        check(
            "{\n\"kind\": \"role\",\n\"name\": \"r\",\n\"right\": []}",
            Language::Json,
            &expect![
                "FILE:4:7: unknown field `right`, expected one of `name`, `description`, `rights`, `userGroups`, `bulkMachinesMax`"
            ],
        );
        check(
            "name = \"r\"\n",
            Language::Toml,
            &expect!["FILE: the key `kind` is missing; it is one of policy, machine-group, role, settings"],
        );
        check(
            "kind = \"app\"\nname = \"r\"\n",
            Language::Toml,
            &expect![[r#"FILE: kind "app" is not one of policy, machine-group, role, settings"#]],
        );
        check(
            "kind = 7\n",
            Language::Toml,
            &expect!["FILE:1:8: invalid type: integer `7`, expected a string"],
        );
        check(
            "{\"kind\": \"role\", \"kind\": \"role\"}",
            Language::Json,
            &expect!["FILE:1:32: duplicate field `kind`"],
        );
        check(
            "kind = \"settings\"\nbulkMachinesPerHour = -1\n",
            Language::Toml,
            &expect!["FILE:2:23: invalid value: integer `-1`, expected u64"],
        );
        check("[]", Language::Json, &expect!["FILE:1:0: invalid type: sequence, expected keys and values"]);
        check("kind = \"role\"\n", Language::Toml, &expect!["FILE:1:1: missing field `name`"]);
    }

    #[test]
    fn faults_of_meaning_are_told_before_anything_is_sent() {
        check(
            "kind = \"role\"\nname = \"r\"\nrights = [\"Fly\"]\n",
            Language::Toml,
            &expect![[
                r#"FILE: "Fly" is no right; there are: View data, Active remediation actions, Alerts investigation, Manage security settings, Manage portal system settings, Bulk remediation, Break-glass codes"#
            ]],
        );
        check(
            "kind = \"role\"\nname = \"Administrator\"\n",
            Language::Toml,
            &expect!["FILE: the role Administrator is built in: it has every right"],
        );
        check(
            "kind = \"role\"\nname = \" r\"\n",
            Language::Toml,
            &expect![[r#"FILE: name " r" must not be empty, nor begin or end with a blank"#]],
        );
        check(
            "kind = \"machine-group\"\nname = \"g\"\nrank = 0\n",
            Language::Toml,
            &expect!["FILE: rank 0: the highest rank is 1"],
        );
        let group = "kind = \"machine-group\"\nname = \"g\"\n[[rule]]\nproperty = \"color\"\n\
                     operator = \"equals\"\nvalue = \"red\"\n";
        check(
            group,
            Language::Toml,
            &expect![[r#"FILE: property "color" is not one of name, domain, tag, osPlatform"#]],
        );
        check(
            &format!("kind = \"machine-group\"\nname = {UNGROUPED:?}\nrank = 1\n"),
            Language::Toml,
            &expect![[
                r#"FILE: the group "Ungrouped machines (default)" is built in: it has no rank and no rule"#
            ]],
        );
    }
}
