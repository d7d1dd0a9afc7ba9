//! Limits: a slow judge, floods, many files, files that are none, a lease of the attacker's own.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use domain::decision::DecisionCause;
use enforcement::canary::Canaries;
use enforcement::{Enforcer as _, Settings};

use crate::support::*;

kernel_test! {
    fn what_is_not_decided_in_time_is_refused() {
        let deadline = Duration::from_millis(300);
        let mut lab = Lab::with(Settings { decision_deadline: deadline, ..Settings::default() });
        let (path, bytes) = (lab.disk.join("program"), payload());
        install(&path, &bytes);
        lab.judge.list(&bytes);
        lab.judge.hold();
        lab.restrict();
        let start = Instant::now();
        assert_eq!(lab.run(&path), Outcome::Refused);
        let waited = start.elapsed();
        assert!((deadline..Settings::default().decision_deadline).contains(&waited), "{waited:?}");
        assert_eq!(lab.denial(&path).cause, DecisionCause::Late);
        // Others are not held up by it, as long as they are known.
        lab.judge.let_go();
        until("it runs when there is time", || (lab.run(&path) == Outcome::Ran).then_some(()));
    }
}

kernel_test! {
    fn known_programs_run_while_the_judge_is_slow() {
        let mut lab = Lab::new();
        let (known, other) = (lab.disk.join("known"), lab.disk.join("other"));
        let bytes = payload();
        install(&known, &bytes);
        install(&other, &payload());
        lab.judge.list(&bytes);
        lab.restrict();
        assert_eq!(lab.run(&known), Outcome::Ran);
        assert_eq!(lab.act(Who::Root, &[&"nothing", &"known"]), Outcome::Other(98));
        let asked = lab.enforcer.status().asked;
        lab.judge.hold();
        let mut waiting = lab.actor(Who::Root, &[&"run", &other]).spawn().unwrap();
        until("the judge is asked", || (lab.enforcer.status().asked > asked).then_some(()));
        for _ in 0..50 {
            assert_eq!(lab.run(&known), Outcome::Ran);
        }
        assert!(waiting.try_wait().unwrap().is_none());
        // One who is killed while it waits leaves nothing behind.
        waiting.kill().unwrap();
        waiting.wait().unwrap();
        lab.judge.let_go();
        assert_eq!(lab.run(&other), Outcome::Refused);
    }
}

