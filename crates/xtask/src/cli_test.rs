//! The command line, as a script uses it, against a real server, gate and agent: exit codes and JSON.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
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
const DIFFERS: i32 = 6;

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

    // Many machines by one call, here one.
    cordon.expect(DONE, &["machine", "tag", "add", MACHINE, "cli"])?;
    let all = |verb| ["machine", verb, "--tag", "cli", "--comment", "test"];
    let counted = cordon.json(DONE, &[&all("restrict")[..], &["--dry-run"]].concat())?;
    ensure!(counted.pointer("/plan/actions") == Some(&1.into()), "not one machine: {counted}");
    cordon.expect(USAGE, &all("restrict"))?;
    let report =
        cordon.json(DONE, &[&all("restrict")[..], &["--expires-in", "1h", "--yes", "--wait"]].concat())?;
    let status = report.pointer("/results/0/action/status").and_then(Value::as_str);
    ensure!(status == Some("Succeeded"), "not Succeeded: {report}");
    let shown = cordon.json(DONE, &["machine", "show", MACHINE])?;
    let ends = shown.pointer("/executionRestriction/endsAt");
    ensure!(ends.is_some_and(Value::is_string), "the restriction has no end: {shown}");
    cordon.expect(DONE, &[&all("unrestrict")[..], &["--yes", "--wait"]].concat())?;

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

    let lists = ["machine", "action", "policy", "machine-group", "enrollment-token", "app", "user", "role"];
    for list in lists.into_iter().chain(["settings", "event", "audit"]) {
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
    declare(&cordon)?;
    sign_in(&cordon)
}

/// Applies documents: twice is once, and what differs is told.
fn declare(cordon: &Cordon<'_>) -> Result<()> {
    let folder = cordon.lab.folder.join("documents");
    fs::create_dir_all(&folder)?;
    for (file, text) in [
        ("policy.toml", "kind = \"policy\"\nname = \"strict\"\nprofile = \"os-only\"\n"),
        (
            "group.toml",
            "kind = \"machine-group\"\nname = \"Lab\"\nrank = 1\npolicy = \"strict\"\n[[rule]]\n\
             property = \"tag\"\noperator = \"equals\"\nvalue = \"cli\"\n",
        ),
        ("other.json", r#"{"kind": "machine-group", "name": "Other", "rank": 2}"#),
        (
            "role.toml",
            "kind = \"role\"\nname = \"Responder\"\nrights = [\"View data\"]\nuserGroups = [\"people\"]\n",
        ),
        ("settings.toml", "kind = \"settings\"\nbulkMachinesPerHour = 50\n"),
    ] {
        fs::write(folder.join(file), text)?;
    }
    let path = folder.display().to_string();
    cordon.expect(DIFFERS, &["diff", "-f", &path])?;
    cordon.expect(DONE, &["apply", "-f", &path])?;
    cordon.expect(DONE, &["diff", "-f", &path])?;
    let group = cordon.json(DONE, &["machine-group", "show", "Lab"])?;
    ensure!(group.get("machines") == Some(&1.into()), "the machine is not in its group: {group}");
    // The ranks change places, and a role goes.
    for (file, before, after) in [
        ("group.toml", "rank = 1", "rank = 2"),
        ("other.json", "\"rank\": 2", "\"rank\": 1"),
        ("role.toml", "Responder", "Reader"),
    ] {
        let file = folder.join(file);
        fs::write(&file, fs::read_to_string(&file)?.replace(before, after))?;
    }
    cordon.expect(USAGE, &["apply", "-f", &path, "--prune"])?;
    cordon.expect(DONE, &["apply", "-f", &path, "--prune", "--yes"])?;
    cordon.expect(DONE, &["diff", "-f", &path, "--prune"])?;
    cordon.expect(FAILED, &["role", "show", "Responder"])?;
    Ok(())
}

/// Signs a person in by device code, as the person approves it on the page, and out again.
fn sign_in(cordon: &Cordon<'_>) -> Result<()> {
    let lab = cordon.lab;
    let user = cordon.json(DONE, &["user", "create", "ann", "--group", "people"])?;
    let home = lab.folder.join("home");
    let ca_file = lab.ca_file.display().to_string();
    let person = |arguments: &[&str]| {
        let mut command = lab.cordon();
        for variable in ["CORDON_SERVER", "CORDON_CLIENT_ID", "CORDON_CLIENT_SECRET", "CORDON_CA_FILE"] {
            command.env_remove(variable);
        }
        command.env("XDG_CONFIG_HOME", &home).args(arguments);
        command
    };
    let mut login = person(&["login", "--server", &lab.url, "--ca-file", &ca_file]);
    println!("  $ {}", line(&login));
    let mut login = login.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let stderr = login.stderr.take().context("no standard error")?;
    let mut lines = BufReader::new(stderr).lines();
    let mut after = |words: &str| -> Result<String> {
        let line = lines.next().context("the sign-in ended")??;
        Ok(line.strip_prefix(words).with_context(|| format!("no {words:?}: {line}"))?.trim().to_owned())
    };
    let (page, code) = (after("to sign in, open")?, after("and enter")?);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail-with-body", "--cacert"]).arg(&lab.ca_file);
    let password = text(&user, "password")?;
    for (name, value) in
        [("user_code", code.as_str()), ("username", "ann"), ("password", &password), ("decision", "approve")]
    {
        curl.args(["--data-urlencode", &format!("{name}={value}")]);
    }
    command::output(curl.arg(&page))?;
    // Its last words are read to the end, so that it can write them.
    let rest = lines.collect::<std::io::Result<Vec<_>>>()?.join("\n");
    ensure!(login.wait()?.success(), "the sign-in failed: {rest}");
    let expect = |code: i32, arguments: &[&str]| -> Result<String> {
        let mut command = person(arguments);
        let output = command.output()?;
        println!("  $ {} -> {}", line(&command), output.status);
        ensure!(output.status.code() == Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let who: Value = serde_json::from_str(&expect(DONE, &["whoami", "-o", "json"])?)?;
    ensure!(text(&who, "name")? == "ann", "not ann: {who}");
    expect(DONE, &["machine", "show", MACHINE])?;
    expect(FAILED, &["app", "list"])?;
    cordon.expect(DONE, &["user", "disable", "ann"])?;
    expect(FAILED, &["machine", "show", MACHINE])?;
    expect(DONE, &["logout"])?;
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
