//! `cordon user`: people with accounts of the deployment.

use std::path::PathBuf;

use anyhow::Result;
use api_types::user::{User, UserCreate, UserCreated, UserUpdate};
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use domain::user::PASSWORD_CHARS_MIN;
use uuid::Uuid;

use crate::commands::below;
use crate::connection::secret_from;
use crate::error::UsageError;
use crate::outcome::Outcome;
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;

const USERS: [&str; 4] = ["api", "cordon", "v1", "users"];

/// See, make and change accounts of people
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// List accounts
    List,
    /// Show an account
    Show {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Make an account; a password is made for it, and shown this once, unless one is given
    Create {
        /// What the person signs in with
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// How the person is called [default: the name]
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        display_name: String,
        /// A user group that the person belongs to; repeat it
        #[arg(long = "group", value_name = "NAME")]
        groups: Vec<String>,
        /// Read the password from this file, or from standard input (-)
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Change an account; what is not given stays
    Update {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// How the person is called
        #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
        display_name: Option<String>,
        /// A user group that the person belongs to, in place of those before; repeat it
        #[arg(long = "group", value_name = "NAME")]
        groups: Vec<String>,
        /// Take the person out of all user groups
        #[arg(long, conflicts_with = "groups")]
        no_group: bool,
    },
    /// Refuse a person, and the tokens that the person has
    Disable {
        /// The account's name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Let a person in again
    Enable {
        /// The account's name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Give an account another password, which is made and shown this once unless one is given
    ResetPassword {
        /// The account's name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Read the password from this file, or from standard input (-)
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Delete an account; what the person did stays in the records
    Delete {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
}

/// Runs the command.
pub(crate) async fn run(command: &UserCommand, session: &Session) -> Result<Outcome> {
    let (client, output) = (&session.client, &session.output);
    match command {
        UserCommand::List => output.list(&client.list(&USERS, &[]).await?, table)?,
        UserCommand::Show { name } => output.entity(&client.get(&below(&USERS, &[name])).await?, shown)?,
        UserCommand::Create { name, display_name, groups, password_file } => {
            let create = UserCreate {
                name: name.clone(),
                display_name: display_name.clone(),
                groups: groups.clone(),
                password: password(password_file.as_ref())?,
            };
            output.entity(&client.post(&USERS, &create).await?, created)?;
            if create.password.is_none() {
                output.hint("the password is shown this once");
            }
        }
        UserCommand::Update { name, display_name, groups, no_group } => {
            let groups = (*no_group || !groups.is_empty()).then(|| groups.clone());
            update(session, name, UserUpdate { display_name: display_name.clone(), groups, ..unchanged() })
                .await?;
        }
        UserCommand::Disable { name } => {
            update(session, name, UserUpdate { enabled: Some(false), ..unchanged() }).await?;
        }
        UserCommand::Enable { name } => {
            update(session, name, UserUpdate { enabled: Some(true), ..unchanged() }).await?;
        }
        UserCommand::ResetPassword { name, password_file } => {
            let given = password(password_file.as_ref())?;
            // 122 random bits, which nobody needs to remember: the person sets another, or keeps it in a safe.
            let made = given.is_none().then(|| Uuid::new_v4().to_string());
            let change = UserUpdate { password: given.or_else(|| made.clone()), ..unchanged() };
            let user: User = client.patch(&below(&USERS, &[name]), &change).await?.decode()?;
            let is_made = made.is_some();
            let reset = UserCreated { user, password: made };
            output.made(&reset, || created(&reset))?;
            if is_made {
                output.hint("the password is shown this once; the tokens that the person has count no more");
            }
        }
        UserCommand::Delete { name } => {
            let reply = client.delete(&below(&USERS, &[name])).await?;
            output.done(&reply, &format!("account {name} is deleted"))?;
        }
    }
    Ok(Outcome::Done)
}

fn unchanged() -> UserUpdate {
    UserUpdate::default()
}

async fn update(session: &Session, name: &str, change: UserUpdate) -> Result<()> {
    session.output.entity(&session.client.patch(&below(&USERS, &[name]), &change).await?, shown)
}

fn password(file: Option<&PathBuf>) -> Result<Option<String>> {
    let Some(file) = file else { return Ok(None) };
    let password = secret_from(Some(file), "password")?;
    if password.reveal().chars().count() < PASSWORD_CHARS_MIN {
        let message = format!("a password has at least {PASSWORD_CHARS_MIN} characters");
        return Err(UsageError(message).into());
    }
    Ok(Some(password.reveal().to_owned()))
}

fn created(created: &UserCreated) -> String {
    let user = &created.user;
    record([
        ("name", Some(user.name.clone())),
        ("password", created.password.clone()),
        ("display name", Some(user.display_name.clone())),
        ("user groups", (!user.groups.is_empty()).then(|| user.groups.join(", "))),
    ])
}

fn shown(user: &User) -> String {
    record([
        ("name", Some(user.name.clone())),
        ("id", Some(user.id.to_string())),
        ("display name", Some(user.display_name.clone())),
        ("user groups", (!user.groups.is_empty()).then(|| user.groups.join(", "))),
        ("state", Some(state(user).to_owned())),
        ("locked until", user.locked_until_date_time_utc.map(|time| time.to_string())),
        ("created", Some(user.creation_date_time_utc.to_string())),
        ("password set", Some(user.password_date_time_utc.to_string())),
    ])
}

fn state(user: &User) -> &'static str {
    if user.enabled { "enabled" } else { "disabled" }
}

fn table(users: &[User]) -> Table {
    let columns = [
        ("NAME", Fit::Whole),
        ("STATE", Fit::Whole),
        ("DISPLAY NAME", Fit::Optional),
        ("USER GROUPS", Fit::Cut),
        ("PASSWORD SET (UTC)", Fit::Optional),
    ];
    Table::new(&columns, users, |user| {
        vec![
            user.name.clone(),
            state(user).to_owned(),
            user.display_name.clone(),
            user.groups.join(", "),
            seconds(user.password_date_time_utc),
        ]
    })
}
