//! `cordon machine-group`: which machines belong together, who may see them, and which allow policy is theirs.

use anyhow::Result;
use api_types::machine_group::{Condition, MachineGroup, MachineGroupDocument, MachineGroupPreview};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use crate::commands::below;
use crate::error::is_not_found;
use crate::outcome::Outcome;
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};

/// The collection.
pub(crate) const GROUPS: [&str; 4] = ["api", "cordon", "v1", "machineGroups"];

const HELP: &str = "\
A condition is a property (name, domain, tag or osPlatform), an operator (equals, startsWith,
endsWith or contains) and a value. Conditions on the same property are alternatives; all properties
that have conditions must be met.

Example:
  cordon machine-group save Finance --rank 1 --condition \"tag equals finance\" --user-group responders";

/// See, make and change machine groups
#[derive(Debug, Subcommand)]
pub(crate) enum MachineGroupCommand {
    /// List machine groups, the highest rank first
    List,
    /// Show a machine group
    Show {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Make a machine group, or change the one with this name; what is not given stays
    #[command(after_help = HELP)]
    Save(SaveArguments),
    /// Tell what saving a machine group would do
    #[command(after_help = HELP)]
    Preview(SaveArguments),
    /// Delete a machine group; its machines go to the next one whose rule takes them
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
    /// Another name
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    rename: Option<String>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Its rank, 1 is the highest; others make room [default: the last]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rank: Option<u32>,
    /// Which machines it takes, in place of the conditions before, such as "tag equals finance"; repeat it
    #[arg(long = "condition", value_name = "CONDITION", value_parser = condition)]
    rule: Vec<Condition>,
    /// Take no machine
    #[arg(long, conflicts_with = "rule")]
    no_condition: bool,
    /// A user group whose members see its machines, in place of those before; repeat it
    #[arg(long = "user-group", value_name = "NAME")]
    user_groups: Vec<String>,
    /// Everybody with a role sees its machines
    #[arg(long, conflicts_with = "user_groups")]
    no_user_group: bool,
    /// The allow policy of its machines
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    policy: Option<String>,
    /// The policy "default"
    #[arg(long, conflicts_with = "policy")]
    no_policy: bool,
}

/// Runs the command.
pub(crate) async fn run(command: &MachineGroupCommand, session: &Session) -> Result<Outcome> {
    let (client, output) = (&session.client, &session.output);
    match command {
        MachineGroupCommand::List => output.list(&client.list(&GROUPS, &[]).await?, table)?,
        MachineGroupCommand::Show { name } => {
            output.entity(&client.get(&below(&GROUPS, &[name])).await?, shown)?;
        }
        MachineGroupCommand::Save(arguments) => {
            let document = arguments.document(session).await?;
            let reply = client.put(&below(&GROUPS, &[&arguments.name]), &[], &document).await?;
            output.entity(&reply, shown)?;
        }
        MachineGroupCommand::Preview(arguments) => {
            let document = arguments.document(session).await?;
            let reply = client.post(&below(&GROUPS, &[&arguments.name, "preview"]), &document).await?;
            output.entity(&reply, previewed)?;
        }
        MachineGroupCommand::Delete { name } => {
            let reply = client.delete(&below(&GROUPS, &[name])).await?;
            output.done(&reply, &format!("machine group {name} is deleted"))?;
        }
    }
    Ok(Outcome::Done)
}

impl SaveArguments {
    /// The group as it is to be.
    async fn document(&self, session: &Session) -> Result<MachineGroupDocument> {
        let mut document = match session.client.get(&below(&GROUPS, &[&self.name])).await {
            Ok(reply) => document_of(reply.decode()?),
            Err(error) if is_not_found(&error) => MachineGroupDocument {
                name: self.name.clone(),
                description: String::new(),
                rank: None,
                rule: Vec::new(),
                user_groups: Vec::new(),
                policy: None,
            },
            Err(error) => return Err(error),
        };
        // A rank that is not given is the server's to keep.
        document.rank = self.rank;
        if let Some(name) = &self.rename {
            document.name.clone_from(name);
        }
        if let Some(description) = &self.description {
            document.description.clone_from(description);
        }
        if self.no_condition || !self.rule.is_empty() {
            document.rule.clone_from(&self.rule);
        }
        if self.no_user_group || !self.user_groups.is_empty() {
            document.user_groups.clone_from(&self.user_groups);
        }
        if self.no_policy || self.policy.is_some() {
            document.policy.clone_from(&self.policy);
        }
        Ok(document)
    }
}

/// A group as people write it.
pub(crate) fn document_of(group: MachineGroup) -> MachineGroupDocument {
    MachineGroupDocument {
        name: group.name,
        description: group.description,
        rank: group.rank,
        rule: group.rule,
        user_groups: group.user_groups,
        policy: group.policy,
    }
}

fn condition(text: &str) -> Result<Condition, String> {
    let mut words = text.trim().splitn(3, ' ');
    let (Some(property), Some(operator), Some(value)) = (words.next(), words.next(), words.next()) else {
        return Err(
            "a condition is a property, an operator and a value, such as \"tag equals finance\"".to_owned()
        );
    };
    let condition = Condition {
        property: property.to_owned(),
        operator: operator.to_owned(),
        value: value.trim().to_owned(),
    };
    condition.clone().read().map(|_| condition)
}

/// One line for a condition, as `--condition` takes it.
pub(crate) fn condition_text(condition: &Condition) -> String {
    format!("{} {} {}", condition.property, condition.operator, condition.value)
}

fn rank(group: &MachineGroup) -> String {
    group.rank.map_or_else(|| "last".to_owned(), |rank| rank.to_string())
}

fn rule(group: &MachineGroup) -> String {
    group.rule.iter().map(condition_text).collect::<Vec<_>>().join("; ")
}

fn shown(group: &MachineGroup) -> String {
    record([
        ("name", Some(group.name.clone())),
        ("id", Some(group.id.to_string())),
        ("description", (!group.description.is_empty()).then(|| group.description.clone())),
        ("rank", Some(rank(group))),
        ("rule", (!group.rule.is_empty()).then(|| rule(group))),
        ("user groups", (!group.user_groups.is_empty()).then(|| group.user_groups.join(", "))),
        ("policy", group.policy.clone()),
        ("machines", Some(group.machines.to_string())),
    ])
}

fn previewed(preview: &MachineGroupPreview) -> String {
    let names: Vec<_> = preview.examples.iter().map(|machine| machine.computer_dns_name.clone()).collect();
    record([
        ("machines", Some(preview.machines.to_string())),
        ("joining", Some(preview.joining.to_string())),
        ("leaving", Some(preview.leaving.to_string())),
        ("such as", (!names.is_empty()).then(|| names.join(", "))),
    ])
}

fn table(groups: &[MachineGroup]) -> Table {
    let columns = [
        ("RANK", Fit::Whole),
        ("NAME", Fit::Whole),
        ("MACHINES", Fit::Whole),
        ("POLICY", Fit::Optional),
        ("USER GROUPS", Fit::Cut),
        ("RULE", Fit::Cut),
    ];
    Table::new(&columns, groups, |group| {
        vec![
            rank(group),
            group.name.clone(),
            group.machines.to_string(),
            group.policy.clone().unwrap_or_default(),
            group.user_groups.join(", "),
            rule(group),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_three_words_and_the_last_may_have_blanks() {
        let parsed = condition("name startsWith lab 7").unwrap();
        assert_eq!(condition_text(&parsed), "name startsWith lab 7");
        assert_eq!(parsed.value, "lab 7");
        for text in ["", "tag", "tag equals", "color equals red", "tag like red"] {
            assert!(condition(text).is_err(), "{text}");
        }
    }
}
