//! A gate that is killed, stopped and started again.

use std::time::{Duration, Instant};

use domain::restriction::Desired::{Released, Restricted};
use gate_protocol::{Reply, Request};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTERM};

use crate::support::*;

gate_test! {
    fn a_restriction_outlives_the_gate() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        let receipt = machine.ask(&Request::LastReceipt);
        // Tier T3: while no gate runs, the kernel allows.
        for signal in [SIGKILL, SIGTERM] {
            machine.stop(signal);
            assert_eq!(run(&machine.programs().unlisted), Execution::Ran);
            machine.start();
            // The gate answers, so the restriction is there.
            assert_eq!(run(&machine.programs().unlisted), Execution::Refused);
            machine.expect(Restricted);
            assert_eq!(machine.ask(&Request::LastReceipt), receipt);
            assert_eq!(machine.status().policy, Some(machine.policy.to_string()));
        }
        machine.obeyed(Released);
        machine.restart();
        machine.expect(Released);
    }
}

gate_test! {
    fn a_gate_that_is_stopped_lets_nothing_through() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        let programs = machine.programs();
        machine.signal(SIGSTOP);
        // What the kernel remembers runs on.
        assert_eq!(run(&programs.listed), Execution::Ran);
        let unlisted = std::thread::spawn(move || run(&programs.unlisted));
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            assert!(!unlisted.is_finished());
            std::thread::sleep(Duration::from_millis(5));
        }
        machine.signal(SIGCONT);
        assert_eq!(unlisted.join().unwrap(), Execution::Refused);
        machine.expect(Restricted);
    }
}

gate_test! {
    fn a_log_that_takes_nothing_does_not_end_the_gate() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        machine.stop(SIGKILL);
        std::fs::write(machine.state("key"), "damaged, which is worth a line in the log").unwrap();
        std::fs::remove_file(machine.folder.join("log")).unwrap();
        std::os::unix::fs::symlink("/dev/full", machine.folder.join("log")).unwrap();
        machine.start();
        machine.expect(Restricted);
        assert_eq!(machine.status().failed_closed.as_deref(), Some("the gate's key was lost: enroll the machine again"));
    }
}

/// Numbers without a pattern: xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

gate_test! {
    fn a_gate_killed_at_any_moment_is_before_or_after() {
        let mut machine = Machine::new();
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        println!("seed {seed}");
        let mut random = Random(seed);
        machine.obeyed(Restricted);
        let mut current = Restricted;
        let (mut befores, mut afters) = (0, 0);
        for round in 0..60 {
            let wanted = if current == Restricted { Released } else { Restricted };
            let order = machine.order(wanted);
            let envelope = machine.sign(&order);
            let mut agent = machine.connect_as(AGENT);
            agent.send(&Request::Apply { envelope });
            let mut is_accepted =
                || matches!(gate_protocol::read_frame(&mut agent.0), Ok(Some(Reply::Accepted { .. })));
            // Every fourth round surely before, every fourth surely after, however slow the disk is.
            let mut accepted = false;
            match round % 4 {
                0 => {}
                1 => accepted = is_accepted(),
                _ => std::thread::sleep(Duration::from_micros(random.below(12_000))),
            }
            machine.stop(SIGKILL);
            // Without a gate nothing waits for an answer, not even its own canary.
            assert_eq!(run(&machine.programs().unlisted), Execution::Ran);
            // What it managed to say counts.
            accepted |= is_accepted();
            machine.start();
            let generation = machine.status().generation;
            if generation == machine.generation {
                afters += 1;
                current = wanted;
            } else {
                assert_eq!(generation, machine.generation - 1, "round {round}: the fence went back");
                assert!(!accepted, "round {round}: it was said to be durable");
                befores += 1;
                machine.generation -= 1;
            }
            assert_eq!(machine.status().failed_closed, None);
            machine.expect(current);
        }
        println!("{befores} before, {afters} after");
        assert!(befores > 0 && afters > 0, "{befores} before, {afters} after: too few of one to show anything");
    }
}

gate_test! {
    fn an_order_that_a_crash_cut_short_is_proved_after_it() {
        let mut machine = Machine::new();
        // As a crash between the fence and the switch leaves it.
        for desired in [Restricted, Released] {
            let envelope = machine.obeyed(desired);
            machine.stop(SIGKILL);
            edit_fence(&machine, |fence| {
                assert!(fence["receipt"].is_string());
                fence["receipt"] = serde_json::Value::Null;
            });
            machine.start();
            machine.expect(desired);
            // The control plane may never send the order again: it knows the generation by now.
            assert!(matches!(machine.ask(&Request::LastReceipt), Reply::Receipt { .. }));
            let receipt = machine.apply(&envelope).unwrap();
            assert_eq!(receipt.outcome, orders::Outcome::Enforced);
            machine.expect(desired);
        }
    }
}
