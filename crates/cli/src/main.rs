//! The program `cordon`: the operator's command line. An ordinary client of the HTTP API, with no door of its own.
//!
//! Owns the arguments, and how a command's end becomes an exit code and a line on standard error.
#![forbid(unsafe_code)]

mod client;
mod commands;
mod confirm;
mod connection;
mod difference;
mod document;
mod duration;
mod error;
mod http;
mod moment;
mod oauth;
mod outcome;
mod output;
mod policy_file;
mod profile;
mod progress;
mod rank;
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
use crate::commands::apply::{ApplyArguments, DiffArguments};
use crate::commands::audit::AuditCommand;
use crate::commands::enrollment_token::EnrollmentTokenCommand;
use crate::commands::event::EventCommand;
use crate::commands::login::LoginArguments;
use crate::commands::machine::MachineCommand;
use crate::commands::machine_group::MachineGroupCommand;
use crate::commands::manifest::ManifestCommand;
use crate::commands::policy::PolicyCommand;
use crate::commands::role::RoleCommand;
use crate::commands::settings::SettingsCommand;
use crate::commands::user::UserCommand;
use crate::commands::{
    action, app, apply, audit, enrollment_token, event, login, machine, machine_group, manifest, policy,
    role, settings, user,
};
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
    /// Sign in to a server as a person or an app, and keep that as a profile
    #[command(after_help = login::HELP)]
    Login(LoginArguments),
    /// Forget a profile
    Logout,
    /// Show who one is to the server, and what the token allows
    Whoami,
    #[command(subcommand)]
    Machine(MachineCommand),
    #[command(subcommand)]
    Action(ActionCommand),
    #[command(subcommand)]
    Policy(PolicyCommand),
    #[command(subcommand)]
    Manifest(ManifestCommand),
    #[command(subcommand)]
    MachineGroup(MachineGroupCommand),
    #[command(subcommand)]
    EnrollmentToken(EnrollmentTokenCommand),
    #[command(subcommand)]
    App(AppCommand),
    #[command(subcommand)]
    User(UserCommand),
    #[command(subcommand)]
    Role(RoleCommand),
    #[command(subcommand)]
    Settings(SettingsCommand),
    /// Make policies, machine groups, roles and settings as files say
    #[command(after_help = document::HELP)]
    Apply(ApplyArguments),
    /// Tell what the server has otherwise than files say
    #[command(after_help = document::HELP)]
    Diff(DiffArguments),
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
        Command::Login(arguments) => login::login(connection, arguments, Rc::clone(progress)).await,
        Command::Logout => login::logout(connection, progress),
        Command::Whoami => login::whoami(&session()?).await,
        Command::Machine(command) => machine::run(command, &session()?).await,
        Command::Action(command) => action::run(command, &session()?).await,
        Command::Policy(command) => policy::run(command, &session()?).await,
        Command::Manifest(command) => manifest::run(command, arguments.output),
        Command::MachineGroup(command) => machine_group::run(command, &session()?).await,
        Command::User(command) => user::run(command, &session()?).await,
        Command::Role(command) => role::run(command, &session()?).await,
        Command::Settings(command) => settings::run(command, &session()?).await,
        Command::Apply(arguments) => apply::apply(arguments, &session()?).await,
        Command::Diff(arguments) => apply::diff(arguments, &session()?).await,
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
