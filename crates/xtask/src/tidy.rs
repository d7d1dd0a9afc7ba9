//! The rules that the compiler does not check: who may use whom, how files begin, what is banned, what never changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use sha2::Digest as _;

use crate::command::{self, cargo};
use crate::programs::{self, workspace};

/// Which of our crates each crate may use: the table of ARCHITECTURE.md.
const ALLOWED_EDGES: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("odata", &[]),
    ("policy", &["domain"]),
    ("orders", &["domain"]),
    ("agent-protocol", &["orders"]),
    ("gate-protocol", &[]),
    ("api-types", &["domain"]),
    ("store", &["domain", "odata"]),
    ("control-plane", &["domain", "odata", "orders", "store"]),
    ("server", &["agent-protocol", "api-types", "control-plane", "domain", "odata", "orders", "store"]),
    ("agent-core", &["agent-protocol", "domain", "gate-protocol", "orders"]),
    ("trust", &["domain", "policy"]),
    ("enforcement", &["domain"]),
    ("gate", &["domain", "enforcement", "gate-protocol", "orders", "policy"]),
    ("agent", &["agent-core", "agent-protocol", "domain", "gate-protocol", "orders", "trust"]),
    ("cli", &["api-types", "domain", "orders"]),
    ("matrix", &["domain", "gate-protocol", "orders"]),
    ("xtask", &["agent-protocol", "domain", "orders", "store", "trust"]),
];

/// Compiled from C for minutes: each must be built once.
const BUILT_ONCE: &[&str] = &["aws-lc-sys", "libsqlite3-sys"];

/// SHA-256 of every migration that was ever merged. Databases out there were made with exactly these bytes: a line here
/// never changes, and a change of the tables is a further file.
const MIGRATIONS: &[(&str, &str)] = &[
    ("0001_first.sql", "290dad7d2a369db2898da835ad3304551593cebae080ac3f43349bb7ca239d64"),
    ("0002_access.sql", "d561ff6818bdce360d98b27918596bf911fcbbc46399b4ac1c7432c540b871ff"),
    ("0003_lists.sql", "fee283d06d239ed83e85f2773c041cc2bb231b9de95fc0ed743857969254b767"),
    ("0004_sessions.sql", "37f06cdd7fed928e0d73305a895ed2b357ff0893f300b5255c0bc3bc40b4604e"),
    ("0005_policy_settings.sql", "74a68cc63ee33110440738df198d1ad1367a37a3e1ca7d928adf1136e449b72c"),
    ("0006_break_glass.sql", "09408188e17796cd33422ff4df3fc403ec3743ba20bc631b152759ff5e07c411"),
    ("0007_preview.sql", "b018dd9bd767ec95b2b18d63713a6e23124962b56a04746cb4535f8b2ac7724d"),
    ("0008_impact_preview.sql", "a91c77ccef80626e9a7236f9b84774b5ec2f2abcc2e422fe9a9b8185d4aefe0a"),
];

/// The only crate that may hold `unsafe` code.
const UNSAFE_CRATE: &str = "enforcement";

/// The lints that stop a fail-open bug.
const DENIED_LINTS: &[(&str, &str)] = &[
    ("rust", "unsafe_code"),
    ("clippy", "unwrap_used"),
    ("clippy", "expect_used"),
    ("clippy", "panic"),
    ("clippy", "indexing_slicing"),
    ("clippy", "wildcard_enum_match_arm"),
];

/// Checks everything and reports all that is wrong at once.
pub(crate) fn run() -> Result<()> {
    let metadata = programs::metadata()?;
    let mut faults = Vec::new();
    let packages =
        metadata.get("packages").and_then(Value::as_array).context("no packages in cargo metadata")?;
    for package in packages {
        check_package(package, &mut faults)?;
    }
    check_workspace(&mut faults)?;
    check_built_once(&mut faults)?;
    check_migrations(&mut faults)?;
    if faults.is_empty() {
        println!("tidy: {} crates follow the rules", packages.len());
        return Ok(());
    }
    for fault in &faults {
        println!("tidy: {fault}");
    }
    bail!("{} faults", faults.len())
}

fn check_package(package: &Value, faults: &mut Vec<String>) -> Result<()> {
    let text = |key: &str| {
        package.get(key).and_then(Value::as_str).with_context(|| format!("package without {key}"))
    };
    let (name, manifest) = (text("name")?, PathBuf::from(text("manifest_path")?));
    let folder = manifest.parent().context("a manifest without folder")?;
    if folder.file_name().and_then(|f| f.to_str()) != Some(name) {
        faults.push(format!("crate {name} lies in {}: folder and crate share one name", folder.display()));
    }
    check_edges(name, package, faults);
    if !std::fs::read_to_string(workspace().join("ARCHITECTURE.md"))?.contains(&format!("`{name}`")) {
        faults.push(format!("ARCHITECTURE.md does not name `{name}`"));
    }
    check_manifest(name, &manifest, faults)?;
    let mut files = Vec::new();
    rust_files(folder, &mut files)?;
    for file in files {
        check_file(name, &file, faults)?;
    }
    Ok(())
}

