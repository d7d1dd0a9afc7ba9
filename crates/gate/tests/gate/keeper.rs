//! A gate that dies or does nothing, while a keeper has what it must not lose.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use domain::restriction::Desired::{Released, Restricted};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::support::*;

/// The longest that anybody may wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Executes, and holds that there is an answer in time.
fn run_in_time(path: &Path) -> Execution {
    let start = Instant::now();
    let execution = run(path);
    assert!(start.elapsed() < PATIENCE, "{} waited {:?}", path.display(), start.elapsed());
    execution
}

gate_test! {
    fn a_restriction_outlives_its_gate_without_a_gap() {
        let mut machine = Machine::kept();
        machine.obeyed(Restricted);
        let programs = machine.programs();
        let (stop, tries, ran, late) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        // Each restart has its share of tries: some before it, some that wait for it, some after.
        const RESTARTS: u64 = 25;
        const TRIES: u64 = 10_000;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let start = Instant::now();
                        ran.fetch_add(u64::from(run(&programs.unlisted) == Execution::Ran), Ordering::Relaxed);
                        late.fetch_max(u64::try_from(start.elapsed().as_millis()).unwrap(), Ordering::Relaxed);
                        tries.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for restart in 0..RESTARTS {
                machine.stop(if restart % 2 == 0 { SIGKILL } else { SIGTERM });
                machine.start();
                until("there were tries", || {
                    (tries.load(Ordering::Relaxed) >= (restart + 1) * TRIES / RESTARTS).then_some(())
                });
            }
            stop.store(true, Ordering::Relaxed);
        });
        println!("{tries:?} tries, {ran:?} ran, the longest took {late:?} ms");
        assert_eq!(ran.into_inner(), 0, "of {tries:?}");
        assert!(Duration::from_millis(late.into_inner()) < PATIENCE);
        machine.expect(Restricted);
        machine.obeyed(Released);
        machine.stop(SIGKILL);
        // A release leaves nothing behind, with or without a gate.
        assert_eq!(run(&programs.unlisted), Execution::Ran);
        machine.start();
        machine.expect(Released);
    }
}

gate_test! {
    fn while_there_is_no_gate_what_is_known_runs_and_nothing_else() {
        let mut machine = Machine::kept();
        machine.obeyed(Restricted);
        let programs = machine.programs();
        machine.stop(SIGKILL);
        assert_eq!(run_in_time(&programs.listed), Execution::Ran);
        let start = Instant::now();
        assert_eq!(run_in_time(&programs.unlisted), Execution::Refused);
        let waited = start.elapsed();
        assert!(waited > Duration::from_secs(1), "a restart is waited for: {waited:?}");
        for _ in 0..20 {
            assert_eq!(run_in_time(&programs.unlisted), Execution::Refused);
            assert_eq!(run_in_time(&programs.listed), Execution::Ran);
        }
        machine.start();
        machine.expect(Restricted);
    }
}

gate_test! {
    fn a_frozen_gate_neither_opens_the_machine_nor_hangs_it() {
        let mut machine = Machine::kept();
        machine.obeyed(Restricted);
        let programs = machine.programs();
        for _ in 0..2 {
            machine.signal(SIGSTOP);
            for _ in 0..10 {
                assert_eq!(run_in_time(&programs.unlisted), Execution::Refused);
                assert_eq!(run_in_time(&programs.listed), Execution::Ran);
            }
            machine.signal(SIGCONT);
            machine.expect(Restricted);
        }
        // Killed while it is frozen, it comes back as it does otherwise.
        machine.signal(SIGSTOP);
        machine.stop(SIGKILL);
        machine.start();
        machine.expect(Restricted);
    }
}

gate_test! {
    fn a_keeper_that_dies_takes_nothing_with_it() {
        let mut machine = Machine::kept();
        machine.obeyed(Restricted);
        machine.stop_keeper();
        machine.expect(Restricted);
        machine.start_keeper();
        machine.wait_for_keeper();
        machine.stop(SIGKILL);
        assert_eq!(run_in_time(&machine.programs().listed), Execution::Ran);
        assert_eq!(run_in_time(&machine.programs().unlisted), Execution::Refused);
        machine.start();
        machine.expect(Restricted);
    }
}

gate_test! {
    fn what_is_changed_while_there_is_no_gate_does_not_run() {
        let mut machine = Machine::kept();
        machine.obeyed(Restricted);
        let listed = machine.programs().listed;
        assert_eq!(run(&listed), Execution::Ran);
        machine.stop(SIGKILL);
        // The lease holds the writer until the kernel's memory of the verdict is gone.
        let file = fs::OpenOptions::new().write(true).open(&listed).unwrap();
        file.write_all_at(b"changed", fs::metadata(&listed).unwrap().len()).unwrap();
        drop(file);
        assert_eq!(run_in_time(&listed), Execution::Refused);
        machine.start();
        assert_eq!(run_in_time(&listed), Execution::Refused);
    }
}

