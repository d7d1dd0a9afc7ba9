//! `doctor`: everything that the agent needs, checked, with what to do where something is wrong.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use domain::time::Timestamp;
use gate_protocol::Status;
use rustls::ClientConfig;
use serde::Serialize;

use super::{print, print_json, span};
use crate::arguments::Output;
use crate::config::Config;
use crate::credential::Credential;
use crate::gate::Gate;
use crate::https::{self, printable};
use crate::inventory;
use crate::run_state::RunState;
use crate::state_dir::StateDir;
use crate::tls;

/// A clock that is further off is wrong: orders and certificates end by it.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    message: String,
    /// What to do about it.
    advice: Option<String>,
}

#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn ok(&mut self, name: &'static str, message: impl Into<String>) {
        self.0.push(Check { name, verdict: Verdict::Ok, message: printable(&message.into()), advice: None });
    }

    fn warn(&mut self, name: &'static str, message: impl Into<String>, advice: &str) {
        let advice = Some(advice.to_owned());
        self.0.push(Check { name, verdict: Verdict::Warning, message: printable(&message.into()), advice });
    }

    fn fail(&mut self, name: &'static str, message: impl Into<String>, advice: &str) {
        let advice = Some(advice.to_owned());
        self.0.push(Check { name, verdict: Verdict::Failed, message: printable(&message.into()), advice });
    }
}

/// Checks everything. The exit code is 1 when something is wrong.
///
/// # Errors
/// When the agent's folder is none, or what was found cannot be printed.
pub(super) fn doctor(config: &Config, output: Output) -> Result<ExitCode> {
    let mut checks = Checks::default();
    let state = StateDir::new(&config.state_dir);
    let gate = check_gate(config, &mut checks);
    let _as_owner = state.as_owner()?;
    let credential = check_enrollment(&state, gate.as_ref(), &mut checks);
    if let Some(credential) = &credential {
        check_certificate(credential, &mut checks);
        check_server(credential, &mut checks);
    }
    check_agent(&state, &mut checks);
    check_packages(config, &mut checks);
    let Checks(checks) = checks;
    match output {
        Output::Json => print_json(&checks)?,
        Output::Text => {
            let text = |check: &Check| {
                let mark = match check.verdict {
                    Verdict::Ok => "ok     ",
                    Verdict::Warning => "warning",
                    Verdict::Failed => "FAILED ",
                };
                let advice =
                    check.advice.as_ref().map(|advice| format!("                      -> {advice}\n"));
                format!("{mark}  {:<12} {}\n{}", check.name, check.message, advice.unwrap_or_default())
            };
            print(&checks.iter().map(text).collect::<String>())?;
        }
    }
    let is_well = checks.iter().all(|check| check.verdict != Verdict::Failed);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check_gate(config: &Config, checks: &mut Checks) -> Option<Status> {
    let status = match Gate::connect(&config.gate_socket).and_then(|mut gate| gate.status()) {
        Ok(status) => status,
        Err(error) => {
            let advice = "start it: systemctl start cordon-gate; then see journalctl -u cordon-gate";
            checks.fail("gate", format!("{error:#}"), advice);
            return None;
        }
    };
    checks.ok("gate", format!("version {} answers", status.version));
    if let Some(reason) = &status.failed_closed {
        let advice =
            "have the machine restricted or released again: an order signed from here on puts it right";
        checks.fail("gate state", format!("the gate failed closed: {reason}"), advice);
    }
    match &status.tier {
        Some(tier) => checks.ok("tier", tier.clone()),
        None => checks.fail(
            "tier",
            status.tier_note.clone(),
            "this kernel cannot hold a restriction: use another",
        ),
    }
    match (&status.baseline, status.baseline_files) {
        (Some(_), files) => checks.ok("baseline", format!("{files} files that packages shipped")),
        (None, _) => checks.fail(
            "baseline",
            "the gate does not know what the packages shipped: restricted, it would refuse nearly everything",
            "run cordon-agent inventory as root, and see what it says",
        ),
    }
    Some(status)
}

fn check_enrollment(state: &StateDir, gate: Option<&Status>, checks: &mut Checks) -> Option<Credential> {
    let credential = match Credential::load(state) {
        Ok(Some(credential)) => credential,
        Ok(None) => {
            let advice = "run cordon-agent enroll as root, with a token that the server gives out";
            checks.fail("enrollment", "this machine is not enrolled", advice);
            return None;
        }
        Err(error) => {
            checks.fail(
                "enrollment",
                format!("{error:#}"),
                "run this as root; if it says the same, enroll again",
            );
            return None;
        }
    };
    let (machine, incarnation) = (credential.id.to_string(), credential.enrollment.incarnation);
    match gate {
        Some(gate) if gate.machine.as_ref() != Some(&machine) || gate.incarnation != incarnation => checks
            .fail(
                "enrollment",
                format!(
                    "the gate is bound to {}, the agent is {machine}",
                    gate.machine.as_deref().unwrap_or("nobody")
                ),
                "the gate would refuse every order: enroll this machine again",
            ),
        _ => checks.ok("enrollment", format!("machine {machine}, incarnation {incarnation}")),
    }
    Some(credential)
}

fn check_certificate(credential: &Credential, checks: &mut Checks) {
    let now = Timestamp::from(SystemTime::now());
    let validity = credential.validity;
    if now < validity.not_before {
        checks.fail("certificate", "not valid yet", "correct this machine's clock");
    } else if now > validity.not_after {
        checks.fail("certificate", "ended", "enroll this machine again, or correct its clock");
    } else {
        checks.ok("certificate", format!("{} left", span(validity.not_after.since(now).as_secs())));
    }
}

fn check_server(credential: &Credential, checks: &mut Checks) {
    let url = &credential.enrollment.agent_url;
    let date = match tls::mutual(credential).and_then(|tls| ask_server(url, tls)) {
        Ok(date) => date,
        Err(error) => {
            let advice = "check the name, the network and the firewall between this machine and the server";
            return checks.fail("server", format!("{url}: {error:#}"), advice);
        }
    };
    checks.ok("server", format!("{url} answers, and knows this machine's certificate"));
    let Some(theirs) = date else { return };
    let ours = Timestamp::from(SystemTime::now());
    let difference = ours.since(theirs).max(theirs.since(ours));
    if difference > CLOCK_TOLERANCE {
        let message = format!("{} away from the server's", span(difference.as_secs()));
        checks.fail("clock", message, "correct this machine's clock: orders and certificates end by it");
    } else {
        checks.ok("clock", "agrees with the server's");
    }
}

/// Asks for nothing in particular: any answer shows that name, network and both certificates are right. The server's
/// date, when it says one.
fn ask_server(url: &str, tls: ClientConfig) -> Result<Option<Timestamp>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = https::client(tls)?;
    let url = https::base_url(url)?;
    let response = runtime.block_on(async { client.get(url).send().await }).context("no answer")?;
    let date = response.headers().get("date").and_then(|date| date.to_str().ok());
    Ok(date.and_then(http_date))
}

