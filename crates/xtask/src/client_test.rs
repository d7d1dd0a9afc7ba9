//! An ordinary client of the vendor's API (`examples/defender_client.py`) against a real server, gate and agent: it
//! must work by its two URLs alone.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::command::line;
use crate::lab::{Lab, Show, VerdictCache};
use crate::programs::{Programs, workspace};

const MACHINE: &str = "client-machine";

/// Runs the client with a token of either version; an error says how it ended.
pub(crate) fn run(programs: &Programs) -> Result<()> {
    let lab = Lab::start(programs, "", Show::Nothing)?;
    let mut machine = lab.machine(MACHINE, VerdictCache::On)?;
    machine.wait_for_baseline()?;
    let result = ["oauth2/token", "oauth2/v2.0/token"].into_iter().try_for_each(|path| client(&lab, path));
    if result.is_err() {
        lab.print_logs();
    }
    result
}

fn client(lab: &Lab, token_path: &str) -> Result<()> {
    let mut command = Command::new("python3");
    command
        .arg(workspace().join("examples/defender_client.py"))
        .arg(MACHINE)
        .env("CORDON_URL", &lab.url)
        .env("CORDON_TOKEN_URL", format!("{}/{}/{token_path}", lab.url, lab.tenant))
        .env("CORDON_CLIENT_ID", &lab.client_id)
        .env("CORDON_CLIENT_SECRET", &lab.client_secret)
        .env("CORDON_CA_FILE", &lab.ca_file);
    let output = command.output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    ensure!(
        output.status.success(),
        "{} ended with {}: {}",
        line(&command),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