gate_test! {
    fn an_upgrade_of_the_gate_has_no_gap() {
        let mut machine = Machine::kept();
        machine.gate_program = machine.folder.join("cordon-gate");
        install(&machine.gate_program, &fs::read(env!("CARGO_BIN_EXE_cordon-gate")).unwrap());
        machine.restart();
        machine.obeyed(Restricted);
        let programs = machine.programs();
        // The policy lists the newer one, which is looked at while the older one is there.
        install(&machine.gate_program, &newer_gate());
        let check = std::process::Command::new(&machine.gate_program).arg("--version").output().unwrap();
        assert!(check.status.success());
        let (stop, ran) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let tries = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    ran.fetch_add(u64::from(run_in_time(&programs.unlisted) == Execution::Ran), Ordering::Relaxed);
                }
            });
            machine.restart();
            stop.store(true, Ordering::Relaxed);
            tries.join().unwrap();
        });
        assert_eq!(ran.into_inner(), 0);
        machine.expect(Restricted);
    }
}

gate_test! {
    fn a_gate_starts_its_keeper() {
        let mut machine = Machine::kept();
        machine.stop(SIGKILL);
        machine.stop_keeper();
        machine.configure_keeper("start");
        machine.start();
        machine.obeyed(Restricted);
        machine.stop(SIGKILL);
        assert_eq!(run_in_time(&machine.programs().listed), Execution::Ran);
        assert_eq!(run_in_time(&machine.programs().unlisted), Execution::Refused);
        machine.start();
        machine.expect(Restricted);
        machine.obeyed(Released);
    }
}

/// Takes the messages that a gate has sent to its service manager, with the descriptors that it gave away.
fn notifications(socket: &UnixDatagram) -> Vec<(String, Option<RawFd>)> {
    let mut found = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut control = nix::cmsg_space!(RawFd);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        // Inherited by the next gate's starter, as it is without further ado.
        let Ok(message) =
            recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)
        else {
            return found;
        };
        let file = message.cmsgs().unwrap().find_map(|control| match control {
            ControlMessageOwned::ScmRights(files) => files.first().copied(),
            _ => None,
        });
        let length = message.bytes;
        found.push((String::from_utf8(buffer[..length].to_vec()).unwrap(), file));
    }
}

gate_test! {
    fn the_service_manager_alone_keeps_a_restriction() {
        let mut machine = Machine::restarting();
        let name = machine.folder.join("notify");
        let manager = UnixDatagram::bind(&name).unwrap();
        let mut command = machine.gate_command();
        command.env("NOTIFY_SOCKET", &name);
        machine.start_with(command);
        machine.set_up();
        drop(notifications(&manager));
        machine.obeyed(Restricted);
        let told = notifications(&manager);
        let [(text, Some(group))] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!(text, "FDSTORE=1\nFDNAME=cordon-fanotify\nFDPOLL=0");
        let programs = machine.programs();
        for _ in 0..3 {
            machine.stop(SIGKILL);
            std::thread::scope(|scope| {
                // There is no keeper: it waits until a gate is back.
                let waiting = scope.spawn(|| run_in_time(&programs.unlisted));
                assert_eq!(run_in_time(&programs.listed), Execution::Ran);
                assert!(!waiting.is_finished());
                let gate = machine.gate_command();
                let mut command = std::process::Command::new(SHELL);
                command.args(["-c", "exec 3<&\"$0\" && export LISTEN_PID=$$ && exec \"$@\""]).arg(group.to_string());
                command.arg(gate.get_program()).args(gate.get_args());
                command.env("NOTIFY_SOCKET", &name).env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "cordon-fanotify");
                machine.start_with(command);
                assert_eq!(waiting.join().unwrap(), Execution::Refused);
            });
            machine.expect(Restricted);
        }
        drop(notifications(&manager));
        machine.obeyed(Released);
        let told = notifications(&manager);
        assert!(told.iter().any(|(text, _)| text == "FDSTOREREMOVE=1\nFDNAME=cordon-fanotify"), "{told:?}");
        // Whatever the manager still has of it asks nothing any more.
        machine.stop(SIGKILL);
        assert_eq!(run(&programs.unlisted), Execution::Ran);
    }
}

gate_test! {
    fn a_gate_of_another_tier_ends_what_is_kept() {
        let mut machine = Machine::kept();
        machine.obeyed(Restricted);
        machine.stop(SIGKILL);
        let socket = Some(machine.folder.join("keeper"));
        enforcement::end_former(enforcement::Keepers { socket, ..Default::default() });
        assert_eq!(run_in_time(&machine.programs().unlisted), Execution::Ran);
    }
}
