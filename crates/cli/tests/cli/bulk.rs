//! Restricting many machines by one call.

use api_types::machine_action::MachineAction;
use expect_test::expect;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::program::{Program, Run};
use crate::stand_in::{Answer, Call, MACHINE_ID, StandIn, action, machine};

fn nth(number: u128, status: &str) -> MachineAction {
    MachineAction {
        id: Uuid::from_u128(number),
        computer_dns_name: format!("lab-{number}"),
        troubleshoot_info: (status == "Failed").then(|| "the unlisted canary ran".to_owned()),
        ..action(status, 20)
    }
}

fn result(number: u128, error: Option<&str>) -> Value {
    json!({
        "machineId": MACHINE_ID, "computerDnsName": format!("lab-{number}"),
        "actionId": error.is_none().then(|| Uuid::from_u128(number)),
        "error": error.map(|code| json!({ "code": code, "message": "told" }))
    })
}

/// Answers a bulk call about two machines, of which the second may get no action; the actions end as told.
fn server(error: Option<&'static str>, ends: [&'static str; 2]) -> StandIn {
    let mut polls = 0;
    StandIn::start(move |_, call: &Call| {
        let path = call.line.split_once(' ').unwrap().1;
        if path.starts_with("/api/cordon/v1/machines/") {
            let is_dry = call.body.contains("\"DryRun\":true");
            let plan = json!({
                "total": 120, "unknown": 0, "online": 112, "offline": 8, "unsupported": 2, "alreadyRestricted": 5,
                "alreadyActive": 1, "actions": 117, "impact": null
            });
            let results = if is_dry { json!([]) } else { json!([result(1, None), result(2, error)]) };
            let plan = is_dry.then_some(plan);
            let id = (!is_dry).then_some(Uuid::from_u128(9));
            return Answer::created(&json!({ "id": id, "dryRun": is_dry, "plan": plan, "results": results }));
        }
        if path.starts_with("/api/machines/") {
            return Answer::ok(&machine("lab-1"));
        }
        if path.contains("status+in") {
            polls += 1;
            let open = if polls < 3 { json!([{ "id": Uuid::from_u128(1) }]) } else { json!([]) };
            return Answer::ok(&json!({ "value": open }));
        }
        if path.starts_with("/api/machineactions/") {
            return Answer::ok(&nth(1, "Pending"));
        }
        let all = [nth(7, "Succeeded"), nth(1, ends[0]), nth(2, ends[1])];
        Answer::ok(&json!({ "value": all }))
    })
}

fn restrict(server: &StandIn, more: &[&str]) -> Run {
    Program::of(server).run(&[&["machine", "restrict", "--comment", "IR-20771"], more].concat())
}

#[test]
fn a_dry_run_prints_the_counts() {
    let server = server(None, ["", ""]);
    let run = restrict(&server, &["--tag", "O'Hara", "--group", "Finance", "--dry-run"]);
    expect![[r#"
        machines             120
        unknown              0
        online               112
        offline              8
        unsupported          2
        already restricted   5
        already in progress  1
        would get an action  117
    "#]]
    .assert_eq(run.result());
    let calls = server.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].line, "POST /api/cordon/v1/machines/restrictCodeExecution");
    expect![[
        r#"{"Filter":"machineTags/any(t: t eq 'O''Hara') and rbacGroupName eq 'Finance'","Comment":"IR-20771","DryRun":true}"#
    ]]
    .assert_eq(&calls[0].body);
    restrict(&server, &["lab-1", "--dry-run"]).result();
    let body = server.calls().pop().unwrap().body;
    assert!(body.starts_with(&format!("{{\"MachineIds\":[\"{MACHINE_ID}\"]")), "{body}");
}

#[test]
fn many_machines_are_not_changed_unasked() {
    let server = server(None, ["", ""]);
    for targets in [&["--tag", "x"][..], &["--filter", "a"], &["--group", "g"], &["lab-1", "lab-2"]] {
        let run = restrict(&server, targets);
        let expected = "to restrict many machines asks first, and there is no terminal to ask on: give --yes";
        assert_eq!(run.error(2), expected);
    }
    assert!(restrict(&server, &[]).error(2).starts_with("which machines?"));
    assert_eq!(restrict(&server, &["lab-1", "--tag", "x"]).code, 2);
    assert!(server.calls().is_empty());
}

