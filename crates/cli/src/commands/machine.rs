//! `cordon machine`: see machines, restrict them and lift the restriction.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use api_types::break_glass::BreakGlassCode;
use api_types::date_time::DateTimeUtc;
use api_types::machine::{AvailableAction, ExecutionRestriction, Machine, TagRequest};
use api_types::machine_action::ActionRequest;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use crate::commands::preview::{self, PreviewArguments};
use crate::commands::{ListArguments, bulk};
use crate::error::UsageError;
use crate::outcome::{self, Outcome};
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;
use crate::{confirm, duration, moment, wait};

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
    /// Find the machines that had an address about a time
    Find {
        /// The address
        #[arg(long, value_name = "ADDRESS")]
        ip: IpAddr,
        /// When: a time such as 2026-03-02T08:00:00Z, or a duration ago such as 90m [default: now]
        #[arg(long, value_name = "TIME", value_parser = moment::parse)]
        at: Option<DateTimeUtc>,
    },
    /// List which actions can be started on a machine
    Actions {
        /// Its id or name
        #[arg(value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
        machine: String,
    },
    /// Show what a restriction of a machine would refuse now
    #[command(after_help = preview::HELP)]
    Preview(PreviewArguments),
    /// Restrict machines to the predefined set of programs
    #[command(after_help = outcome::BULK_HELP)]
    Restrict {
        #[command(flatten)]
        change: ChangeArguments,
        /// End the restriction by itself after this time, such as 4h, 90m or P1DT12H
        #[arg(long, value_name = "DURATION", value_parser = duration::parse_iso)]
        expires_in: Option<String>,
        /// The allow policy to apply [default: that of the machine's group]
        #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        policy: Option<String>,
    },
    /// Lift the restriction of machines
    #[command(after_help = outcome::BULK_HELP)]
    Unrestrict(ChangeArguments),
    #[command(subcommand)]
    Tag(TagCommand),
    /// Show the next break-glass code of a machine, once
    ///
    /// Whoever is root on the machine types it at `cordon-gate break-glass`. It lifts the restriction there, without a
    /// network, and works once. That it was shown is recorded, and that it was used, when the machine is connected again.
    BreakGlassCode {
        /// The machine's id or name
        #[arg(value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
        machine: String,
        /// Do not ask before it is shown
        #[arg(short, long)]
        yes: bool,
    },
}

/// Give machines tags, or take them
#[derive(Debug, Subcommand)]
pub(crate) enum TagCommand {
    /// Give a machine a tag
    Add(TagArguments),
    /// Take a tag from a machine
    Remove(TagArguments),
}

#[derive(Debug, Args)]
pub(crate) struct TagArguments {
    /// The machine's id or name
    #[arg(value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
    machine: String,
    /// The tag
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    tag: String,
}

/// Options of restricting and of lifting it.
#[derive(Debug, Args)]
pub(crate) struct ChangeArguments {
    #[command(flatten)]
    pub(crate) targets: bulk::Targets,
    /// Why; it is recorded
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) comment: String,
    /// Your own reference, such as a ticket; it is recorded
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) external_id: Option<String>,
    /// With the same key, a call that was made already is not made again
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) idempotency_key: Option<String>,
    /// Only count the machines that it would be about
    #[arg(long, conflicts_with_all = ["wait", "yes"])]
    pub(crate) dry_run: bool,
    /// Do not ask before many machines are changed
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Wait until the machines have proved it
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait at most this long, such as 90s, 10m or 24h; the actions go on
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "wait",
          default_value = wait::TIMEOUT_DEFAULT)]
    pub(crate) timeout: Duration,
}

/// What is to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Restrict.
    Restrict,
    /// Lift the restriction.
    Unrestrict,
}

impl Change {
    /// The last segment of the routes.
    pub(crate) fn route(self) -> &'static str {
        match self {
            Self::Restrict => "restrictCodeExecution",
            Self::Unrestrict => "unrestrictCodeExecution",
        }
    }
}

