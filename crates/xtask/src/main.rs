//! `cargo xtask`: everything that is done with this repository, each in one command.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]

mod bench;
mod cli_test;
mod client_test;
mod command;
mod demo;
mod lab;
mod openapi;
mod programs;
mod schemathesis;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Shows, checks and measures Cordon on this machine.
///
/// Everything runs on the loopback network and in temporary folders. What is restricted is never this machine, only
/// the private namespaces that a command makes for it. What is missing is installed with apt-get, and named before.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Restrict a real machine by one API call, see it proved, and release it again
    ///
    /// Builds the programs, starts a server, enrolls a machine of its own namespaces and walks through the main job.
    /// Prints each command so that you can repeat it. Succeeds only if every step really held.
    Demo {
        /// Leave everything running at the end, until Ctrl-C, and print what to try next
        #[arg(long)]
        keep: bool,
    },
    /// Run every check: format, rules, all tests, the command line, the demo, lints
    ///
    /// Nothing is skipped: a test that cannot run here fails. Needs root, for namespaces and permission events.
    Test,
    /// Let Schemathesis loose on a live server: one step of `test`, alone
    Schemathesis,
    /// Write docs/openapi.json, the API document, as the code says it
    Openapi,
    /// Check the rules that the compiler does not: who uses whom, how files begin, what must not change
    Tidy,
    /// Run the bypass matrix in guests with a real kernel: every row on each tier, as a user and as root
    ///
    /// The guests are made of Debian's packages and emulated by QEMU; nothing is restricted outside of them. Fails when
    /// a result is not as expected, when a row did not run, and when one is not written yet.
    Vm(vm::Options),
    /// Measure, with release builds, on this machine
    Bench {
        /// What to measure
        #[command(subcommand)]
        what: bench::What,
    },
    /// The loop of `bench exec`, inside a namespace
    #[command(hide = true)]
    ExecLoop {
        /// What is measured is there
        folder: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    if let Task::ExecLoop { folder } = task {
        return bench::exec_loop(&folder);
    }
    let _clean_up = lab::CleanUp::on_every_end()?;
    match task {
        Task::Demo { keep } => demo::run(if keep { demo::Keep::Yes } else { demo::Keep::No }),
        Task::Test => test::run(),
        Task::Schemathesis => schemathesis::run(&programs::build(programs::Profile::Dev)?),
        Task::Openapi => openapi::run(),
        Task::Tidy => tidy::run(),
        Task::Vm(options) => vm::run(&options),
        Task::Bench { what } => bench::run(what),
        Task::ExecLoop { folder } => bench::exec_loop(&folder),
    }
}
