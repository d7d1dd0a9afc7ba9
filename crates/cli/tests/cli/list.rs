//! Lists: paging, query options, rate limits and odd servers.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use api_types::execution_event::ExecutionEvent;
use expect_test::expect;
use serde_json::{Value, json};

use crate::program::Program;
use crate::stand_in::{Answer, MACHINE_ID, PUBLIC_URL, StandIn, action, machine};

const CONTEXT: &str = "https://cordon.example/api/$metadata#Machines";

#[test]
fn all_pages_are_fetched_from_the_server_that_the_user_named() {
    let server = StandIn::start(|call, _| {
        let next = format!("{PUBLIC_URL}/api/machines?$skiptoken=p{}", call + 1);
        let page = json!({ "@odata.context": CONTEXT, "value": [machine(&format!("lab-{call}"))] });
        let mut page = page.as_object().unwrap().clone();
        if call < 2 {
            page.insert("@odata.nextLink".to_owned(), next.into());
        }
        Answer::ok(&page)
    });
    let run = Program::of(&server).run(&["machine", "list", "-o", "json"]);
    let machines = ["lab-0", "lab-1", "lab-2"].map(|name| serde_json::to_string(&machine(name)).unwrap());
    // Sorted keys: that is how the stand-in writes a `Value`.
    let sorted = |text: &String| serde_json::from_str::<Value>(text).unwrap().to_string();
    let value = machines.iter().map(sorted).collect::<Vec<_>>().join(",");
    assert_eq!(run.result(), format!("{{\"@odata.context\":\"{CONTEXT}\",\"value\":[{value}]}}\n"));
    assert_eq!(
        server.lines(),
        ["GET /api/machines", "GET /api/machines?$skiptoken=p1", "GET /api/machines?$skiptoken=p2"]
    );
}

#[test]
fn query_options_reach_the_server() {
    let server = StandIn::start(|_, _| Answer::ok(&json!({ "value": [] })));
    let program = Program::of(&server);
    let options = ["--filter", "status eq 'Pending'", "--top", "5", "--orderby", "creationDateTimeUtc desc"];
    program.run(&[&["action", "list"], &options[..]].concat()).result();
    program.run(&["machine", "list", "--top", "1"]).result();
    assert_eq!(
        server.lines(),
        [
            "GET /api/machineactions?%24filter=status+eq+%27Pending%27&%24top=5&%24orderby=creationDateTimeUtc+desc",
            "GET /api/machines?%24top=1"
        ]
    );
    assert_eq!(program.run(&["machine", "list", "--top", "10001"]).code, 2);
}

