//! `cordon audit`: who did what.

use anyhow::Result;
use api_types::audit_entry::AuditEntry;
use api_types::date_time::DateTimeUtc;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use crate::commands::{HistoryArguments, options};
use crate::moment;
use crate::outcome::Outcome;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;

const ENTRIES: [&str; 4] = ["api", "cordon", "v1", "auditEntries"];

/// See who did what
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// List audit entries, the newest first
    List {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        history: HistoryArguments,
    },
    /// Print all audit entries that match, however many there are, the newest first
    Export {
        #[command(flatten)]
        filter: Filter,
        /// In which form: JSON lines, or comma-separated values with a line of headings
        #[arg(long, value_name = "FORMAT", default_value = "jsonl", value_parser = ["jsonl", "csv"])]
        format: String,
    },
}

/// Which entries.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Only what this app (id), person, `system` or `operator` did
    #[arg(long, value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
    actor: Option<String>,
    /// Only this operation, such as `machine_restrict`
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    operation: Option<String>,
    /// Only what was done to this, such as a machine id
    #[arg(long, value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
    subject: Option<String>,
    /// Only what was done since then: a time such as 2026-03-02T08:00:00Z, or a duration ago such as 24h
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    since: Option<DateTimeUtc>,
    /// Only what was done before then
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    until: Option<DateTimeUtc>,
}

impl Filter {
    fn query(&self) -> Vec<(&'static str, String)> {
        options([
            ("actor", self.actor.clone()),
            ("operation", self.operation.clone()),
            ("subject", self.subject.clone()),
            ("since", self.since.map(|time| time.to_string())),
            ("until", self.until.map(|time| time.to_string())),
        ])
    }
}

/// Runs the command.
pub(crate) async fn run(command: &AuditCommand, session: &Session) -> Result<Outcome> {
    match command {
        AuditCommand::List { filter, history } => {
            let entries = session.client.newest(&ENTRIES, &filter.query(), history.top, 0).await?;
            session.output.list(&entries, table)?;
        }
        AuditCommand::Export { filter, format } => {
            let mut query = filter.query();
            query.push(("format", format.clone()));
            session.client.download(&[&ENTRIES[..], &["export"]].concat(), &query).await?;
        }
    }
    Ok(Outcome::Done)
}

fn table(entries: &[AuditEntry]) -> Table {
    let columns = [
        ("TIME (UTC)", Fit::Whole),
        ("OPERATION", Fit::Whole),
        ("SUBJECT", Fit::Whole),
        ("ACTOR", Fit::Optional),
        ("DETAIL", Fit::Cut),
    ];
    Table::new(&columns, entries, |entry| {
        vec![
            seconds(entry.date_time_utc),
            entry.operation.clone(),
            entry.subject.clone(),
            entry.actor.clone(),
            entry.detail.clone(),
        ]
    })
}
