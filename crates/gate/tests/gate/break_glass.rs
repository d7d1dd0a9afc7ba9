//! Break-glass: a code lifts a restriction on the machine itself, once, whatever else is broken.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use domain::machine::MachineId;
use domain::restriction::Desired::Restricted;
use domain::time::Timestamp;
use gate_protocol::{BreakGlassStatus, Reply, Request};
use nix::sys::signal::Signal::SIGKILL;
use orders::{
    BREAK_GLASS_CODES, BreakGlassCode, BreakGlassStatement, BreakGlassUse, CodeNumber, Outcome,
    VerifiedBreakGlassLog,
};

use crate::state::{DAMAGES, copy, fill};
use crate::support::*;

/// A machine that is restricted and holds the codes from 1 on.
fn restricted() -> Machine {
    let mut machine = Machine::new();
    assert_eq!(store(&machine, 1), Reply::Done);
    machine.obeyed(Restricted);
    machine
}

fn number(machine: &Machine, serial: u64) -> CodeNumber {
    CodeNumber { store_epoch: 1, incarnation: machine.incarnation, serial }
}

fn code(machine: &Machine, serial: u64) -> String {
    BreakGlassCode::derive(&machine.order_key, machine.id, number(machine, serial)).to_string()
}

/// Gives the gate the statement about the codes from `first` on, as the agent does.
fn store(machine: &Machine, first: u64) -> Reply {
    let statement = BreakGlassStatement::new(
        &machine.order_key,
        machine.id,
        number(machine, first),
        Timestamp::default(),
    );
    let envelope = String::from_utf8(statement.sign(&machine.order_key).to_bytes()).unwrap();
    machine.connect_as(AGENT).ask(&Request::StoreBreakGlass { envelope })
}

/// Types a code at the machine's console.
fn type_code(machine: &Machine, code: &str) -> Output {
    // Not by way of another program: none runs on a restricted machine.
    let mut command = machine.gate_itself();
    command.arg("break-glass").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{code}\n").as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Types a code that lifts the restriction.
fn lifted_by(machine: &Machine, serial: u64) {
    let output = type_code(machine, &code(machine, serial));
    let said = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("released, and proved"), "{said}{error}");
}

