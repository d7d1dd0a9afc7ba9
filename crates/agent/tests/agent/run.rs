//! The running agent: orders, proofs, refusals, and whatever can be done to its processes.

use std::path::Path;
use std::time::Duration;

use agent_protocol::{ExecutionEvent, FROM_SERVER_BYTES_MAX, FromServer, encode};
use domain::restriction::Desired;
use nix::sys::signal::Signal;
use orders::Outcome;

use crate::machine::{Machine, PACKAGED};
use crate::server::Server;
use crate::wait_until;

#[test]
fn an_order_is_carried_out_proved_and_reported() {
    let server = Server::start();
    let machine = Machine::connected(&server);
    let unlisted = machine.unlisted();
    server.wait("the inventory is told", |seen| {
        seen.inventory.as_ref().is_some_and(|summary| summary.complete)
    });
    {
        let seen = server.seen();
        let hello = seen.hello.as_ref().unwrap();
        assert_eq!((hello.os_platform.as_str(), hello.tier.as_deref()), ("Linux", Some("fanotify")));
        assert!(!hello.interfaces.is_empty() && !hello.restriction.restricted);
        let inventory = seen.inventory.as_ref().unwrap();
        assert_eq!((inventory.vouched, inventory.modified), (3, 0));
        assert_eq!(inventory.baseline.as_deref(), machine.gate_status()["baseline"].as_str());
    }
    assert!(machine.runs(&unlisted));

    let generation = server.order(Desired::Restricted);
    server.wait("the receipt is there", |seen| seen.receipts.contains_key(&generation));
    assert!(!machine.runs(&unlisted));
    assert!(machine.runs(Path::new(PACKAGED)));
    assert_eq!(server.seen().accepted, [generation]);
    assert_eq!(server.seen().receipts[&generation].outcome, Outcome::Enforced);
    let is_ours = |event: &ExecutionEvent| event.path == unlisted.to_str().unwrap();
    server.wait("the refusal is reported", |seen| seen.events.iter().any(is_ours));
    {
        let seen = server.seen();
        let event = seen.events.iter().find(|event| is_ours(event)).unwrap();
        assert_eq!(event.cause, "unlisted");
        assert!(event.count >= 1 && event.uid == Some(0));
    }
    server.wait("a heartbeat says it", |seen| {
        seen.heartbeats.last().is_some_and(|report| report.restricted && report.generation == generation)
    });

    server.enforce(Desired::Released);
    assert!(machine.runs(&unlisted));
}

#[test]
fn killed_programs_come_back_restricted() {
    let server = Server::start();
    let mut machine = Machine::connected(&server);
    server.enforce(Desired::Restricted);
    machine.gate.take().unwrap().kill();
    machine.agent.take().unwrap().kill();
    machine.start_gate();
    assert!(!machine.runs(&machine.unlisted()), "restricted before the socket opens");
    let links = server.seen().links;
    machine.start_agent();
    server.wait("the machine is connected again", |seen| {
        seen.links > links && seen.hello.as_ref().is_some_and(|hello| hello.restriction.restricted)
    });
    // Only one of them, in the middle of an order.
    for desired in [Desired::Released, Desired::Restricted, Desired::Released] {
        let generation = server.order(desired);
        machine.gate.take().unwrap().kill();
        machine.start_gate();
        server.wait("the order is proved", |seen| seen.receipts.contains_key(&generation));
        assert_eq!(machine.runs(&machine.unlisted()), desired == Desired::Released);
    }
    for desired in [Desired::Restricted, Desired::Released] {
        let generation = server.order(desired);
        machine.agent.take().unwrap().kill();
        machine.start_agent();
        server.wait("the order is proved", |seen| seen.receipts.contains_key(&generation));
        assert_eq!(machine.runs(&machine.unlisted()), desired == Desired::Released);
    }
}

#[test]
fn a_stopped_agent_opens_nothing_and_catches_up() {
    let server = Server::start();
    let machine = Machine::connected(&server);
    server.enforce(Desired::Restricted);
    let agent = machine.agent.as_ref().unwrap();
    agent.signal(Signal::SIGSTOP);
    for _ in 0..20 {
        assert!(!machine.runs(&machine.unlisted()));
        assert!(machine.runs(Path::new(PACKAGED)));
    }
    let generation = server.order(Desired::Released);
    assert!(!machine.runs(&machine.unlisted()), "nobody has carried the order to the gate");
    agent.signal(Signal::SIGCONT);
    server.wait("the order is proved", |seen| seen.receipts.contains_key(&generation));
    assert!(machine.runs(&machine.unlisted()));
    // What was refused meanwhile is not forgotten.
    server.wait("the refusals are reported", |seen| {
        seen.events.iter().map(|event| event.count).sum::<u64>() >= 21
    });
}

