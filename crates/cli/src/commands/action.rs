//! `cordon action`: see machine actions, wait for them and cancel them.

use std::time::Duration;

use anyhow::Result;
use api_types::machine_action::{CancelRequest, MachineAction};
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use uuid::Uuid;

use crate::commands::ListArguments;
use crate::http::Reply;
use crate::outcome::{self, Outcome};
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;
use crate::{duration, wait};

/// See machine actions, wait for them and cancel them
#[derive(Debug, Subcommand)]
pub(crate) enum ActionCommand {
    /// List machine actions, the newest first
    List(ListArguments),
    /// Show a machine action
    Show {
        /// Its id
        id: Uuid,
    },
    /// Cancel a machine action that is not final
    Cancel {
        /// Its id
        id: Uuid,
        /// Why; it is recorded
        #[arg(long, value_name = "TEXT", default_value = "cancelled from the command line",
              value_parser = NonEmptyStringValueParser::new())]
        comment: String,
    },
    /// Wait until a machine action is final
    #[command(after_help = outcome::HELP)]
    Wait {
        /// Its id
        id: Uuid,
        /// Wait at most this long, such as 90s, 10m or 24h; the action goes on
        #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = wait::TIMEOUT_DEFAULT)]
        timeout: Duration,
    },
}

/// Runs the command.
pub(crate) async fn run(command: &ActionCommand, session: &Session) -> Result<Outcome> {
    let client = &session.client;
    match command {
        ActionCommand::List(arguments) => {
            let actions = client.list(&["api", "machineactions"], &arguments.query()).await?;
            session.output.list(&actions, table)?;
        }
        ActionCommand::Show { id } => {
            print(session, &client.get(&["api", "machineactions", &id.to_string()]).await?)?;
        }
        ActionCommand::Cancel { id, comment } => {
            let request = CancelRequest { comment: Some(comment.clone()) };
            print(
                session,
                &client.post(&["api", "machineactions", &id.to_string(), "cancel"], &request).await?,
            )?;
        }
        ActionCommand::Wait { id, timeout } => {
            let reply = client.get(&["api", "machineactions", &id.to_string()]).await?;
            return wait::until_final(session, reply, *timeout).await;
        }
    }
    Ok(Outcome::Done)
}

/// Prints one action.
pub(crate) fn print(session: &Session, reply: &Reply) -> Result<()> {
    session.output.entity(reply, shown)
}

fn table(actions: &[MachineAction]) -> Table {
    let columns = [
        ("ID", Fit::Whole),
        ("STATUS", Fit::Whole),
        ("MACHINE", Fit::Whole),
        ("TYPE", Fit::Optional),
        ("CREATED (UTC)", Fit::Optional),
        ("COMMENT", Fit::Cut),
    ];
    Table::new(&columns, actions, |action| {
        vec![
            action.id.to_string(),
            action.status.clone(),
            action.computer_dns_name.clone(),
            action.r#type.trim_end_matches("CodeExecution").to_owned(),
            seconds(action.creation_date_time_utc),
            action.requestor_comment.clone(),
        ]
    })
}

fn shown(action: &MachineAction) -> String {
    let cancelled = action.cancellation_date_time_utc.map(|at| {
        let requestor = action.cancellation_requestor.as_deref().unwrap_or("unknown");
        format!("{at} by {requestor}: {}", action.cancellation_comment.as_deref().unwrap_or_default())
    });
    record([
        ("id", Some(action.id.to_string())),
        ("type", Some(action.r#type.clone())),
        ("status", Some(action.status.clone())),
        ("failure", action.troubleshoot_info.clone()),
        ("machine", Some(format!("{} ({})", action.computer_dns_name, action.machine_id))),
        ("comment", Some(action.requestor_comment.clone())),
        ("requested by", Some(action.requestor.clone())),
        ("external id", action.external_id.clone()),
        ("created", Some(action.creation_date_time_utc.to_string())),
        ("last update", Some(action.last_update_date_time_utc.to_string())),
        ("cancelled", cancelled),
    ])
}