/// Types a code that does not; why.
fn refused(machine: &Machine, code: &str) -> String {
    let output = type_code(machine, code);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

fn held(machine: &Machine) -> BreakGlassStatus {
    machine.status().break_glass.unwrap()
}

fn uses(machine: &Machine) -> Vec<BreakGlassUse> {
    let (status, log) = (machine.status(), held(machine).log.expect("a log"));
    let key = status.public_key.parse().unwrap();
    VerifiedBreakGlassLog::verify(log.as_bytes(), key, machine.id).unwrap().log().uses.clone()
}

/// Holds that nothing is refused on the machine, and that the gate says so.
fn expect_lifted(machine: &Machine) {
    let status = machine.status();
    assert!(!status.restricted && status.failed_closed.is_none(), "{status:?}");
    assert!(status.break_glass.unwrap().lifted_at.is_some());
    assert_eq!(run(&machine.programs().unlisted), Execution::Ran);
}

gate_test! {
    fn a_code_lifts_the_restriction_until_a_new_order() {
        let mut machine = Machine::new();
        assert_eq!(store(&machine, 1), Reply::Done);
        let order = machine.obeyed(Restricted);
        assert_eq!((held(&machine).codes_left, held(&machine).log), (BREAK_GLASS_CODES as u64, None));
        // As people type it.
        let typed = code(&machine, 2).to_lowercase().replace('-', " ");
        assert!(type_code(&machine, &typed).status.success());
        expect_lifted(&machine);
        let used = uses(&machine);
        assert_eq!((used.len(), used[0].code, used[0].generation), (1, number(&machine, 2), machine.generation));
        // The same order again is answered and not obeyed.
        assert_eq!(machine.apply(&order).unwrap().outcome, Outcome::Enforced);
        expect_lifted(&machine);
        machine.restart();
        expect_lifted(&machine);
        machine.obeyed(Restricted);
        assert_eq!(held(&machine).lifted_at, None);
        // What was used, and what was shown before it, counts no more; what follows does.
        for spent in [1, 2] {
            assert!(refused(&machine, &code(&machine, spent)).contains("this code lifts nothing here"));
            machine.expect(Restricted);
            edit_glass(&mut machine, |glass| glass["failures"] = 0.into());
        }
        lifted_by(&machine, 3);
        expect_lifted(&machine);
        let used: Vec<_> = uses(&machine).iter().map(|used| used.code.serial).collect();
        assert_eq!(used, [2, 3]);
    }
}

gate_test! {
    fn a_wrong_code_makes_the_next_wait_over_a_restart_too() {
        let mut machine = restricted();
        // What is mistyped is no attempt.
        for typo in ["", "rubbish", code(&machine, 1).split_once('-').unwrap().1] {
            assert!(refused(&machine, typo).contains("mistyped"), "{typo}");
        }
        let others = BreakGlassCode::derive(&machine.order_key, MachineId([9; 20]), number(&machine, 1));
        let unknown = code(&machine, 1 + BREAK_GLASS_CODES as u64);
        assert!(refused(&machine, &others.to_string()).contains("this code lifts nothing here"));
        // Not even the right one is looked at.
        edit_glass(&mut machine, |glass| glass["failures"] = 8.into());
        let reason = refused(&machine, &code(&machine, 1));
        assert!(reason.contains("a wrong code was given before"), "{reason}");
        machine.expect(Restricted);
        machine.restart();
        assert!(refused(&machine, &code(&machine, 1)).contains("a wrong code was given before"));
        // Another boot does not shorten it: it begins anew.
        edit_glass(&mut machine, |glass| {
            glass["failures"] = 1.into();
            glass["not_before"] = serde_json::json!({"boot_id": "another", "ends_at": 0});
        });
        // This machine has run for longer than that second.
        assert!(refused(&machine, &unknown).contains("this code lifts nothing here"));
        edit_glass(&mut machine, |glass| glass["failures"] = 0.into());
        lifted_by(&machine, 1);
    }
}

/// Writes something else into both copies while no gate runs, and starts one.
fn edit_glass(machine: &mut Machine, edit: impl FnOnce(&mut serde_json::Value)) {
    machine.stop(SIGKILL);
    let text = fs::read_to_string(machine.state("break-glass")).unwrap();
    let mut glass: serde_json::Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    edit(&mut glass);
    let body = glass.to_string();
    for path in [machine.state("break-glass"), machine.copy_of("break-glass")] {
        fs::write(path, format!("{}\n{body}", digest(body.as_bytes()))).unwrap();
    }
    machine.start();
}

gate_test! {
    fn only_root_may_lift_and_only_what_is_restricted() {
        let mut machine = Machine::new();
        for user in [AGENT, STRANGER] {
            let lift = Request::BreakGlass { code: code(&machine, 1) };
            assert!(machine.connect_as(user).refusal(&lift).contains("this user may not"));
        }
        assert!(refused(&machine, &code(&machine, 1)).contains("not restricted"));
        machine.obeyed(Restricted);
        assert!(refused(&machine, &code(&machine, 1)).contains("holds no break-glass codes"));
        assert_eq!(store(&machine, 1), Reply::Done);
        let Reply::Refused { reason } = machine.connect_as(STRANGER).ask(&Request::StoreBreakGlass {
            envelope: String::new(),
        }) else { panic!("taken") };
        assert!(reason.contains("this user may not"), "{reason}");
        lifted_by(&machine, 1);
        assert!(refused(&machine, &code(&machine, 2)).contains("not restricted"));
        assert_eq!(held(&machine).codes_left, BREAK_GLASS_CODES as u64 - 1, "a code is not wasted");
    }
}

gate_test! {
    fn codes_of_another_time_or_key_do_not_take_the_place_of_those_held() {
        let machine = restricted();
        assert_eq!(store(&machine, 4), Reply::Done);
        assert!(matches!(store(&machine, 3), Reply::Refused { .. }));
        let forged = orders::SigningKey::generate().unwrap();
        let statement = BreakGlassStatement::new(&forged, machine.id, number(&machine, 9), Timestamp::default());
        let envelope = String::from_utf8(statement.sign(&forged).to_bytes()).unwrap();
        assert!(matches!(machine.ask(&Request::StoreBreakGlass { envelope }), Reply::Refused { .. }));
        assert_eq!(held(&machine).first, 4);
        lifted_by(&machine, 4);
    }
}

/// Every file that the gate keeps, its copies included.
fn files(machine: &Machine) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.metadata().unwrap().is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["state", "state.copy"] {
        walk(&machine.folder.join(folder), &mut found);
    }
    found.sort();
    found
}

