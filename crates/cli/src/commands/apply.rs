//! `cordon apply` and `cordon diff`: policies, machine groups, roles and settings as files say that they are to be.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use anyhow::Result;
use api_types::machine_group::{MachineGroup, MachineGroupDocument};
use api_types::policy::{Policy, PolicyDocument};
use api_types::role::Role;
use api_types::settings::{Setting, SettingsUpdate};
use clap::Args;
use console::Style;
use domain::allow_policy::AllowPolicy;
use domain::machine_group::UNGROUPED_ID;
use domain::role::ADMINISTRATOR;
use serde::Serialize;

use crate::commands::below;
use crate::commands::machine_group::{GROUPS, document_of};
use crate::commands::policy::POLICIES;
use crate::commands::role::ROLES;
use crate::commands::settings::{self, SETTINGS};
use crate::difference::{self, Difference, Lines, between};
use crate::document::{self, Document, Kind, Sourced};
use crate::outcome::Outcome;
use crate::session::Session;
use crate::text::printable;
use crate::{confirm, rank};

#[derive(Debug, Args)]
pub(crate) struct ApplyArguments {
    #[command(flatten)]
    files: Files,
    /// Only tell what would change
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before anything is deleted
    #[arg(short, long, requires = "prune")]
    yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArguments {
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct Files {
    /// A file, or a folder with files; repeat it
    #[arg(short, long = "file", value_name = "DIR|FILE", required = true)]
    files: Vec<PathBuf>,
    /// Delete what the server has of the kinds in the files, and the files do not have
    #[arg(long)]
    prune: bool,
}

/// What becomes of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Change {
    /// Only the files have it.
    Added,
    /// The files have it otherwise than the server.
    Changed,
    /// Both have it alike.
    Unchanged,
    /// Only the server has it, and keeps it.
    OnlyOnServer,
    /// Only the server has it, and it is deleted.
    Deleted,
}

/// One thing, and what becomes of it.
struct Item {
    kind: Kind,
    name: String,
    source: Option<String>,
    change: Change,
    differences: Vec<Difference>,
}

/// One call of the API, for the item with this number.
struct Step {
    item: usize,
    call: Call,
}

enum Call {
    Policy(PolicyDocument),
    Group(MachineGroupDocument),
    DeleteGroup(String),
    Role(Role),
    DeleteRole(String),
    Settings(SettingsUpdate),
}

/// What becomes of everything, and the calls that make it so, in order.
#[derive(Default)]
struct Plan {
    items: Vec<Item>,
    steps: Vec<Step>,
}

/// Tells what the server has otherwise than the files.
pub(crate) async fn diff(arguments: &DiffArguments, session: &Session) -> Result<Outcome> {
    let documents = document::read_all(&arguments.files.files)?;
    let plan = Plan::of(session, documents, arguments.files.prune).await?;
    plan.print(session, 0)?;
    Ok(if plan.changes().next().is_some() { Outcome::Differs } else { Outcome::Done })
}

/// Makes the server have what the files say.
pub(crate) async fn apply(arguments: &ApplyArguments, session: &Session) -> Result<Outcome> {
    let documents = document::read_all(&arguments.files.files)?;
    if arguments.files.prune && !arguments.dry_run {
        confirm::require_answerable(arguments.yes, "to delete what the files do not have")?;
    }
    let plan = Plan::of(session, documents, arguments.files.prune).await?;
    if arguments.dry_run {
        plan.print(session, 0)?;
        return Ok(Outcome::Done);
    }
    session.output.tell(&plan.rendered())?;
    session.progress.note(&plan.summary());
    let deleted: Vec<_> =
        plan.items.iter().filter(|item| item.change == Change::Deleted).map(Item::title).collect();
    if !deleted.is_empty() && !arguments.yes {
        confirm::ask(&format!("delete {}?", deleted.join(", ")))?;
    }
    let mut done = 0;
    for step in &plan.steps {
        let title = plan.items.get(step.item).map(Item::title).unwrap_or_default();
        if let Err(error) = step.call.make(session).await {
            session.progress.note(&format!(
                "stopped: {done} of {} calls were made; what they changed stays, and the next run goes on from there",
                plan.steps.len()
            ));
            plan.print_json(session, done)?;
            return Err(error.context(title));
        }
        done += 1;
        session.progress.note(&format!("done  {title}"));
    }
    plan.print_json(session, done)?;
    Ok(Outcome::Done)
}

impl Plan {
    /// Compares the documents with what the server has.
    async fn of(session: &Session, documents: Vec<Sourced>, prune: bool) -> Result<Self> {
        let mut plan = Self::default();
        let (mut policies, mut groups, mut roles, mut updates) = (vec![], vec![], vec![], vec![]);
        for Sourced { source, document } in documents {
            match document {
                Document::Policy(policy) => policies.push((source, policy)),
                Document::MachineGroup(group) => groups.push((source, group)),
                Document::Role(role) => roles.push((source, role)),
                Document::Settings(update) => updates.push((source, update)),
            }
        }
        if !policies.is_empty() {
            plan.policies(policies, session.client.list(&POLICIES, &[]).await?.decode()?);
        }
        if !groups.is_empty() {
            plan.groups(&groups, &session.client.list(&GROUPS, &[]).await?.decode::<MachineGroup>()?, prune);
        }
        if !roles.is_empty() {
            plan.roles(roles, session.client.list(&ROLES, &[]).await?.decode()?, prune);
        }
        for (source, update) in updates {
            let there: Vec<Setting> = session.client.list(&SETTINGS, &[]).await?.decode()?;
            plan.settings(source, &update, &there, prune)?;
        }
        Ok(plan)
    }

