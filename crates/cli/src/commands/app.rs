//! `cordon app`: clients of the API.

use std::path::PathBuf;

use anyhow::{Result, bail};
use api_types::app::{App, AppCreate, AppCreated, AppKey, AppKeyCreate, AppSecret};
use api_types::machine_group::MachineGroup;
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{Args, Subcommand};
use domain::digest::Sha256Digest;
use domain::permission::Permission;
use uuid::Uuid;

use crate::commands::below;
use crate::commands::machine_group::GROUPS;
use crate::document::read_text;
use crate::outcome::Outcome;
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;

const APPS: [&str; 4] = ["api", "cordon", "v1", "apps"];

/// See, make, change and revoke clients of the API
#[derive(Debug, Subcommand)]
pub(crate) enum AppCommand {
    /// List apps, without their secrets
    List,
    /// Show an app, without its secret
    Show {
        /// Its id
        id: Uuid,
    },
    /// Make an app; its secret is shown this once
    Create(CreateArguments),
    /// Change an app; what is not given stays
    Update(UpdateArguments),
    /// Revoke an app: from then on it gets no token, and its tokens count no more
    Revoke {
        /// Its id
        id: Uuid,
    },
    #[command(subcommand)]
    Secret(SecretCommand),
    #[command(subcommand)]
    Key(KeyCommand),
}

/// Give an app another secret
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Make another secret, shown this once; the old one counts no more
    Renew {
        /// The app's id
        id: Uuid,
    },
}

/// See and change the keys with which an app may sign in instead of a secret
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Let an app sign in by assertions of a key
    Add {
        /// The app's id
        id: Uuid,
        /// A certificate or public key in PEM form, or standard input (-)
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        comment: String,
    },
    /// List the keys of an app
    List {
        /// The app's id
        id: Uuid,
    },
    /// Take a key from an app
    Remove {
        /// The app's id
        id: Uuid,
        /// SHA-256 of the public key, as the list has it
        thumbprint: Sha256Digest,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// For people; unique
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// What it may do; repeat it or separate by commas
    #[arg(short, long = "permission", value_name = "PERMISSION", required = true, value_delimiter = ',',
          value_parser = PossibleValuesParser::new(Permission::ALL.map(Permission::name)))]
    permissions: Vec<String>,
    /// Without a secret: it can only act for people who sign in
    #[arg(long)]
    public: bool,
    /// Where people may be sent back to after they signed in; repeat it
    #[arg(long = "redirect-uri", value_name = "URI")]
    redirect_uris: Vec<String>,
    /// Limit it to the machines of this group, by name; repeat it
    #[arg(long = "machine-group", value_name = "NAME")]
    machine_groups: Vec<String>,
    /// How many machines it may change by bulk calls in an hour [default: as the settings say]
    #[arg(long, value_name = "N")]
    bulk_machines_max: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// Its id
    id: Uuid,
    /// Another name
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// What it may do, in place of what it could; repeat it or separate by commas
    #[arg(short, long = "permission", value_name = "PERMISSION", value_delimiter = ',',
          value_parser = PossibleValuesParser::new(Permission::ALL.map(Permission::name)))]
    permissions: Vec<String>,
    /// Where people may be sent back to, in place of what it had; repeat it
    #[arg(long = "redirect-uri", value_name = "URI")]
    redirect_uris: Vec<String>,
    /// Send nobody back
    #[arg(long, conflicts_with = "redirect_uris")]
    no_redirect_uri: bool,
    /// Limit it to the machines of this group, in place of what it had; repeat it
    #[arg(long = "machine-group", value_name = "NAME")]
    machine_groups: Vec<String>,
    /// Do not limit it to machine groups
    #[arg(long, conflicts_with = "machine_groups")]
    all_machines: bool,
    /// How many machines it may change by bulk calls in an hour
    #[arg(long, value_name = "N")]
    bulk_machines_max: Option<u32>,
    /// As many as the settings say
    #[arg(long, conflicts_with = "bulk_machines_max")]
    bulk_machines_default: bool,
}

/// Runs the command.
pub(crate) async fn run(command: &AppCommand, session: &Session) -> Result<Outcome> {
    let (client, output) = (&session.client, &session.output);
    match command {
        AppCommand::List => output.list(&client.list(&APPS, &[]).await?, table)?,
        AppCommand::Show { id } => {
            output.entity(&client.get(&below(&APPS, &[&id.to_string()])).await?, shown)?
        }
        AppCommand::Create(arguments) => {
            output.entity(&client.post(&APPS, &arguments.app()).await?, created)?;
            if !arguments.public {
                output.hint("the client secret is shown this once; the app signs in with id and secret");
            }
        }
        AppCommand::Update(arguments) => update(session, arguments).await?,
        AppCommand::Revoke { id } => {
            let id = id.to_string();
            let reply = client.delete(&below(&APPS, &[&id])).await?;
            output.done(&reply, &format!("app {id} is revoked"))?;
        }
        AppCommand::Secret(SecretCommand::Renew { id }) => {
            let reply = client.post_nothing(&below(&APPS, &[&id.to_string(), "secret"])).await?;
            output.entity(&reply, |renewed: &AppSecret| {
                record([("client id", Some(id.to_string())), ("client secret", Some(renewed.secret.clone()))])
            })?;
            output.hint("the client secret is shown this once; the old one counts no more");
        }
        AppCommand::Key(command) => key(session, command).await?,
    }
    Ok(Outcome::Done)
}

