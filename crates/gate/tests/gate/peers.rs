//! Who may ask what, and how much.

use std::io::{Read as _, Write as _};

use domain::restriction::Desired::{Released, Restricted};
use gate_protocol::{FRAME_BYTES_MAX, Reply, Request};

use crate::support::*;

const NOT_YOURS: &str = "this user may not ask that of the gate";

fn all_but_status() -> Vec<Request> {
    let envelope = "{}".to_owned();
    vec![
        Request::Explain { path: "/etc/shadow".to_owned() },
        Request::Enroll { machine: "07".repeat(20), incarnation: 1, order_keys: Vec::new() },
        Request::StorePolicy { envelope: envelope.clone() },
        Request::BaselineBegin { bytes: 1, sha256: "00".repeat(32) },
        Request::BaselineChunk { data: String::new() },
        Request::BaselineEnd,
        Request::Apply { envelope },
        Request::LastReceipt,
        Request::Denials,
    ]
}

gate_test! {
    fn a_stranger_may_ask_for_the_status_only() {
        let machine = Machine::new();
        assert!(!machine.connect_as(STRANGER).status().restricted);
        for request in all_but_status() {
            assert_eq!(machine.connect_as(STRANGER).refusal(&request), NOT_YOURS, "{request:?}");
        }
        assert_eq!(machine.connect_as(AGENT).refusal(&machine.enroll_request()), NOT_YOURS);
    }
}

gate_test! {
    fn too_long_and_broken_frames_end_the_connection() {
        let machine = Machine::new();
        let frame = |length: usize| u32::try_from(length).unwrap().to_be_bytes().to_vec();
        let attempts = [
            (STRANGER, frame(1025), "at most 1024 are possible here"),
            (AGENT, frame(FRAME_BYTES_MAX + 1), "at most"),
            (AGENT, b"\xff\xff\xff\xff".to_vec(), "at most"),
            (AGENT, [frame(2), b"{}".to_vec()].concat(), "missing field `type`"),
            (AGENT, [frame(4), b"\xff\xff\xff\xff".to_vec()].concat(), "not a frame of this protocol"),
            (AGENT, [frame(16), b"{\"type\":\"break\"}".to_vec()].concat(), "unknown variant"),
        ];
        for (user, bytes, expected) in attempts {
            let mut client = machine.connect_as(user);
            client.0.write_all(&bytes).unwrap();
            let Reply::Refused { reason } = client.next() else { panic!("{expected}") };
            assert!(reason.contains(expected), "{reason}");
            assert_eq!(client.0.read(&mut [0; 1]).unwrap(), 0, "closed");
        }
        assert!(!machine.status().restricted);
    }
}

gate_test! {
    fn connections_are_limited_for_each_kind_of_peer() {
        let machine = Machine::new();
        for user in [STRANGER, AGENT] {
            let mut clients: Vec<_> = (0..40).map(|_| machine.connect_as(user)).collect();
            // Those who are too many see the end at once; the others are served.
            let mut served = 0;
            for client in &mut clients {
                let sent = gate_protocol::write_frame(&mut client.0, &Request::Status).is_ok();
                if sent && matches!(gate_protocol::read_frame::<Reply>(&mut client.0), Ok(Some(_))) {
                    served += 1;
                }
            }
            assert_eq!(served, 4);
            // Others have their own.
            assert_eq!(machine.status().generation, 0);
        }
        // When they go, others may come.
        until("there is room", || {
            let mut client = machine.connect_as(AGENT);
            gate_protocol::write_frame(&mut client.0, &Request::Status).ok()?;
            gate_protocol::read_frame::<Reply>(&mut client.0).ok()?
        });
    }
}

gate_test! {
    fn a_stranger_who_says_nothing_is_sent_away() {
        let machine = Machine::new();
        let start = std::time::Instant::now();
        let mut client = machine.connect_as(STRANGER);
        let reply = client.next();
        assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
        assert!(start.elapsed().as_secs() < 10);
    }
}

gate_test! {
    fn a_baseline_is_frozen_while_restricted() {
        let mut machine = Machine::new();
        // One transfer is under way when the switch comes.
        let (mut slow, bytes) = (machine.connect_as(AGENT), evil_baseline(&machine));
        assert_eq!(slow.ask(&begin(&bytes)), Reply::Done);
        assert_eq!(slow.ask(&chunk(&bytes[..bytes.len() / 2])), Reply::Done);
        let mut second = machine.connect_as(AGENT);
        assert_eq!(second.refusal(&begin(&bytes)), "another connection is sending a baseline");
        machine.obeyed(Restricted);
        let frozen = "the package baseline is frozen while the machine is restricted";
        assert_eq!(slow.ask(&chunk(&bytes[bytes.len() / 2..])), Reply::Done);
        assert_eq!(slow.refusal(&Request::BaselineEnd), frozen);
        assert_eq!(second.refusal(&begin(&bytes)), frozen);
        machine.expect(Restricted);
        machine.restart();
        machine.expect(Restricted);
        machine.obeyed(Released);
        assert_eq!(machine.send_baseline(&bytes), Reply::Done);
        assert_eq!(machine.status().baseline, Some(digest(&bytes).to_string()));
    }
}