    /// Adds an item of a file; its number.
    fn add(
        &mut self,
        kind: Kind,
        name: &str,
        source: String,
        before: Option<&Lines>,
        after: &Lines,
    ) -> usize {
        let differences = between(before.unwrap_or(&Lines::new()), after);
        let change = match before {
            None => Change::Added,
            Some(_) if differences.is_empty() => Change::Unchanged,
            Some(_) => Change::Changed,
        };
        self.items.push(Item { kind, name: name.to_owned(), source: Some(source), change, differences });
        self.items.len() - 1
    }

    /// Adds what only the server has; its number.
    fn add_other(&mut self, kind: Kind, name: &str, is_deleted: bool, lines: &Lines) -> usize {
        let (change, differences) = if is_deleted {
            (Change::Deleted, between(lines, &Lines::new()))
        } else {
            (Change::OnlyOnServer, Vec::new())
        };
        self.items.push(Item { kind, name: name.to_owned(), source: None, change, differences });
        self.items.len() - 1
    }

    fn step(&mut self, item: usize, call: Call) {
        self.steps.push(Step { item, call });
    }

    fn is_to_do(&self, item: usize) -> bool {
        self.items.get(item).is_some_and(|item| item.change != Change::Unchanged)
    }

    fn policies(&mut self, documents: Vec<(String, PolicyDocument)>, there: Vec<Policy>) {
        let mut there: HashMap<String, Lines> = there
            .into_iter()
            .map(|Policy { name, profile, settings, rules, .. }| {
                let document = PolicyDocument { name: name.clone(), profile, settings, rules };
                let lines = difference::of_policy(&document);
                (name, lines)
            })
            .collect();
        for (source, policy) in documents {
            let before = there.remove(&policy.name);
            let after = difference::of_policy(&policy);
            let item = self.add(Kind::Policy, &policy.name, source, before.as_ref(), &after);
            if self.is_to_do(item) {
                self.step(item, Call::Policy(policy));
            }
        }
        // Orders that are in force may name a policy, so none is ever deleted.
        let mut others: Vec<_> =
            there.into_iter().filter(|(name, _)| name != AllowPolicy::DEFAULT_NAME).collect();
        others.sort();
        for (name, lines) in others {
            self.add_other(Kind::Policy, &name, false, &lines);
        }
    }

