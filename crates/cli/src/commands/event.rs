//! `cordon event`: executions that machines refused.

use std::time::Duration;

use anyhow::Result;
use api_types::date_time::DateTimeUtc;
use api_types::execution_event::ExecutionEvent;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use domain::digest::Sha256Digest;

use crate::client::Listing;
use crate::commands::{HistoryArguments, options};
use crate::error::ClientError;
use crate::moment;
use crate::outcome::Outcome;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::{printable, seconds};

const EVENTS: [&str; 4] = ["api", "cordon", "v1", "executionEvents"];
/// Keeps within 1,500 calls an hour.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(2500);
/// The most that is caught up on between two looks.
const FOLLOW_TOP: u32 = 10_000;

/// See executions that machines refused
#[derive(Debug, Subcommand)]
pub(crate) enum EventCommand {
    /// List refused executions, the newest first
    List(EventArguments),
}

#[derive(Debug, Args)]
pub(crate) struct EventArguments {
    /// Only of this machine (id or name)
    #[arg(long, value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
    machine: Option<String>,
    /// Only of the file with this SHA-256
    #[arg(long, value_name = "SHA256")]
    sha256: Option<Sha256Digest>,
    /// Only what happened since then: a time such as 2026-03-02T08:00:00Z, or a duration ago such as 24h
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    since: Option<DateTimeUtc>,
    /// Only what happened before then
    #[arg(long, value_name = "TIME", value_parser = moment::parse, conflicts_with = "follow")]
    until: Option<DateTimeUtc>,
    #[command(flatten)]
    history: HistoryArguments,
    /// Go on with what comes, until Ctrl-C; the newest last, with -o json one a line
    #[arg(long)]
    follow: bool,
}

/// Runs the command.
pub(crate) async fn run(command: &EventCommand, session: &Session) -> Result<Outcome> {
    let EventCommand::List(arguments) = command;
    let query = options([
        ("machineId", arguments.machine.clone()),
        ("sha256", arguments.sha256.map(|digest| digest.to_string())),
        ("since", arguments.since.map(|time| time.to_string())),
        ("until", arguments.until.map(|time| time.to_string())),
    ]);
    let events = session.client.newest(&EVENTS, &query, arguments.history.top, 0).await?;
    if arguments.follow {
        follow(session, &query, events).await
    } else {
        session.output.list(&events, table)?;
        Ok(Outcome::Done)
    }
}

/// Never ends by itself.
async fn follow(session: &Session, query: &[(&str, String)], mut fresh: Listing) -> Result<Outcome> {
    let mut last = 0;
    let mut unreachable = false;
    loop {
        for row in fresh.value.iter().rev() {
            let event: ExecutionEvent = session.output.row(row, line)?;
            last = event.id;
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        fresh = match session.client.newest(&EVENTS, query, FOLLOW_TOP, last).await {
            Ok(fresh) => {
                unreachable = false;
                fresh
            }
            Err(error) if error.downcast_ref().is_some_and(ClientError::is_transient) => {
                if !unreachable {
                    session.progress.note(&format!("{error}; trying again"));
                }
                unreachable = true;
                fresh.value.clear();
                fresh
            }
            Err(error) => return Err(error),
        };
    }
}

fn table(events: &[ExecutionEvent]) -> Table {
    let columns = [
        ("TIME (UTC)", Fit::Whole),
        ("MACHINE", Fit::Whole),
        ("PATH", Fit::Whole),
        ("COUNT", Fit::Optional),
        ("CAUSE", Fit::Optional),
        ("BY", Fit::Cut),
        ("SHA256", Fit::Optional),
    ];
    Table::new(&columns, events, |event| {
        vec![
            seconds(event.event_date_time_utc),
            event.computer_dns_name.clone(),
            event.path.clone(),
            event.count.to_string(),
            cause(event),
            parent(event),
            event.sha256.clone().unwrap_or_default(),
        ]
    })
}

fn line(event: &ExecutionEvent) -> String {
    let (time, machine) = (seconds(event.event_date_time_utc), &event.computer_dns_name);
    printable(&format!(
        "{time}Z  {machine}  {}  {}x  {}  {}",
        event.path,
        event.count,
        cause(event),
        parent(event)
    ))
}

fn cause(event: &ExecutionEvent) -> String {
    let rule = event.rule.as_ref().map(|rule| format!(" {rule}")).unwrap_or_default();
    let audited = if event.audited { " (audited: it ran)" } else { "" };
    format!("{}{rule}{audited}", event.cause)
}

fn parent(event: &ExecutionEvent) -> String {
    let user = event.user_id.map(|user| format!(", user {user}")).unwrap_or_default();
    let container = event.container_id.as_ref().map(|id| format!(", container {id}")).unwrap_or_default();
    format!("{}, process {}{user}{container}", event.parent_program, event.process_id)
}
