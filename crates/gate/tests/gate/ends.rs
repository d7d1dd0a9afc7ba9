//! Restrictions that end by themselves.

use std::time::{Duration, SystemTime};

use domain::restriction::Desired::{Released, Restricted};
use domain::time::Timestamp;
use gate_protocol::{Reply, Request};
use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};
use orders::{Order, Outcome};

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);
/// Long enough for an order to be carried out on a busy machine, and for the gate to be killed after it.
const SOON: Duration = Duration::from_secs(3);

/// The next order: a restriction that ends after this time.
fn ending(machine: &mut Machine, after: Duration) -> Order {
    let order = machine.order(Restricted);
    Order { ends_at: Some(order.issued_at.plus(after)), ..order }
}

/// Gives that order, and holds that it is obeyed and proved. Its exact bytes.
fn restrict(machine: &mut Machine, after: Duration) -> String {
    let order = ending(machine, after);
    let envelope = machine.sign(&order);
    let receipt = machine.apply(&envelope).unwrap();
    assert_eq!((receipt.outcome, receipt.fence), (Outcome::Enforced, order.fence));
    envelope
}

/// Waits until the end of the order has come, and a little longer.
fn until_after(order: &Order) {
    let later = order.ends_at.unwrap().plus(Duration::from_millis(100));
    until("the end has come", || (Timestamp::from(SystemTime::now()) > later).then_some(()));
}

fn await_release(machine: &Machine) {
    until("the restriction ends by itself", || (!machine.status().restricted).then_some(()));
}

/// While no gate runs: the end lies by so many nanoseconds later on the clock of the boot, or earlier.
fn move_end(machine: &Machine, nanoseconds: i64) {
    edit_fence(machine, |fence| {
        let ends_at = fence["end"]["ends_at"].as_u64().unwrap();
        fence["end"]["ends_at"] = ends_at.saturating_add_signed(nanoseconds).into();
    });
}

/// While no gate runs: what is kept is from another boot.
fn reboot(machine: &Machine) {
    edit_fence(machine, |fence| {
        assert!(fence["end"]["boot_id"].is_string());
        fence["end"]["boot_id"] = "another boot".into();
    });
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap()
}

gate_test! {
    fn a_restriction_ends_by_itself() {
        let mut machine = Machine::new();
        let order = ending(&mut machine, SOON);
        let envelope = machine.sign(&order);
        let receipt = machine.apply(&envelope).unwrap();
        assert_eq!(receipt.outcome, Outcome::Enforced);
        let kept = machine.ask(&Request::LastReceipt);
        let status = machine.status();
        if status.restricted {
            assert_eq!(status.ends_at, order.ends_at.map(Timestamp::ticks));
        }
        await_release(&machine);
        assert!(Timestamp::from(SystemTime::now()) >= order.ends_at.unwrap(), "it ended too early");
        // The same generation, and no word of an end any more.
        machine.expect(Released);
        assert_eq!((machine.status().ends_at, machine.status().policy), (None, None));
        until("the log says so", || {
            machine.log().contains("the restriction of generation 1 ended by itself").then_some(())
        });
        assert!(machine.log().contains("released, and proved"), "{}", machine.log());
        // The order's receipt stays the proof that it was obeyed, over restarts, and nothing restricts again.
        for _ in 0..2 {
            assert_eq!(machine.ask(&Request::LastReceipt), kept);
            let mut agent = machine.connect_as(AGENT);
            assert_eq!(agent.ask(&Request::Apply { envelope: envelope.clone() }), kept);
            machine.expect(Released);
            machine.restart();
            machine.expect(Released);
        }
        // What comes next needs a higher fence, as ever.
        let again = Order { action: domain::machine_action::MachineActionId(uuid::Uuid::new_v4()), ..order };
        let refused = machine.apply(&machine.sign(&again)).unwrap();
        assert!(matches!(&refused.outcome, Outcome::Rejected(reason) if reason.contains("is not above")), "{refused:?}");
        machine.obeyed(Restricted);
        machine.obeyed(Released);
    }
}