kernel_test! {
    fn more_undecided_executions_than_are_held_are_refused() {
        let mut lab = Lab::with(Settings { pending_max: 4, ..Settings::default() });
        let paths: Vec<_> = (0..12).map(|i| lab.disk.join(format!("program-{i}"))).collect();
        for path in &paths {
            let bytes = payload();
            install(path, &bytes);
            lab.judge.list(&bytes);
        }
        lab.restrict();
        // The actor and its loader are known before the flood.
        assert_eq!(lab.act(Who::Root, &[&"nothing", &"known"]), Outcome::Other(98));
        lab.judge.hold();
        let mut children: Vec<_> =
            paths.iter().map(|path| lab.actor(Who::Root, &[&"run", path]).spawn().unwrap()).collect();
        until("what is too much is refused", || (lab.enforcer.status().denied >= 7).then_some(()));
        lab.judge.let_go();
        let ended: Vec<_> = children.iter_mut().map(|child| child.wait().unwrap().code().unwrap()).collect();
        let ran = ended.iter().filter(|code| **code == i32::from(RAN)).count();
        let refused = ended.iter().filter(|code| **code == 1).count();
        assert_eq!(ran + refused, paths.len(), "{ended:?}");
        assert!((1..=5).contains(&ran), "{ran} ran");
        assert!(lab.enforcer.take_denials(100).iter().any(|denial| denial.cause == DecisionCause::Overload));
        // It passes.
        assert!(paths.iter().all(|path| lab.run(path) == Outcome::Ran));
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

kernel_test! {
    fn many_programs_keep_a_bounded_number_of_descriptors() {
        let mut lab = Lab::with(Settings { kept_max: 100, ..Settings::default() });
        lab.restrict();
        let before = descriptors();
        let path = lab.disk.join("program");
        for _ in 0..600 {
            let bytes = payload();
            install(&path, &bytes);
            lab.judge.list(&bytes);
            assert_eq!(lab.run(&path), Outcome::Ran);
            fs::remove_file(&path).unwrap();
            install(&path, &payload());
            assert_eq!(lab.run(&path), Outcome::Refused);
            fs::remove_file(&path).unwrap();
        }
        assert!(lab.enforcer.status().labels <= 100);
        // Those that went have a second left, in which no more than this many go.
        assert!(descriptors() < before + 100 + 600 + 50, "{}", descriptors());
        lab.enforcer.release();
        until("the descriptors are closed", || (descriptors() <= before).then_some(()));
    }
}

/// Bytes of memory that this process uses.
fn memory() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

kernel_test! {
    fn a_flood_of_denials_is_bounded_and_what_is_lost_is_counted() {
        let mut lab = Lab::new();
        let (flooded, first) = (lab.disk.join("payload"), lab.disk.join("payload.0"));
        install(&first, &payload());
        for i in 1..5_000 {
            fs::hard_link(&first, lab.disk.join(format!("payload.{i}"))).unwrap();
        }
        lab.restrict();
        assert_eq!(lab.act(Who::User, &[&"flood", &flooded, &"5000", &"2000"]), Outcome::Other(0));
        let before = memory();
        assert_eq!(lab.act(Who::User, &[&"flood", &flooded, &"5000", &"20000"]), Outcome::Other(0));
        let grown = memory().saturating_sub(before);
        assert!(grown < 8 << 20, "{grown} bytes");
        // The kernel has its answer before it is counted.
        until("each is counted", || (lab.enforcer.status().denied == 22_000).then_some(()));
        let mut told: u64 = 0;
        until("each denial is told or counted as lost", || {
            told += lab.enforcer.take_denials(5_000).iter().map(|denial| denial.count).sum::<u64>();
            (told + lab.enforcer.status().denials_dropped == 22_000).then_some(())
        });
        assert!(told >= 1_000, "{told}");
    }
}

kernel_test! {
    fn what_is_no_program_is_not_asked_about() {
        let mut lab = Lab::new();
        let fifo = lab.disk.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let socket = lab.disk.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        lab.restrict();
        for path in [lab.disk.as_path(), &fifo, &socket, Path::new("/dev/null")] {
            const ACCESS_DENIED: u8 = 13;
            assert_eq!(run(path), Outcome::Other(ACCESS_DENIED), "{}", path.display());
        }
        assert_eq!(lab.enforcer.status().asked, 0);
        // An empty program is asked about like any other, and is none.
        let empty = lab.disk.join("empty");
        install(&empty, b"");
        assert_eq!(run(&empty), Outcome::Refused);
    }
}

kernel_test! {
    fn a_file_that_is_too_large_to_hash_is_refused_at_once() {
        let mut lab = Lab::with(Settings { hash_bytes_max: 1 << 20, ..Settings::default() });
        let path = lab.disk.join("sparse");
        install(&path, &payload());
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        lab.restrict();
        let start = Instant::now();
        assert_eq!(lab.run(&path), Outcome::Refused);
        // To read it takes minutes.
        assert!(start.elapsed() < Duration::from_secs(20));
        assert_eq!(lab.denial(&path).cause, DecisionCause::TooLarge);
    }
}

kernel_test! {
    fn a_write_lease_holds_up_nobody() {
        let mut lab = Lab::new();
        let (path, listed) = (lab.disk.join("leased"), lab.disk.join("listed"));
        install(&path, &payload());
        std::os::unix::fs::chown(&path, Some(USER.parse().unwrap()), None).unwrap();
        let bytes = payload();
        install(&listed, &bytes);
        lab.judge.list(&bytes);
        lab.restrict();
        let lease = lab.prepare(Who::User, &[&"hold-write-lease", &path]);
        let start = Instant::now();
        // The kernel would wait 45 s for the lease.
        assert_eq!(lab.run(&path), Outcome::Refused);
        assert_eq!(lab.run(&listed), Outcome::Ran);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert_eq!(lease.go(), Outcome::Other(0));
    }
}

kernel_test! {
    fn canaries_prove_a_restriction() {
        use domain::restriction::{CanaryOutcome, Desired, Tier};
        let mut lab = Lab::new();
        let canaries = Canaries::new(&lab.disk);
        assert!(canaries.run([1; 16], Tier::Fanotify).proves(Desired::Released, Tier::Fanotify));
        let listed = fs::read(lab.disk.join("listed")).unwrap();
        assert_eq!(digest(&listed), Canaries::listed_digest());
        lab.judge.list(&listed);
        lab.restrict();
        assert!(canaries.run([2; 16], Tier::Fanotify).proves(Desired::Restricted, Tier::Fanotify));
        fs::remove_file(lab.disk.join("listed")).unwrap();
        assert!(canaries.run([3; 16], Tier::Fanotify).proves(Desired::Restricted, Tier::Fanotify), "the listed one comes back");
        lab.judge.hold();
        lab.enforcer.release();
        assert!(canaries.run([4; 16], Tier::Fanotify).proves(Desired::Released, Tier::Fanotify));
        assert_eq!(canaries.run([5; 16], Tier::Fanotify).unlisted, CanaryOutcome::Ran);
    }
}

kernel_test! {
    fn row_78_one_users_flood_does_not_hold_up_another() {
        // Takes 20 ms to decide about, so that whoever comes behind all of the flood waits longer than a second.
        const DELAY: Duration = Duration::from_millis(20);
        const FLOODERS: usize = 64;
        let mut lab = Lab::new();
        let flood = lab.memory.join("flood");
        for flooder in 0..FLOODERS {
            for file in 0..200 {
                install(&flood.with_file_name(format!("flood-{flooder}.{file}")), &payload());
            }
        }
        let programs: Vec<_> = (0..20).map(|i| (lab.disk.join(format!("program-{i}")), payload())).collect();
        for (path, bytes) in &programs {
            install(path, bytes);
            lab.judge.list(bytes);
        }
        let unlisted = lab.disk.join("unlisted");
        install(&unlisted, &payload());
        lab.restrict();
        assert_eq!(lab.act(Who::User, &[&"nothing", &"known"]), Outcome::Other(98));
        lab.judge.slow_down(DELAY);
        let mut flooders: Vec<_> = (0..FLOODERS)
            .map(|flooder| {
                let path = flood.with_file_name(format!("flood-{flooder}"));
                lab.actor(Who::User, &[&"flood", &path, &"200", &"1000000"]).spawn().unwrap()
            })
            .collect();
        let asked = lab.judge.asked.load(std::sync::atomic::Ordering::SeqCst);
        until("the flood is there", || {
            (lab.judge.asked.load(std::sync::atomic::Ordering::SeqCst) > asked + 10).then_some(())
        });
        let mut waits = Vec::new();
        for (path, _) in &programs {
            let start = Instant::now();
            assert_eq!(lab.run(path), Outcome::Ran);
            waits.push(start.elapsed());
            assert_eq!(lab.run(&unlisted), Outcome::Refused);
        }
        for flooder in &mut flooders {
            assert!(flooder.try_wait().unwrap().is_none(), "the flood goes on");
            flooder.kill().unwrap();
            flooder.wait().unwrap();
        }
        waits.sort();
        println!("{waits:?}");
        // Its own decision, those that a worker has already, and one of the other user in between.
        assert!(waits[waits.len() / 2] < DELAY * 10, "{waits:?}");
    }
}
