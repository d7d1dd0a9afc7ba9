//! `cordon role`: what people may do, by the user groups that they belong to.

use anyhow::Result;
use api_types::role::Role;
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{Args, Subcommand};
use domain::permission::Right;

use crate::commands::below;
use crate::error::is_not_found;
use crate::outcome::Outcome;
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};

/// The collection.
pub(crate) const ROLES: [&str; 4] = ["api", "cordon", "v1", "roles"];

const HELP: &str = "\
Example:
  cordon role save \"Tier 1\" --right \"View data\",\"Active remediation actions\" --user-group responders";

/// See, make and change roles
#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// List roles
    List,
    /// Show a role
    Show {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Make a role, or change the one with this name; what is not given stays
    #[command(after_help = HELP)]
    Save(SaveArguments),
    /// Delete a role
    Delete {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SaveArguments {
    /// Its name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// What it allows, in place of what it did; repeat it or separate by commas
    #[arg(short, long = "right", value_name = "RIGHT", value_delimiter = ',',
          value_parser = PossibleValuesParser::new(Right::ALL.map(Right::name)))]
    rights: Vec<String>,
    /// A user group whose members have it, in place of those before; repeat it
    #[arg(long = "user-group", value_name = "NAME")]
    user_groups: Vec<String>,
    /// Nobody has it
    #[arg(long, conflicts_with = "user_groups")]
    no_user_group: bool,
    /// How many machines its members may change by bulk calls in an hour
    #[arg(long, value_name = "N")]
    bulk_machines_max: Option<u32>,
    /// As many as the settings say
    #[arg(long, conflicts_with = "bulk_machines_max")]
    bulk_machines_default: bool,
}

/// Runs the command.
pub(crate) async fn run(command: &RoleCommand, session: &Session) -> Result<Outcome> {
    let (client, output) = (&session.client, &session.output);
    match command {
        RoleCommand::List => output.list(&client.list(&ROLES, &[]).await?, table)?,
        RoleCommand::Show { name } => output.entity(&client.get(&below(&ROLES, &[name])).await?, shown)?,
        RoleCommand::Save(arguments) => {
            let path = below(&ROLES, &[&arguments.name]);
            let old = match client.get(&path).await {
                Ok(reply) => Some(reply.decode()?),
                Err(error) if is_not_found(&error) => None,
                Err(error) => return Err(error),
            };
            output.entity(&client.put(&path, &[], &arguments.role(old)).await?, shown)?;
        }
        RoleCommand::Delete { name } => {
            let reply = client.delete(&below(&ROLES, &[name])).await?;
            output.done(&reply, &format!("role {name} is deleted"))?;
        }
    }
    Ok(Outcome::Done)
}

impl SaveArguments {
    fn role(&self, old: Option<Role>) -> Role {
        let mut role = old.unwrap_or_else(|| Role {
            name: self.name.clone(),
            description: String::new(),
            rights: Vec::new(),
            user_groups: Vec::new(),
            bulk_machines_max: None,
        });
        if let Some(description) = &self.description {
            role.description.clone_from(description);
        }
        if !self.rights.is_empty() {
            role.rights.clone_from(&self.rights);
        }
        if self.no_user_group || !self.user_groups.is_empty() {
            role.user_groups.clone_from(&self.user_groups);
        }
        if self.bulk_machines_default || self.bulk_machines_max.is_some() {
            role.bulk_machines_max = self.bulk_machines_max;
        }
        role
    }
}

fn shown(role: &Role) -> String {
    record([
        ("name", Some(role.name.clone())),
        ("description", (!role.description.is_empty()).then(|| role.description.clone())),
        ("rights", Some(role.rights.join(", "))),
        ("user groups", (!role.user_groups.is_empty()).then(|| role.user_groups.join(", "))),
        ("bulk machines", role.bulk_machines_max.map(|max| format!("at most {max} an hour"))),
    ])
}

fn table(roles: &[Role]) -> Table {
    let columns =
        [("NAME", Fit::Whole), ("USER GROUPS", Fit::Cut), ("RIGHTS", Fit::Cut), ("DESCRIPTION", Fit::Cut)];
    Table::new(&columns, roles, |role| {
        vec![role.name.clone(), role.user_groups.join(", "), role.rights.join(", "), role.description.clone()]
    })
}