gate_test! {
    fn an_order_whose_end_has_passed_is_refused() {
        let mut machine = Machine::new();
        let order = machine.order(Restricted);
        machine.generation -= 1;
        let past = Order {
            issued_at: order.issued_at.minus(HOUR * 2),
            ends_at: Some(order.issued_at.minus(HOUR)),
            ..order
        };
        let refused = machine.apply(&machine.sign(&past)).unwrap();
        let Outcome::Rejected(reason) = refused.outcome else { panic!("{refused:?}") };
        assert!(reason.contains("the restriction was to end at 20"), "{reason}");
        assert!(reason.contains("and by this machine's clock it is 20"), "{reason}");
        machine.expect(Released);
        // Nor does an order count that ends what is no restriction, or ends before it begins.
        for bad in [
            Order { desired: Released, policy: None, ends_at: Some(order.issued_at.plus(HOUR)), ..order.clone() },
            Order { ends_at: Some(order.issued_at), ..order },
        ] {
            assert!(machine.apply(&machine.sign(&bad)).unwrap_err().contains("not readable by this version"));
        }
        machine.expect(Released);
    }
}

gate_test! {
    fn a_restriction_whose_end_came_while_no_gate_ran_is_not_begun_again() {
        let mut machine = Machine::new();
        let envelope = restrict(&mut machine, HOUR);
        let kept = machine.ask(&Request::LastReceipt);
        machine.restart();
        machine.expect(Restricted);
        assert!(machine.status().ends_at.is_some());
        machine.stop(SIGKILL);
        // The wall clock says that an hour is left; within one boot it has no say.
        move_end(&machine, -nanoseconds(HOUR));
        machine.start();
        assert!(machine.log().contains("ended by itself"), "{}", machine.log());
        machine.expect(Released);
        assert_eq!(fence(&machine)["restricted"], false);
        assert_eq!(machine.connect_as(AGENT).ask(&Request::Apply { envelope }), kept);
        machine.expect(Released);
        // Really waited for, too.
        let order = ending(&mut machine, SOON);
        machine.apply(&machine.sign(&order)).unwrap();
        machine.stop(SIGKILL);
        until_after(&order);
        machine.start();
        machine.expect(Released);
    }
}

gate_test! {
    fn within_a_boot_the_wall_clock_has_no_say() {
        let mut machine = Machine::new();
        let order = ending(&mut machine, SOON);
        machine.apply(&machine.sign(&order)).unwrap();
        machine.stop(SIGKILL);
        // As after a wall clock that was set forward by an hour: its end has passed, that of the boot's clock has not.
        move_end(&machine, nanoseconds(HOUR));
        until_after(&order);
        machine.start();
        machine.expect(Restricted);
        machine.obeyed(Released);
    }
}

gate_test! {
    fn after_a_reboot_the_wall_clock_says_what_is_left() {
        let mut machine = Machine::new();
        restrict(&mut machine, HOUR);
        let before = fence(&machine);
        machine.stop(SIGKILL);
        reboot(&machine);
        // However far the other boot's clock was.
        move_end(&machine, -nanoseconds(HOUR));
        machine.start();
        machine.expect(Restricted);
        // Anchored anew: this boot's clock decides from here.
        let after = fence(&machine);
        assert_eq!(after["end"]["boot_id"], before["end"]["boot_id"]);
        let moved = after["end"]["ends_at"].as_u64().unwrap().abs_diff(before["end"]["ends_at"].as_u64().unwrap());
        assert!(moved < 60_000_000_000, "{moved} ns");
        machine.restart();
        assert_eq!(fence(&machine), after);
        machine.expect(Restricted);
        // A reboot during which the end came.
        let order = ending(&mut machine, SOON);
        machine.apply(&machine.sign(&order)).unwrap();
        machine.stop(SIGKILL);
        reboot(&machine);
        move_end(&machine, nanoseconds(HOUR));
        until_after(&order);
        machine.start();
        machine.expect(Released);
    }
}

