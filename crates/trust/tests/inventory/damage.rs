//! Damaged state files and hostile databases: everything is read again, nothing unread is vouched for, nothing panics.

use super::*;
use proptest::prelude::*;
use trust::dpkg::{read_diversions, read_md5sums, read_status};

#[test]
fn a_damaged_state_file_starts_over() {
    let machine = Machine::new();
    machine.install_program("p", "usr/bin/p", "#!p");
    machine.install_program("q", "usr/bin/q", "#!q");
    machine.write("usr/bin/q", "#!evil");
    machine.scan_settled();
    let good = fs::read(machine.path("state")).unwrap();
    let check = |bytes: &[u8], what: &str, at: usize| {
        fs::write(machine.path("state"), bytes).unwrap();
        assert!(machine.inventory().write_baseline(&mut Vec::new()).is_err(), "{what} at {at}");
        let report = machine.scan();
        assert!(report.started_over.unwrap().contains("damaged"), "{what} at {at}");
        assert_eq!((report.hashed, report.vouched, report.modified), (2, 1, 1), "{what} at {at}");
        assert_eq!(fs::read(machine.path("state")).unwrap(), good, "{what} at {at}");
    };
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        check(&flipped, "flipped", at);
        check(&good[..at], "cut", at);
    }
}

/// A state file whose digest is right but whose items are out of order, or of other packages, is of no use and does no
/// harm.
#[test]
fn another_machines_state_file_vouches_for_nothing_here() {
    let other = Machine::new();
    other.install_program("z", "usr/bin/z", "#!z");
    other.install_program("p", "usr/bin/p", "#!other");
    other.scan_settled();
    let machine = Machine::new();
    machine.install_program("p", "usr/bin/p", "#!p");
    machine.write("usr/bin/p", "#!evil");
    fs::copy(other.path("state"), machine.path("state")).unwrap();
    let report = machine.scan();
    assert_eq!((report.vouched, report.modified, report.hashed), (0, 1, 1));
    assert_eq!(machine.files_in_baseline(), 0);
}

#[test]
fn a_left_over_temporary_file_is_overwritten() {
    let machine = Machine::new();
    machine.install_program("p", "usr/bin/p", "#!p");
    machine.write("state.new", &"left over ".repeat(1000));
    assert_eq!(machine.scan().vouched, 1);
    assert_eq!(machine.files_in_baseline(), 1);
}

/// Lines made of the parts that real ones are made of.
fn any_database() -> impl Strategy<Value = Vec<u8>> {
    let parts = prop::sample::select(vec![
        &b"Package: a"[..],
        b"Package: b",
        b"Status: install ok installed",
        b"Status: hold ok unpacked",
        b"Multi-Arch: same",
        b"Architecture: amd64",
        b"Conffiles:",
        b" /etc/a 00112233445566778899aabbccddeeff",
        b" newconffile",
        b"00112233445566778899aabbccddeeff  usr/bin/a",
        b"00112233445566778899aabbccddeeff",
        b"/bin/sh",
        b":",
        b" ",
        b"\0",
        b"\xff",
        b"\n",
        b"\n",
        b"\n\n",
    ]);
    prop::collection::vec(parts, 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn no_database_panics_and_what_is_read_is_sound(bytes in any_database()) {
        let status = read_status(bytes.as_slice()).unwrap();
        prop_assert!(status.packages.windows(2).all(|pair| pair[0].key < pair[1].key));
        let sound = |path: &[u8]| path.starts_with(b"/") && !path.contains(&0) && !path.contains(&b'\n');
        for package in status.packages {
            prop_assert!(!package.key.contains('/'));
            prop_assert!(package.conffiles.iter().all(|(path, _)| sound(path)));
        }
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        let mut listed = 0;
        let malformed = read_md5sums(bytes.as_slice(), &mut |path, _| {
            assert!(sound(path));
            listed += 1;
        });
        prop_assert!(listed + malformed.unwrap() <= lines);
        let (diversions, _) = read_diversions(bytes.as_slice()).unwrap();
        prop_assert!(diversions.iter().all(|diversion| sound(&diversion.from) && sound(&diversion.to)));
    }
}
