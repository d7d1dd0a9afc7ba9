//! The other commands: what people and scripts read.

use agent_protocol::PreviewState;
use domain::restriction::Desired;
use serde_json::Value;

use crate::machine::{Machine, PACKAGED};
use crate::server::Server;
use crate::wait_until;

fn verdict(checks: &Value, name: &str) -> String {
    let check = checks.as_array().unwrap().iter().find(|check| check["name"] == name);
    check.unwrap_or_else(|| panic!("no {name} in {checks}"))["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn status_and_doctor_tell_what_is_and_what_is_wrong() {
    let server = Server::start();
    let mut machine = Machine::new("true");
    let checks = machine.json(&["doctor"]);
    for name in ["gate", "enrollment", "agent"] {
        assert_eq!(verdict(&checks, name), "failed", "{name}");
    }
    assert_eq!(verdict(&checks, "packages"), "ok");
    assert_eq!(machine.command(&["doctor"]).output().unwrap().status.code(), Some(1));
    let run = machine.command(&["run"]).output().unwrap();
    assert!(String::from_utf8(run.stderr).unwrap().contains("not enrolled"));

    machine.start_gate();
    machine.enroll(&server);
    machine.start_agent();
    wait_until("the agent is connected", || machine.json(&["status"])["agent"]["connected"] == true);
    wait_until("the gate knows the packages", || machine.gate_status()["baseline_files"] == 3);
    let checks = machine.json(&["doctor"]);
    for name in ["gate", "tier", "baseline", "enrollment", "certificate", "server", "agent", "packages"] {
        assert_eq!(verdict(&checks, name), "ok", "{checks}");
    }
    // The test's server says that it is 1994.
    assert_eq!(verdict(&checks, "clock"), "failed");
    let text = String::from_utf8(machine.command(&["doctor"]).output().unwrap().stdout).unwrap();
    assert!(text.contains("-> correct this machine's clock"), "{text}");

    server.enforce(Desired::Restricted);
    let text = String::from_utf8(machine.command(&["status"]).output().unwrap().stdout).unwrap();
    for expected in
        ["restricted, ", "fanotify", "generation    1", "3 files", "connected, for ", "3 vouched for"]
    {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    server.enforce(Desired::Released);
}

#[test]
fn explain_joins_the_gates_verdict_with_the_packages() {
    let server = Server::start();
    let machine = Machine::connected(&server);
    let allowed = machine.json(&["explain", PACKAGED]);
    assert_eq!(
        (allowed["allowed"].as_bool(), allowed["cause"].as_str()),
        (Some(true), Some("package-database"))
    );
    assert_eq!(
        (&allowed["package"]["state"], &allowed["package"]["name"]),
        (&"shipped".into(), &"base".into())
    );
    let unlisted = machine.unlisted();
    let refused = machine.json(&["explain", unlisted.to_str().unwrap()]);
    assert_eq!((refused["allowed"].as_bool(), refused["cause"].as_str()), (Some(false), Some("unlisted")));
    assert_eq!(refused["sha256"], allowed["sha256"], "a copy: the same content, another place");
    let text = machine.command(&["explain", PACKAGED]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("runs while this machine is restricted"), "{text}");
    // Another user gets what the packages say, and is told why not more.
    let mut other = machine.inside(&["setpriv", "--reuid", "12345", "--clear-groups"]);
    other.arg(machine.folder.join("bin/cordon-agent")).arg("--config").arg(machine.folder.join("agent.toml"));
    let output = other.args(["explain", PACKAGED]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("base (dpkg) shipped exactly this") && text.contains("run this as root"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn preview_lists_what_runs_and_would_be_refused() {
    let server = Server::start();
    let machine = Machine::connected(&server);
    let path = machine.folder.join("sleeper");
    std::fs::copy("/usr/bin/sleep", &path).unwrap();
    let mut sleeper = machine.inside(&[path.to_str().unwrap(), "600"]).spawn().unwrap();
    // As soon as the process is that program, and no longer the one that starts it.
    let found = || {
        let preview = machine.json(&["preview"]);
        let refused = preview["refused"].as_array().unwrap();
        refused.iter().find(|file| file["path"] == path.to_str().unwrap()).cloned()
    };
    wait_until("the program runs and is listed", || found().is_some());
    let file = found().unwrap();
    assert_eq!((&file["cause"], &file["processes"]), (&"unlisted".into(), &1.into()));
    assert_eq!(file["pids"], serde_json::json!([sleeper.id()]));
    let text = machine.command(&["preview"]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    for expected in [path.to_str().unwrap(), "audit is off", &format!("runs as {}", sleeper.id())] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    // The server gets the same when it asks.
    server.want_preview();
    server.wait("the preview is reported", |seen| match seen.previews.last() {
        Some(PreviewState::Made(made)) => made.refused.iter().any(|file| file.path == path.to_str().unwrap()),
        Some(PreviewState::Underway { .. }) | None => false,
        Some(PreviewState::Failed { reason }) => panic!("{reason}"),
    });
    let unknown = machine.command(&["preview", "--policy", "unheard-of"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    let why = String::from_utf8(unknown.stderr).unwrap();
    assert!(why.contains("holds no policy of this name"), "{why}");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn inventory_runs_at_once() {
    let server = Server::start();
    let mut machine = Machine::new("true");
    machine.start_gate();
    machine.enroll(&server);
    let found = machine.json(&["inventory"]);
    assert_eq!((&found["vouched"], &found["files"], &found["packages"]), (&3.into(), &3.into(), &1.into()));
    assert_eq!(found["baseline"], machine.gate_status()["baseline"]);
    assert_eq!(found["baseline_was_held"], false);
    assert_eq!(machine.json(&["inventory"])["baseline_was_held"], true);
    let text = String::from_utf8(machine.command(&["inventory"]).output().unwrap().stdout).unwrap();
    assert!(text.contains("vouched     3"), "{text}");
    // What root scanned, the agent goes on with.
    machine.start_agent();
    server.wait("the inventory is told", |seen| {
        seen.inventory.as_ref().is_some_and(|summary| summary.complete)
    });
    wait_until("it is logged", || machine.log("agent.log").contains("inventory complete"));
    assert!(machine.log("agent.log").contains("hashed=0"), "{}", machine.log("agent.log"));
}

#[test]
fn completion_help_and_settings() {
    let machine = Machine::new("true");
    for shell in ["bash", "zsh", "fish"] {
        let output = machine.command(&["completion", shell]).output().unwrap();
        assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("enroll"));
    }
    let output = machine.command(&["check-config"]).env("CORDON_AGENT_NOTIFY", "true").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("notify = true") && text.contains("state_dir = "), "{text}");
    machine.configure("no_such_key = 1\n");
    let output = machine.command(&["status"]).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("no_such_key"));
    for command in ["enroll", "run", "status", "doctor", "explain", "preview", "inventory"] {
        let output = machine.command(&[command, "--help"]).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{command}");
    }
}
