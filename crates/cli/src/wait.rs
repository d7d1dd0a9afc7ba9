//! Waiting for a machine action: shows each step that it takes, until it is final or nobody wants to wait any longer.
//!
//! Times are the server's, counted from when it recorded the action.

use std::time::Duration;

use anyhow::Result;
use api_types::machine_action::MachineAction;
use domain::machine_action::Status;
use domain::permission::Requirement;
use indicatif::HumanDuration;

use crate::commands::action;
use crate::error::ClientError;
use crate::http::Reply;
use crate::outcome::Outcome;
use crate::session::Session;

/// How long is waited unless told otherwise.
pub(crate) const TIMEOUT_DEFAULT: &str = "10m";
/// The first look comes soon, since an online machine is done in tens of milliseconds; then ever later. The last
/// interval keeps within 1,500 calls an hour.
pub(crate) const POLL_FIRST: Duration = Duration::from_millis(25);
pub(crate) const POLL_LAST: Duration = Duration::from_millis(2500);

/// Why waiting ended.
enum Ended {
    Final(Outcome),
    NoPermission(anyhow::Error),
    TimeOut,
    Interrupted,
}

/// Waits until the action in `reply` is final, at most for `timeout`, and prints it.
pub(crate) async fn until_final(session: &Session, mut reply: Reply, timeout: Duration) -> Result<Outcome> {
    let id = reply.decode::<MachineAction>()?.id;
    let ended = tokio::select! {
        ended = watch(session, &mut reply) => ended,
        () = tokio::time::sleep(timeout) => Ok(Ended::TimeOut),
        interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| Ended::Interrupted).map_err(Into::into),
    };
    session.progress.waited();
    let ended = ended.inspect_err(|_| session.progress.note(&goes_on(id)))?;
    let note = |note: &str| session.progress.note(&format!("{note}: {}", goes_on(id)));
    let outcome = match ended {
        Ended::Final(outcome) => outcome,
        Ended::NoPermission(error) => {
            let needed: Vec<_> =
                Requirement::READ.permissions.iter().map(|permission| permission.name()).collect();
            session.progress.note(&error.to_string());
            note(&format!(
                "cannot wait: this app may start and cancel actions, but to read them it needs {}",
                needed.join(" or ")
            ));
            Outcome::Pending
        }
        Ended::TimeOut => {
            note(&format!("not final after {}", HumanDuration(timeout)));
            Outcome::Pending
        }
        Ended::Interrupted => {
            note("no longer waiting");
            Outcome::Pending
        }
    };
    action::print(session, &reply)?;
    Ok(outcome)
}

/// Prints an action that nobody waits for, and tells how to look at it later.
pub(crate) fn not_at_all(session: &Session, reply: &Reply) -> Result<Outcome> {
    let action: MachineAction = reply.decode()?;
    action::print(session, reply)?;
    let outcome = outcome(&action);
    if outcome.is_none() {
        session.output.hint(&goes_on(action.id));
    }
    Ok(outcome.unwrap_or(Outcome::Pending))
}

/// Whether the app or person may not read.
pub(crate) fn is_forbidden(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(ClientError::is_forbidden)
}

/// Whether the same call may succeed a moment later.
pub(crate) fn is_transient(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(ClientError::is_transient)
}

fn goes_on(id: uuid::Uuid) -> String {
    format!("the action goes on; look at it with: cordon action wait {id}")
}

/// Keeps the newest reply in `reply`.
async fn watch(session: &Session, reply: &mut Reply) -> Result<Ended> {
    let (client, progress) = (&session.client, &session.progress);
    let mut told = None;
    let mut unreachable = false;
    let mut pause = POLL_FIRST;
    loop {
        let action: MachineAction = reply.decode()?;
        if told.as_ref() != Some(&action.status) {
            progress.note(&step(&action));
            told = Some(action.status.clone());
        }
        if let Some(outcome) = outcome(&action) {
            return Ok(Ended::Final(outcome));
        }
        progress.waiting(&format!("{}: {}", action.computer_dns_name, expected(&action)));
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(POLL_LAST);
        let id = action.id.to_string();
        match client.get(&["api", "machineactions", &id]).await {
            Ok(newer) => {
                *reply = newer;
                unreachable = false;
            }
            Err(error) if is_forbidden(&error) => return Ok(Ended::NoPermission(error)),
            // The action does not depend on this program's connection.
            Err(error) if is_transient(&error) => {
                if !unreachable {
                    progress.note(&format!("{error}; trying again"));
                }
                unreachable = true;
                pause = POLL_LAST;
            }
            Err(error) => return Err(error),
        }
    }
}

/// How a final action ended.
pub(crate) fn outcome(action: &MachineAction) -> Option<Outcome> {
    match status(action)? {
        Status::Pending | Status::InProgress => None,
        Status::Succeeded => Some(Outcome::Done),
        Status::Failed | Status::Cancelled => Some(Outcome::Failed),
        Status::TimeOut => Some(Outcome::TimedOut),
    }
}

/// The status; a word that this program does not know is taken as not final.
fn status(action: &MachineAction) -> Option<Status> {
    let all = [
        Status::Pending,
        Status::InProgress,
        Status::Succeeded,
        Status::Failed,
        Status::TimeOut,
        Status::Cancelled,
    ];
    all.into_iter().find(|status| status.name() == action.status)
}

fn expected(action: &MachineAction) -> &'static str {
    match status(action) {
        Some(Status::InProgress) => "the machine has the order; waiting for its proof",
        _ => "waiting for the machine to take the order",
    }
}

/// What just happened, with the time that it took.
fn step(action: &MachineAction) -> String {
    let taken = action.last_update_date_time_utc.0.since(action.creation_date_time_utc.0);
    let after = if taken < Duration::from_secs(10) {
        format!("after {:.1} ms", taken.as_secs_f64() * 1000.0)
    } else {
        format!("after {}", HumanDuration(taken))
    };
    let because =
        |reason: &Option<String>| reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match status(action) {
        Some(Status::Pending) => format!("queued     for {}, action {}", action.computer_dns_name, action.id),
        Some(Status::InProgress) => format!("delivered  {after}"),
        Some(Status::Succeeded) => format!("proved     {after}"),
        Some(Status::Failed) => format!("failed     {after}{}", because(&action.troubleshoot_info)),
        Some(Status::TimeOut) => format!("timed out  {after}: the machine did not take the order in time"),
        Some(Status::Cancelled) => format!("cancelled  {after}{}", because(&action.cancellation_comment)),
        None => format!("{}  {after}", action.status),
    }
}
