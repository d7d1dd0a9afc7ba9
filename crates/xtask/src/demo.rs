//! `cargo xtask demo`: the main job for real, from nothing to restricted, proved and released.
//!
//! Each command is printed as a person can repeat it, and each step is checked: the demo succeeds only if every
//! claim that it prints really held.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::{self, line};
use crate::lab::{Lab, Machine, Show, VerdictCache, text, wait_until};
use crate::programs::{self, Profile, Programs};
use crate::setup;

/// What happens at the end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Everything is stopped and removed.
    No,
    /// Everything stays up until Ctrl-C.
    Yes,
}

/// The name of the machine that the demo restricts.
const MACHINE: &str = "demo-machine";

/// Installs and builds what is missing, then shows the demo.
pub(crate) fn run(keep: Keep) -> Result<()> {
    setup::require(setup::DEMO)?;
    step("Build the programs");
    show(keep, &programs::build(Profile::Dev)?)
}

/// Shows the demo; an error names the first step that did not hold.
pub(crate) fn show(keep: Keep, programs: &Programs) -> Result<()> {
    step("Start a server, and enroll a machine that is nothing but a mount and a UTS namespace of its own");
    let lab = Lab::start(programs, "", Show::Commands)?;
    let mut machine = lab.machine(MACHINE, VerdictCache::On)?;
    let result = walk(&lab, &mut machine);
    if result.is_err() {
        lab.print_logs();
    }
    let unlisted = result?;
    println!("\nEvery step held.");
    if keep == Keep::Yes {
        print_next_steps(&lab, &machine, &unlisted);
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

/// The steps; the unlisted program.
fn walk(lab: &Lab, machine: &mut Machine) -> Result<PathBuf> {
    step("Get a token, as any client of the Defender API does: only the two URLs differ");
    let api = Api::new(lab)?;
    api.print_variables();
    println!("  (waiting until the agent has read what the packages of this machine shipped)");
    let files = machine.wait_for_baseline()?;
    let id = machine_id(&api)?;
    println!(
        "  {MACHINE} has the id {id}; its gate knows {files} programs and libraries that packages shipped"
    );

    step("Before: a program that no package shipped runs");
    let unlisted = unlisted_program(machine)?;
    expect_runs(machine, &unlisted)?;

    step("Restrict: one call");
    let body = r#"{"Comment": "IR-20771 contain while triaging"}"#;
    let action = api.post(&format!("/api/machines/{id}/restrictCodeExecution"), body)?;
    let proved = api.wait_for_success(&action)?;
    show_proof(&api, &proved)?;

    step("The kernel refuses the same program, and runs what a package shipped");
    expect_refused(machine, &unlisted)?;
    expect_runs(machine, Path::new("/usr/bin/id"))?;

    step("What was refused, as the API reports it");
    show_refusal(&api, &id, &unlisted)?;

    step("Kill the gate and the agent with -9, and start them again");
    let (gate, agent) = machine.program_ids()?;
    println!("  $ kill -9 {gate} {agent}");
    machine.kill_agent()?;
    machine.kill_gate()?;
    println!(
        "  In tier T3 the kernel asks nobody while the gate is dead, and allows: fanotify has no other answer."
    );
    println!("  The gate's first act when it starts is to restrict again, before it opens its socket:");
    machine.start_gate()?;
    expect_refused(machine, &unlisted)?;
    machine.start_agent()?;

    step("Unrestrict: one call");
    let body = r#"{"Comment": "IR-20771 clean"}"#;
    let action = api.post(&format!("/api/machines/{id}/unrestrictCodeExecution"), body)?;
    api.wait_for_success(&action)?;
    expect_runs(machine, &unlisted)?;
    Ok(unlisted)
}

fn step(title: &str) {
    println!("\n== {title}");
}

/// A program that no package shipped: compiled here and now.
fn unlisted_program(machine: &Machine) -> Result<PathBuf> {
    let source = machine.folder().join("unlisted.c");
    std::fs::write(
        &source,
        "#include <stdio.h>\nint main(void) { puts(\"unlisted code runs\"); return 0; }\n",
    )?;
    let program = machine.folder().join("unlisted");
    let mut compile = Command::new("cc");
    compile.arg("-o").arg(&program).arg(&source);
    println!("  $ {}", line(&compile));
    command::run(&mut compile)?;
    Ok(program)
}

fn expect_runs(machine: &Machine, program: &Path) -> Result<()> {
    let output = execute(machine, program)?;
    ensure!(output.status.success(), "{} was to run, but did not", program.display());
    Ok(())
}

fn expect_refused(machine: &Machine, program: &Path) -> Result<()> {
    let output = execute(machine, program)?;
    let refused = String::from_utf8_lossy(&output.stderr).contains("Operation not permitted");
    ensure!(!output.status.success() && refused, "{} was to be refused, but was not", program.display());
    Ok(())
}

fn execute(machine: &Machine, program: &Path) -> Result<std::process::Output> {
    let mut command = machine.inside(&[]);
    command.arg(program);
    println!("  $ {}", line(&command));
    let output = command.output()?;
    for text in [&output.stdout, &output.stderr] {
        for line in String::from_utf8_lossy(text).lines() {
            println!("  {line}");
        }
    }
    Ok(output)
}

/// The machine's id, once it is connected and reports that it is not restricted.
fn machine_id(api: &Api<'_>) -> Result<String> {
    let mut id = None;
    wait_until("the machine is connected", || {
        let machine = api.get_quietly(&format!("/api/machines/{MACHINE}"))?;
        if machine.pointer("/executionRestriction/reported").and_then(Value::as_str) == Some("Released") {
            id = Some(text(&machine, "id")?);
        }
        Ok(id.is_some())
    })?;
    id.context("no machine")
}

fn show_proof(api: &Api<'_>, action: &Value) -> Result<()> {
    let receipt = api.get(&format!("/api/cordon/v1/machineactions/{}/receipt", text(action, "id")?))?;
    let payload = receipt.get("payload").context("no payload in the receipt")?;
    let probe = payload.get("probe").context("no probe in the receipt")?;
    println!("  signed by the machine's gate, key {}:", text(&receipt, "publicKey")?);
    println!("{}", indented(payload)?);
    let (unlisted, listed) = (text(probe, "unlisted")?, text(probe, "listed")?);
    println!("  the probe: an unlisted program was {unlisted}, a listed one {listed}");
    ensure!(unlisted == "refused" && listed == "ran", "the canaries prove nothing: {payload}");
    let (created, proved) = (text(action, "creationDateTimeUtc")?, text(action, "lastUpdateDateTimeUtc")?);
    println!("  called {created}, proved {proved}: {:.1} ms", milliseconds_between(&created, &proved)?);
    Ok(())
}

/// The time between two points of the same day, as the API writes them.
fn milliseconds_between(from: &str, to: &str) -> Result<f64> {
    let seconds = |time: &str| -> Option<f64> {
        let (hours, rest) = time.split_once('T')?.1.trim_end_matches('Z').split_once(':')?;
        let (minutes, seconds) = rest.split_once(':')?;
        Some(
            hours.parse::<f64>().ok()? * 3600.0
                + minutes.parse::<f64>().ok()? * 60.0
                + seconds.parse::<f64>().ok()?,
        )
    };
    let between = seconds(to).zip(seconds(from)).map(|(to, from)| (to - from).rem_euclid(86_400.0));
    between
        .map(|seconds| seconds * 1000.0)
        .with_context(|| format!("{from} and {to} are not times of the API"))
}

fn show_refusal(api: &Api<'_>, machine: &str, program: &Path) -> Result<()> {
    let route = format!("/api/cordon/v1/executionEvents?machineId={machine}&top=10");
    let path = program.to_string_lossy();
    let find = |events: &Value| {
        let events = events.get("value").and_then(Value::as_array)?;
        events.iter().find(|event| text(event, "path").is_ok_and(|event| event == path)).cloned()
    };
    wait_until("the refusal is reported", || Ok(find(&api.get_quietly(&route)?).is_some()))?;
    let event = find(&api.get(&route)?).context("the refusal is gone")?;
    println!("{}", indented(&event)?);
    ensure!(text(&event, "cause")? == "unlisted", "refused for another reason: {event}");
    Ok(())
}

fn print_next_steps(lab: &Lab, machine: &Machine, unlisted: &Path) {
    println!("\nKept up until Ctrl-C. In another terminal:");
    println!("  export CORDON_SERVER={} CORDON_CA_FILE={}", lab.url, lab.ca_file.display());
    println!("  export CORDON_CLIENT_ID={} CORDON_CLIENT_SECRET={}", lab.client_id, lab.client_secret);
    println!("  cordon={}", lab.programs.cli.display());
    println!("  $cordon machine list");
    println!("  $cordon machine restrict {MACHINE} --comment 'trying it out' --wait");
    let mut run = machine.inside(&[]);
    run.arg(unlisted);
    println!("  {}    # refused", line(&run));
    println!("  $cordon machine unrestrict {MACHINE} --comment 'done' --wait");
    println!("A token for curl:\n  {}", token_command(lab));
}

/// The token call as a person types it.
fn token_command(lab: &Lab) -> String {
    format!(
        "curl -s --cacert {} {}/{}/oauth2/v2.0/token -d grant_type=client_credentials -d client_id={} \
         -d client_secret={} -d scope={}/.default",
        lab.ca_file.display(),
        lab.url,
        lab.tenant,
        lab.client_id,
        lab.client_secret,
        lab.url
    )
}

/// The API through `curl`, as a stranger would use it.
struct Api<'a> {
    lab: &'a Lab,
    token: String,
}

impl<'a> Api<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let call = token_command(lab);
        println!("  $ TOKEN=$({call} | sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/')");
        let reply = command::output(Command::new("sh").arg("-c").arg(&call))?;
        let reply: Value = serde_json::from_str(&reply).with_context(|| format!("token reply {reply}"))?;
        Ok(Self { lab, token: text(&reply, "access_token")? })
    }

    fn print_variables(&self) {
        println!("  $ CA={} URL={}", self.lab.ca_file.display(), self.lab.url);
    }

    /// Calls the API and returns the status and the body.
    fn call(&self, arguments: &[&str], route: &str, show: Show) -> Result<(u16, String)> {
        let build = |token: &str, ca: &str, url: &str| {
            let mut curl = Command::new("curl");
            curl.args(["-s", "--cacert", ca, "-H", &format!("Authorization: Bearer {token}")]);
            curl.args(arguments).arg(format!("{url}{route}"));
            curl
        };
        show.command(&build("$TOKEN", "$CA", "$URL"));
        let mut curl = build(&self.token, &self.lab.ca_file.to_string_lossy(), &self.lab.url);
        let reply = command::output(curl.args(["-w", "\n%{http_code}"]))?;
        let (body, status) = reply.rsplit_once('\n').context("no status from curl")?;
        Ok((status.parse()?, body.to_owned()))
    }

    /// Posts, prints the reply and expects a 201.
    fn post(&self, route: &str, body: &str) -> Result<Value> {
        let arguments = ["-X", "POST", "-H", "Content-Type: application/json", "-d", body];
        let (status, reply) = self.call(&arguments, route, Show::Commands)?;
        println!("  {status}\n  {reply}");
        ensure!(status == 201, "{route} answered {status}");
        Ok(serde_json::from_str(&reply)?)
    }

    fn get(&self, route: &str) -> Result<Value> {
        self.get_and(Show::Commands, route)
    }

    fn get_quietly(&self, route: &str) -> Result<Value> {
        self.get_and(Show::Nothing, route)
    }

    fn get_and(&self, show: Show, route: &str) -> Result<Value> {
        let (status, reply) = self.call(&[], route, show)?;
        ensure!(status == 200, "{route} answered {status}: {reply}");
        serde_json::from_str(&reply).with_context(|| format!("reply of {route}: {reply}"))
    }

    /// Polls an action until it is final.
    fn wait_for_success(&self, action: &Value) -> Result<Value> {
        let route = format!("/api/machineactions/{}", text(action, "id")?);
        wait_until("the action is final", || {
            let status = text(&self.get_quietly(&route)?, "status")?;
            Ok(status != "Pending" && status != "InProgress")
        })?;
        let last = self.get(&route)?;
        let status = text(&last, "status")?;
        println!("  \"status\": {status:?}");
        ensure!(status == "Succeeded", "the action did not succeed: {last}");
        Ok(last)
    }
}

fn indented(value: &Value) -> Result<String> {
    let pretty = serde_json::to_string_pretty(value)?;
    Ok(pretty.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))
}
