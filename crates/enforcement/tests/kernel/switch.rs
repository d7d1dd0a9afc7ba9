//! Switches: to another policy, to nothing, and while the mounts change.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use enforcement::{Enforcer as _, Status};

use crate::support::*;

kernel_test! {
    fn a_switch_to_another_policy_has_no_gap() {
        let mut lab = Lab::new();
        let (listed, unlisted) = (lab.disk.join("listed"), lab.disk.join("unlisted"));
        let bytes = payload();
        install(&listed, &bytes);
        install(&unlisted, &payload());
        lab.judge.list(&bytes);
        lab.restrict();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let attempts = [(&listed, Outcome::Ran), (&unlisted, Outcome::Refused)].map(|(path, expected)| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(run(path), expected);
                        count += 1;
                    }
                    count
                })
            });
            for _ in 0..200 {
                let judge = ListJudge::default();
                judge.list(&bytes);
                lab.judge = Arc::new(judge);
                lab.restrict();
                std::thread::sleep(Duration::from_millis(2));
            }
            stop.store(true, Ordering::Relaxed);
            for attempt in attempts {
                let count = attempt.join().unwrap();
                assert!(count > 50, "only {count} attempts");
            }
        });
    }
}

kernel_test! {
    fn a_switch_counts_as_soon_as_it_returns() {
        let mut lab = Lab::new();
        let (path, bytes) = (lab.disk.join("program"), payload());
        install(&path, &bytes);
        let with = Arc::new(ListJudge::default());
        with.list(&bytes);
        let without = Arc::new(ListJudge::default());
        for round in 0..100 {
            for (judge, expected) in [(&with, Outcome::Ran), (&without, Outcome::Refused)] {
                lab.judge = Arc::clone(judge);
                lab.restrict();
                assert_eq!((lab.run(&path), lab.run(&path)), (expected, expected), "round {round}");
            }
        }
    }
}

kernel_test! {
    fn what_the_old_policy_was_asked_the_new_one_answers() {
        let mut lab = Lab::new();
        let (path, bytes) = (lab.disk.join("program"), payload());
        install(&path, &bytes);
        let old = Arc::new(ListJudge::default());
        old.list(&bytes);
        old.list(&fs::read(lab.actor_path()).unwrap());
        lab.judge = Arc::clone(&old);
        lab.restrict();
        assert_eq!(lab.act(Who::Root, &[&"nothing", &"known"]), Outcome::Other(98));
        old.hold();
        let mut waiting = lab.actor(Who::Root, &[&"run", &path]).spawn().unwrap();
        until("the old judge is asked", || (old.asked.load(Ordering::SeqCst) > 1).then_some(()));
        lab.judge = Arc::new(ListJudge::default());
        lab.restrict();
        old.let_go();
        assert_eq!(waiting.wait().unwrap().code(), Some(1), "refused by the new one");
    }
}

kernel_test! {
    fn a_mount_that_appears_is_covered() {
        let mut lab = Lab::new();
        lab.restrict();
        let before = lab.enforcer.status().marks;
        let folder = lab.disk.join("a mount\nwith \\ a name");
        fs::create_dir(&folder).unwrap();
        mount_tmpfs(&folder);
        until("it is marked", || (lab.enforcer.status().marks == before + 1).then_some(()));
        let (path, bytes) = (folder.join("payload"), payload());
        install(&path, &bytes);
        assert_eq!(lab.run(&path), Outcome::Refused);
        lab.expect_unlisted(&path, &bytes);
        until("nothing holds the mount", || nix::mount::umount(&folder).ok());
        until("it is gone", || (lab.enforcer.status().marks == before).then_some(()));
    }
}

/// What the kernel's tables say that this process holds.
fn marks() -> usize {
    let infos = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = infos.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts
        .map(|text| {
            text.lines().filter(|line| line.starts_with("fanotify ") && line.contains("mask:")).count()
        })
        .sum()
}

fn leases() -> usize {
    let own = std::process::id().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let is_own = |line: &&str| line.contains("LEASE") && line.split_whitespace().any(|word| word == own);
    locks.lines().filter(is_own).count()
}

kernel_test! {
    fn a_release_leaves_nothing() {
        let mut lab = Lab::new();
        let (path, bytes) = (lab.disk.join("program"), payload());
        install(&path, &bytes);
        lab.judge.list(&bytes);
        lab.restrict();
        assert_eq!(lab.run(&path), Outcome::Ran);
        assert!(marks() > 1 && leases() == 1, "{} marks, {} leases", marks(), leases());
        lab.enforcer.release();
        assert_eq!((marks(), leases()), (0, 0));
        assert_eq!(lab.enforcer.status(), Status::default());
        fs::write(&path, evil_twin(&bytes)).unwrap();
        assert_eq!(lab.run(&path), Outcome::Other(EVIL));
    }
}

kernel_test! {
    fn a_release_lets_through_what_waits() {
        let mut lab = Lab::new();
        let path = lab.disk.join("payload");
        install(&path, &payload());
        lab.restrict();
        assert_eq!(lab.act(Who::Root, &[&"nothing", &"known"]), Outcome::Other(98));
        lab.judge.hold();
        let mut waiting = lab.actor(Who::Root, &[&"run", &path]).spawn().unwrap();
        until("the judge is asked", || (lab.judge.asked.load(Ordering::SeqCst) > 1).then_some(()));
        // A judge that does not answer does not hold up the release.
        lab.enforcer.release();
        assert_eq!(waiting.wait().unwrap().code(), Some(i32::from(RAN)));
        lab.judge.let_go();
    }
}

kernel_test! {
    fn many_switches_leave_nothing() {
        let mut lab = Lab::new();
        let (path, bytes) = (lab.disk.join("program"), payload());
        install(&path, &bytes);
        lab.judge.list(&bytes);
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let threads = || fs::read_dir("/proc/self/task").unwrap().count();
        let before = (open(), threads());
        for _ in 0..100 {
            lab.restrict();
            assert_eq!(lab.run(&path), Outcome::Ran);
            lab.enforcer.release();
        }
        until("threads and descriptors are gone", || ((open(), threads()) == before).then_some(()));
    }
}
