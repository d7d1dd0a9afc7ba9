//! `cordon machine`: see machines, restrict them and lift the restriction.

use std::time::Duration;

use anyhow::Result;
use api_types::machine::{ExecutionRestriction, Machine};
use api_types::machine_action::ActionRequest;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use crate::commands::ListArguments;
use crate::outcome::{self, Outcome};
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;
use crate::{duration, wait};

/// See machines, restrict them and lift the restriction
#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    /// List machines
    List(ListArguments),
    /// Show a machine
    Show {
        /// Its id or name
        #[arg(value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
        machine: String,
    },
    /// Restrict a machine to the predefined set of programs
    #[command(after_help = outcome::HELP)]
    Restrict(ChangeArguments),
    /// Lift the restriction of a machine
    #[command(after_help = outcome::HELP)]
    Unrestrict(ChangeArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ChangeArguments {
    /// The machine's id or name
    #[arg(value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
    machine: String,
    /// Why; it is recorded
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    comment: String,
    /// Wait until the machine has proved it
    #[arg(long)]
    wait: bool,
    /// Wait at most this long, such as 90s, 10m or 24h; the action goes on
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "wait",
          default_value = wait::TIMEOUT_DEFAULT)]
    timeout: Duration,
}

/// Runs the command.
pub(crate) async fn run(command: &MachineCommand, session: &Session) -> Result<Outcome> {
    match command {
        MachineCommand::List(arguments) => {
            let machines = session.client.list(&["api", "machines"], &arguments.query()).await?;
            session.output.list(&machines, table)?;
            Ok(Outcome::Done)
        }
        MachineCommand::Show { machine } => {
            let reply = session.client.get(&["api", "machines", machine]).await?;
            session.output.entity(&reply, shown)?;
            Ok(Outcome::Done)
        }
        MachineCommand::Restrict(arguments) => change(session, arguments, "restrictCodeExecution").await,
        MachineCommand::Unrestrict(arguments) => change(session, arguments, "unrestrictCodeExecution").await,
    }
}

/// One call: the server finds the machine by id or name, so that an app need not be allowed to read machines.
async fn change(session: &Session, arguments: &ChangeArguments, route: &str) -> Result<Outcome> {
    let request = ActionRequest { comment: Some(arguments.comment.clone()) };
    let reply = session.client.post(&["api", "machines", &arguments.machine, route], &request).await?;
    if arguments.wait {
        wait::until_final(session, reply, arguments.timeout).await
    } else {
        wait::not_at_all(session, &reply)
    }
}

fn table(machines: &[Machine]) -> Table {
    let columns = [
        ("NAME", Fit::Whole),
        ("RESTRICTION", Fit::Whole),
        ("HEALTH", Fit::Optional),
        ("LAST SEEN (UTC)", Fit::Optional),
        ("OS", Fit::Cut),
        ("ID", Fit::Optional),
    ];
    Table::new(&columns, machines, |machine| {
        vec![
            machine.computer_dns_name.clone(),
            restriction(&machine.execution_restriction),
            machine.health_status.clone(),
            seconds(machine.last_seen),
            machine.version.clone(),
            machine.id.clone(),
        ]
    })
}

fn shown(machine: &Machine) -> String {
    let restriction = &machine.execution_restriction;
    let addresses: Vec<_> = machine.ip_addresses.iter().map(|ip| ip.ip_address.to_string()).collect();
    record([
        ("name", Some(machine.computer_dns_name.clone())),
        ("id", Some(machine.id.clone())),
        ("restriction", Some(self::restriction(restriction))),
        ("generation", Some(restriction.generation.to_string())),
        ("since", restriction.since.map(|since| since.to_string())),
        ("policy", restriction.policy.clone()),
        ("enforced by", restriction.backend.clone()),
        ("health", Some(machine.health_status.clone())),
        ("first seen", Some(machine.first_seen.to_string())),
        ("last seen", Some(machine.last_seen.to_string())),
        ("system", Some(format!("{}, {}", machine.os_platform, machine.version))),
        ("kernel", Some(format!("{} {}", machine.os_build, machine.os_architecture))),
        ("agent", Some(machine.agent_version.clone())),
        ("addresses", (!addresses.is_empty()).then(|| addresses.join(", "))),
        ("seen from", machine.last_external_ip_address.map(|address| address.to_string())),
        ("tags", (!machine.machine_tags.is_empty()).then(|| machine.machine_tags.join(", "))),
    ])
}

/// What is wanted, and what the machine reports when that is something else.
fn restriction(restriction: &ExecutionRestriction) -> String {
    let desired = restriction.desired.to_lowercase();
    if restriction.drift {
        format!("{desired} (reports {})", restriction.reported.to_lowercase())
    } else {
        desired
    }
}
