//! A restriction that meets a package manager at work.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use domain::restriction::Desired;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use orders::Outcome;

use crate::support::{Machine, gate_test};

/// What dpkg does with its lock.
fn lock(file: &File, kind: i32) {
    let lock = libc::flock {
        l_type: kind.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_SETLK(&lock)).unwrap();
}

gate_test! {
    fn it_is_refused_until_the_package_manager_is_done_unless_it_is_forced() {
        let mut machine = Machine::new();
        // Not the lock of whoever runs the tests: the mount is this test's alone.
        let (own, real) = (machine.folder.join("lock"), Path::new("/var/lib/dpkg/lock"));
        fs::write(&own, "").unwrap();
        let mounted = Command::new("mount").arg("--bind").arg(&own).arg(real).status().unwrap();
        assert!(mounted.success());
        for reading in [true, false] {
            let file = File::options().read(true).write(true).open(&own).unwrap();
            lock(&file, if reading { libc::F_RDLCK } else { libc::F_WRLCK });
            let order = machine.order(Desired::Restricted);
            let outcome = machine.apply(&machine.sign(&order)).unwrap().outcome;
            if reading {
                assert_eq!(outcome, Outcome::Enforced, "who only reads the database is not at work");
                machine.obeyed(Desired::Released);
                continue;
            }
            let Outcome::Rejected(reason) = outcome else { panic!("{outcome:?}") };
            let expected = format!("dpkg is at work (process {}): its scripts would be refused", std::process::id());
            assert!(reason.starts_with(&expected), "{reason}");
            machine.generation -= 1;
            machine.expect(Desired::Released);
            machine.generation += 1;

            machine.store_policy_with(&[("survivalCheck", "force")]);
            machine.obeyed(Desired::Restricted);
            // What is restricted already is not made less so.
            machine.store_policy();
            machine.obeyed(Desired::Restricted);
            machine.obeyed(Desired::Released);
            lock(&file, libc::F_UNLCK);
            machine.obeyed(Desired::Restricted);
        }
    }
}
