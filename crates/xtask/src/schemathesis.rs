//! Schemathesis against a live server: what the API document says, and what is near it and wrong, for every operation.
//!
//! It is a Python program: its exact packages are pinned in `schemathesis/requirements.txt`, and installed into the
//! target folder once. How it runs stands in `schemathesis/schemathesis.toml`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command;
use crate::lab::{Lab, Show, VerdictCache, text};
use crate::programs::{Programs, target_folder, workspace};

/// Far more than the run can use up.
const SETTINGS: &str = "rate_limit_per_minute = 10000000\nrate_limit_per_hour = 10000000\n";
const MACHINE: &str = "api-machine";
/// What revokes the run's own application, or lets it call less often.
const LAST: [&str; 3] = ["app_update", "app_revoke", "settings_update"];

/// Runs it; an error when it finds anything.
pub(crate) fn run(programs: &Programs) -> Result<()> {
    let schemathesis = install()?;
    let lab = Lab::start(programs, SETTINGS, Show::Nothing)?;
    let machine = lab.machine(MACHINE, VerdictCache::On)?;
    let result = check(&lab, &schemathesis);
    drop(machine);
    if result.is_err() {
        lab.print_logs();
    }
    result
}

fn check(lab: &Lab, schemathesis: &Path) -> Result<()> {
    let shown = command::output(lab.cordon().args(["machine", "show", MACHINE, "-o", "json"]))?;
    let machine: Value = serde_json::from_str(&shown).context("output of cordon machine show")?;
    let (machine, token) = (text(&machine, "id")?, token(lab)?);
    let run = |operations: &[&str]| {
        let mut run = Command::new(schemathesis);
        run.current_dir(&lab.folder)
            .env("CORDON_CA_FILE", &lab.ca_file)
            .env("CORDON_TOKEN", &token)
            .env("CORDON_MACHINE", &machine)
            .env("CORDON_TENANT", &lab.tenant)
            .env("CORDON_CLIENT_ID", &lab.client_id)
            .env("CORDON_CLIENT_SECRET", &lab.client_secret)
            .arg("--config-file")
            .arg(workspace().join("crates/xtask/schemathesis/schemathesis.toml"))
            .args(["run", "--checks", "all", "--no-color"])
            .args(operations)
            .arg(format!("{}/openapi.json", lab.url));
        command::run(&mut run)
    };
    run(&both("--exclude-operation-id"))?;
    // Whoever is locked out finds no more: refusals are always right.
    ensure!(still_administers(lab, &token)?, "the run took its own permissions away: set it apart, too");
    run(&both("--include-operation-id"))
}

/// The operations that come last, because they can take from the run itself what the others need.
fn both(option: &'static str) -> Vec<&'static str> {
    LAST.iter().flat_map(|operation| [option, operation]).collect()
}

fn still_administers(lab: &Lab, token: &str) -> Result<bool> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert"])
        .arg(&lab.ca_file);
    curl.args(["--header", &format!("Authorization: Bearer {token}")]);
    curl.arg(format!("{}/api/cordon/v1/apps", lab.url));
    Ok(command::output(&mut curl)?.trim() == "200")
}

/// A token of the administrator.
fn token(lab: &Lab) -> Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail-with-body", "--cacert"]).arg(&lab.ca_file);
    for field in [
        "grant_type=client_credentials".to_owned(),
        format!("client_id={}", lab.client_id),
        format!("client_secret={}", lab.client_secret),
        format!("scope={}/.default", lab.url),
    ] {
        curl.args(["--data-urlencode", &field]);
    }
    curl.arg(format!("{}/{}/oauth2/v2.0/token", lab.url, lab.tenant));
    let reply: Value = serde_json::from_str(&command::output(&mut curl)?).context("reply with a token")?;
    text(&reply, "access_token")
}

/// The program, installed anew when other packages are pinned than at the last time.
fn install() -> Result<PathBuf> {
    let pinned = workspace().join("crates/xtask/schemathesis/requirements.txt");
    let requirements = fs::read_to_string(&pinned).with_context(|| pinned.display().to_string())?;
    let folder = target_folder()?.join("schemathesis");
    let installed = folder.join("installed.txt");
    let program = folder.join("bin/schemathesis");
    if fs::read_to_string(&installed).is_ok_and(|installed| installed == requirements) {
        return Ok(program);
    }
    println!("Installing schemathesis into {}", folder.display());
    command::run(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement"]);
    command::run(pip.arg(&pinned))?;
    fs::write(&installed, requirements)?;
    Ok(program)
}
