//! Enrollment: what it makes, and what it says when it cannot be.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, lchown, symlink};
use std::process::Stdio;

use domain::restriction::Desired;

use crate::machine::{AGENT_UID, Machine};
use crate::server::Server;

#[test]
fn a_machine_is_enrolled_and_keeps_its_id() {
    let server = Server::start();
    let mut machine = Machine::new("true");
    machine.start_gate();
    machine.enroll(&server);
    let id = server.seen().machine.clone();
    let gate = machine.gate_status();
    assert_eq!((gate["machine"].as_str(), gate["incarnation"].as_u64()), (Some(id.as_str()), Some(1)));
    assert_eq!(gate["public_key"], server.seen().gate_key.as_str());
    assert!(!server.seen().name.is_empty());
    for name in ["machine.key", "certificate.pem", "authority.pem", "enrollment.json"] {
        let metadata = fs::metadata(machine.folder.join("agent").join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (AGENT_UID, 0o600), "{name}");
    }
    // Once more: the same machine, in its next incarnation.
    machine.enroll(&server);
    assert_eq!(server.seen().machine, id);
    assert_eq!(machine.gate_status()["incarnation"], 2);
    let status = machine.json(&["status"]);
    assert_eq!(
        (status["enrollment"]["machine"].as_str(), &status["agent"]),
        (Some(id.as_str()), &serde_json::Value::Null)
    );
}

#[test]
fn another_authority_than_the_pinned_one_is_refused_before_the_token_is_sent() {
    let server = Server::start();
    let mut machine = Machine::new("true");
    machine.start_gate();
    let output = machine.enroll_with(&server, &"ab".repeat(32));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(error.contains("certificate authority is not the one of --ca-pin"), "{error}");
    assert_eq!(server.seen().enrolled, 0);
    assert!(!machine.folder.join("agent/enrollment.json").exists());
    // A pin that is none.
    let error = String::from_utf8(machine.enroll_with(&server, "abc").stderr).unwrap();
    assert!(error.contains("--ca-pin: a SHA-256 digest is 64 hexadecimal digits"), "{error}");
    // The pinned authority does not help a server of another name.
    let url = server.public_url().replace("localhost", "127.0.0.1");
    let words = ["enroll", "--server", &url, "--token", "good-token", "--ca-pin", &server.pin()];
    let output = machine.command(&words).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("not valid for name"), "{error}");
}

#[test]
fn a_token_that_is_not_accepted_is_said_to_be() {
    let server = Server::start();
    let mut machine = Machine::new("true");
    machine.start_gate();
    let (url, pin) = (server.public_url(), server.pin());
    let with = ["enroll", "--server", &url, "--ca-pin", &pin];
    let mut command = machine.command(&with);
    let output = command.args(["--token", "old-token"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(error.contains("401") && error.contains("used up or expired"), "{error}");
    assert_eq!(machine.gate_status()["machine"], serde_json::Value::Null);

    let output = machine.command(&with).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("--token"));

    // The right one, from standard input: it is on no command line.
    let mut command = machine.command(&with);
    let mut child = command.args(["--token-file", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"good-token\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(server.seen().enrolled, 1);
}

#[test]
fn without_a_gate_nothing_is_sent() {
    let server = Server::start();
    let machine = Machine::new("true");
    let output = machine.enroll_with(&server, &server.pin());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(error.contains("start it first") && error.contains("the gate is not running"), "{error}");
    assert_eq!(server.seen().enrolled, 0);
}

#[test]
fn only_root_enrolls_and_only_while_released() {
    let server = Server::start();
    let machine = Machine::connected(&server);
    let mut as_agent = machine.inside(&["setpriv", "--reuid", "64001", "--clear-groups"]);
    as_agent.arg(machine.folder.join("bin/cordon-agent"));
    as_agent.args(["enroll", "--server", "https://x", "--token", "t", "--ca-pin", "p"]);
    let error = String::from_utf8(as_agent.output().unwrap().stderr).unwrap();
    assert!(error.contains("run this as root"), "{error}");
    server.enforce(Desired::Restricted);
    let error = String::from_utf8(machine.enroll_with(&server, &server.pin()).stderr).unwrap();
    assert!(error.contains("this machine is restricted"), "{error}");
    assert_eq!(server.seen().enrolled, 1);
    server.enforce(Desired::Released);
}

/// The agent's user may have been taken over, and waits for root to come by.
#[test]
fn root_follows_no_link_that_the_agents_user_planted() {
    let server = Server::start();
    let mut machine = Machine::new("true");
    machine.start_gate();
    let target = machine.folder.join("roots");
    fs::write(&target, "kept").unwrap();
    let absent = machine.folder.join("absent");
    let plant = |names: &[&str]| {
        for to in [&target, &absent] {
            for name in names {
                let link = machine.folder.join("agent").join(name);
                drop(fs::remove_file(&link));
                symlink(to, &link).unwrap();
                lchown(&link, Some(AGENT_UID), Some(AGENT_UID)).unwrap();
            }
            // Whether these succeed is not the question here.
            machine.enroll_with(&server, &server.pin());
            for words in [["inventory"], ["status"], ["doctor"]] {
                machine.command(&words).output().unwrap();
            }
        }
    };
    plant(&["machine.key.new", "authority.pem.new", "certificate.pem.new", "enrollment.json.new"]);
    plant(&["baseline", "inventory.new", "inventory"]);
    plant(&["inventory.lock", "run.json", "enrollment.json", "authority.pem"]);
    plant(&["machine.key"]);
    assert!(!absent.exists());
    let metadata = fs::metadata(&target).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
    assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    assert!(server.seen().enrolled > 0, "something was written");

    // A pipe that nobody writes to holds nobody up.
    let pipe = machine.folder.join("agent/run.json");
    fs::remove_file(&pipe).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(machine.json(&["status"])["problems"].to_string().contains("not a regular file"));
}
