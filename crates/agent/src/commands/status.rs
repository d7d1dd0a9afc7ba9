//! `status`: how this machine stands, as the gate and the running agent say it.

use std::time::SystemTime;

use anyhow::Result;
use domain::time::Timestamp;
use gate_protocol::Status;
use serde::Serialize;

use super::{print, print_json, span};
use crate::arguments::Output;
use crate::config::Config;
use crate::credential::Credential;
use crate::gate::Gate;
use crate::https::printable;
use crate::run_state::RunState;
use crate::state_dir::StateDir;

#[derive(Serialize)]
struct Report {
    /// None when the gate does not answer.
    gate: Option<Status>,
    enrollment: Option<Enrolled>,
    /// None when no agent runs.
    agent: Option<RunState>,
    /// What could not be looked at, and why.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Enrolled {
    machine: String,
    incarnation: u64,
    server: String,
    agent_url: String,
    /// Seconds since 1970.
    certificate_not_after: i64,
}

/// Shows the status. What cannot be looked at is said, and is no error.
///
/// # Errors
/// When the agent's folder is none, or the status cannot be printed.
pub(super) fn status(config: &Config, output: Output) -> Result<()> {
    let state = StateDir::new(&config.state_dir);
    let mut problems = Vec::new();
    let mut look = |name: &str, error: anyhow::Error| problems.push(printable(&format!("{name}: {error:#}")));
    let gate = Gate::connect(&config.gate_socket).and_then(|mut gate| gate.status());
    let gate = gate.map_err(|error| look("gate", error)).ok();
    let _as_owner = state.as_owner()?;
    let credential = Credential::load(&state).map_err(|error| look("enrollment", error)).ok().flatten();
    let agent = RunState::load(&state).map_err(|error| look("agent", error)).ok().flatten();
    let enrollment = credential.map(|credential| Enrolled {
        machine: credential.id.to_string(),
        incarnation: credential.enrollment.incarnation,
        server: printable(&credential.enrollment.server),
        agent_url: printable(&credential.enrollment.agent_url),
        certificate_not_after: credential.validity.not_after.unix_seconds(),
    });
    let report = Report { gate, enrollment, agent, problems };
    match output {
        Output::Json => print_json(&report),
        Output::Text => print(&report.text()),
    }
}

impl Report {
    fn text(&self) -> String {
        let now = Timestamp::from(SystemTime::now()).unix_seconds();
        let since = |past: i64| span(u64::try_from(now - past).unwrap_or(0));
        let mut lines = Vec::new();
        match &self.gate {
            None => lines.push(("state", "unknown: the gate does not answer".to_owned())),
            Some(gate) => {
                let restricted = format!("restricted, {} executions refused", gate.denied);
                lines.push(("state", if gate.restricted { restricted } else { "released".to_owned() }));
                lines.extend(gate.ends_at.map(|ends_at| {
                    let left =
                        u64::try_from(Timestamp::from_ticks(ends_at).unix_seconds() - now).unwrap_or(0);
                    ("ends", format!("by itself at {}, in {}", Timestamp::from_ticks(ends_at), span(left)))
                }));
                lines.extend(gate.failed_closed.clone().map(|reason| ("failed closed", reason)));
                let tier = gate.tier.clone().unwrap_or_else(|| "none".to_owned());
                lines.push(("tier", format!("{tier} ({})", gate.tier_note)));
                lines.push(("generation", gate.generation.to_string()));
                lines.push(("policies", format!("{} held", gate.policies.len())));
                let files = format!("{} files that packages shipped", gate.baseline_files);
                lines.push((
                    "baseline",
                    gate.baseline.as_ref().map_or_else(|| "none yet".to_owned(), |_| files),
                ));
            }
        }
        match &self.enrollment {
            None => lines.push(("machine", "not enrolled, as far as this user may know".to_owned())),
            Some(enrolled) => {
                lines.push(("machine", enrolled.machine.clone()));
                lines.push(("server", enrolled.agent_url.clone()));
                let left = u64::try_from(enrolled.certificate_not_after - now).map(span);
                lines.push((
                    "certificate",
                    left.map_or_else(|_| "ended".to_owned(), |left| format!("{left} left")),
                ));
            }
        }
        match &self.agent {
            None => lines.push(("agent", "not running, as far as this user may know".to_owned())),
            Some(agent) => {
                lines.push(("agent", format!("{}, for {}", agent.link, since(agent.since))));
                let waiting = (agent.receipts_waiting, agent.executions_waiting, agent.executions_dropped);
                let unsent = format!(
                    "{} receipts, {} executions; {} executions were lost",
                    waiting.0, waiting.1, waiting.2
                );
                lines.push(("unsent", unsent));
                lines.extend(agent.inventory.as_ref().map(|inventory| {
                    let (done, total) = (inventory.files_done, inventory.files_total);
                    let found = format!(
                        "{} vouched for, {} modified, {} unreadable",
                        inventory.vouched, inventory.modified, inventory.unreadable
                    );
                    ("inventory", if inventory.complete { found } else { format!("{done} of {total} files") })
                }));
                lines.extend(agent.last_problem.clone().map(|problem| ("last problem", problem)));
            }
        }
        lines.extend(self.problems.iter().map(|problem| ("not seen", problem.clone())));
        lines.into_iter().map(|(name, value)| format!("{name:<13} {}\n", printable(&value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_shown() {
        let ends_at = Timestamp::from_unix_seconds(951_868_800).ticks();
        let mut gate: Status = serde_json::from_value(serde_json::json!({
            "version": "", "public_key": "", "machine": null, "incarnation": 1, "store_epoch": 1, "generation": 1,
            "restricted": true, "ends_at": ends_at, "failed_closed": null, "tier": null, "tier_note": "",
            "policies": [], "policy": null, "baseline": null, "baseline_files": 0, "marks": 0, "labels": 0,
            "asked": 0, "denied": 0,
        }))
        .unwrap();
        let text = |gate: &Status| {
            Report { gate: Some(gate.clone()), enrollment: None, agent: None, problems: Vec::new() }.text()
        };
        let shown = text(&gate);
        assert!(shown.contains("ends          by itself at 2000-03-01T00:00:00Z, in 0 s\n"), "{shown}");
        gate.ends_at = None;
        assert!(!text(&gate).contains("ends"), "{}", text(&gate));
    }

    #[test]
    fn what_others_said_does_not_control_the_terminal() {
        let evil = "a\x1b]0;b\u{9b}2J\nagent  well".to_owned();
        let agent = RunState {
            process: 1,
            since: 0,
            connected: true,
            link: evil.clone(),
            last_problem: Some(evil.clone()),
            clock_ahead_seconds: None,
            receipts_waiting: 0,
            executions_waiting: 0,
            executions_dropped: 0,
            inventory: None,
        };
        let enrollment = Enrolled {
            machine: evil.clone(),
            incarnation: 1,
            server: evil.clone(),
            agent_url: evil.clone(),
            certificate_not_after: 0,
        };
        let report =
            Report { gate: None, enrollment: Some(enrollment), agent: Some(agent), problems: vec![evil] };
        let text = report.text();
        assert_eq!(text.lines().count(), 8, "{text:?}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
}
