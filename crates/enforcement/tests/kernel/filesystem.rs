//! Whole filesystems, as in production: whoever mounts them where.
//!
//! Such a mark reaches beyond the mount namespace, and the backend looks for filesystems in the namespaces of all
//! processes that it sees. So each test has processes of its own, first leaves every filesystem behind that it did not
//! make itself, and makes sure of both.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::decision::DecisionCause;
use enforcement::{Enforcer as _, Fanotify, Judge, MarkScope, Settings};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::support::*;

/// The actor, which needs no library.
const ACTOR: &str = "/actor";

/// Makes a tmpfs the root, with nothing else but `/proc`.
fn leave_everything_behind() {
    let root = std::env::temp_dir();
    let actor = test_folder().join("actor");
    compile_actor(&actor, &["-static"]);
    let actor = fs::read(actor).unwrap();
    mount_tmpfs(&root);
    for name in ["proc", "dev", "before", "again"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    mknod(&root.join("dev/null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    install(&root.join("actor"), &actor);
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
    nix::unistd::pivot_root(&root, &root.join("before")).unwrap();
    std::env::set_current_dir("/").unwrap();
    umount2("/before", MntFlags::MNT_DETACH).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let kinds: Vec<_> =
        mounts.lines().map(|line| line.split(" - ").nth(1).unwrap().split(' ').next()).collect();
    // Anything else would be restricted for the whole machine.
    assert_eq!(kinds, [Some("tmpfs"), Some("proc")], "{mounts}");
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("ns/mnt"));
    let namespaces: Vec<_> = processes.filter_map(|path| fs::read_link(path).ok()).collect();
    assert!(!namespaces.is_empty() && namespaces.iter().all(|namespace| *namespace == own), "{namespaces:?}");
}

/// A backend for whole filesystems, with a judge that lists the actor.
fn backend() -> (Fanotify, Arc<ListJudge>) {
    let judge = Arc::new(ListJudge::default());
    judge.list(&fs::read(ACTOR).unwrap());
    (Fanotify::new(Settings { scope: MarkScope::Filesystem, ..Settings::default() }), judge)
}

kernel_test! {
    alone fn a_filesystem_is_covered_wherever_it_is_mounted() {
        leave_everything_behind();
        let (listed, unlisted) = (Path::new("/listed"), Path::new("/unlisted"));
        let (listed_bytes, unlisted_bytes) = (payload(), payload());
        install(listed, &listed_bytes);
        install(unlisted, &unlisted_bytes);
        let (mut enforcer, judge) = backend();
        judge.list(&listed_bytes);
        assert_eq!(run(unlisted), Outcome::Ran);
        enforcer.restrict(Arc::clone(&judge) as Arc<dyn Judge>).unwrap();
        assert_eq!(enforcer.status().marks, 1);
        assert_eq!((run(listed), run(unlisted)), (Outcome::Ran, Outcome::Refused));
        let denial = until("the denial is reported", || enforcer.take_denials(1).pop());
        assert_eq!(denial.digest, Some(digest(&unlisted_bytes)));
        // Another mount of it, in a mount namespace that the backend does not know.
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(Some("/"), "/again", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            assert_eq!(run(Path::new("/again/unlisted")), Outcome::Refused);
            assert_eq!(run(Path::new("/again/listed")), Outcome::Ran);
        })
        .join()
        .unwrap();
        enforcer.release();
        assert_eq!(run(unlisted), Outcome::Ran);
    }
}

kernel_test! {
    alone fn row_52_a_filesystem_that_only_another_namespace_shows_is_covered() {
        leave_everything_behind();
        let (listed, unlisted) = (Path::new("/listed"), Path::new("/unlisted"));
        let listed_bytes = payload();
        install(listed, &listed_bytes);
        install(unlisted, &payload());
        let (mut enforcer, judge) = backend();
        judge.list(&listed_bytes);
        let start = |path: &Path| {
            Waiting::start(Path::new(ACTOR), Who::Root, &[&"in-namespace", &path, &"/again"])
        };
        assert_eq!(start(unlisted).go(), Outcome::Ran);
        // One that is there at the switch has no moment.
        let before = start(unlisted);
        enforcer.restrict(Arc::clone(&judge) as Arc<dyn Judge>).unwrap();
        assert_eq!(enforcer.status().marks, 2);
        assert_eq!(before.go(), Outcome::Refused);
        until("the namespace is let go", || (enforcer.status().marks == 1).then_some(()));
        // One that appears has the moment of a search.
        let mut windows = Vec::new();
        for (path, expected) in [(listed, Outcome::Ran), (unlisted, Outcome::Refused)].repeat(5) {
            let waiting = start(path);
            let appeared = Instant::now();
            until("it is marked", || (enforcer.status().marks == 2).then_some(()));
            windows.push(appeared.elapsed());
            assert_eq!(waiting.go(), expected);
            until("the namespace is let go", || (enforcer.status().marks == 1).then_some(()));
        }
        println!("marked after {windows:?}");
        // Mostly a tenth of a second; a machine that is very busy takes its time.
        assert!(windows.iter().all(|window| *window < Duration::from_secs(10)), "{windows:?}");
    }
}

kernel_test! {
    alone fn row_53_what_a_user_namespace_mounts_does_not_run() {
        leave_everything_behind();
        let path = Path::new("/listed");
        let bytes = payload();
        install(path, &bytes);
        let (mut enforcer, judge) = backend();
        judge.list(&bytes);
        let start =
            |who| Waiting::start(Path::new(ACTOR), who, &[&"in-user-namespace", &path, &"/again"]);
        for who in BOTH {
            assert_eq!(start(who).go(), Outcome::Ran);
            enforcer.restrict(Arc::clone(&judge) as Arc<dyn Judge>).unwrap();
            assert_eq!(run(path), Outcome::Ran);
            let waiting = start(who);
            until("it is marked", || (enforcer.status().marks == 2).then_some(()));
            assert_eq!(waiting.go(), Outcome::Refused, "although it is listed: its user decides what is below it");
            let denial = until("the denial is reported", || enforcer.take_denials(1).pop());
            assert_eq!(denial.cause, DecisionCause::Unverifiable);
            until("the namespace is let go", || (enforcer.status().marks == 1).then_some(()));
            enforcer.release();
        }
    }
}
