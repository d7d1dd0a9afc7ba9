//! The program `cordon-matrix`: runs the bypass matrix inside of a throw-away guest. Arguments, and nothing else.
//!
//! `cargo xtask vm` boots the guest and reads the results; README.md of this crate says how a row is added.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use cordon_matrix::{guest, rows, run};

/// Tries the ways around an execution restriction, inside of a guest that is thrown away after.
#[derive(Parser)]
#[command(name = "cordon-matrix", version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the rows as JSON, one a line
    List,
    /// Be the first process of a guest: set it up, run the rows, switch it off
    Init,
    /// Run the rows in a guest that systemd set up
    Run,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Action::List => list(),
        Action::Init => guest::require().and_then(|()| guest::init(run::run)),
        Action::Run => guest::require().and_then(|()| run::run()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell when standard error is gone.
            drop(writeln!(std::io::stderr(), "cordon-matrix: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<()> {
    let mut out = std::io::stdout().lock();
    for row in rows::all() {
        writeln!(out, "{}", serde_json::to_string(&row.listed())?)?;
    }
    Ok(())
}