#[test]
fn a_list_is_a_table_for_people() {
    let server = StandIn::start(|call, _| {
        let rows = match call {
            0 => json!([machine("lab-042"), machine("lab\u{1b}[2J")]),
            _ => json!([action("Succeeded", 38), action("Pending", 0)]),
        };
        Answer::ok(&json!({ "value": rows }))
    });
    let program = Program::of(&server);
    expect![[r#"
        NAME          RESTRICTION                    HEALTH  LAST SEEN (UTC)      OS                              ID
        lab-042       restricted (reports released)  Active  2026-03-02 08:14:55  Debian GNU/Linux 12 (bookworm)  0f3c9a7be1d2445566778899aabbccddeeff0011
        lab\u{1b}[2J  restricted (reports released)  Active  2026-03-02 08:14:55  Debian GNU/Linux 12 (bookworm)  0f3c9a7be1d2445566778899aabbccddeeff0011
    "#]].assert_eq(program.run(&["machine", "list"]).result());
    expect![[r#"
        ID                                    STATUS     MACHINE  TYPE      CREATED (UTC)        COMMENT
        00000000-0000-0000-0000-0000000000ac  Succeeded  lab-042  Restrict  2026-03-02 08:14:55  IR-20771
        00000000-0000-0000-0000-0000000000ac  Pending    lab-042  Restrict  2026-03-02 08:14:55  IR-20771
    "#]]
    .assert_eq(program.run(&["action", "list"]).result());
}

#[test]
fn a_page_that_links_to_itself_is_an_error() {
    let link = format!("{PUBLIC_URL}/api/machines?$skiptoken=p");
    let server = StandIn::start(move |_, _| Answer::ok(&json!({ "value": [], "@odata.nextLink": link })));
    assert!(Program::of(&server).run(&["machine", "list"]).error(1).contains("its own next page"));
}

#[test]
fn the_rate_limit_is_waited_out() {
    let server = StandIn::start(|call, _| match call {
        0 => Answer::too_many_requests(1),
        _ => Answer::ok(&json!({ "value": [] })),
    });
    let run = Program::of(&server).run(&["machine", "list"]);
    run.result();
    assert_eq!(run.stderr, "rate limit: waiting 1 s, as the server asks\n");
}

#[test]
fn a_long_wait_for_the_rate_limit_is_refused() {
    let server = StandIn::start(|_, _| Answer::too_many_requests(3000));
    let run = Program::of(&server).run(&["machine", "list"]);
    assert!(run.error(4).starts_with("TooManyRequests: 100 calls in 60 seconds; try again in 3000 seconds"));
    assert_eq!(server.lines().len(), 1);
}

#[test]
fn the_rate_limit_is_not_waited_out_for_ever() {
    let server = StandIn::start(|_, _| Answer::too_many_requests(0));
    assert_eq!(Program::of(&server).run(&["machine", "list"]).code, 4);
    assert_eq!(server.lines().len(), 6);
}

#[test]
fn what_is_not_the_api_is_an_error() {
    for (status, body) in [(200, "<html>"), (502, "<html>"), (200, "{}"), (404, "{\"error\": 1}")] {
        let server = StandIn::start(move |_, _| Answer::text(status, body));
        let run = Program::of(&server).run(&["machine", "list", "-o", "json"]);
        let error = run.error(1);
        assert!(
            error.contains(&format!("answered {status}")) && error.contains("a Cordon server?"),
            "{error}"
        );
    }
}

#[test]
fn a_token_that_ended_is_renewed_once() {
    let server = StandIn::start(|call, _| match call {
        0 => Answer::created(&action("Pending", 0)),
        1 => Answer::error(401, "Unauthorized", "the token has expired"),
        _ => Answer::ok(&action("Succeeded", 38)),
    });
    Program::of(&server).run(&["machine", "restrict", "lab-042", "--comment", "c", "--wait"]).result();
    let tokens: Vec<_> = server.calls().into_iter().filter_map(|call| call.token).collect();
    assert_eq!(tokens, ["token-1", "token-1", "token-2"]);
    let server = StandIn::start(|_, _| Answer::error(401, "Unauthorized", "never"));
    Program::of(&server).run(&["machine", "list"]).error(4);
    assert_eq!(server.lines().len(), 1);
}

fn event(id: i64) -> ExecutionEvent {
    ExecutionEvent {
        id,
        machine_id: MACHINE_ID.to_owned(),
        computer_dns_name: "lab-042".to_owned(),
        event_date_time_utc: "2026-03-02T08:14:55Z".parse().unwrap(),
        path: format!("/tmp/unlisted-{id}"),
        sha256: Some("ab".repeat(32)),
        cause: "unlisted".to_owned(),
        rule: None,
        process_id: 4242,
        parent_process_id: 1,
        user_id: Some(1000),
        parent_program: "/usr/bin/bash".to_owned(),
        hook: "execute".to_owned(),
        cgroup: Some("/user.slice".to_owned()),
        container_id: None,
        interpreter: None,
        script: None,
        policy: Some("default".to_owned()),
        policy_revision: Some(3),
        audited: false,
        count: 3,
    }
}

/// The newest `top` events below `before`, of as many as `newest`.
fn events(query: &str, newest: i64) -> Answer {
    let option = |name: &str| {
        let value = query.split(['?', '&']).find_map(|option| option.strip_prefix(name));
        value.map(|value| value.parse::<i64>().unwrap())
    };
    let first = option("before=").unwrap_or(i64::MAX).min(newest + 1);
    let events = (1..first).rev().take(option("top=").unwrap().try_into().unwrap());
    Answer::ok(&json!({ "value": events.map(event).collect::<Vec<_>>() }))
}

#[test]
fn events_are_paged_by_number() {
    let server = StandIn::start(|_, call| events(&call.line, 2300));
    let program = Program::of(&server);
    let count = |more: &[&str]| {
        let run = program.run(&[&["event", "list", "-o", "json"], more].concat());
        let list: Value = serde_json::from_str(run.result()).unwrap();
        list["value"].as_array().unwrap().len()
    };
    assert_eq!((count(&["--top", "2100"]), count(&["--top", "9000"]), count(&[])), (2100, 2300, 100));
    let route = "GET /api/cordon/v1/executionEvents";
    let expected =
        ["top=1000", "top=1000&before=1301", "top=100&before=301"].map(|query| format!("{route}?{query}"));
    assert_eq!(server.lines()[..3], expected);
    let table = program.run(&["event", "list", "--machine", "lab-042", "--top", "1"]);
    expect![[r#"
        TIME (UTC)           MACHINE  PATH                COUNT  CAUSE     BY                                      SHA256
        2026-03-02 08:14:55  lab-042  /tmp/unlisted-2300  3      unlisted  /usr/bin/bash, process 4242, user 1000  abababababababababababababababababababababababababababababababab
    "#]].assert_eq(table.result());
    assert_eq!(server.lines().pop().unwrap(), format!("{route}?machineId=lab-042&top=1"));
}

#[test]
fn following_shows_each_event_once_and_in_order() {
    for format in ["table", "json"] {
        let server = StandIn::start(|call, request| events(&request.line, if call == 0 { 2 } else { 4 }));
        let program = Program::of(&server);
        let mut child = program.command(&["event", "list", "--follow", "-o", format]).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(4).map(Result::unwrap);
        for (number, line) in (1..).zip(lines) {
            match format {
                "json" => assert_eq!(serde_json::from_str::<ExecutionEvent>(&line).unwrap(), event(number)),
                _ => assert_eq!(
                    line,
                    format!(
                        "2026-03-02 08:14:55Z  lab-042  /tmp/unlisted-{number}  3x  unlisted  /usr/bin/bash, process \
                         4242, user 1000"
                    )
                ),
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let server = StandIn::start(|_, _| Answer::ok(&json!({ "value": vec![machine("lab-042"); 2000] })));
    let program = Program::of(&server);
    let mut child = program.command(&["machine", "list"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn audit_entries_are_listed() {
    let server = StandIn::start(|_, _| {
        Answer::ok(&json!({ "value": [{
            "id": 7, "dateTimeUtc": "2026-03-02T08:14:55Z", "actor": "system", "operation": "machine_restrict",
            "subject": MACHINE_ID, "detail": "IR-20771"
        }] }))
    });
    expect![[r#"
        TIME (UTC)           OPERATION         SUBJECT                                   ACTOR   DETAIL
        2026-03-02 08:14:55  machine_restrict  0f3c9a7be1d2445566778899aabbccddeeff0011  system  IR-20771
    "#]]
    .assert_eq(Program::of(&server).run(&["audit", "list"]).result());
    assert_eq!(server.lines(), ["GET /api/cordon/v1/auditEntries?top=100"]);
}
