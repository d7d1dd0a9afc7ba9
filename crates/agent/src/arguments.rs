//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Connects this machine to its Cordon server.
///
/// The agent runs as an unprivileged user. It carries signed orders to the gate and the gate's signed answers back,
/// reads what the installed packages shipped, and reports what was refused. It cannot lift a restriction.
#[derive(Debug, Parser)]
#[command(name = "cordon-agent", version)]
pub struct Arguments {
    /// The settings; without it, /etc/cordon/agent.toml if there is one. The environment overrides each key, as in
    /// `CORDON_AGENT_NOTIFY=false`
    #[arg(long, env = "CORDON_AGENT_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enroll this machine with a server (as root, once)
    ///
    /// Makes the machine's key, has the server certify it, and tells the gate whose orders count. The key never leaves
    /// this machine. Enrolling again keeps the key, and so the machine's id.
    Enroll(Enroll),
    /// Run the agent
    Run,
    /// Show how this machine stands
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Check everything that the agent needs, and say what to do where something is wrong
    ///
    /// Exits with 1 when something is wrong.
    Doctor {
        /// How to print it
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Say whether a program may run while this machine is restricted, and why
    ///
    /// To be run as root or as the agent's user: the gate tells nobody else. Without them, only what the package
    /// database says is shown.
    Explain {
        /// The program
        path: PathBuf,
        /// How to print it
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Show what a restriction would refuse now, of all that runs
    ///
    /// To be run as root or as the agent's user. Asks the gate of this machine, and needs no network.
    Preview {
        /// A policy that this machine holds, by name or digest [default: the one in force, or else the one that came
        /// last]
        #[arg(long, value_name = "NAME|SHA256")]
        policy: Option<String>,
        /// How to print it
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Read now what the installed packages shipped, and give it to the gate
    ///
    /// The running agent does this by itself, at its start and when the packages change.
    Inventory {
        /// How to print what was found
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Show the settings in force, or what is wrong with them
    CheckConfig,
    /// Print a completion script for a shell
    Completion {
        /// The shell
        #[arg(value_parser = clap::builder::EnumValueParser::<Shell>::new())]
        shell: Shell,
    },
}

/// With which server to enroll, and as what.
#[derive(Debug, Args)]
pub struct Enroll {
    /// The server, as https://host:port
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// The enrollment token. Other users of this machine can see it in the list of processes: prefer --token-file
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file", required_unless_present = "token_file")]
    pub token: Option<String>,
    /// A file that holds the enrollment token; - for standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// SHA-256 of the server's certificate authority, 64 hexadecimal digits, as the server printed it
    #[arg(long, value_name = "SHA256")]
    pub ca_pin: String,
}

/// How to print something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}