/// A baseline that vouches for the unlisted program.
fn evil_baseline(machine: &Machine) -> Vec<u8> {
    let mut builder = policy::baseline::Builder::default();
    let path = machine.programs().unlisted;
    assert!(builder.add(digest(&program("unlisted")), path.as_os_str().as_encoded_bytes()));
    let mut bytes = Vec::new();
    builder.finish(&mut bytes).unwrap();
    bytes
}

gate_test! {
    fn a_baseline_that_is_not_sound_is_refused() {
        let machine = Machine::new();
        let good = machine.baseline();
        let mut agent = machine.connect_as(AGENT);
        let mut refused = |bytes: &[u8], expected: &str| {
            let Reply::Refused { reason } = agent.send_baseline(bytes) else { panic!("{expected}") };
            assert!(reason.contains(expected), "{reason}");
        };
        refused(&[good.as_slice(), b"more"].concat(), "cut off or too long");
        refused(&good[..good.len() - 1], "cut off or too long");
        refused(b"rubbish that is long enough", "not a package baseline");
        let mut unsorted = good.clone();
        *unsorted.last_mut().unwrap() = 0;
        refused(&unsorted, "holds NUL");
        // What was announced is what counts.
        assert_eq!(agent.ask(&begin(&good)), Reply::Done);
        assert_eq!(agent.refusal(&Request::BaselineEnd), format!("{} bytes are missing", good.len()));
        assert_eq!(agent.ask(&begin(&good)), Reply::Done);
        assert_eq!(agent.refusal(&chunk(&[good.as_slice(), b"x"].concat())), "more bytes than were announced");
        assert_eq!(agent.refusal(&chunk(&[0; gate_protocol::CHUNK_BYTES_MAX + 1])), "a piece of 262145 bytes is too long");
        let other = Request::BaselineBegin { bytes: good.len() as u64, sha256: "00".repeat(32) };
        assert_eq!(agent.ask(&other), Reply::Done);
        assert_eq!(agent.ask(&chunk(&good)), Reply::Done);
        assert_eq!(agent.refusal(&Request::BaselineEnd), "its SHA-256 is not the one that was announced");
        assert!(agent.refusal(&Request::BaselineBegin { bytes: 1 << 40, sha256: "00".repeat(32) }).contains("not possible"));
        assert_eq!(machine.status().baseline, Some(digest(&good).to_string()));
        assert!(!machine.state("baseline.incoming").exists());
    }
}

gate_test! {
    fn a_machine_that_enrolls_again_does_not_take_its_fence_back() {
        let mut machine = Machine::new();
        let restrict = machine.obeyed(Restricted);
        assert!(machine.connect().refusal(&machine.enroll_request()).contains("lift the restriction before"));
        machine.obeyed(Released);
        // The same enrollment again: a reply that got lost.
        machine.enroll();
        machine.expect(Released);
        let replayed = machine.apply(&restrict).unwrap();
        assert!(matches!(replayed.outcome, orders::Outcome::Rejected(_)), "{replayed:?}");
        machine.restart();
        machine.expect(Released);
        // The next one.
        machine.incarnation = 2;
        machine.enroll();
        machine.generation = 0;
        machine.expect(Released);
        let replayed = machine.apply(&restrict).unwrap();
        assert!(matches!(&replayed.outcome, orders::Outcome::Rejected(reason) if reason.contains("incarnation 1")));
        machine.obeyed(Restricted);
        machine.obeyed(Released);
        machine.incarnation = 1;
        let mut root = machine.connect();
        let reason = root.refusal(&machine.enroll_request());
        assert_eq!(reason, "incarnation 1 is older than this machine's, 2");
        for (keys, expected) in [(Vec::new(), "no order keys"), (vec!["00".to_owned()], "64 hexadecimal digits")] {
            let request = Request::Enroll { machine: machine.id.to_string(), incarnation: 3, order_keys: keys };
            assert!(root.refusal(&request).contains(expected));
        }
    }
}

gate_test! {
    fn the_status_command_shows_the_same() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        machine.obeyed(Released);
        let output = machine.gate_command().args(["status", "-o", "json"]).output().unwrap();
        let shown: gate_protocol::Status = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(shown, machine.status());
        let text = machine.gate_command().arg("status").output().unwrap();
        assert!(String::from_utf8(text.stdout).unwrap().starts_with("state       released\n"));
        assert!(machine.gate_command().arg("doctor").status().unwrap().success());
    }
}
