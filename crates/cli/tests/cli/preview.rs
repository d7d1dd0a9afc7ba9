//! `cordon machine preview`.

use expect_test::expect;
use serde_json::{Value, json};

use crate::program::Program;
use crate::stand_in::{Answer, MACHINE_ID, StandIn};

fn preview(state: &str, preview: &Value) -> Value {
    json!({
        "machineId": MACHINE_ID, "computerDnsName": "lab-042", "policy": "default", "policyRevision": 3,
        "state": state,
        "unavailableReason": if state == "Unavailable" { json!("the machine is not connected") } else { Value::Null },
        "filesDone": 1, "filesTotal": 2, "preview": preview,
    })
}

fn found() -> Value {
    let file = |path: &str, mapped: bool, pids: &[i32]| {
        json!({
            "path": path, "sha256": null, "cause": "unlisted", "rule": null, "mappedOnly": mapped,
            "lastSeen": "2026-03-02T08:14:55Z", "executions": if pids.is_empty() { 4 } else { 0 },
            "processes": pids.len() * 2, "processIds": pids,
        })
    };
    json!({
        "takenDateTimeUtc": "2026-03-02T08:14:55Z", "receivedDateTimeUtc": "2026-03-02T08:14:56Z",
        "processes": 10, "files": 20, "historyDays": null, "isCut": false, "refusedFiles": 5,
        "refused": [
            file("/home/ann/tool", false, &[7, 8]), file("/opt/lib.so", true, &[9]), file("/tmp/\u{1b}", false, &[]),
        ],
    })
}

#[test]
fn the_machine_is_asked_until_the_preview_is_there() {
    let server = StandIn::start(|call, _| match call {
        0 | 1 => Answer::ok(&preview("Underway", &Value::Null)),
        _ => Answer::ok(&preview("Ready", &found())),
    });
    let run =
        Program::of(&server).run(&["machine", "preview", "lab-042", "--policy", "night", "--max-age", "1h"]);
    assert_eq!(run.code, 0);
    expect![[r#"
        PATH            CAUSE     KIND     LAST SEEN (UTC)      TIMES  PROCESSES  SHA256
        /home/ann/tool  unlisted  program  2026-03-02 08:14:55         7 8 ...
        /opt/lib.so     unlisted  mapped   2026-03-02 08:14:55         9 ...
        /tmp/\u{1b}     unlisted  program  2026-03-02 08:14:55  4
    "#]]
    .assert_eq(&run.stdout);
    expect![[r#"
        lab-042, policy default revision 3, at 2026-03-02 08:14:55Z: restricted now, 5 of 20 files would be refused; 2 of them are not listed (what runs, and nothing else)
    "#]]
    .assert_eq(&run.stderr);
    let expected = "GET /api/machines/lab-042/impactPreview?policy=night&maxAge=3600";
    assert_eq!(server.lines(), vec![expected; 3]);
}

#[test]
fn json_is_what_the_server_said() {
    let reply = preview("Ready", &found());
    let expected = format!("{reply}\n");
    let server = StandIn::start(move |_, _| Answer::ok(&reply));
    let run = Program::of(&server).run(&["machine", "preview", "lab-042", "-o", "json"]);
    assert_eq!((run.code, run.stdout), (0, expected));
}

#[test]
fn every_end_has_its_exit_code() {
    for (state, kept, code, said) in [
        ("Unavailable", Value::Null, 4, "no new preview: the machine is not connected"),
        ("Unavailable", found(), 0, "no new preview: the machine is not connected"),
        ("Underway", found(), 3, "not there after 1 second"),
    ] {
        let server = StandIn::start(move |_, _| Answer::ok(&preview(state, &kept)));
        let run = Program::of(&server).run(&["machine", "preview", "lab-042", "--timeout", "1s"]);
        assert_eq!(run.code, code, "{}", run.stderr);
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
    let server = StandIn::start(|_, _| Answer::error(404, "ResourceNotFound", "Policy night was not found"));
    Program::of(&server).run(&["machine", "preview", "lab-042", "--policy", "night"]).error(4);
}
