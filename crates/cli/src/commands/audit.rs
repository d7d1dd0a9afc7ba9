//! `cordon audit`: who did what.

use anyhow::Result;
use api_types::audit_entry::AuditEntry;
use clap::Subcommand;

use crate::commands::HistoryArguments;
use crate::outcome::Outcome;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;

/// See who did what
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// List audit entries, the newest first
    List(HistoryArguments),
}

/// Runs the command.
pub(crate) async fn run(command: &AuditCommand, session: &Session) -> Result<Outcome> {
    let AuditCommand::List(arguments) = command;
    let entries =
        session.client.newest(&["api", "cordon", "v1", "auditEntries"], &[], arguments.top, 0).await?;
    session.output.list(&entries, table)?;
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