#[test]
fn a_call_for_many_has_all_that_one_has() {
    let server = server(None, ["", ""]);
    let options = ["--yes", "--expires-in", "90m", "--policy", "strict", "--external-id", "T-1"];
    let run = restrict(
        &server,
        &[&["lab-1", &MACHINE_ID.to_uppercase(), "--idempotency-key", "k"], &options[..]].concat(),
    );
    assert_eq!((run.code, run.stderr.as_str()), (3, "2 actions started\n"), "{run:?}");
    let call = server.calls().pop().unwrap();
    assert_eq!(call.key.as_deref(), Some("k"));
    assert_eq!(
        call.body,
        format!(
            "{{\"MachineIds\":[\"{MACHINE_ID}\",\"{MACHINE_ID}\"],\"Comment\":\"IR-20771\",\"ExternalId\":\"T-1\",\
             \"ExpiresIn\":\"PT90M\",\"Policy\":\"strict\",\"DryRun\":false}}"
        )
    );
    expect![[r#"
        MACHINE  ACTION                                ERROR
        lab-1    00000000-0000-0000-0000-000000000001
        lab-2    00000000-0000-0000-0000-000000000002
    "#]]
    .assert_eq(&run.stdout);
}

#[test]
fn the_worst_outcome_is_the_exit_code() {
    for (error, ends, code) in [
        (None, ["Succeeded", "Succeeded"], 0),
        (None, ["Succeeded", "Failed"], 4),
        (None, ["TimeOut", "Succeeded"], 5),
        (None, ["TimeOut", "Cancelled"], 4),
        (Some("ActiveRequestAlreadyExists"), ["Succeeded", "Succeeded"], 4),
    ] {
        let run = restrict(&server(error, ends), &["--tag", "x", "--yes", "--wait"]);
        assert_eq!(run.code, code, "{ends:?}: {run:?}");
    }
}

#[test]
fn what_became_of_each_machine_is_told() {
    let server = server(None, ["Succeeded", "Failed"]);
    let run = restrict(&server, &["--tag", "x", "--yes", "--wait"]);
    expect![[r#"
        MACHINE  STATUS     ACTION                                DETAIL
        lab-1    Succeeded  00000000-0000-0000-0000-000000000001
        lab-2    Failed     00000000-0000-0000-0000-000000000002  the unlisted canary ran
    "#]]
    .assert_eq(&run.stdout);
    let since = "requestor+eq+%270d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d%27+and+creationDateTimeUtc+ge+\
                 2026-03-02T07%3A14%3A55.0000000Z";
    let lines = server.lines();
    assert_eq!(lines[1], format!("GET /api/machineactions/{}", Uuid::from_u128(1)));
    let open = format!("{since}+and+status+in+%28%27Pending%27%2C%27InProgress%27%29");
    assert_eq!(lines[2], format!("GET /api/machineactions?%24filter={open}&%24select=id"));
    assert_eq!(lines[5..], [format!("GET /api/machineactions?%24filter={since}")]);
    let run = restrict(&server, &["--tag", "x", "--yes", "--wait", "-o", "json"]);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["results"][1]["action"]["status"], "Failed");
    assert_eq!(report["results"][1]["computerDnsName"], "lab-2");
}

#[test]
fn tags_addresses_and_available_actions() {
    let server = StandIn::start(|_, call| match call.line.as_str() {
        line if line.ends_with("tags") => Answer::ok(&machine("lab-042")),
        line if line.contains("find") => Answer::ok(&json!({ "value": [machine("lab-042")] })),
        _ => Answer::ok(&json!({ "value": [
            { "action": "RestrictCodeExecution", "isAvailable": false, "notSupportedReason": "no fanotify" }
        ] })),
    });
    let program = Program::of(&server);
    program.run(&["machine", "tag", "add", "lab-042", "finance"]).result();
    program.run(&["machine", "tag", "remove", "lab-042", "finance"]).result();
    program.run(&["machine", "find", "--ip", "10.0.0.5", "--at", "2026-11-23T11:38:59Z"]).result();
    expect![[r#"
        ACTION                 AVAILABLE  WHY NOT
        RestrictCodeExecution  no         no fanotify
    "#]]
    .assert_eq(program.run(&["machine", "actions", "lab-042"]).result());
    let calls = server.calls();
    assert_eq!(calls[0].line, "POST /api/machines/lab-042/tags");
    assert_eq!(calls[0].body, r#"{"Value":"finance","Action":"Add"}"#);
    assert_eq!(calls[1].body, r#"{"Value":"finance","Action":"Remove"}"#);
    assert_eq!(
        calls[2].line,
        "GET /api/machines/findbyip(ip='10.0.0.5',timestamp=2026-11-23T11:38:59.0000000Z)"
    );
    assert_eq!(program.run(&["machine", "find", "--ip", "10.0.0"]).code, 2);
}