fn check_edges(name: &str, package: &Value, faults: &mut Vec<String>) {
    let table: BTreeMap<_, _> = ALLOWED_EDGES.iter().copied().collect();
    let Some(allowed) = table.get(name) else {
        faults.push(format!("crate {name} is not in the table of allowed edges"));
        return;
    };
    let used: BTreeSet<_> = package
        .get("dependencies")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        // Tests may use what they need.
        .filter(|dependency| dependency.get("kind").and_then(Value::as_str) != Some("dev"))
        .filter_map(|dependency| dependency.get("name").and_then(Value::as_str))
        .filter(|dependency| table.contains_key(dependency))
        .collect();
    for dependency in &used {
        if !allowed.contains(dependency) {
            faults.push(format!("crate {name} may not use {dependency}"));
        }
    }
    for dependency in *allowed {
        if !used.contains(dependency) {
            faults.push(format!("crate {name} does not use {dependency}: take the edge out of the table"));
        }
    }
}

fn check_manifest(name: &str, manifest: &Path, faults: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(manifest)?;
    let manifest: toml::Table = text.parse().with_context(|| manifest.display().to_string())?;
    let inherits =
        |value: Option<&toml::Value>| value.and_then(|v| v.get("workspace")).and_then(toml::Value::as_bool);
    if inherits(manifest.get("lints")) != Some(true) {
        faults.push(format!("crate {name} does not take the workspace's lints"));
    }
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (dependency, value) in manifest.get(section).and_then(toml::Value::as_table).into_iter().flatten()
        {
            if inherits(Some(value)) != Some(true) {
                faults.push(format!("crate {name}: {dependency} is not a workspace dependency"));
            }
        }
    }
    Ok(())
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(name: &str, file: &Path, faults: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    let shown = file.strip_prefix(workspace()).unwrap_or(file).display();
    if !text.starts_with("//!") {
        faults.push(format!("{shown} does not open with //! that says what it owns"));
    }
    // This very file names the words that it looks for.
    if file.ends_with("xtask/src/tidy.rs") {
        return Ok(());
    }
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let has_unsafe = |line: &str| {
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "(unsafe_code,"]
            .iter()
            .any(|form| line.contains(form))
    };
    if name != UNSAFE_CRATE && code.into_iter().any(has_unsafe) {
        faults.push(format!("{shown} holds unsafe code: only {UNSAFE_CRATE} may"));
    }
    for word in ["whitelist", "blacklist", "#[ignore", "#[should_panic", "thread::sleep_ms"] {
        if text.contains(word) {
            faults.push(format!("{shown} holds {word:?}"));
        }
    }
    Ok(())
}

/// What `deny.toml` bans is not compiled, and the workspace has the lints that every crate inherits.
fn check_workspace(faults: &mut Vec<String>) -> Result<()> {
    let read = |file: &str| -> Result<toml::Value> {
        let text = std::fs::read_to_string(workspace().join(file))?;
        Ok(toml::Value::Table(text.parse().with_context(|| file.to_owned())?))
    };
    let (deny, manifest) = (read("deny.toml")?, read("Cargo.toml")?);
    let compiled = tree(&["--no-dedupe"])?;
    let banned = deny.get("bans").and_then(|bans| bans.get("deny")).and_then(toml::Value::as_array);
    for name in banned.into_iter().flatten().filter_map(|entry| entry.get("name")?.as_str()) {
        if compiled.contains(name) {
            faults.push(format!(
                "a dependency brings in {name}: see deny.toml, and cargo tree --invert {name}"
            ));
        }
    }
    let lint =
        |tool: &str, name: &str| manifest.get("workspace")?.get("lints")?.get(tool)?.get(name)?.as_str();
    for (tool, name) in DENIED_LINTS {
        if lint(tool, name) != Some("deny") {
            faults.push(format!("Cargo.toml does not deny the lint {tool}::{name}"));
        }
    }
    Ok(())
}

/// `--duplicates` lists what is compiled more than once: for two versions or two choices of features.
fn check_built_once(faults: &mut Vec<String>) -> Result<()> {
    let twice = tree(&["--duplicates", "--depth=0"])?;
    let named = BUILT_ONCE.iter().filter(|name| twice.contains(**name));
    faults.extend(named.map(|name| format!("{name} is built more than once: see cargo tree --duplicates")));
    Ok(())
}

/// The names of the packages that `cargo tree` lists for this platform.
fn tree(arguments: &[&str]) -> Result<BTreeSet<String>> {
    let mut tree = cargo();
    tree.current_dir(workspace()).args(["tree", "--workspace", "--locked", "--prefix=none"]).args(arguments);
    let lines = command::output(&mut tree)?;
    Ok(lines.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn check_migrations(faults: &mut Vec<String>) -> Result<()> {
    let listed: BTreeMap<_, _> = MIGRATIONS.iter().copied().collect();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(workspace().join("crates/store/migrations"))? {
        let entry = entry?;
        let (name, digest) = (
            entry.file_name().to_string_lossy().into_owned(),
            hex::encode(sha2::Sha256::digest(std::fs::read(entry.path())?)),
        );
        match listed.get(name.as_str()) {
            None => faults.push(format!("the migration {name} is not listed in xtask/src/tidy.rs: {digest}")),
            Some(listed) if *listed != digest => {
                faults.push(format!("the migration {name} was changed after it was merged: it is {digest}"));
            }
            Some(_) => {}
        }
        found.insert(name);
    }
    faults.extend(
        listed
            .keys()
            .filter(|name| !found.contains(**name))
            .map(|name| format!("the migration {name} is gone")),
    );
    Ok(())
}
