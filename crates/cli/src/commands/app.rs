//! `cordon app`: clients of the API.

use anyhow::Result;
use api_types::app::{App, AppCreate, AppCreated};
use clap::Subcommand;
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use domain::permission::Permission;
use uuid::Uuid;

use crate::outcome::Outcome;
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;

const APPS: [&str; 4] = ["api", "cordon", "v1", "apps"];

/// Make and revoke clients of the API
#[derive(Debug, Subcommand)]
pub(crate) enum AppCommand {
    /// Make an app; its secret is shown this once
    Create {
        /// For people; unique
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// What it may do; repeat it or separate by commas
        #[arg(short, long = "permission", value_name = "PERMISSION", required = true, value_delimiter = ',',
              value_parser = PossibleValuesParser::new(Permission::ALL.map(Permission::name)))]
        permissions: Vec<String>,
    },
    /// List apps, without their secrets
    List,
    /// Revoke an app: from then on it gets no token, and its tokens count no more
    Revoke {
        /// Its id
        id: Uuid,
    },
}

/// Runs the command.
pub(crate) async fn run(command: &AppCommand, session: &Session) -> Result<Outcome> {
    let (client, output) = (&session.client, &session.output);
    match command {
        AppCommand::Create { name, permissions } => {
            let create = AppCreate { name: name.clone(), permissions: permissions.clone() };
            output.entity(&client.post(&APPS, &create).await?, created)?;
            output.hint("the client secret is shown this once; the app signs in with id and secret");
        }
        AppCommand::List => output.list(&client.list(&APPS, &[]).await?, table)?,
        AppCommand::Revoke { id } => {
            let id = id.to_string();
            let reply = client.delete(&[&APPS[..], &[&id]].concat()).await?;
            output.done(&reply, &format!("app {id} is revoked"))?;
        }
    }
    Ok(Outcome::Done)
}

fn created(created: &AppCreated) -> String {
    record([
        ("client id", Some(created.app.id.to_string())),
        ("client secret", Some(created.secret.clone())),
        ("name", Some(created.app.name.clone())),
        ("permissions", Some(created.app.permissions.join(", "))),
    ])
}

fn table(apps: &[App]) -> Table {
    let columns = [
        ("ID", Fit::Whole),
        ("NAME", Fit::Whole),
        ("REVOKED (UTC)", Fit::Whole),
        ("CREATED (UTC)", Fit::Optional),
        ("PERMISSIONS", Fit::Cut),
    ];
    Table::new(&columns, apps, |app| {
        vec![
            app.id.to_string(),
            app.name.clone(),
            app.revoked_date_time_utc.map(seconds).unwrap_or_default(),
            seconds(app.creation_date_time_utc),
            app.permissions.join(", "),
        ]
    })
}
