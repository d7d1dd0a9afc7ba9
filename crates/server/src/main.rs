//! `cordon-server`: arguments, the log and signals. Everything else is in the library.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use cordon_server::config::{Config, LogFormat};
use cordon_server::init::{ExistingApps, InitOptions, break_glass_code, init, rotate_keys};
use cordon_server::server::Server;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

/// Restricts execution on a fleet of machines, on one API call, and proves that it happened.
#[derive(Parser)]
#[command(name = "cordon-server", version)]
struct Arguments {
    #[arg(long, global = true, value_name = "FILE", help = help_config())]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the server until SIGTERM or SIGINT (the default).
    Run,
    /// Makes keys, database, the first administrator app and an enrollment token, and prints what is needed to go on.
    Init(Init),
    /// Checks the settings and prints those in force.
    CheckConfig,
    /// Shows the next break-glass code of a machine, once, as the API does. For when there is no API: stop the server first.
    BreakGlassCode {
        /// The machine's id or name.
        #[arg(value_name = "ID|NAME")]
        machine: String,
        /// The form of the output.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Replaces the keys that sign tokens: every token issued so far ends. A running server follows within a minute.
    RotateKeys,
    /// Prints the API document (OpenAPI 3.1), as it is for no tenant. A running server serves its own at /openapi.json.
    Openapi,
}

#[derive(Args)]
struct Init {
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The tenant's id, for clients that are to keep theirs; made when absent.
    #[arg(long, value_name = "UUID")]
    tenant: Option<Uuid>,
    /// Makes one more administrator app when there are apps already. Stop the server first.
    #[arg(long)]
    force_new_app: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Alternate form: the whole chain of causes in one line.
            drop(writeln!(std::io::stderr(), "cordon-server: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    let arguments = Arguments::parse();
    let config = Config::load(arguments.config.as_deref(), environment())?;
    // Whatever is made, the database included, is nobody else's to read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    match arguments.command.unwrap_or(Command::Run) {
        Command::Run => {
            start_log(&config)?;
            runtime()?.block_on(run(config))
        }
        Command::Init(options) => initialize(&config, &options),
        Command::CheckConfig => print(&toml::to_string(&config)?),
        Command::BreakGlassCode { machine, output } => {
            let shown = runtime()?.block_on(break_glass_code(&config, &machine))?;
            match output {
                Output::Text => print(&format!("{}\n", shown.code)),
                Output::Json => print(&format!("{}\n", serde_json::to_string(&shown)?)),
            }
        }
        Command::RotateKeys => Ok(rotate_keys(&config)?),
        Command::Openapi => print(cordon_server::openapi::committed()),
    }
}

/// The variables that can be settings: other ones need not be text.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn help_config() -> String {
    let path = cordon_server::config::CONFIG_PATH_DEFAULT;
    format!("The settings file [default: {path}]; CORDON_SERVER_<KEY> in the environment overrides a key")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")
}

fn start_log(config: &Config) -> Result<()> {
    let mut filter = EnvFilter::try_new(&config.log_level)?;
    // Below info, these libraries print what goes over the wire, and with it tokens.
    for library in ["h2=info", "hyper=info", "rustls=info", "tungstenite=info"] {
        filter = filter.add_directive(library.parse()?);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

async fn run(config: Config) -> Result<()> {
    raise_file_limit(&config);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut server = Server::start(config).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = server.failed() => {
            server.shutdown().await;
            anyhow::bail!("a part of the server failed: see the log");
        }
    }
    server.shutdown().await;
    Ok(())
}

/// Every connection is a file, and the usual soft limit of 1024 is for programs that use `select`.
fn raise_file_limit(config: &Config) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = ?limit.current, "the limit of open files stays");
    }
    let wanted = u64::from(config.connections_max) + u64::from(config.agent_connections_max);
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        tracing::warn!(limit = ?limit.maximum, wanted, "fewer files can be open than connections are allowed");
    }
}

fn initialize(config: &Config, options: &Init) -> Result<()> {
    let apps = if options.force_new_app { ExistingApps::AddAdministrator } else { ExistingApps::Refuse };
    let made = runtime()?.block_on(init(config, InitOptions { tenant: options.tenant, apps }))?;
    match options.output {
        Output::Text => print(&made.to_string()),
        Output::Json => print(&format!("{}\n", serde_json::to_string(&made)?)),
    }
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the output")
}
