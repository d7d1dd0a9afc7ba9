//! Signed manifests: whose count, and that what counts is settled at the switch.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use domain::allow_policy::Profile;
use domain::restriction::Desired;
use domain::time::Timestamp;
use gate_protocol::{Explanation, Reply, Request};
use nix::sys::signal::Signal;
use orders::{Manifest, SigningKey};

use crate::support::{Execution, Machine, STRANGER, digest, gate_test, program, run};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

/// A manifest that lists a program of the machine, from a day ago until tomorrow.
fn manifest(name: &str) -> Manifest {
    Manifest {
        name: format!("{name} 1.0"),
        issued_at: now().minus(DAY),
        expires_at: now().plus(DAY),
        digests: vec![digest(&program(name))],
    }
}

fn put(machine: &Machine, file: &str, manifest: &Manifest, key: &SigningKey) -> PathBuf {
    let folder = machine.folder.join("manifests");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.join(file);
    fs::write(&path, manifest.sign(key).unwrap().to_bytes()).unwrap();
    path
}

/// Has the machine's policy count this key's manifests.
fn trust(machine: &mut Machine, key: &SigningKey, profile: Profile) {
    machine.store_policy_of(1, profile, &[("manifestKeys", &key.public_key().to_string())]);
}

fn restrict(machine: &mut Machine) {
    let order = machine.order(Desired::Restricted);
    machine.apply(&machine.sign(&order)).unwrap();
}

fn explained(machine: &Machine, path: &Path) -> Explanation {
    let path = path.to_str().unwrap().to_owned();
    match machine.ask(&Request::Explain { path }) {
        Reply::Explanation(explanation) => explanation,
        other => panic!("{other:?}"),
    }
}

gate_test! {
    fn what_a_trusted_manifest_lists_runs_and_what_comes_later_does_not() {
        let key = SigningKey::generate().unwrap();
        let mut machine = Machine::new();
        trust(&mut machine, &key, Profile::OsAndApproved);
        let programs = machine.programs();
        let listing = put(&machine, "a.manifest", &manifest("unlisted"), &key);
        let explanation = explained(&machine, &programs.unlisted);
        assert_eq!((explanation.allowed, explanation.cause.as_str()), (true, "manifest"));
        assert_eq!(explanation.message, "the signed manifest \"unlisted 1.0\" lists it");
        restrict(&mut machine);
        assert_eq!(run(&programs.unlisted), Execution::Ran);
        // The content counts, wherever it lies.
        let copy = machine.folder.join("copy");
        fs::copy(&programs.unlisted, &copy).unwrap();
        assert_eq!(run(&copy), Execution::Ran);

        // What is put there or removed meanwhile changes nothing, not even for a gate that starts anew.
        let later = machine.folder.join("later");
        fs::write(&later, program("later")).unwrap();
        fs::set_permissions(&later, fs::Permissions::from_mode(0o755)).unwrap();
        put(&machine, "b.manifest", &manifest("later"), &key);
        fs::remove_file(listing).unwrap();
        for _ in 0..2 {
            assert_eq!(run(&later), Execution::Refused);
            assert_eq!(run(&programs.unlisted), Execution::Ran);
            machine.restart();
        }
        // With the next order, what lies there then counts.
        restrict(&mut machine);
        assert_eq!(run(&later), Execution::Ran);
        assert_eq!(run(&programs.unlisted), Execution::Refused);
    }
}

gate_test! {
    fn a_manifest_counts_by_key_time_and_owner() {
        let (key, strange) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let mut machine = Machine::new();
        trust(&mut machine, &key, Profile::OsAndApproved);
        let programs = machine.programs();
        let good = manifest("unlisted");
        let at = |issued_at, expires_at| Manifest { issued_at, expires_at, ..good.clone() };
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        type Spoil<'a> = &'a dyn Fn(&Machine) -> PathBuf;
        let table: [(&str, Spoil<'_>); 9] = [
            ("not signed by a trusted key", &|machine| put(machine, "a.manifest", &good, &strange)),
            ("expired", &|machine| put(machine, "a.manifest", &at(now().minus(DAY * 2), now().minus(DAY)), &key)),
            ("not valid yet", &|machine| put(machine, "a.manifest", &at(now().plus(DAY), now().plus(DAY * 2)), &key)),
            ("others than root can change it", &|machine| {
                let path = put(machine, "a.manifest", &good, &key);
                mode(&path, 0o666);
                path
            }),
            ("others than root can change it", &|machine| {
                let path = put(machine, "a.manifest", &good, &key);
                chown(&path, Some(STRANGER), None).unwrap();
                path
            }),
            ("others than root can change it", &|machine| {
                let path = put(machine, "a.manifest", &good, &key);
                mode(path.parent().unwrap(), 0o777);
                path
            }),
            ("not a signed envelope", &|machine| {
                let path = put(machine, "a.manifest", &good, &key);
                fs::write(&path, "{").unwrap();
                path
            }),
            ("not a regular file", &|machine| {
                let path = put(machine, "a.manifest", &good, &key);
                fs::remove_file(&path).unwrap();
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
                path
            }),
            ("", &|machine| put(machine, "a.manifest.old", &good, &key)),
        ];
        for (reason, spoil) in table {
            let path = spoil(&machine);
            restrict(&mut machine);
            assert_eq!(run(&programs.unlisted), Execution::Refused, "{reason}");
            assert!(machine.log().contains(reason), "{reason}: {}", machine.log());
            fs::remove_file(path).unwrap();
        }
        put(&machine, "a.manifest", &good, &key);
        restrict(&mut machine);
        assert_eq!(run(&programs.unlisted), Execution::Ran, "the good one");
    }
}

gate_test! {
    fn a_profile_without_approved_programs_counts_no_manifest() {
        let key = SigningKey::generate().unwrap();
        let mut machine = Machine::new();
        trust(&mut machine, &key, Profile::OsOnly);
        put(&machine, "a.manifest", &manifest("unlisted"), &key);
        restrict(&mut machine);
        assert_eq!(run(&machine.programs().unlisted), Execution::Refused);
        assert_eq!(run(&machine.programs().packaged), Execution::Ran);
    }
}

gate_test! {
    fn damaged_manifests_list_nothing_and_the_machine_stays_restricted() {
        let key = SigningKey::generate().unwrap();
        let mut machine = Machine::new();
        trust(&mut machine, &key, Profile::OsAndApproved);
        put(&machine, "a.manifest", &manifest("unlisted"), &key);
        restrict(&mut machine);
        let kept = machine.state("manifests");
        let whole = fs::read(&kept).unwrap();
        let mut flipped = whole.clone();
        let last = flipped.len() - 10;
        flipped[last] ^= 1;
        for bytes in [Some(&whole[..whole.len() / 2]), Some(&flipped[..]), Some(&[][..]), None] {
            machine.stop(Signal::SIGKILL);
            match bytes {
                Some(bytes) => fs::write(&kept, bytes).unwrap(),
                None => fs::remove_file(&kept).unwrap(),
            }
            machine.start();
            let status = machine.status();
            assert!(status.restricted && status.failed_closed.unwrap().contains("manifests"), "{bytes:?}");
            assert_eq!(run(&machine.programs().unlisted), Execution::Refused);
            assert_eq!(run(&machine.programs().listed), Execution::Ran);
        }
        machine.stop(Signal::SIGKILL);
        fs::write(&kept, whole).unwrap();
        machine.start();
        assert_eq!(run(&machine.programs().unlisted), Execution::Ran);
    }
}
