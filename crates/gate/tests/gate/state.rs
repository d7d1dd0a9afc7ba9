//! Damaged, lost and unwritable state: restricted or unchanged, never a silent release.

use std::fs;
use std::path::Path;

use domain::restriction::Desired::{Released, Restricted};
use gate_protocol::Reply;
use nix::sys::signal::Signal::SIGKILL;
use orders::Outcome;

use crate::support::*;

/// Something that can happen to a file, and its name.
pub(crate) type Damage = (&'static str, fn(&Path));

/// What can happen to a file.
pub(crate) const DAMAGES: [Damage; 5] = [
    ("a flipped bit", |path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(path, bytes).unwrap();
    }),
    ("cut short", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("empty", |path| fs::write(path, "").unwrap()),
    ("rubbish", |path| fs::write(path, "\u{0}\n\u{1}".repeat(999)).unwrap()),
    ("gone", |path| fs::remove_file(path).unwrap()),
];

/// Damages a file of a machine's state while no gate runs, and starts a gate.
fn damage(machine: &mut Machine, name: &str, how: fn(&Path)) {
    machine.stop(SIGKILL);
    how(&machine.state(name));
    machine.start();
}

/// A copy of the state, to come back to.
fn save(machine: &Machine) {
    copy(&machine.folder.join("state"), &machine.folder.join("saved"));
}

fn restore(machine: &mut Machine) {
    machine.stop(SIGKILL);
    fs::remove_dir_all(machine.folder.join("state")).unwrap();
    copy(&machine.folder.join("saved"), &machine.folder.join("state"));
    machine.start();
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.metadata().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

gate_test! {
    fn a_damaged_fence_restricts_to_packages_until_a_later_order() {
        let mut machine = Machine::new();
        let old_release = { let order = machine.order(Released); machine.sign(&order) };
        for before in [Restricted, Released] {
            machine.obeyed(before);
            save(&machine);
            for (what, how) in DAMAGES {
                damage(&mut machine, "fence", how);
                let status = machine.status();
                assert!(status.restricted, "{before:?}, {what}");
                let reason = status.failed_closed.expect("a reason");
                assert!(reason.contains("fence"), "{reason}");
                let programs = machine.programs();
                assert_eq!(run(&programs.unlisted), Execution::Refused, "{what}");
                assert_eq!(run(&programs.listed), Execution::Refused, "no rule counts any more, {what}");
                assert_eq!(run(&programs.packaged), Execution::Ran, "{what}");
                assert_eq!(run(&programs.agent), Execution::Ran, "{what}");
                // The lost fence would have refused this.
                let replayed = machine.apply(&old_release).unwrap();
                assert!(matches!(&replayed.outcome, Outcome::Rejected(reason) if reason.contains("failed closed")));
                // Found once, it counts from then on, over restarts.
                let release = machine.order(Released);
                let release = machine.sign(&release);
                machine.restart();
                assert!(machine.status().restricted && machine.status().failed_closed.is_some());
                assert_eq!(machine.apply(&release).unwrap().outcome, Outcome::Enforced, "{what}");
                assert_eq!(machine.status().failed_closed, None);
                machine.expect(Released);
                machine.restart();
                machine.expect(Released);
                // And the fence is one again.
                machine.obeyed(Restricted);
                restore(&mut machine);
            }
        }
    }
}

gate_test! {
    fn a_gate_that_failed_closed_can_be_told_to_restrict() {
        let mut machine = Machine::new();
        machine.obeyed(Released);
        damage(&mut machine, "fence", DAMAGES[0].1);
        assert_eq!(run(&machine.programs().listed), Execution::Refused);
        machine.obeyed(Restricted);
        assert_eq!(machine.status().failed_closed, None);
        machine.restart();
        machine.expect(Restricted);
        machine.obeyed(Released);
    }
}

gate_test! {
    fn one_damaged_copy_of_the_enrollment_changes_nothing() {
        let mut machine = Machine::new();
        for desired in [Restricted, Released] {
            machine.obeyed(desired);
            save(&machine);
            for path in [machine.state("enrollment"), machine.copy_of("enrollment")] {
                for (_, how) in DAMAGES {
                    machine.stop(SIGKILL);
                    how(&path);
                    machine.start();
                    machine.expect(desired);
                    assert_eq!(machine.status().failed_closed, None);
                    restore(&mut machine);
                }
            }
        }
    }
}

gate_test! {
    fn a_lost_enrollment_restricts_and_can_be_made_again_without_a_release() {
        let mut machine = Machine::new();
        for desired in [Restricted, Released] {
            machine.obeyed(desired);
            save(&machine);
            let (generation, incarnation) = (machine.generation, machine.incarnation);
            for (what, how) in DAMAGES {
                how(&machine.copy_of("enrollment"));
                damage(&mut machine, "enrollment", how);
                let status = machine.status();
                assert!(status.restricted && status.machine.is_none(), "{what}");
                assert!(status.failed_closed.expect("a reason").contains("enrollment"), "{what}");
                let release = machine.order(Released);
                assert_eq!(machine.apply(&machine.sign(&release)).unwrap_err(), "this machine is not enrolled");
                // The same incarnation again does not take the fence back.
                machine.enroll();
                machine.generation = machine.status().generation;
                assert_eq!(machine.generation, generation);
                machine.incarnation += 1;
                machine.generation = 0;
                let reply = machine.ask(&machine.enroll_request());
                assert!(matches!(reply, Reply::Refused { .. }), "enrolled and restricted: {reply:?}");
                machine.incarnation -= 1;
                machine.generation = generation;
                assert!(machine.status().restricted, "{what}");
                machine.obeyed(Released);
                restore(&mut machine);
                (machine.generation, machine.incarnation) = (generation, incarnation);
            }
        }
    }
}

gate_test! {
    fn a_damaged_baseline_vouches_for_nothing() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        save(&machine);
        for name in ["baseline", "baseline-digest"] {
            for (what, how) in DAMAGES {
                damage(&mut machine, name, how);
                let status = machine.status();
                assert!(status.restricted, "{name}, {what}");
                let reason = status.failed_closed.expect("a reason");
                assert!(reason.contains("the package baseline cannot be used"), "{reason}");
                let programs = machine.programs();
                assert_eq!(run(&programs.unlisted), Execution::Refused);
                assert_eq!(run(&programs.packaged), Execution::Refused);
                assert_eq!(run(&programs.listed), Execution::Ran);
                assert_eq!(run(&programs.agent), Execution::Ran, "so that it can be released");
                let order = machine.order(Released);
                assert_eq!(machine.apply(&machine.sign(&order)).unwrap().outcome, Outcome::Enforced);
                assert_eq!(machine.status().failed_closed, None);
                assert_eq!(machine.send_baseline(&machine.baseline()), Reply::Done);
                machine.obeyed(Restricted);
                restore(&mut machine);
                machine.generation = 1;
            }
        }
        // A machine that is to be free stays free.
        machine.obeyed(Released);
        damage(&mut machine, "baseline", DAMAGES[0].1);
        assert_eq!((machine.status().restricted, machine.status().baseline), (false, None));
        machine.restart();
        assert_eq!(machine.send_baseline(&machine.baseline()), Reply::Done);
        machine.expect(Released);
    }
}

gate_test! {
    fn a_lost_key_is_replaced_and_said() {
        let mut machine = Machine::new();
        for desired in [Restricted, Released] {
            machine.obeyed(desired);
            save(&machine);
            let key = machine.status().public_key;
            for (what, how) in DAMAGES {
                damage(&mut machine, "key", how);
                machine.expect(desired);
                let status = machine.status();
                assert_ne!(status.public_key, key, "{what}");
                assert!(machine.log().contains("the gate's key was lost"), "{}", machine.log());
                let said = status.failed_closed.is_some_and(|reason| reason.contains("the gate's key was lost"));
                assert_eq!(said, desired == Restricted);
                restore(&mut machine);
            }
        }
    }
}

gate_test! {
    fn a_failure_that_cannot_be_read_is_a_failure() {
        let mut machine = Machine::new();
        machine.obeyed(Released);
        machine.stop(SIGKILL);
        fs::write(machine.state("failed-closed"), "rubbish").unwrap();
        machine.start();
        let status = machine.status();
        assert!(status.restricted && status.failed_closed.expect("a reason").contains("failed-closed"));
        assert_eq!(run(&machine.programs().unlisted), Execution::Refused);
        machine.obeyed(Released);
        machine.restart();
        machine.expect(Released);
    }
}

gate_test! {
    fn a_second_gate_does_not_start() {
        let mut machine = Machine::new();
        let output = machine.gate_command().output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("another gate uses"), "{said}");
        machine.obeyed(Restricted);
    }
}