gate_test! {
    fn whatever_one_file_holds_the_machine_stays_restricted_and_a_code_lifts_it() {
        let mut machine = restricted();
        machine.stop(SIGKILL);
        for folder in ["state", "state.copy"] {
            copy(&machine.folder.join(folder), &machine.folder.join("saved").join(folder));
        }
        let files = files(&machine);
        for name in ["break-glass", "enrollment", "fence", "key", "baseline", "baseline-digest"] {
            assert!(files.iter().any(|file| file.ends_with(name)), "{name} is not among {files:?}");
        }
        for file in files {
            for (what, how) in DAMAGES {
                how(&file);
                machine.start();
                let status = machine.status();
                assert!(status.restricted, "{}, {what}", file.display());
                assert_eq!(run(&machine.programs().unlisted), Execution::Refused, "{}, {what}", file.display());
                let is_fence = file.ends_with("state/fence");
                assert!(!is_fence || status.failed_closed.is_some(), "{what}: it says why");
                lifted_by(&machine, 1);
                expect_lifted(&machine);
                machine.restart();
                expect_lifted(&machine);
                assert!(refused(&machine, &code(&machine, 1)).contains("not restricted"));
                machine.stop(SIGKILL);
                for folder in ["state", "state.copy"] {
                    fs::remove_dir_all(machine.folder.join(folder)).unwrap();
                    copy(&machine.folder.join("saved").join(folder), &machine.folder.join(folder));
                }
            }
        }
        machine.start();
        machine.expect(Restricted);
    }
}

gate_test! {
    fn an_emptied_state_folder_restricts_an_enrolled_machine_and_no_other() {
        let mut machine = Machine::bare();
        let empty = |machine: &mut Machine| {
            machine.stop(SIGKILL);
            fs::remove_dir_all(machine.folder.join("state")).unwrap();
            machine.start();
        };
        empty(&mut machine);
        assert!(!machine.status().restricted, "never enrolled");
        machine.enroll();
        assert_eq!(store(&machine, 1), Reply::Done);
        for _ in 0..2 {
            empty(&mut machine);
            let status = machine.status();
            assert!(status.restricted && status.failed_closed.unwrap().contains("the fence is gone"));
            assert_eq!(status.machine, Some(machine.id.to_string()));
            assert_eq!(run(&machine.programs().unlisted), Execution::Refused);
            assert_eq!(run(&machine.programs().agent), Execution::Ran);
        }
        lifted_by(&machine, 1);
        machine.restart();
        expect_lifted(&machine);
        // It is a machine like any other again.
        machine.store_policy();
        assert_eq!(machine.send_baseline(&machine.baseline()), Reply::Done);
        machine.obeyed(Restricted);
        lifted_by(&machine, 2);
        // Both folders emptied is a machine that never was.
        machine.stop(SIGKILL);
        fs::remove_dir_all(machine.folder.join("state")).unwrap();
        fs::remove_dir_all(machine.folder.join("state.copy")).unwrap();
        machine.start();
        let status = machine.status();
        assert!(!status.restricted && status.machine.is_none());
    }
}

gate_test! {
    fn a_code_lifts_what_failed_closed_and_only_later_orders_count_then() {
        let mut machine = restricted();
        let before = { let order = machine.order(Restricted); machine.sign(&order) };
        machine.stop(SIGKILL);
        fs::write(machine.state("fence"), "rubbish").unwrap();
        machine.start();
        assert!(machine.status().failed_closed.unwrap().contains("fence"));
        lifted_by(&machine, 1);
        expect_lifted(&machine);
        machine.restart();
        expect_lifted(&machine);
        let Outcome::Rejected(reason) = machine.apply(&before).unwrap().outcome else { panic!("obeyed") };
        assert!(reason.contains("failed closed"), "{reason}");
        machine.obeyed(Restricted);
        machine.restart();
        machine.expect(Restricted);
    }
}

gate_test! {
    fn a_lift_without_its_code_is_damage() {
        let mut machine = restricted();
        let statement = {
            let text = fs::read_to_string(machine.state("break-glass")).unwrap();
            let glass: serde_json::Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
            glass["statement"].clone()
        };
        let others = BreakGlassCode::derive(&machine.order_key, MachineId([9; 20]), number(&machine, 1));
        for forged in ["".to_owned(), others.to_string(), code(&machine, 1 + BREAK_GLASS_CODES as u64)] {
            machine.stop(SIGKILL);
            edit_fence(&machine, |fence| {
                fence["restricted"] = false.into();
                fence["lift"] = serde_json::json!({"code": forged, "statement": statement, "at": 1});
            });
            machine.start();
            let status = machine.status();
            assert!(status.restricted, "{forged:?}");
            assert!(status.failed_closed.unwrap().contains("without an end is said to have ended"));
        }
        lifted_by(&machine, 1);
    }
}

