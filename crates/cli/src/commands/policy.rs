//! `cordon policy`: the predefined sets.

use std::path::PathBuf;

use anyhow::Result;
use api_types::policy::{Policy, PolicyDocument, Rule};
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use crate::client::Reply;
use crate::outcome::Outcome;
use crate::output::{record, write};
use crate::policy_file;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;

const POLICIES: [&str; 4] = ["api", "cordon", "v1", "policies"];

/// See and change the predefined sets of programs
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// List allow policies
    List,
    /// Show an allow policy
    Show {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Print the file that `policy apply` takes, as TOML
        #[arg(long, conflicts_with = "output")]
        file: bool,
    },
    /// Make or replace an allow policy
    #[command(after_help = policy_file::HELP)]
    Apply {
        /// The policy: *.toml or *.json, or standard input (-)
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
}

/// Runs the command.
pub(crate) async fn run(command: &PolicyCommand, session: &Session) -> Result<Outcome> {
    match command {
        PolicyCommand::List => {
            let policies = session.client.list(&POLICIES, &[]).await?;
            session.output.list(&policies, table)?;
        }
        PolicyCommand::Show { name, file } => {
            let reply = session.client.get(&[&POLICIES[..], &[name]].concat()).await?;
            if *file {
                let Policy { name, profile, rules, .. } = reply.decode()?;
                write(&toml::to_string(&PolicyDocument { name, profile, rules })?, "")?;
            } else {
                print(session, &reply)?;
            }
        }
        PolicyCommand::Apply { file } => {
            let document = policy_file::read(file)?;
            let path = [&POLICIES[..], &[&document.name]].concat();
            print(session, &session.client.put(&path, &document).await?)?;
        }
    }
    Ok(Outcome::Done)
}

fn print(session: &Session, reply: &Reply) -> Result<()> {
    session.output.entity(reply, shown)
}

fn table(policies: &[Policy]) -> Table {
    let columns = [
        ("NAME", Fit::Whole),
        ("PROFILE", Fit::Whole),
        ("RULES", Fit::Whole),
        ("REVISION", Fit::Whole),
        ("CHANGED (UTC)", Fit::Optional),
        ("DIGEST", Fit::Optional),
    ];
    Table::new(&columns, policies, |policy| {
        vec![
            policy.name.clone(),
            policy.profile.clone(),
            policy.rules.len().to_string(),
            policy.revision.to_string(),
            seconds(policy.last_update_date_time_utc),
            policy.digest.clone(),
        ]
    })
}

fn shown(policy: &Policy) -> String {
    let head = record([
        ("name", Some(policy.name.clone())),
        ("profile", Some(policy.profile.clone())),
        ("revision", Some(policy.revision.to_string())),
        ("digest", Some(policy.digest.clone())),
        ("changed", Some(policy.last_update_date_time_utc.to_string())),
        ("changed by", Some(policy.last_update_by.clone())),
        ("rules", policy.rules.is_empty().then(|| "none".to_owned())),
    ]);
    let rules = policy.rules.iter().map(rule);
    std::iter::once(head).chain(rules).collect::<Vec<_>>().join("\n")
}

fn rule(rule: &Rule) -> String {
    record([
        ("rule", Some(rule.id.clone())),
        ("effect", Some(rule.effect.clone())),
        ("sha256", Some(rule.sha256.clone())),
        ("path", rule.path.clone()),
        ("comment", (!rule.comment.is_empty()).then(|| rule.comment.clone())),
    ])
}