/// Runs the command.
pub(crate) async fn run(command: &MachineCommand, session: &Session) -> Result<Outcome> {
    let (client, output) = (&session.client, &session.output);
    match command {
        MachineCommand::List(arguments) => {
            output.list(&client.list(&["api", "machines"], &arguments.query()).await?, table)?;
        }
        MachineCommand::Show { machine } => {
            output.entity(&client.get(&["api", "machines", machine]).await?, shown)?;
        }
        MachineCommand::Find { ip, at } => {
            let at = at.unwrap_or_else(moment::now);
            let find = format!("findbyip(ip='{ip}',timestamp={at})");
            output.list(&client.list(&["api", "machines", &find], &[]).await?, table)?;
        }
        MachineCommand::Actions { machine } => {
            let path = ["api", "machines", machine, "availableMachineActions"];
            output.list(&client.list(&path, &[]).await?, table_of_available)?;
        }
        MachineCommand::Preview(arguments) => return preview::run(session, arguments).await,
        MachineCommand::Restrict { change: arguments, expires_in, policy } => {
            return change(session, arguments, Change::Restrict, expires_in.clone(), policy.clone()).await;
        }
        MachineCommand::Unrestrict(arguments) => {
            return change(session, arguments, Change::Unrestrict, None, None).await;
        }
        MachineCommand::BreakGlassCode { machine, yes } => {
            confirm::require_answerable(*yes, "to show a break-glass code")?;
            if !yes {
                let question = format!(
                    "show a code that lifts the restriction of {machine} on the machine itself? It is recorded that you saw it"
                );
                confirm::ask(&question)?;
            }
            let reply = client.post_nothing(&["api", "machines", machine, "breakGlassCode"]).await?;
            output.entity(&reply, code)?;
            session.progress.note("The code is shown this once, and works once: cordon-gate break-glass, as root on the machine.");
        }
        MachineCommand::Tag(TagCommand::Add(arguments)) => tag(session, arguments, "Add").await?,
        MachineCommand::Tag(TagCommand::Remove(arguments)) => tag(session, arguments, "Remove").await?,
    }
    Ok(Outcome::Done)
}

async fn tag(session: &Session, arguments: &TagArguments, action: &str) -> Result<()> {
    let request = TagRequest { value: arguments.tag.clone(), action: action.to_owned() };
    let path = ["api", "machines", &arguments.machine, "tags"];
    session.output.entity(&session.client.post(&path, &request).await?, shown)
}

async fn change(
    session: &Session,
    arguments: &ChangeArguments,
    change: Change,
    expires_in: Option<String>,
    policy: Option<String>,
) -> Result<Outcome> {
    let request = ActionRequest {
        comment: Some(arguments.comment.clone()),
        external_id: arguments.external_id.clone(),
        expires_in,
        policy,
    };
    match arguments.targets.single() {
        Some(machine) if !arguments.dry_run => one(session, arguments, change, machine, &request).await,
        _ if arguments.targets.is_empty() => {
            let message = "which machines? Name them, or give --filter, --tag or --group";
            Err(UsageError(message.to_owned()).into())
        }
        _ => bulk::run(session, arguments, change, request).await,
    }
}

/// One call: the server finds the machine by id or name, so that an app need not be allowed to read machines.
async fn one(
    session: &Session,
    arguments: &ChangeArguments,
    change: Change,
    machine: &str,
    request: &ActionRequest,
) -> Result<Outcome> {
    let path = ["api", "machines", machine, change.route()];
    let reply = session.client.post_once(&path, request, arguments.idempotency_key.as_deref()).await?;
    if arguments.wait {
        wait::until_final(session, reply, arguments.timeout).await
    } else {
        wait::not_at_all(session, &reply)
    }
}

fn code(shown: &BreakGlassCode) -> String {
    record([
        ("name", Some(shown.computer_dns_name.clone())),
        ("id", Some(shown.machine_id.clone())),
        ("number", Some(shown.number.to_string())),
        ("code", Some(shown.code.clone())),
    ])
}

fn table_of_available(actions: &[AvailableAction]) -> Table {
    let columns = [("ACTION", Fit::Whole), ("AVAILABLE", Fit::Whole), ("WHY NOT", Fit::Cut)];
    Table::new(&columns, actions, |action| {
        vec![
            action.action.clone(),
            if action.is_available { "yes" } else { "no" }.to_owned(),
            action.not_supported_reason.clone().unwrap_or_default(),
        ]
    })
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
        ("ends", restriction.ends_at.map(|ends| ends.to_string())),
        ("lifted", restriction.broken_glass_at.map(|at| format!("by a break-glass code at {at}"))),
        ("enforced by", restriction.backend.clone()),
        ("events lost", (restriction.events_dropped > 0).then(|| restriction.events_dropped.to_string())),
        ("machine group", machine.rbac_group_name.clone()),
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
