//! The program `cordon`: the operator's command line. An ordinary client of the HTTP API, with no door of its own.
//!
//! Owns the arguments, and how a command's end becomes an exit code and a line on standard error.
#![forbid(unsafe_code)]

mod client;
mod commands;
mod connection;
mod duration;
mod error;
mod outcome;
mod output;
mod policy_file;
mod profile;
mod progress;
mod session;
mod table;
mod text;
mod tls;
mod wait;

use std::io;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::client::Client;
use crate::commands::action::ActionCommand;
use crate::commands::app::AppCommand;
use crate::commands::audit::AuditCommand;
use crate::commands::enrollment_token::EnrollmentTokenCommand;
use crate::commands::event::EventCommand;
use crate::commands::machine::MachineCommand;
use crate::commands::policy::PolicyCommand;
use crate::commands::{action, app, audit, enrollment_token, event, login, machine, policy};
use crate::connection::ConnectionArguments;
use crate::outcome::Outcome;
use crate::output::{Format, Output};
use crate::progress::Progress;
use crate::session::Session;

/// Restrict execution on machines to a predefined set of programs, with proof
#[derive(Debug, Parser)]
#[command(name = "cordon", version, after_help = outcome::HELP, max_term_width = 110)]
struct Arguments {
    /// How to print results: for people, or the API's own JSON, which is stable
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORMAT",
        display_order = 900
    )]
    output: Format,
    #[command(flatten)]
    connection: ConnectionArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify a server and an app's credentials, and keep them as a profile
    Login,
    /// Forget a profile
    Logout,
    #[command(subcommand)]
    Machine(MachineCommand),
    #[command(subcommand)]
    Action(ActionCommand),
    #[command(subcommand)]
    Policy(PolicyCommand),
    #[command(subcommand)]
    EnrollmentToken(EnrollmentTokenCommand),
    #[command(subcommand)]
    App(AppCommand),
    #[command(subcommand)]
    Event(EventCommand),
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print what makes a shell complete this program's arguments
    Completion {
        /// The shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let progress = Rc::new(Progress::default());
    match run(&progress) {
        Ok(outcome) => outcome.into(),
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            progress.note(&format!("cordon: {error:#}"));
            outcome::code_of(&error)
        }
    }
}

fn run(progress: &Rc<Progress>) -> Result<Outcome> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dispatch(&arguments, progress))
}

async fn dispatch(arguments: &Arguments, progress: &Rc<Progress>) -> Result<Outcome> {
    let connection = &arguments.connection;
    let session = || -> Result<Session> {
        Ok(Session {
            client: Client::new(connection.resolve()?, Rc::clone(progress))?,
            output: Output::new(arguments.output, Rc::clone(progress)),
            progress: Rc::clone(progress),
        })
    };
    match &arguments.command {
        Command::Login => login::login(connection, Rc::clone(progress)).await,
        Command::Logout => login::logout(connection, progress),
        Command::Machine(command) => machine::run(command, &session()?).await,
        Command::Action(command) => action::run(command, &session()?).await,
        Command::Policy(command) => policy::run(command, &session()?).await,
        Command::EnrollmentToken(command) => enrollment_token::run(command, &session()?).await,
        Command::App(command) => app::run(command, &session()?).await,
        Command::Event(command) => event::run(command, &session()?).await,
        Command::Audit(command) => audit::run(command, &session()?).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "cordon", &mut script);
            output::write(&String::from_utf8(script)?, "")?;
            Ok(Outcome::Done)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
