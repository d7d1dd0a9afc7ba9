//! The command line, as a script uses it, against a real server, gate and agent: exit codes and JSON.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::{self, line};
use crate::lab::{Lab, Machine, Show, VerdictCache, text};
use crate::programs::Programs;

/// How long an action may stay open here: long enough to be seen pending, short enough to wait for its end.
const DEADLINE: Duration = Duration::from_secs(4);
const MACHINE: &str = "cli-machine";

/// The exit codes that `cordon --help` lists.
const DONE: i32 = 0;
const USAGE: i32 = 2;
const PENDING: i32 = 3;
const FAILED: i32 = 4;
const TIMED_OUT: i32 = 5;

/// Runs the commands; an error names the first that did not end as it must.
pub(crate) fn run(programs: &Programs) -> Result<()> {
    let settings = format!("action_deadline_seconds = {}\n", DEADLINE.as_secs());
    let lab = Lab::start(programs, &settings, Show::Nothing)?;
    let mut machine = lab.machine(MACHINE, VerdictCache::On)?;
    machine.wait_for_baseline()?;
    let result = check(&lab, &mut machine);
    if result.is_err() {
        lab.print_logs();
    }
    result
}

fn check(lab: &Lab, machine: &mut Machine) -> Result<()> {
    let cordon = Cordon { lab };
    let restrict = ["machine", "restrict", MACHINE, "--comment", "test", "--wait"];
    let unrestrict = ["machine", "unrestrict", MACHINE, "--comment", "test", "--wait"];

    cordon.expect(DONE, &restrict)?;
    let shown = cordon.json(DONE, &["machine", "show", MACHINE])?;
    let reported = shown.pointer("/executionRestriction/reported").and_then(Value::as_str);
    ensure!(reported == Some("Restricted"), "the machine is not shown as restricted: {shown}");
    let action = cordon.json(DONE, &unrestrict)?;
    ensure!(text(&action, "status")? == "Succeeded", "not Succeeded: {action}");

    // A machine whose gate cannot prove a restriction: nothing can be executed where its canaries are.
    let canaries = machine.folder().join("gate/canaries");
    command::run(machine.inside(&["mount", "-t", "tmpfs", "-o", "noexec", "none"]).arg(&canaries))?;
    let action = cordon.json(FAILED, &restrict)?;
    ensure!(text(&action, "status")? == "Failed", "not Failed: {action}");
    ensure!(action.get("troubleshootInfo").is_some_and(Value::is_string), "no reason: {action}");
    command::run(machine.inside(&["umount"]).arg(&canaries))?;
    cordon.expect(DONE, &unrestrict)?;

    // A machine that does not answer.
    machine.kill_agent()?;
    let [name @ .., _wait] = restrict;
    let pending = text(&cordon.json(PENDING, &name)?, "id")?;
    cordon.expect(DONE, &["action", "cancel", &pending])?;
    cordon.expect(FAILED, &["action", "wait", &pending])?;
    let action = cordon.json(TIMED_OUT, &restrict)?;
    ensure!(text(&action, "status")? == "TimeOut", "not TimeOut: {action}");

    for list in ["machine", "action", "policy", "enrollment-token", "app", "event", "audit"] {
        let rows = cordon.json(DONE, &[list, "list"])?;
        ensure!(rows.is_array() || rows.get("value").is_some_and(Value::is_array), "no list: {rows}");
    }
    let app = cordon.json(DONE, &["app", "create", "reader", "--permission", "Machine.Read.All"])?;
    let refused = lab
        .cordon()
        .env("CORDON_CLIENT_ID", text(&app, "id")?)
        .env("CORDON_CLIENT_SECRET", text(&app, "secret")?)
        .args(restrict)
        .output()?;
    ensure!(
        refused.status.code() == Some(FAILED),
        "an app that may only read restricted: {}",
        refused.status
    );
    cordon.expect(DONE, &["app", "revoke", &text(&app, "id")?])?;
    let token = cordon.json(DONE, &["enrollment-token", "create"])?;
    cordon.expect(DONE, &["enrollment-token", "revoke", &text(&token, "id")?])?;
    cordon.expect(FAILED, &["machine", "show", "no-such-machine"])?;
    cordon.expect(USAGE, &["machine", "restrict", MACHINE])?;
    cordon.expect(DONE, &["completion", "bash"])?;
    Ok(())
}

struct Cordon<'a> {
    lab: &'a Lab,
}

impl Cordon<'_> {
    /// Runs a command that must end with this exit code; what it printed.
    fn expect(&self, code: i32, arguments: &[&str]) -> Result<String> {
        let mut command: Command = self.lab.cordon();
        command.args(arguments);
        let output = command.output()?;
        println!("  $ {} -> {}", line(&command), output.status);
        ensure!(
            output.status.code() == Some(code),
            "{} was to end with {code}, but ended with {}: {}",
            line(&command),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same, as JSON.
    fn json(&self, code: i32, arguments: &[&str]) -> Result<Value> {
        let printed = self.expect(code, &[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))
    }
}
