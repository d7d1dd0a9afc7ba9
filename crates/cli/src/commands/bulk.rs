//! Restricting and unrestricting many machines by one call: which, a question, and waiting for all of them.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use api_types::bulk::{BulkPlan, BulkReply, BulkRequest, BulkResult};
use api_types::machine::Machine;
use api_types::machine_action::{ActionRequest, MachineAction};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use indicatif::HumanDuration;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::commands::machine::{Change, ChangeArguments};
use crate::confirm;
use crate::http::Reply;
use crate::outcome::Outcome;
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::wait::{self, POLL_FIRST, POLL_LAST};

/// How much older than the first action of a call its others may be: some may be of an earlier call with the same key.
const CREATED_MARGIN: Duration = Duration::from_secs(60 * 60);

/// Which machines.
#[derive(Debug, Args)]
pub(crate) struct Targets {
    /// Machines, by id or name
    #[arg(value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new(),
          conflicts_with_all = ["filter", "tag", "group"])]
    machines: Vec<String>,
    /// The machines that match, such as "osPlatform eq 'Linux'" (OData $filter)
    #[arg(long, value_name = "EXPRESSION", value_parser = NonEmptyStringValueParser::new())]
    filter: Option<String>,
    /// The machines with this tag
    #[arg(long, value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    tag: Option<String>,
    /// The machines of this machine group
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    group: Option<String>,
}

impl Targets {
    /// The only machine, when exactly one is named.
    pub(crate) fn single(&self) -> Option<&str> {
        match self.machines.as_slice() {
            [machine] => Some(machine),
            _ => None,
        }
    }

    /// Whether nothing says which machines.
    pub(crate) fn is_empty(&self) -> bool {
        self.machines.is_empty() && self.filter().is_none()
    }

    /// All that is asked of the machines, as one expression.
    fn filter(&self) -> Option<String> {
        let quoted = |text: &String| format!("'{}'", text.replace('\'', "''"));
        let conditions = [
            self.filter.as_ref().map(|filter| format!("({filter})")),
            self.tag.as_ref().map(|tag| format!("machineTags/any(t: t eq {})", quoted(tag))),
            self.group.as_ref().map(|group| format!("rbacGroupName eq {}", quoted(group))),
        ];
        let conditions: Vec<_> = conditions.into_iter().flatten().collect();
        match (&self.filter, conditions.as_slice()) {
            (_, []) => None,
            (Some(filter), [_]) => Some(filter.clone()),
            (_, several) => Some(several.join(" and ")),
        }
    }

    async fn ids(&self, session: &Session) -> Result<Vec<String>> {
        let mut ids = Vec::with_capacity(self.machines.len());
        for machine in &self.machines {
            let is_id = machine.len() == 40 && machine.bytes().all(|byte| byte.is_ascii_hexdigit());
            ids.push(if is_id {
                machine.to_lowercase()
            } else {
                session.client.get(&["api", "machines", machine]).await?.decode::<Machine>()?.id
            });
        }
        Ok(ids)
    }
}

/// Makes the call, after a question.
pub(crate) async fn run(
    session: &Session,
    arguments: &ChangeArguments,
    change: Change,
    action: ActionRequest,
) -> Result<Outcome> {
    let verb = match change {
        Change::Restrict => "restrict",
        Change::Unrestrict => "unrestrict",
    };
    if !arguments.dry_run {
        confirm::require_answerable(arguments.yes, &format!("to {verb} many machines"))?;
    }
    let filter = arguments.targets.filter();
    let machine_ids = if filter.is_some() { None } else { Some(arguments.targets.ids(session).await?) };
    let mut request = BulkRequest {
        machine_ids,
        filter,
        comment: action.comment,
        external_id: action.external_id,
        expires_in: action.expires_in,
        policy: action.policy,
        dry_run: true,
    };
    let path = ["api", "cordon", "v1", "machines", change.route()];
    if arguments.dry_run {
        let reply = session.client.post(&path, &request).await?;
        session
            .output
            .entity(&reply, |reply: &BulkReply| reply.plan.as_ref().map(planned).unwrap_or_default())?;
        return Ok(Outcome::Done);
    }
    if !arguments.yes {
        let reply: BulkReply = session.client.post(&path, &request).await?.decode()?;
        // A call that would be refused is not worth a question: it is sent, and says why.
        if let Some(plan) = reply.plan.as_ref().filter(|plan| plan.refusal.is_none()) {
            confirm::ask(&question(verb, plan))?;
        }
    }
    request.dry_run = false;
    let reply = session.client.post_once(&path, &request, arguments.idempotency_key.as_deref()).await?;
    if arguments.wait {
        until_final(session, &reply, arguments.timeout).await
    } else {
        not_at_all(session, &reply)
    }
}

fn question(verb: &str, plan: &BulkPlan) -> String {
    format!(
        "{verb} {} of {} machines ({} offline, {} unsupported, {} already restricted, {} with such an action \
         already)?",
        plan.actions,
        plan.total,
        plan.offline,
        plan.unsupported,
        plan.already_restricted,
        plan.already_active
    )
}

