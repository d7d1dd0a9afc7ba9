//! `cordon policy`: the predefined sets.

use std::path::PathBuf;

use anyhow::Result;
use api_types::policy::{Policy, PolicyApplied, PolicyChange, PolicyDocument, Rule};
use api_types::policy_settings::PolicySettings;
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use crate::commands::{below, options};
use crate::difference;
use crate::http::Reply;
use crate::outcome::Outcome;
use crate::output::{record, write};
use crate::policy_file;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;

/// The collection.
pub(crate) const POLICIES: [&str; 4] = ["api", "cordon", "v1", "policies"];

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
        /// Only tell what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// List the revisions of an allow policy, the newest first
    Revisions {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Tell what differs between two revisions of an allow policy
    Diff {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// The older revision [default: the one before the newer]
        #[arg(long, value_name = "N")]
        from: Option<u64>,
        /// The newer revision [default: the newest]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
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
            let reply = session.client.get(&below(&POLICIES, &[name])).await?;
            if *file {
                let Policy { name, profile, settings, rules, .. } = reply.decode()?;
                write(&toml::to_string(&PolicyDocument { name, profile, settings, rules })?, "")?;
            } else {
                print(session, &reply)?;
            }
        }
        PolicyCommand::Apply { file, dry_run } => {
            let document = policy_file::read(file)?;
            let path = below(&POLICIES, &[&document.name]);
            let query = if *dry_run { &[("dryRun", "true".to_owned())][..] } else { &[] };
            let reply = session.client.put(&path, query, &document).await?;
            if *dry_run {
                session.output.entity(&reply, |planned: &PolicyApplied| changed(&planned.change))?;
            } else {
                print(session, &reply)?;
            }
        }
        PolicyCommand::Revisions { name } => {
            let revisions = session.client.list(&below(&POLICIES, &[name, "revisions"]), &[]).await?;
            session.output.list(&revisions, table_of_revisions)?;
        }
        PolicyCommand::Diff { name, from, to } => {
            let query =
                options([("from", from.map(|from| from.to_string())), ("to", to.map(|to| to.to_string()))]);
            let reply = session.client.get_where(&below(&POLICIES, &[name, "diff"]), &query).await?;
            session.output.entity(&reply, changed)?;
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

fn table_of_revisions(policies: &[Policy]) -> Table {
    let columns = [
        ("REVISION", Fit::Whole),
        ("SAVED (UTC)", Fit::Whole),
        ("PROFILE", Fit::Whole),
        ("RULES", Fit::Whole),
        ("SAVED BY", Fit::Optional),
        ("DIGEST", Fit::Optional),
    ];
    Table::new(&columns, policies, |policy| {
        vec![
            policy.revision.to_string(),
            seconds(policy.last_update_date_time_utc),
            policy.profile.clone(),
            policy.rules.len().to_string(),
            policy.last_update_by.clone(),
            policy.digest.clone(),
        ]
    })
}

/// What differs, and the machine groups that it is about.
fn changed(change: &PolicyChange) -> String {
    let from = change.from_revision.map_or_else(|| "nothing".to_owned(), |from| format!("revision {from}"));
    let head = record([
        ("policy", Some(change.name.clone())),
        ("from", Some(from)),
        ("to", Some(format!("revision {}", change.to_revision))),
        ("machine groups", (!change.machine_groups.is_empty()).then(|| change.machine_groups.join(", "))),
    ]);
    let differences = difference::of_change(change);
    let rest = if differences.is_empty() {
        "nothing differs\n".to_owned()
    } else {
        difference::rendered(&differences)
    };
    head + &rest
}

fn shown(policy: &Policy) -> String {
    let head = record([
        ("name", Some(policy.name.clone())),
        ("profile", Some(policy.profile.clone())),
        ("revision", Some(policy.revision.to_string())),
        ("digest", Some(policy.digest.clone())),
        ("changed", Some(policy.last_update_date_time_utc.to_string())),
        ("changed by", Some(policy.last_update_by.clone())),
        ("settings", Some(settings(&policy.settings))),
        ("rules", policy.rules.is_empty().then(|| "none".to_owned())),
    ]);
    let rules = policy.rules.iter().map(rule);
    std::iter::once(head).chain(rules).collect::<Vec<_>>().join("\n")
}

/// The settings that are not at their defaults.
fn settings(settings: &PolicySettings) -> String {
    let set = match settings.read() {
        Ok(settings) => settings.entries_set(),
        Err(error) => return format!("not readable by this version: {error}"),
    };
    let set: Vec<_> = set.iter().map(|(setting, value)| format!("{setting} = {value}")).collect();
    if set.is_empty() { "all at their defaults".to_owned() } else { set.join(", ") }
}

fn rule(rule: &Rule) -> String {
    record([
        ("rule", Some(rule.id.clone())),
        ("effect", Some(rule.effect.clone())),
        ("sha256", rule.sha256.clone()),
        ("fs-verity", rule.fs_verity.clone()),
        ("path", rule.path.clone()),
        ("comment", (!rule.comment.is_empty()).then(|| rule.comment.clone())),
    ])
}
