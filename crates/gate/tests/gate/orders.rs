//! Orders: obeyed and proved, or refused with the reason and without effect.

use std::time::{Duration, Instant};

use domain::restriction::Desired::{Released, Restricted};
use domain::time::Timestamp;
use gate_protocol::{Reply, Request, Status};
use orders::{Order, Outcome, SigningKey};

use crate::support::*;

gate_test! {
    fn an_order_is_obeyed_and_proved() {
        let mut machine = Machine::new();
        machine.expect(Released);
        for _ in 0..3 {
            machine.obeyed(Restricted);
            let status = machine.status();
            assert_eq!(status.policy, Some(machine.policy.to_string()));
            assert_eq!((status.baseline_files, status.failed_closed), (1, None));
            // Restricted again, by another order.
            machine.obeyed(Restricted);
            machine.obeyed(Released);
            assert_eq!(machine.status().policy, None);
        }
    }
}

gate_test! {
    fn a_receipt_names_what_is_in_force() {
        let mut machine = Machine::new();
        let order = machine.order(Restricted);
        let receipt = machine.apply(&machine.sign(&order)).unwrap();
        assert_eq!(receipt.policy, Some(machine.policy));
        assert_eq!(receipt.baseline, Some(digest(&machine.baseline())));
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(receipt.boot_id, boot_id.trim());
        let order = machine.order(Released);
        assert_eq!(machine.apply(&machine.sign(&order)).unwrap().policy, None);
    }
}

gate_test! {
    fn the_agent_hears_that_an_order_is_durable_before_its_receipt() {
        let mut machine = Machine::new();
        let order = machine.order(Restricted);
        let envelope = machine.sign(&order);
        let mut agent = machine.connect_as(AGENT);
        assert_eq!(agent.ask(&Request::Apply { envelope: envelope.clone() }), Reply::Accepted { generation: 1 });
        let receipt = agent.next();
        assert!(matches!(receipt, Reply::Receipt { .. }), "{receipt:?}");
        // The same order again gives the same receipt, and so does the question for it.
        for _ in 0..2 {
            assert_eq!(agent.ask(&Request::Apply { envelope: envelope.clone() }), receipt);
            assert_eq!(agent.ask(&Request::LastReceipt), receipt);
        }
        machine.restart();
        assert_eq!(machine.connect_as(AGENT).ask(&Request::Apply { envelope }), receipt);
        machine.expect(Restricted);
    }
}

/// What must not change by an order that does not count.
fn unchanging(status: Status) -> Status {
    Status { marks: 0, labels: 0, asked: 0, denied: 0, ..status }
}

/// Holds that the order is refused for this reason, and changes nothing.
fn expect_refused(machine: &Machine, envelope: &str, expected: &str) {
    let before = unchanging(machine.status());
    let reason = match machine.apply(envelope) {
        Err(reason) => reason,
        Ok(receipt) => match receipt.outcome {
            Outcome::Rejected(reason) => reason,
            other => panic!("{other:?}, expected a refusal: {expected}"),
        },
    };
    assert!(reason.contains(expected), "{reason:?}, expected {expected:?}");
    assert_eq!(unchanging(machine.status()), before);
}

gate_test! {
    fn an_order_that_does_not_count_is_refused_and_changes_nothing() {
        let mut machine = Machine::new();
        for desired in [Restricted, Released] {
            // The other of the two is what it would change.
            let opposite = if desired == Restricted { Released } else { Restricted };
            let last = machine.obeyed(opposite);
            let good = machine.order(desired);
            machine.generation -= 1;
            let changed = |change: fn(&mut Order)| {
                let mut order = good.clone();
                change(&mut order);
                machine.sign(&order)
            };
            let refuse = |envelope: &str, reason: &str| expect_refused(&machine, envelope, reason);
            refuse(&changed(|order| order.machine.0[3] ^= 1), "addressed to machine");
            refuse(&changed(|order| order.fence.generation -= 1), "is not above");
            refuse(&changed(|order| order.fence.generation = 0), "is not above");
            refuse(&changed(|order| order.fence.store_epoch = 0), "is not above");
            refuse(&changed(|order| order.fence.incarnation = 0), "the order is for incarnation 0");
            refuse(&changed(|order| order.fence.incarnation = 2), "the order is for incarnation 2");
            refuse(&changed(|order| order.not_after = order.issued_at.minus(Duration::from_secs(1))), "expired");
            refuse(&changed(|order| order.not_after = Timestamp::from_ticks(i64::MIN)), "expired");
            if desired == Restricted {
                refuse(&changed(|order| order.policy.as_mut().unwrap().0[0] ^= 1), "is not held");
            }
            let stranger = SigningKey::generate().unwrap();
            let forged = String::from_utf8(good.sign(&stranger).to_bytes()).unwrap();
            refuse(&forged, "not signed by a trusted key");
            refuse("", "not a signed envelope");
            refuse(&"[".repeat(1 << 20), "bytes, at most");
            machine.expect(opposite);
            // All of that, and the next order counts even so.
            machine.obeyed(desired);
            refuse_replay(&machine, &last);
        }
    }
}