gate_test! {
    fn a_newer_order_takes_the_place_of_the_end() {
        let mut machine = Machine::new();
        for later in [None, Some(HOUR)] {
            let first = ending(&mut machine, SOON);
            assert_eq!(machine.apply(&machine.sign(&first)).unwrap().outcome, Outcome::Enforced);
            match later {
                None => drop(machine.obeyed(Restricted)),
                Some(after) => drop(restrict(&mut machine, after)),
            }
            until_after(&first);
            machine.expect(Restricted);
            assert_eq!(machine.status().ends_at.is_some(), later.is_some());
            machine.restart();
            machine.expect(Restricted);
        }
        // Sooner than before, too, and a release ends the end.
        restrict(&mut machine, SOON);
        await_release(&machine);
        restrict(&mut machine, HOUR);
        machine.obeyed(Released);
        assert!(fence(&machine).get("end").is_none());
        machine.restart();
        machine.expect(Released);
    }
}

gate_test! {
    fn it_is_written_down_before_it_is_let_go() {
        let mut machine = Machine::new();
        for round in 0..5 {
            restrict(&mut machine, Duration::from_millis(1000 + 20 * round));
            let unlisted = machine.programs().unlisted;
            until("it is let go", || (run(&unlisted) == Execution::Ran).then_some(()));
            // The gate is alive, so this ran because it was let go: at this very moment it is on the disk.
            machine.signal(SIGSTOP);
            assert_eq!(fence(&machine)["restricted"], false, "round {round}");
            machine.stop(SIGKILL);
            machine.start();
            machine.expect(Released);
        }
    }
}

gate_test! {
    fn what_cannot_be_written_down_is_not_let_go() {
        let mut machine = Machine::new();
        restrict(&mut machine, HOUR);
        machine.stop(SIGKILL);
        move_end(&machine, -nanoseconds(HOUR));
        // No file can be made where a folder is.
        std::fs::create_dir(machine.state("fence.tmp")).unwrap();
        machine.start();
        machine.expect(Restricted);
        assert!(machine.log().contains("the restriction is over, and stays"), "{}", machine.log());
        assert_eq!(fence(&machine)["restricted"], true);
        std::fs::remove_dir(machine.state("fence.tmp")).unwrap();
        await_release(&machine);
        machine.expect(Released);
        machine.restart();
        machine.expect(Released);
    }
}

gate_test! {
    fn an_order_that_was_never_proved_is_answered_after_its_end() {
        let mut machine = Machine::new();
        let envelope = restrict(&mut machine, HOUR);
        machine.stop(SIGKILL);
        // As a crash between the fence and the receipt leaves it.
        edit_fence(&machine, |fence| fence["receipt"] = serde_json::Value::Null);
        move_end(&machine, -nanoseconds(HOUR));
        machine.start();
        for _ in 0..2 {
            machine.expect(Released);
            let receipt = machine.apply(&envelope).unwrap();
            let Outcome::ApplyFailed(reason) = receipt.outcome else { panic!("{receipt:?}") };
            assert_eq!((reason.as_str(), receipt.desired), ("the restriction ended before it was proved", Restricted));
            assert!(matches!(machine.ask(&Request::LastReceipt), Reply::Receipt { .. }));
            machine.restart();
        }
    }
}

gate_test! {
    fn a_gate_that_failed_closed_ends_nothing() {
        let mut machine = Machine::new();
        for damage in [
            (|fence| fence["end"] = serde_json::Value::Null) as fn(&mut serde_json::Value),
            |fence| fence["end"]["ends_at"] = "soon".into(),
            |fence| fence["policy"] = serde_json::Value::Null,
            // An end that its order does not know.
            |fence| (fence["restricted"], fence["receipt"]) = (false.into(), serde_json::Value::Null),
        ] {
            restrict(&mut machine, HOUR);
            machine.stop(SIGKILL);
            move_end(&machine, -nanoseconds(HOUR));
            edit_fence(&machine, damage);
            machine.start();
            let status = machine.status();
            assert!(status.restricted && status.failed_closed.is_some() && status.ends_at.is_none(), "{status:?}");
            assert_eq!(run(&machine.programs().unlisted), Execution::Refused);
            assert!(!machine.log().contains("ended by itself"), "{}", machine.log());
            machine.obeyed(Released);
        }
        // And a restriction without an end cannot be said to have ended.
        machine.obeyed(Restricted);
        machine.stop(SIGKILL);
        edit_fence(&machine, |fence| fence["restricted"] = false.into());
        machine.start();
        assert!(machine.status().restricted && machine.status().failed_closed.is_some());
        machine.obeyed(Released);
    }
}