gate_test! {
    fn policies_and_canaries_can_be_lost() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        for name in ["policies", "canaries"] {
            machine.stop(SIGKILL);
            fs::remove_dir_all(machine.state(name)).unwrap();
            machine.start();
            machine.expect(Restricted);
        }
        assert_eq!(machine.status().policies, Vec::<String>::new());
        // The policy in force is with its order; the next order needs it again.
        machine.store_policy();
        machine.obeyed(Restricted);
        machine.obeyed(Released);
    }
}

gate_test! {
    fn a_full_disk_refuses_an_order_and_changes_nothing() {
        let mut machine = Machine::bare();
        machine.stop(SIGKILL);
        let state = machine.folder.join("state");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("small"), &state, Some("tmpfs"), flags, Some("size=256k,mode=700")).unwrap();
        machine.start();
        machine.enroll();
        machine.store_policy();
        assert_eq!(machine.send_baseline(&machine.baseline()), Reply::Done);
        let filler = state.join("filler");
        for desired in [Restricted, Released] {
            let before = if desired == Restricted { Released } else { Restricted };
            fill(&filler);
            let order = machine.order(desired);
            let envelope = machine.sign(&order);
            let receipt = machine.apply(&envelope).unwrap();
            let Outcome::ApplyFailed(reason) = receipt.outcome else { panic!("{receipt:?}") };
            assert!(reason.contains("cannot be made durable") && reason.contains("No space left"), "{reason}");
            machine.generation -= 1;
            machine.expect(before);
            // Nor does a start on a full disk.
            machine.restart();
            machine.expect(before);
            fs::remove_file(&filler).unwrap();
            // The same order counts when there is room.
            assert_eq!(machine.apply(&envelope).unwrap().outcome, Outcome::Enforced);
            machine.generation += 1;
            machine.expect(desired);
        }
        assert!(!state.join("fence.tmp").exists());
    }
}

/// Writes a file until nothing more fits.
pub(crate) fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(path).unwrap();
    while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
}