async fn update(session: &Session, arguments: &UpdateArguments) -> Result<()> {
    let (client, id) = (&session.client, arguments.id.to_string());
    let app: App = client.get(&below(&APPS, &[&id])).await?.decode()?;
    // The API replaces an app, and has the groups by name in what it takes and by id in what it tells.
    let machine_groups = match app.machine_group_ids {
        _ if !arguments.machine_groups.is_empty() => Some(arguments.machine_groups.clone()),
        Some(ids) if !arguments.all_machines => Some(group_names(session, &ids).await?),
        Some(_) | None => None,
    };
    let update = AppCreate {
        name: arguments.name.clone().unwrap_or(app.name),
        permissions: given_or(&arguments.permissions, app.permissions),
        public: app.public,
        redirect_uris: if arguments.no_redirect_uri {
            Vec::new()
        } else {
            given_or(&arguments.redirect_uris, app.redirect_uris)
        },
        machine_groups,
        bulk_machines_max: if arguments.bulk_machines_default {
            None
        } else {
            arguments.bulk_machines_max.or(app.bulk_machines_max)
        },
    };
    session.output.entity(&client.put(&below(&APPS, &[&id]), &[], &update).await?, shown)
}

async fn group_names(session: &Session, ids: &[i64]) -> Result<Vec<String>> {
    let groups: Vec<MachineGroup> = session.client.list(&GROUPS, &[]).await?.decode()?;
    let name = |id: &i64| match groups.iter().find(|group| group.id == *id) {
        Some(group) => Ok(group.name.clone()),
        None => bail!("machine group {id} of this app is not known: give --machine-group or --all-machines"),
    };
    ids.iter().map(name).collect()
}

async fn key(session: &Session, command: &KeyCommand) -> Result<()> {
    let (client, output) = (&session.client, &session.output);
    match command {
        KeyCommand::Add { id, file, comment } => {
            let create = AppKeyCreate { pem: read_text(file)?, comment: comment.clone() };
            output.entity(&client.post(&below(&APPS, &[&id.to_string(), "keys"]), &create).await?, shown_key)
        }
        KeyCommand::List { id } => {
            output.list(&client.list(&below(&APPS, &[&id.to_string(), "keys"]), &[]).await?, table_of_keys)
        }
        KeyCommand::Remove { id, thumbprint } => {
            let path = [id.to_string(), "keys".to_owned(), thumbprint.to_string()];
            let path: Vec<_> = path.iter().map(String::as_str).collect();
            let reply = client.delete(&below(&APPS, &path)).await?;
            output.done(&reply, &format!("key {thumbprint} is taken from app {id}"))
        }
    }
}

/// What was given, or what was there.
fn given_or(given: &[String], there: Vec<String>) -> Vec<String> {
    if given.is_empty() { there } else { given.to_vec() }
}

impl CreateArguments {
    fn app(&self) -> AppCreate {
        AppCreate {
            name: self.name.clone(),
            permissions: self.permissions.clone(),
            public: self.public,
            redirect_uris: self.redirect_uris.clone(),
            machine_groups: (!self.machine_groups.is_empty()).then(|| self.machine_groups.clone()),
            bulk_machines_max: self.bulk_machines_max,
        }
    }
}

fn created(created: &AppCreated) -> String {
    record([
        ("client id", Some(created.app.id.to_string())),
        ("client secret", created.secret.clone()),
        ("name", Some(created.app.name.clone())),
        ("permissions", Some(created.app.permissions.join(", "))),
    ])
}

fn shown(app: &App) -> String {
    let groups = app.machine_group_ids.as_ref();
    let groups = groups.map(|ids| ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", "));
    record([
        ("client id", Some(app.id.to_string())),
        ("name", Some(app.name.clone())),
        ("permissions", Some(app.permissions.join(", "))),
        ("kind", app.public.then(|| "public: acts for people only".to_owned())),
        ("redirect URIs", (!app.redirect_uris.is_empty()).then(|| app.redirect_uris.join(", "))),
        ("machine groups", Some(groups.unwrap_or_else(|| "all".to_owned()))),
        ("bulk machines", app.bulk_machines_max.map(|max| format!("at most {max} an hour"))),
        ("created", Some(app.creation_date_time_utc.to_string())),
        ("revoked", app.revoked_date_time_utc.map(|time| time.to_string())),
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

fn shown_key(key: &AppKey) -> String {
    record([
        ("thumbprint", Some(key.thumbprint.clone())),
        ("x5t", key.x5t.clone()),
        ("comment", (!key.comment.is_empty()).then(|| key.comment.clone())),
        ("added", Some(key.creation_date_time_utc.to_string())),
        ("ends", key.expiry_date_time_utc.map(|time| time.to_string())),
    ])
}

fn table_of_keys(keys: &[AppKey]) -> Table {
    let columns = [
        ("THUMBPRINT", Fit::Whole),
        ("ENDS (UTC)", Fit::Whole),
        ("ADDED (UTC)", Fit::Optional),
        ("COMMENT", Fit::Cut),
    ];
    Table::new(&columns, keys, |key| {
        vec![
            key.thumbprint.clone(),
            key.expiry_date_time_utc.map(seconds).unwrap_or_default(),
            seconds(key.creation_date_time_utc),
            key.comment.clone(),
        ]
    })
}
