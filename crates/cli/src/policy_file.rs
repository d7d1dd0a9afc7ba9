//! Policy files: read and checked here, so that a fault is told with the line that it is on.

use std::path::Path;

use anyhow::{Result, bail};
use api_types::policy::PolicyDocument;

use crate::document::{self, Language, Tagged, read_text};

/// What a policy file looks like.
pub(crate) const HELP: &str = r#"A policy file in TOML (the same keys in JSON):

  name = "default"
  profile = "os+approved"    # or os-only, survival-only
  [[rules]]
  id = "backup-agent"
  effect = "allow"           # or deny
  sha256 = "<64 hexadecimal digits of sha256sum>"
  path = "/opt/backup/agent" # optional: only at this path
  comment = "CHG-1042"       # optional
  [settings]                 # optional, as is each of them; shown with their defaults
  interpreters = "default"   # or open, strict
  anonymousCode = "audit"    # or deny
  runningPrograms = "report" # or freeze, kill
  containers = "existing"    # or by-digest
  dualUse = "keep"           # or remove
  survivalCheck = "refuse"   # or force
  guards = { ptrace = "enforce" } # or audit, off
  notice = { text = "", contact = "", silent = false }

docs/policies.md says what each setting does."#;

/// Reads a policy from a file, or from standard input when the path is `-`. It may have `kind = "policy"`, as the files
/// of `cordon apply` do.
pub(crate) fn read(path: &Path) -> Result<PolicyDocument> {
    if path == Path::new("-") {
        let text = read_text(path)?;
        let language = if text.trim_start().starts_with('{') { Language::Json } else { Language::Toml };
        return parse(&text, language, "standard input");
    }
    let language = document::language(path)?;
    parse(&read_text(path)?, language, &path.display().to_string())
}

fn parse(text: &str, language: Language, source: &str) -> Result<PolicyDocument> {
    let Tagged { kind, document } = document::parse::<Tagged<PolicyDocument>>(text, language, source)?;
    if let Some(kind) = kind.filter(|kind| kind != "policy") {
        bail!("{source}: kind {kind:?} is not \"policy\": apply it by cordon apply");
    }
    if let Err(fault) = document.clone().read() {
        bail!("{source}: {fault}");
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const TOML: &str = r#"name = "default"
[[rules]]
id = "backup-agent"
effect = "allow"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
path = "/opt/backup/agent"
"#;

    fn check(text: &str, language: Language, expected: &Expect) {
        let outcome = match parse(text, language, "FILE") {
            Ok(document) => format!("{} with {} rules", document.name, document.rules.len()),
            Err(error) => format!("{error:#}"),
        };
        assert!(!outcome.contains('\n'), "an error is one line");
        expected.assert_eq(&outcome);
    }

    fn check_toml(good: &str, bad: &str, expected: &Expect) {
        assert!(TOML.contains(good));
        check(&TOML.replace(good, bad), Language::Toml, expected);
    }

    #[test]
    fn both_languages_say_the_same() {
        check(TOML, Language::Toml, &expect!["default with 1 rules"]);
        let json = serde_json::to_string(&parse(TOML, Language::Toml, "FILE").unwrap()).unwrap();
        check(&json, Language::Json, &expect!["default with 1 rules"]);
    }

    #[test]
    fn faults_of_toml_are_told_with_line_and_column() {
        check_toml("name =", "name", &expect!["FILE:1:6: key with no value, expected `=`"]);
        check_toml(
            "effect",
            "efect",
            &expect![
                "FILE:4:1: unknown field `efect`, expected one of `id`, `effect`, `sha256`, `fsVerity`, `path`, `comment`"
            ],
        );
        check_toml(
            "\"allow\"",
            "true",
            &expect!["FILE:4:10: invalid type: boolean `true`, expected a string"],
        );
        check_toml(
            "sha256",
            "#sha256",
            &expect![[r#"FILE: rule "backup-agent" must have either sha256 or fsVerity"#]],
        );
        check_toml("name = \"default\"", "", &expect!["FILE:1:1: missing field `name`"]);
    }

    #[test]
    fn faults_of_json_are_told_with_line_and_column() {
        check(
            "{\n  \"name\": \"default\",\n  \"rule\": []\n}",
            Language::Json,
            &expect![
                "FILE:3:8: unknown field `rule`, expected one of `name`, `profile`, `settings`, `rules`"
            ],
        );
        check("{\"name\": ", Language::Json, &expect!["FILE:1:9: EOF while parsing a value"]);
        check("[]", Language::Json, &expect!["FILE:1:0: invalid type: sequence, expected keys and values"]);
    }

    #[test]
    fn faults_of_meaning_are_told_with_rule_and_key() {
        check_toml(
            "\"allow\"",
            "\"permit\"",
            &expect![[r#"FILE: rule "backup-agent": effect "permit" is not allow or deny"#]],
        );
        check_toml(
            "e3b0",
            "e3b",
            &expect![[r#"FILE: rule "backup-agent": sha256: a SHA-256 digest is 64 hexadecimal digits"#]],
        );
        check_toml(
            "/opt/",
            "opt/",
            &expect![[
                r#"FILE: the path of rule "backup-agent" must be absolute, without NUL, and at most 4096 bytes"#
            ]],
        );
        check_toml(
            "\"default\"",
            "\"De fault\"",
            &expect![[r#"FILE: policy name "De fault" must be 1 to 64 of a-z, 0-9 and '-'"#]],
        );
        check_toml(
            "[[rules]]",
            "profile = \"all\"\n[[rules]]",
            &expect![[r#"FILE: profile "all" is not one of os-only, os+approved, survival-only"#]],
        );
    }

    #[test]
    fn a_file_whose_name_tells_nothing_is_refused() {
        let error = read(Path::new("/nonexistent/policy.yaml")).unwrap_err();
        assert!(error.to_string().contains("*.toml or *.json"), "{error}");
    }
}