fn planned(plan: &BulkPlan) -> String {
    record([
        ("machines", Some(plan.total.to_string())),
        ("unknown", Some(plan.unknown.to_string())),
        ("online", Some(plan.online.to_string())),
        ("offline", Some(plan.offline.to_string())),
        ("unsupported", Some(plan.unsupported.to_string())),
        ("already restricted", Some(plan.already_restricted.to_string())),
        ("already in progress", Some(plan.already_active.to_string())),
        ("would get an action", Some(plan.actions.to_string())),
        ("would be refused", plan.refusal.clone()),
    ])
}

/// A machine's result, and its action as far as it is known.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Watched {
    #[serde(flatten)]
    result: BulkResult,
    /// The action as the API tells it.
    action: Option<Box<RawValue>>,
    #[serde(skip)]
    status: Option<MachineAction>,
}

#[derive(Serialize)]
struct Report {
    id: Option<Uuid>,
    results: Vec<Watched>,
}

/// Prints the results of a call that nobody waits for.
fn not_at_all(session: &Session, reply: &Reply) -> Result<Outcome> {
    let bulk: BulkReply = reply.decode()?;
    session.output.entity_table(reply, |bulk: &BulkReply| {
        let columns = [("MACHINE", Fit::Whole), ("ACTION", Fit::Whole), ("ERROR", Fit::Cut)];
        Table::new(&columns, &bulk.results, |result| {
            vec![machine(result), id(result), error(result).unwrap_or_default()]
        })
    })?;
    let (made, failed) = counted(&bulk);
    session.progress.note(&summary(made, failed));
    Ok(match (made, failed) {
        (_, 1..) => Outcome::Failed,
        (1.., 0) => Outcome::Pending,
        (0, 0) => Outcome::Done,
    })
}

fn counted(bulk: &BulkReply) -> (usize, usize) {
    let failed = bulk.results.iter().filter(|result| result.error.is_some()).count();
    (bulk.results.len() - failed, failed)
}

fn summary(made: usize, failed: usize) -> String {
    match failed {
        0 => format!("{made} actions started"),
        _ => format!("{made} actions started; {failed} machines got none"),
    }
}

/// Why waiting ended.
enum Ended {
    Final,
    NoPermission(anyhow::Error),
    TimeOut,
    Interrupted,
}

/// Waits until all actions of a call are final, at most for `timeout`, and prints what became of each machine.
async fn until_final(session: &Session, reply: &Reply, timeout: Duration) -> Result<Outcome> {
    let bulk: BulkReply = reply.decode()?;
    let (made, failed) = counted(&bulk);
    session.progress.note(&summary(made, failed));
    let ids: Vec<Uuid> = bulk.results.iter().filter_map(|result| result.action_id).collect();
    let mut watch = Watch { session, ids: &ids, since: None, actions: HashMap::new() };
    let ended = tokio::select! {
        ended = watch.until_final() => ended,
        () = tokio::time::sleep(timeout) => Ok(Ended::TimeOut),
        interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| Ended::Interrupted).map_err(Into::into),
    };
    session.progress.waited();
    let ended = match ended {
        // The actions do not depend on this program, so what they are up to is told all the same.
        Err(error) => {
            session.progress.note(&format!("cannot wait: {error:#}; the actions go on"));
            Ended::Interrupted
        }
        Ok(ended) => ended,
    };
    match &ended {
        Ended::Final => {}
        Ended::NoPermission(error) => {
            session.progress.note(&format!("cannot wait without a permission to read: {error}"));
        }
        Ended::TimeOut => {
            let message = format!("not final after {}: the actions go on", HumanDuration(timeout));
            session.progress.note(&message);
        }
        Ended::Interrupted => session.progress.note("no longer waiting: the actions go on"),
    }
    if matches!(ended, Ended::Final | Ended::TimeOut)
        && let Err(error) = watch.fetch_all().await
    {
        session.progress.note(&format!("the end of some actions is not known: {error:#}"));
    }
    let mut actions = watch.actions;
    let watched = |result: BulkResult| {
        let found = result.action_id.and_then(|id| actions.remove(&id));
        let (action, status) = found.map_or((None, None), |(row, action)| (Some(row), Some(action)));
        Watched { result, action, status }
    };
    let results: Vec<_> = bulk.results.into_iter().map(watched).collect();
    let outcome = outcome(&results);
    let report = Report { id: bulk.id, results };
    session.output.made_table(&report, || table(&report.results))?;
    Ok(outcome)
}

/// The worst of the machines' outcomes: failed, timed out, pending, done.
fn outcome(results: &[Watched]) -> Outcome {
    let of = |watched: &Watched| match &watched.status {
        _ if watched.result.error.is_some() => Outcome::Failed,
        Some(action) => wait::outcome(action).unwrap_or(Outcome::Pending),
        None => Outcome::Pending,
    };
    let all: Vec<_> = results.iter().map(of).collect();
    let worst = [Outcome::Failed, Outcome::TimedOut, Outcome::Pending];
    worst.into_iter().find(|outcome| all.contains(outcome)).unwrap_or(Outcome::Done)
}