gate_test! {
    fn a_crash_before_the_code_is_spent_spends_it() {
        let mut machine = restricted();
        for path in [machine.state("break-glass"), machine.copy_of("break-glass")] {
            fs::copy(&path, path.with_extension("before")).unwrap();
        }
        lifted_by(&machine, 1);
        machine.stop(SIGKILL);
        for path in [machine.state("break-glass"), machine.copy_of("break-glass")] {
            fs::rename(path.with_extension("before"), &path).unwrap();
        }
        machine.start();
        expect_lifted(&machine);
        assert_eq!(uses(&machine).len(), 1);
        machine.obeyed(Restricted);
        assert!(refused(&machine, &code(&machine, 1)).contains("this code lifts nothing here"));
    }
}

gate_test! {
    fn a_code_works_where_no_gate_runs() {
        let mut machine = restricted();
        machine.stop(SIGKILL);
        let output = type_code(&machine, &code(&machine, 1));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("No gate answers") && said.contains("released, and proved"), "{said}");
        machine.start();
        expect_lifted(&machine);
        assert_eq!(uses(&machine).len(), 1);
    }
}

gate_test! {
    fn a_full_disk_takes_no_code() {
        let mut machine = Machine::bare();
        machine.stop(SIGKILL);
        let folders = ["state", "state.copy"].map(|name| machine.folder.join(name));
        for folder in &folders {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("small"), folder, Some("tmpfs"), flags, Some("size=256k,mode=700")).unwrap();
        }
        machine.start();
        machine.enroll();
        machine.store_policy();
        assert_eq!(machine.send_baseline(&machine.baseline()), Reply::Done);
        assert_eq!(store(&machine, 1), Reply::Done);
        machine.obeyed(Restricted);
        for folder in &folders {
            fill(&folder.join("filler"));
        }
        let reason = refused(&machine, &code(&machine, 1));
        assert!(reason.contains("cannot be kept on the disk"), "{reason}");
        machine.expect(Restricted);
        for folder in &folders {
            fs::remove_file(folder.join("filler")).unwrap();
        }
        until("the code is looked at again", || type_code(&machine, &code(&machine, 1)).status.success().then_some(()));
        expect_lifted(&machine);
    }
}

gate_test! {
    fn what_is_restricted_is_not_uninstalled() {
        let mut machine = Machine::new();
        assert_eq!(store(&machine, 1), Reply::Done);
        let check = |machine: &Machine| {
            let output = machine.gate_itself().arg("uninstall-check").output().unwrap();
            (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
        };
        let may = |machine: &Machine| {
            let (code, said) = check(machine);
            assert_eq!((code, said.contains("may be removed")), (0, true), "{said}");
        };
        let may_not = |machine: &Machine| {
            let (code, said) = check(machine);
            assert_eq!((code, said.contains("Lift the restriction first")), (1, true), "{said}");
        };
        may(&machine);
        machine.obeyed(Restricted);
        may_not(&machine);
        machine.stop(SIGKILL);
        may_not(&machine);
        // What packages run.
        let script = |argument: &str| {
            let program = Path::new(env!("CARGO_BIN_EXE_cordon-gate")).parent().unwrap();
            let mut command = std::process::Command::new("/bin/sh");
            command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/scripts/pre-remove"));
            command.arg(argument).env("CORDON_GATE_CONFIG", machine.folder.join("gate.toml"));
            command.env("PATH", program).output().unwrap().status.code().unwrap()
        };
        assert_eq!(["remove", "deconfigure", "0"].map(script), [1, 1, 1]);
        assert_eq!(["upgrade", "1", ""].map(script), [0, 0, 0]);
        machine.start();
        lifted_by(&machine, 1);
        may(&machine);
        machine.stop(SIGKILL);
        may(&machine);
        for name in ["fence", "failed-closed"] {
            fs::write(machine.state(name), "rubbish").unwrap();
            may_not(&machine);
        }
        for folder in ["state", "state.copy"] {
            fs::remove_dir_all(machine.folder.join(folder)).unwrap();
        }
        may(&machine);
    }
}
