//! The commands: one file each.

mod doctor;
mod enroll;
mod explain;
mod inventory;
mod preview;
mod status;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory as _;
use serde::Serialize;

use crate::arguments::{Arguments, Command};
use crate::config::Config;
use crate::run;

/// Carries out a command line.
///
/// # Errors
/// What went wrong, and what to do about it.
pub fn execute(arguments: Arguments) -> Result<ExitCode> {
    // Needs no settings, nor an agent.
    if let Command::Completion { shell } = arguments.command {
        clap_complete::generate(shell, &mut Arguments::command(), "cordon-agent", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::read(arguments.config.as_deref())?;
    match arguments.command {
        Command::Enroll(with) => enroll::enroll(&config, &with)?,
        Command::Run => run::run(config)?,
        Command::Status { output } => status::status(&config, output)?,
        Command::Doctor { output } => return doctor::doctor(&config, output),
        Command::Explain { path, output } => return explain::explain(&config, &path, output),
        Command::Preview { policy, output } => preview::preview(&config, policy, output)?,
        Command::Inventory { output } => inventory::inventory(&config, output)?,
        Command::CheckConfig => print(&toml::to_string(&config)?)?,
        Command::Completion { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output. That a reader closes it early, as `head` does, is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// A time span in the two units that matter.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