/// Reads `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<Timestamp> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<_> = text.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = words.as_slice() else { return None };
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| (0..10_000).contains(number));
    let month = i64::try_from(MONTHS.iter().position(|name| name == month)?).ok()? + 1;
    let (day, year) = (number(day)?, number(year)?);
    let mut time = time.split(':').map(number);
    let (hours, minutes, seconds) = (time.next()??, time.next()??, time.next()??);
    // Days since 1970 in the proleptic Gregorian calendar, counting years from March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(Timestamp::from_unix_seconds(((days * 24 + hours) * 60 + minutes) * 60 + seconds))
}

fn check_agent(state: &StateDir, checks: &mut Checks) {
    match RunState::load(state) {
        Err(error) => checks.fail("agent", format!("{error:#}"), "run this as root"),
        Ok(None) => checks.fail(
            "agent",
            "not running",
            "start it: systemctl start cordon-agent; then see journalctl -u cordon-agent",
        ),
        Ok(Some(agent)) if agent.connected => checks.ok("agent", "connected to the server"),
        Ok(Some(agent)) => {
            let problem = agent.last_problem.map(|problem| format!("; last: {problem}")).unwrap_or_default();
            let advice = "see journalctl -u cordon-agent";
            checks.warn("agent", format!("{}{problem}", agent.link), advice);
        }
    }
}

fn check_packages(config: &Config, checks: &mut Checks) {
    let mut read = Vec::new();
    for path in inventory::inventory(config).watched() {
        match std::fs::File::open(&path) {
            Ok(_) => read.push(path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let advice = "the inventory must read it: see the permissions of the file and its folders";
                return checks.fail("packages", format!("{}: {error}", path.display()), advice);
            }
        }
    }
    if read.is_empty() {
        let advice = "the inventory needs the database of dpkg or rpm: without one nothing is vouched for";
        checks.fail("packages", format!("no database below {}", config.dpkg_root.display()), advice);
    } else {
        checks.ok("packages", format!("can be read: {}", read.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::http_date;

    #[test]
    fn dates_of_replies() {
        for (text, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2028 23:59:59 GMT", Some(1_835_481_599)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("Sun, -6 Nov 1994 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(http_date(text).map(|time| time.unix_seconds()), expected, "{text}");
        }
    }
}
