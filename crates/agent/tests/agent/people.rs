//! What people who are logged in read on their terminals.

use std::fs;
use std::process::Stdio;

use domain::restriction::Desired;

use crate::machine::Machine;
use crate::server::Server;
use crate::wait_until;

/// A `/dev` of the namespace's own, so that nobody outside is told anything.
const OWN_DEVICES: &str = "\
    d=$(mktemp -d); mount -t tmpfs tmpfs $d; mkdir $d/pts $d/shm; \
    for f in null zero full random urandom tty; do touch $d/$f; mount --bind /dev/$f $d/$f; done; \
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts $d/pts; ln -s pts/ptmx $d/ptmx; \
    mount --rbind $d /dev";

#[test]
fn people_are_told_on_terminals_that_accept_messages() {
    let server = Server::start();
    let mut machine = Machine::new(OWN_DEVICES);
    machine.configure("notify_restricted = \"Only known programs start. Call 4711.\"\n");
    machine.start_gate();
    machine.enroll(&server);
    // Two people: the second one has said `mesg n`.
    let log_in = |name: &str, mode: &str| {
        let shown = machine.folder.join(name);
        let ready = machine.folder.join(format!("{name}.ready"));
        let session = format!("chmod {mode} $(tty); touch {}; exec sleep infinity", ready.display());
        let mut command = machine.inside(&["setpriv", "--pdeathsig", "KILL", "script", "--quiet", "--flush"]);
        command.args(["--command", &session]).arg(&shown).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        wait_until("the session is there", || ready.exists());
        (shown, child)
    };
    let (listening, mut first) = log_in("listening", "620");
    let (deaf, mut second) = log_in("deaf", "600");
    machine.start_agent();
    server.wait("the machine is connected", |seen| !seen.heartbeats.is_empty());
    server.enforce(Desired::Restricted);
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    wait_until("people are told", || read(&listening).contains("Only known programs start. Call 4711."));
    server.enforce(Desired::Released);
    wait_until("people are told", || read(&listening).contains("has been lifted"));
    assert!(!read(&deaf).contains("Cordon"));
    for child in [&mut first, &mut second] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
