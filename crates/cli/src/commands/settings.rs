//! `cordon settings`: what administrators change while the server runs.

use anyhow::{Context as _, Result};
use api_types::settings::{Setting, SettingsUpdate};
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use serde_json::{Map, Value};

use crate::outcome::Outcome;
use crate::session::Session;
use crate::table::{Fit, Table};

/// The collection.
pub(crate) const SETTINGS: [&str; 4] = ["api", "cordon", "v1", "settings"];

/// See and change what the server goes by
#[derive(Debug, Subcommand)]
pub(crate) enum SettingsCommand {
    /// List settings
    List,
    /// Change settings
    #[command(after_help = "Example:\n  cordon settings set bulkMachinesPerHour=500 rateLimitPerMinute=200")]
    Set {
        /// A setting's name and its value, a whole number; `cordon settings list` has the names
        #[arg(value_name = "NAME=VALUE", required = true, value_parser = pair)]
        settings: Vec<(String, u64)>,
    },
    /// Take settings back, so that they are as the server was started with
    Unset {
        /// A setting's name
        #[arg(value_name = "NAME", required = true, value_parser = PossibleValuesParser::new(SettingsUpdate::KEYS))]
        names: Vec<String>,
    },
}

/// Runs the command.
pub(crate) async fn run(command: &SettingsCommand, session: &Session) -> Result<Outcome> {
    let changes: Vec<(&str, Option<u64>)> = match command {
        SettingsCommand::List => {
            session.output.list(&session.client.list(&SETTINGS, &[]).await?, table)?;
            return Ok(Outcome::Done);
        }
        SettingsCommand::Set { settings } => {
            settings.iter().map(|(name, value)| (name.as_str(), Some(*value))).collect()
        }
        SettingsCommand::Unset { names } => names.iter().map(|name| (name.as_str(), None)).collect(),
    };
    let reply = session.client.patch(&SETTINGS, &update(&changes)?).await?;
    session.output.list(&reply.decode()?, table)?;
    Ok(Outcome::Done)
}

/// A change of these settings; none takes back.
pub(crate) fn update(changes: &[(&str, Option<u64>)]) -> Result<SettingsUpdate> {
    let changes = changes.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value)));
    serde_json::from_value(Value::Object(changes.collect::<Map<_, _>>())).context("settings")
}

fn pair(text: &str) -> Result<(String, u64), String> {
    let names = || SettingsUpdate::KEYS.join(", ");
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("a setting is NAME=VALUE; names are: {}", names()))?;
    if !SettingsUpdate::KEYS.contains(&name) {
        return Err(format!("there is no setting {name:?}; there are: {}", names()));
    }
    let value = value.parse().map_err(|_no_number| format!("the value of {name} is a whole number"))?;
    Ok((name.to_owned(), value))
}

fn table(settings: &[Setting]) -> Table {
    let columns =
        [("NAME", Fit::Whole), ("VALUE", Fit::Whole), ("SET", Fit::Whole), ("DEFAULT", Fit::Optional)];
    Table::new(&columns, settings, |setting| {
        vec![
            setting.name.clone(),
            setting.value.to_string(),
            if setting.is_set { "yes" } else { "no" }.to_owned(),
            setting.default.to_string(),
        ]
    })
}