fn refuse_replay(machine: &Machine, envelope: &str) {
    expect_refused(machine, envelope, "is not above");
}

gate_test! {
    fn any_flipped_bit_is_refused() {
        let mut machine = Machine::new();
        let order = machine.order(Restricted);
        machine.generation -= 1;
        let good = machine.sign(&order).into_bytes();
        let mut agent = machine.connect_as(AGENT);
        let mut tried = 0;
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(envelope) = String::from_utf8(bytes) else { continue };
            agent.refusal(&Request::Apply { envelope });
            tried += 1;
        }
        assert!(tried > good.len() * 6, "{tried}");
        machine.expect(Released);
    }
}

gate_test! {
    fn a_machine_that_is_not_enrolled_obeys_nobody() {
        let mut machine = Machine::bare();
        let order = machine.order(Restricted);
        let reason = machine.apply(&machine.sign(&order)).unwrap_err();
        assert_eq!(reason, "this machine is not enrolled");
        assert_eq!(machine.status().machine, None);
        let mut agent = machine.connect_as(AGENT);
        assert_eq!(agent.refusal(&Request::LastReceipt), "no order was carried out yet");
    }
}

gate_test! {
    fn a_restriction_that_not_even_a_shell_would_survive_is_refused() {
        let mut machine = Machine::bare();
        machine.enroll();
        machine.store_policy();
        let order = machine.order(Restricted);
        expect_refused(&machine, &machine.sign(&order), "no package baseline is held");
        let mut empty = Vec::new();
        policy::baseline::Builder::default().finish(&mut empty).unwrap();
        assert_eq!(machine.send_baseline(&empty), Reply::Done);
        expect_refused(&machine, &machine.sign(&order), "no package baseline is held");
        assert_eq!(machine.send_baseline(&machine.baseline()), Reply::Done);
        machine.obeyed(Restricted);
    }
}

gate_test! {
    fn a_kernel_that_cannot_restrict_says_so_and_can_be_released() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        machine.stop(nix::sys::signal::Signal::SIGKILL);
        // Without this capability the kernel gives no fanotify group for permission events.
        let command = machine.gate_command_with(&["--bounding-set", "-sys_admin"]);
        machine.start_with(command);
        let status = machine.status();
        assert_eq!((status.restricted, status.generation, status.tier), (false, 1, None));
        assert!(status.tier_note.contains("need root (CAP_SYS_ADMIN)"), "{}", status.tier_note);
        let order = machine.order(Restricted);
        machine.generation -= 1;
        expect_refused(&machine, &machine.sign(&order), "need root (CAP_SYS_ADMIN)");
        machine.obeyed(Released);
        machine.restart();
        machine.expect(Released);
    }
}

gate_test! {
    fn many_switches_are_quick_and_each_is_proved() {
        let mut machine = Machine::new();
        let mut agent = machine.connect_as(AGENT);
        let (mut accepted, mut proved) = (Vec::new(), Vec::new());
        for round in 0..200 {
            let order = machine.order(if round % 2 == 0 { Restricted } else { Released });
            let envelope = machine.sign(&order);
            let start = Instant::now();
            let reply = agent.ask(&Request::Apply { envelope });
            assert_eq!(reply, Reply::Accepted { generation: machine.generation });
            accepted.push(start.elapsed());
            let Reply::Receipt { envelope } = agent.next() else { panic!("no receipt") };
            proved.push(start.elapsed());
            let (key, id) = (machine.status().public_key.parse().unwrap(), machine.id);
            let receipt = orders::VerifiedReceipt::verify(envelope.as_bytes(), key, id).unwrap();
            assert_eq!(receipt.receipt().outcome, Outcome::Enforced);
        }
        for (name, mut times) in [("durable", accepted), ("proved", proved)] {
            times.sort();
            println!("order -> {name}: p50 {:?}, p90 {:?}, p99 {:?}", times[100], times[180], times[198]);
            assert!(times[100] < Duration::from_secs(1));
        }
        let open = std::fs::read_dir(format!("/proc/{}/fd", machine.gate_id())).unwrap().count();
        assert!(open < 40, "{open} descriptors");
    }
}
