//! Restricting, and waiting for the proof.

use expect_test::{Expect, expect};

use crate::program::{Program, Run, interrupt, poll_until, read_until, rest};
use crate::stand_in::{Answer, CORRELATION_ID, MACHINE_ID, StandIn, action, machine};

const RESTRICT: [&str; 5] = ["machine", "restrict", "lab-042", "--comment", "IR-20771"];

/// A server on which a restriction goes through these replies.
fn server(replies: impl Fn(usize) -> Answer + Send + 'static) -> StandIn {
    StandIn::start(move |call, _| replies(call))
}

fn wait(server: &StandIn, more: &[&str]) -> Run {
    Program::of(server).run(&[&RESTRICT[..], &["--wait"], more].concat())
}

#[test]
fn without_waiting_the_action_is_pending() {
    let server = server(|_| Answer::created(&action("Pending", 0)));
    let run = Program::of(&server).run(&RESTRICT);
    assert_eq!(run.code, 3);
    expect![[r#"
        id            00000000-0000-0000-0000-0000000000ac
        type          RestrictCodeExecution
        status        Pending
        machine       lab-042 (0f3c9a7be1d2445566778899aabbccddeeff0011)
        comment       IR-20771
        requested by  0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d
        created       2026-03-02T08:14:55.0000000Z
        last update   2026-03-02T08:14:55.0000000Z
    "#]]
    .assert_eq(&run.stdout);
    expect![[r#"
        the action goes on; look at it with: cordon action wait 00000000-0000-0000-0000-0000000000ac
    "#]]
    .assert_eq(&run.stderr);
    let call = server.calls().pop().unwrap();
    assert_eq!(call.line, "POST /api/machines/lab-042/restrictCodeExecution");
    assert_eq!(call.body, r#"{"Comment":"IR-20771"}"#);
    let run = Program::of(&server).run(&["machine", "unrestrict", MACHINE_ID, "--comment", "clean"]);
    assert_eq!(run.code, 3);
    assert_eq!(server.lines()[1], format!("POST /api/machines/{MACHINE_ID}/unrestrictCodeExecution"));
}

#[test]
fn json_is_what_the_server_said() {
    let mut reply = serde_json::to_value(action("Pending", 0)).unwrap();
    reply["@odata.context"] = "https://cordon.example/api/$metadata#MachineActions/$entity".into();
    reply["fieldOfTomorrow"] = 1e2.into();
    let expected = format!("{reply}\n");
    let server = server(move |_| Answer::created(&reply));
    let run = Program::of(&server).run(&[&RESTRICT[..], &["-o", "json"]].concat());
    assert_eq!((run.code, run.stdout, run.stderr.as_str()), (3, expected, ""));
}

#[test]
fn waiting_shows_each_step_until_the_proof() {
    let server = server(|call| match call {
        0 => Answer::created(&action("Pending", 0)),
        1 => Answer::ok(&action("Pending", 9)),
        2 => Answer::ok(&action("InProgress", 14)),
        _ => Answer::ok(&action("Succeeded", 38)),
    });
    let run = wait(&server, &["-o", "json"]);
    assert_eq!(run.result(), serde_json::to_string(&action("Succeeded", 38)).unwrap() + "\n");
    expect![[r#"
        queued     for lab-042, action 00000000-0000-0000-0000-0000000000ac
        delivered  after 14.0 ms
        proved     after 38.0 ms
    "#]]
    .assert_eq(&run.stderr);
    assert_eq!(server.lines()[1..], vec![format!("GET /api/machineactions/{}", action("", 0).id); 3]);
}

fn check_end(last: &api_types::machine_action::MachineAction, code: i32, expected: &Expect) {
    let last = last.clone();
    let server =
        StandIn::start(
            move |call, _| {
                if call == 0 { Answer::created(&action("Pending", 0)) } else { Answer::ok(&last) }
            },
        );
    let run = wait(&server, &[]);
    assert_eq!(run.code, code);
    expected.assert_eq(&format!("{}{}", run.stderr, run.stdout));
}

#[test]
fn every_end_has_its_exit_code() {
    check_end(
        &action("Succeeded", 38),
        0,
        &expect![[r#"
        queued     for lab-042, action 00000000-0000-0000-0000-0000000000ac
        proved     after 38.0 ms
        id            00000000-0000-0000-0000-0000000000ac
        type          RestrictCodeExecution
        status        Succeeded
        machine       lab-042 (0f3c9a7be1d2445566778899aabbccddeeff0011)
        comment       IR-20771
        requested by  0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d
        created       2026-03-02T08:14:55.0000000Z
        last update   2026-03-02T08:14:55.0380000Z
    "#]],
    );
    let mut failed = action("Failed", 20);
    failed.troubleshoot_info = Some("the unlisted canary ran".to_owned());
    check_end(
        &failed,
        4,
        &expect![[r#"
        queued     for lab-042, action 00000000-0000-0000-0000-0000000000ac
        failed     after 20.0 ms: the unlisted canary ran
        id            00000000-0000-0000-0000-0000000000ac
        type          RestrictCodeExecution
        status        Failed
        failure       the unlisted canary ran
        machine       lab-042 (0f3c9a7be1d2445566778899aabbccddeeff0011)
        comment       IR-20771
        requested by  0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d
        created       2026-03-02T08:14:55.0000000Z
        last update   2026-03-02T08:14:55.0200000Z
    "#]],
    );
    let mut cancelled = action("Cancelled", 20);
    cancelled.cancellation_requestor = Some("somebody".to_owned());
    cancelled.cancellation_comment = Some("superseded by \u{1b}[31m7".to_owned());
    cancelled.cancellation_date_time_utc = Some(cancelled.last_update_date_time_utc);
    check_end(
        &cancelled,
        4,
        &expect![[r#"
        queued     for lab-042, action 00000000-0000-0000-0000-0000000000ac
        cancelled  after 20.0 ms: superseded by \u{1b}[31m7
        id            00000000-0000-0000-0000-0000000000ac
        type          RestrictCodeExecution
        status        Cancelled
        machine       lab-042 (0f3c9a7be1d2445566778899aabbccddeeff0011)
        comment       IR-20771
        requested by  0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d
        created       2026-03-02T08:14:55.0000000Z
        last update   2026-03-02T08:14:55.0200000Z
        cancelled     2026-03-02T08:14:55.0200000Z by somebody: superseded by \u{1b}[31m7
    "#]],
    );
    let mut timed_out = action("TimeOut", 0);
    timed_out.last_update_date_time_utc = "2026-03-05T08:14:55Z".parse().unwrap();
    check_end(
        &timed_out,
        5,
        &expect![[r#"
        queued     for lab-042, action 00000000-0000-0000-0000-0000000000ac
        timed out  after 3 days: the machine did not take the order in time
        id            00000000-0000-0000-0000-0000000000ac
        type          RestrictCodeExecution
        status        TimeOut
        machine       lab-042 (0f3c9a7be1d2445566778899aabbccddeeff0011)
        comment       IR-20771
        requested by  0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d
        created       2026-03-02T08:14:55.0000000Z
        last update   2026-03-05T08:14:55.0000000Z
    "#]],
    );
}

#[test]
fn a_refusal_is_one_line_with_code_and_correlation_id() {
    let message = "Action is already in progress\n(action 7)";
    let server = server(move |_| Answer::error(400, "ActiveRequestAlreadyExists", message));
    let run = wait(&server, &[]);
    let expected = format!(
        "ActiveRequestAlreadyExists: Action is already in progress\\n(action 7) (correlation id {CORRELATION_ID})"
    );
    assert_eq!(run.error(4), expected);
}

#[test]
fn a_fault_of_the_server_is_not_a_refusal() {
    let server = server(|_| Answer::error(500, "InternalServerError", "see the log"));
    assert!(wait(&server, &[]).error(1).starts_with("InternalServerError: see the log"));
}

#[test]
fn an_app_that_may_not_read_still_restricts() {
    let server = server(|call| match call {
        0 => Answer::created(&action("Pending", 0)),
        _ => Answer::error(
            403,
            "Forbidden",
            "Missing application roles. API required roles: Machine.Read.All.",
        ),
    });
    let run = wait(&server, &["-o", "json"]);
    assert_eq!(run.code, 3);
    assert_eq!(run.stdout, serde_json::to_string(&action("Pending", 0)).unwrap() + "\n");
    expect![[r#"
        queued     for lab-042, action 00000000-0000-0000-0000-0000000000ac
        Forbidden: Missing application roles. API required roles: Machine.Read.All. (correlation id 00000000-0000-0000-0000-0000000000c0)
        cannot wait: this app may start and cancel actions, but to read them it needs Machine.Read.All or Machine.ReadWrite.All: the action goes on; look at it with: cordon action wait 00000000-0000-0000-0000-0000000000ac
    "#]].assert_eq(&run.stderr);
    assert_eq!(server.lines().len(), 2, "no machine is read to restrict it");
}

#[test]
fn waiting_ends_after_the_timeout() {
    let server = server(|_| Answer::created(&action("Pending", 0)));
    let run = wait(&server, &["--timeout", "1s"]);
    assert_eq!(run.code, 3);
    let last = run.stderr.lines().last().unwrap();
    assert!(
        last.starts_with(
            "not final after 1 second: the action goes on; look at it with: cordon action wait "
        ),
        "{last}"
    );
}

#[test]
fn an_interrupt_ends_the_waiting_and_not_the_action() {
    let server = server(|_| Answer::created(&action("Pending", 0)));
    let program = Program::of(&server);
    let mut child = program.command(&[&RESTRICT[..], &["--wait"]].concat()).spawn().unwrap();
    let stderr = read_until(child.stderr.take().unwrap(), "queued");
    // The handler is in place once the program looks at the action.
    poll_until("the program looks at the action", || server.lines().len() >= 2);
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let stderr = rest(stderr);
    assert!(
        stderr.starts_with("no longer waiting: the action goes on; look at it with: cordon action wait "),
        "{stderr}"
    );
    assert_eq!(
        server.lines().iter().filter(|line| line.starts_with("POST")).count(),
        1,
        "nothing is cancelled"
    );
}

#[test]
fn waiting_outlives_a_restart_of_the_server() {
    let server = server(|call| match call {
        0 => Answer::created(&action("Pending", 0)),
        1 => Answer::error(500, "InternalServerError", "restarting"),
        _ => Answer::ok(&action("Succeeded", 38)),
    });
    let run = wait(&server, &[]);
    run.result();
    assert!(run.stderr.contains("restarting") && run.stderr.contains("trying again"), "{run:?}");
}

#[test]
fn a_connection_that_breaks_leaves_it_open_whether_the_call_arrived() {
    let server = server(|_| panic!("the connection breaks off here"));
    let run = wait(&server, &[]);
    assert!(run.error(1).contains("the call may have arrived all the same"), "{run:?}");
    assert_eq!(server.lines().len(), 1, "a call that changes something is not repeated");
}

#[test]
fn a_name_stays_one_segment_of_the_path() {
    let server = server(|_| Answer::error(404, "ResourceNotFound", "Machine was not found"));
    let program = Program::of(&server);
    for (name, path) in [("../x", "..%2Fx"), ("a?b#c", "a%3Fb%23c"), ("50%", "50%25"), ("ü", "%C3%BC")] {
        program.run(&["machine", "show", name]).error(4);
        assert_eq!(server.lines().pop().unwrap(), format!("GET /api/machines/{path}"));
    }
    program.run(&["machine", "show", ""]);
    assert_eq!(server.lines().len(), 4, "an empty name is no call");
}

#[test]
fn a_machine_is_shown_with_its_drift() {
    let server = server(|_| Answer::ok(&machine("lab-042")));
    expect![[r#"
        name         lab-042
        id           0f3c9a7be1d2445566778899aabbccddeeff0011
        restriction  restricted (reports released)
        generation   7
        policy       default
        enforced by  fanotify
        health       Active
        first seen   2026-02-01T00:00:00.0000000Z
        last seen    2026-03-02T08:14:55.1203341Z
        system       Linux, Debian GNU/Linux 12 (bookworm)
        kernel       6.1.0-40-amd64 x86_64
        agent        0.1.0
        tags         lab
    "#]]
    .assert_eq(Program::of(&server).run(&["machine", "show", "lab-042"]).result());
}

#[test]
fn an_action_is_shown_waited_for_and_cancelled() {
    let server = server(|_| Answer::ok(&action("Succeeded", 38)));
    let program = Program::of(&server);
    let id = action("", 0).id.to_string();
    for command in [&["action", "show", &id][..], &["action", "wait", &id], &["action", "cancel", &id]] {
        assert!(program.run(command).result().contains("Succeeded"));
    }
    program.run(&["action", "cancel", &id, "--comment", "mistake"]).result();
    let calls = server.calls();
    assert_eq!(calls[2].line, format!("POST /api/machineactions/{id}/cancel"));
    assert_eq!(calls[2].body, r#"{"Comment":"cancelled from the command line"}"#);
    assert_eq!(calls[3].body, r#"{"Comment":"mistake"}"#);
    assert_eq!(program.run(&["action", "show", "not-an-id"]).code, 2);
}

#[test]
fn a_break_glass_code_is_shown_after_a_question_only() {
    let server = StandIn::start(|_, _| {
        Answer::created(&serde_json::json!({
            "machineId": MACHINE_ID, "computerDnsName": "lab-042",
            "code": "7K3M-9QXT-0B5R-EVW2-H8CN-4YZA-JD6P", "number": 3
        }))
    });
    let program = Program::of(&server);
    let refused = program.run(&["machine", "break-glass-code", "lab-042"]);
    assert!(refused.stderr.contains("asks first") && refused.stdout.is_empty(), "{refused:?}");
    assert!(server.calls().is_empty(), "a code that nobody sees is not shown");
    let shown = program.run(&["machine", "break-glass-code", "lab-042", "--yes"]);
    expect![[r#"
        name    lab-042
        id      0f3c9a7be1d2445566778899aabbccddeeff0011
        number  3
        code    7K3M-9QXT-0B5R-EVW2-H8CN-4YZA-JD6P
    "#]]
    .assert_eq(shown.result());
    assert!(shown.stderr.contains("shown this once"), "{}", shown.stderr);
    let json = program.run(&["machine", "break-glass-code", "lab-042", "-y", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(json.result()).unwrap();
    assert_eq!(json["code"], "7K3M-9QXT-0B5R-EVW2-H8CN-4YZA-JD6P");
    assert_eq!(server.calls()[0].line, "POST /api/machines/lab-042/breakGlassCode");
}