#[test]
fn a_server_that_misbehaves_is_left_and_nothing_else_happens() {
    let server = Server::start();
    let machine = Machine::connected(&server);
    server.enforce(Desired::Restricted);
    let order = |envelope: &str| encode(&FromServer::Order { envelope: envelope.to_owned() });
    for bad in [
        "x".repeat(FROM_SERVER_BYTES_MAX + 1),
        order(&"x".repeat(100_000)),
        "{\"type\":\"release_everything\"}".to_owned(),
        "[".repeat(1_000_000),
        String::new(),
    ] {
        let (links, ended) = server.links();
        server.send_raw(bad);
        server.wait("the agent leaves", |seen| seen.ended > ended);
        server.wait("the agent tries again", |seen| seen.links > links);
    }
    // What keeps to the protocol, and is not signed, is not obeyed.
    server.send_raw(order("{}"));
    server.send_raw(order(
        "{\"payloadType\":\"application/vnd.cordon.order.v1+json\",\"payload\":\"\",\"signatures\":[]}",
    ));
    wait_until("the agent says so", || {
        machine.log("agent.log").matches("an order is not for this machine").count() == 2
    });
    assert!(!machine.runs(&machine.unlisted()));
    server.enforce(Desired::Released);
}

#[test]
fn sigterm_ends_the_agent_and_the_restriction_stays() {
    let server = Server::start();
    let mut machine = Machine::connected(&server);
    server.enforce(Desired::Restricted);
    let agent = machine.agent.take().unwrap();
    let (_, ended) = server.links();
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.end(), Some(0));
    server.wait("the connection ends", |seen| seen.ended > ended);
    assert_eq!(machine.json(&["status"])["agent"], serde_json::Value::Null);
    assert!(!machine.runs(&machine.unlisted()));
    machine.start_agent();
    server.enforce(Desired::Released);
}

#[test]
fn the_certificate_is_renewed_when_two_thirds_are_over() {
    let server = Server::start();
    server.set_lifetime(Duration::from_secs(3600), Duration::from_secs(600));
    let mut machine = Machine::new("true");
    machine.start_gate();
    machine.enroll(&server);
    let before = std::fs::read(machine.folder.join("agent/certificate.pem")).unwrap();
    server.set_lifetime(Duration::from_secs(60), Duration::from_secs(86_400));
    machine.start_agent();
    server.wait("it is renewed", |seen| seen.renewed == 1);
    wait_until("it is in its place", || {
        std::fs::read(machine.folder.join("agent/certificate.pem")).unwrap() != before
    });
    wait_until("it is used", || machine.log("agent.log").contains("the certificate is renewed"));
    assert_eq!(server.seen().renewed, 1);
}

#[test]
fn packages_that_change_are_read_again_but_not_while_restricted() {
    let server = Server::start();
    let machine = Machine::connected(&server);
    let before = machine.gate_status()["baseline"].clone();
    let program = Path::new("/usr/bin/id");
    let install = |name: &str| {
        let root = machine.folder.join("root");
        std::fs::copy(program, root.join("usr/bin").join(name)).unwrap();
        let sum = std::process::Command::new("md5sum").arg(program).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap();
        let info = root.join("var/lib/dpkg/info").join(format!("{name}.md5sums"));
        std::fs::write(info, format!("{}  usr/bin/{name}\n", &sum[..32])).unwrap();
        let status = root.join("var/lib/dpkg/status");
        let mut text = std::fs::read_to_string(&status).unwrap();
        text.push_str(&format!(
            "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n"
        ));
        std::fs::write(&status, text).unwrap();
    };
    install("id");
    wait_until("the gate knows the package", || machine.gate_status()["baseline"] != before);
    server.enforce(Desired::Restricted);
    assert!(machine.runs(program));
    let frozen = machine.gate_status()["baseline"].clone();
    install("late");
    let rounds = server.seen().heartbeats.len() + 12;
    server.wait("the agent had the time to look", |seen| seen.heartbeats.len() >= rounds);
    assert_eq!(machine.gate_status()["baseline"], frozen);
    server.enforce(Desired::Released);
    wait_until("the gate knows the package", || machine.gate_status()["baseline"] != frozen);
}