    fn groups(&mut self, documents: &[(String, MachineGroupDocument)], there: &[MachineGroup], prune: bool) {
        let order: Vec<String> =
            there.iter().filter(|group| group.id != UNGROUPED_ID).map(|group| group.name.clone()).collect();
        let named: HashSet<&String> = documents.iter().map(|(_, group)| &group.name).collect();
        let is_gone = |name: &String| prune && !named.contains(name);
        let is_new = |name: &String| !there.iter().any(|group| group.name == *name);
        let kept: Vec<String> = order.iter().filter(|name| !is_gone(name)).cloned().collect();
        let ranked: Vec<_> =
            documents.iter().filter_map(|(_, group)| Some((group.name.clone(), group.rank?))).collect();
        let new: Vec<String> = documents.iter().map(|(_, group)| group.name.clone()).filter(is_new).collect();
        let wanted = rank::wanted(&kept, &ranked, &new);
        let place = |order: &[String], name: &str| {
            let place = order.iter().position(|other| other == name)?;
            u32::try_from(place + 1).ok()
        };
        let movable: HashSet<String> = named.iter().map(|name| (*name).clone()).collect();
        let mut now = order.clone();
        let mut items = HashMap::new();
        for (source, group) in documents {
            let old = there.iter().find(|old| old.name == group.name).cloned().map(document_of);
            let shown = |order: &[String]| group.rank.and_then(|_| place(order, &group.name));
            // Where a group stands counts among those that stay.
            let before = old.as_ref().map(|old| difference::of_group(old, shown(&kept)));
            let after = difference::of_group(group, shown(&wanted));
            let item = self.add(Kind::MachineGroup, &group.name, source.clone(), before.as_ref(), &after);
            items.insert(group.name.clone(), item);
            let saved = MachineGroupDocument { rank: None, ..group.clone() };
            match old {
                None => {
                    let rank = place(&wanted, &group.name);
                    rank::put(&mut now, &group.name, rank.unwrap_or(u32::MAX));
                    self.step(item, Call::Group(MachineGroupDocument { rank, ..saved }));
                }
                // What differs besides the rank; a save without one leaves the group where it is.
                Some(old) if difference::of_group(&old, None) != difference::of_group(group, None) => {
                    self.step(item, Call::Group(saved));
                }
                Some(_) => {}
            }
        }
        for group in there.iter().filter(|group| group.id != UNGROUPED_ID && !named.contains(&group.name)) {
            let lines = difference::of_group(&document_of(group.clone()), None);
            let item = self.add_other(Kind::MachineGroup, &group.name, prune, &lines);
            if prune {
                self.step(item, Call::DeleteGroup(group.name.clone()));
            }
        }
        now.retain(|name| !is_gone(name));
        for (name, rank) in rank::moves(now, &wanted, &movable) {
            let found = documents.iter().find(|(_, group)| group.name == name);
            if let (Some((_, group)), Some(item)) = (found, items.get(&name)) {
                self.step(*item, Call::Group(MachineGroupDocument { rank: Some(rank), ..group.clone() }));
            }
        }
    }

    fn roles(&mut self, documents: Vec<(String, Role)>, there: Vec<Role>, prune: bool) {
        let mut there: HashMap<String, Role> =
            there.into_iter().map(|role| (role.name.clone(), role)).collect();
        for (source, role) in documents {
            let before = there.remove(&role.name).as_ref().map(difference::of_role);
            let item = self.add(Kind::Role, &role.name, source, before.as_ref(), &difference::of_role(&role));
            if self.is_to_do(item) {
                self.step(item, Call::Role(role));
            }
        }
        let mut others: Vec<_> = there.into_values().filter(|role| role.name != ADMINISTRATOR).collect();
        others.sort_by(|a, b| a.name.cmp(&b.name));
        for role in others {
            let item = self.add_other(Kind::Role, &role.name, prune, &difference::of_role(&role));
            if prune {
                self.step(item, Call::DeleteRole(role.name));
            }
        }
    }

    fn settings(
        &mut self,
        source: String,
        update: &SettingsUpdate,
        there: &[Setting],
        prune: bool,
    ) -> Result<()> {
        let wanted: HashMap<String, Option<u64>> = update.changes().into_iter().collect();
        let set = || there.iter().filter(|setting| setting.is_set);
        let pairs = |setting: &&Setting| (setting.name.clone(), setting.value);
        let named: Vec<_> =
            set().filter(|setting| wanted.contains_key(&setting.name)).map(|s| pairs(&s)).collect();
        let others: Vec<_> =
            set().filter(|setting| !wanted.contains_key(&setting.name)).map(|s| pairs(&s)).collect();
        let lines = |pairs: &[(String, u64)]| {
            difference::of_settings(pairs.iter().map(|(name, value)| (name.as_str(), *value)))
        };
        let before = lines(&named);
        let after: Vec<_> =
            wanted.iter().filter_map(|(name, value)| Some((name.clone(), (*value)?))).collect();
        let item = self.add(Kind::Settings, "", source, Some(&before), &lines(&after));
        let differs = |(name, value): &(&String, &Option<u64>)| {
            named.iter().find(|(other, _)| other == *name).map(|(_, value)| *value) != **value
        };
        let mut changes: Vec<_> =
            wanted.iter().filter(differs).map(|(name, value)| (name.as_str(), *value)).collect();
        changes.sort_unstable();
        if !changes.is_empty() {
            self.step(item, Call::Settings(settings::update(&changes)?));
        }
        if !others.is_empty() {
            let names: Vec<_> = others.iter().map(|(name, _)| name.as_str()).collect();
            let item = self.add_other(Kind::Settings, &names.join(", "), prune, &lines(&others));
            if prune {
                let changes: Vec<_> = names.into_iter().map(|name| (name, None)).collect();
                self.step(item, Call::Settings(settings::update(&changes)?));
            }
        }
        Ok(())
    }