/// Looks at the actions of a call: by a few lists, however many there are.
struct Watch<'a> {
    session: &'a Session,
    ids: &'a [Uuid],
    /// Takes the actions of the call, and others of the same caller that are not older.
    since: Option<String>,
    actions: HashMap<Uuid, (Box<RawValue>, MachineAction)>,
}

#[derive(Deserialize)]
struct OnlyId {
    id: Uuid,
}

impl Watch<'_> {
    async fn until_final(&mut self) -> Result<Ended> {
        let progress = &self.session.progress;
        let mut pause = POLL_FIRST;
        let mut unreachable = false;
        loop {
            match self.open().await {
                Ok(0) => return Ok(Ended::Final),
                Ok(open) => {
                    unreachable = false;
                    let (all, done) = (self.ids.len(), self.ids.len().saturating_sub(open));
                    progress.waiting(&format!("{done} of {all} machines are done, {open} to go"));
                }
                Err(error) if wait::is_forbidden(&error) => return Ok(Ended::NoPermission(error)),
                Err(error) if wait::is_transient(&error) => {
                    if !unreachable {
                        progress.note(&format!("{error}; trying again"));
                    }
                    unreachable = true;
                    pause = POLL_LAST;
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(POLL_LAST);
        }
    }

    /// How many are not final.
    async fn open(&mut self) -> Result<usize> {
        let Some(since) = self.since().await? else { return Ok(0) };
        let query = [
            ("$filter", format!("{since} and status in ('Pending','InProgress')")),
            ("$select", "id".to_owned()),
        ];
        let rows = self.session.client.list(&["api", "machineactions"], &query).await?;
        let open: std::collections::HashSet<Uuid> =
            rows.decode::<OnlyId>()?.into_iter().map(|row| row.id).collect();
        Ok(self.ids.iter().filter(|id| open.contains(id)).count())
    }

    /// Every action as it is.
    async fn fetch_all(&mut self) -> Result<()> {
        let Some(since) = self.since().await? else { return Ok(()) };
        let rows = self.session.client.list(&["api", "machineactions"], &[("$filter", since)]).await?;
        for row in rows.value {
            let action: MachineAction = serde_json::from_str(row.get())?;
            self.actions.insert(action.id, (row, action));
        }
        for id in self.ids {
            if !self.actions.contains_key(id) {
                let reply = self.session.client.get(&["api", "machineactions", &id.to_string()]).await?;
                let action: MachineAction = reply.decode()?;
                self.actions.insert(*id, (serde_json::from_str(&reply.body)?, action));
            }
        }
        Ok(())
    }

    /// The filter that takes the call's actions, made of the first of them.
    async fn since(&mut self) -> Result<Option<String>> {
        let Some(first) = self.ids.first() else { return Ok(None) };
        if self.since.is_none() {
            let reply = self.session.client.get(&["api", "machineactions", &first.to_string()]).await?;
            let action: MachineAction = reply.decode()?;
            let requestor = action.requestor.replace('\'', "''");
            let created =
                api_types::date_time::DateTimeUtc(action.creation_date_time_utc.0.minus(CREATED_MARGIN));
            self.since = Some(format!("requestor eq '{requestor}' and creationDateTimeUtc ge {created}"));
        }
        Ok(self.since.clone())
    }
}

fn machine(result: &BulkResult) -> String {
    result.computer_dns_name.clone().unwrap_or_else(|| result.machine_id.clone())
}

fn id(result: &BulkResult) -> String {
    result.action_id.map(|id| id.to_string()).unwrap_or_default()
}

fn error(result: &BulkResult) -> Option<String> {
    result.error.as_ref().map(|error| format!("{}: {}", error.code, error.message))
}

fn table(results: &[Watched]) -> Table {
    let columns =
        [("MACHINE", Fit::Whole), ("STATUS", Fit::Whole), ("ACTION", Fit::Optional), ("DETAIL", Fit::Cut)];
    Table::new(&columns, results, |watched| {
        let action = watched.status.as_ref();
        let status = match (action, &watched.result.error) {
            (Some(action), _) => action.status.clone(),
            (None, Some(_)) => "no action".to_owned(),
            (None, None) => "unknown".to_owned(),
        };
        let detail = error(&watched.result).or_else(|| action?.troubleshoot_info.clone());
        vec![machine(&watched.result), status, id(&watched.result), detail.unwrap_or_default()]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_one_filter() {
        let targets = |filter: Option<&str>, tag: Option<&str>, group: Option<&str>| Targets {
            machines: Vec::new(),
            filter: filter.map(str::to_owned),
            tag: tag.map(str::to_owned),
            group: group.map(str::to_owned),
        };
        assert!(targets(None, None, None).is_empty());
        for (filter, tag, group, expected) in [
            (Some("a or b"), None, None, "a or b"),
            (None, Some("O'Hara"), None, "machineTags/any(t: t eq 'O''Hara')"),
            (
                Some("a or b"),
                Some("t"),
                Some("g"),
                "(a or b) and machineTags/any(t: t eq 't') and rbacGroupName eq 'g'",
            ),
        ] {
            assert_eq!(targets(filter, tag, group).filter().as_deref(), Some(expected));
        }
    }
}
