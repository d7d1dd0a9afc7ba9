//! The program `cordon-agent`: arguments in, exit code out.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use cordon_agent::arguments::Arguments;

fn main() -> ExitCode {
    match cordon_agent::execute(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to tell when standard error is gone.
            drop(writeln!(std::io::stderr(), "cordon-agent: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