    /// What is to do.
    fn changes(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| match item.change {
            Change::Added | Change::Changed | Change::Deleted => true,
            Change::Unchanged | Change::OnlyOnServer => false,
        })
    }

    fn print(&self, session: &Session, done: usize) -> Result<()> {
        session.output.tell(&self.rendered())?;
        session.progress.note(&self.summary());
        self.print_json(session, done)
    }

    /// The report for programs; `done` steps were made.
    fn print_json(&self, session: &Session, done: usize) -> Result<()> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Told<'a> {
            kind: &'static str,
            name: &'a str,
            source: Option<&'a str>,
            change: Change,
            removed: Vec<&'a str>,
            added: Vec<&'a str>,
            /// Whether all that was to do is done.
            applied: bool,
        }
        #[derive(Serialize)]
        struct Report<'a> {
            documents: Vec<Told<'a>>,
        }
        let open: HashSet<usize> = self.steps.iter().skip(done).map(|step| step.item).collect();
        let documents = self.items.iter().enumerate().map(|(number, item)| {
            let lines = |wanted: fn(&Difference) -> Option<&str>| {
                item.differences.iter().filter_map(wanted).collect()
            };
            Told {
                kind: item.kind.name(),
                name: &item.name,
                source: item.source.as_deref(),
                change: item.change,
                removed: lines(|difference| match difference {
                    Difference::Removed(line) => Some(line),
                    Difference::Added(_) => None,
                }),
                added: lines(|difference| match difference {
                    Difference::Added(line) => Some(line),
                    Difference::Removed(_) => None,
                }),
                applied: !open.contains(&number) && item.change != Change::OnlyOnServer,
            }
        });
        session.output.json(&Report { documents: documents.collect() })
    }

    fn rendered(&self) -> String {
        self.items.iter().map(Item::rendered).collect()
    }

    fn summary(&self) -> String {
        let count = |change| self.items.iter().filter(|item| item.change == change).count();
        let counts = [
            (count(Change::Added), "to add"),
            (count(Change::Changed), "to change"),
            (count(Change::Deleted), "to delete"),
            (count(Change::Unchanged), "unchanged"),
            (count(Change::OnlyOnServer), "only on the server"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let text = counts.map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(", ");
        if self.changes().next().is_some() { text } else { format!("nothing to do: {text}") }
    }
}

impl Item {
    fn title(&self) -> String {
        let (kind, name) = (self.kind.name(), &self.name);
        if name.is_empty() { kind.to_owned() } else { format!("{kind} {name:?}") }
    }

    fn rendered(&self) -> String {
        let title = printable(&self.title());
        let source =
            self.source.as_ref().map(|source| format!("  ({})", printable(source))).unwrap_or_default();
        let style = Style::new();
        let head = match self.change {
            Change::Added => style.green().apply_to(format!("+ {title}")),
            Change::Changed => style.yellow().apply_to(format!("~ {title}")),
            Change::Unchanged => style.apply_to(format!("= {title}")),
            Change::OnlyOnServer => style.dim().apply_to(format!("? {title}  only on the server")),
            Change::Deleted => {
                let deleted = if self.kind == Kind::Settings { "taken back" } else { "deleted" };
                style.red().apply_to(format!("- {title}  only on the server: to be {deleted}"))
            }
        };
        format!("{head}{source}\n{}", difference::rendered(&self.differences))
    }
}

impl Call {
    async fn make(&self, session: &Session) -> Result<()> {
        let client = &session.client;
        let reply = match self {
            Self::Policy(policy) => client.put(&below(&POLICIES, &[&policy.name]), &[], policy).await,
            Self::Group(group) => client.put(&below(&GROUPS, &[&group.name]), &[], group).await,
            Self::DeleteGroup(name) => client.delete(&below(&GROUPS, &[name])).await,
            Self::Role(role) => client.put(&below(&ROLES, &[&role.name]), &[], role).await,
            Self::DeleteRole(name) => client.delete(&below(&ROLES, &[name])).await,
            Self::Settings(update) => client.patch(&SETTINGS, update).await,
        };
        reply.map(drop)
    }
}
