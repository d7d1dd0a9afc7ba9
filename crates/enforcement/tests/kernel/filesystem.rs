//! Whole filesystems, as in production: whoever mounts them where.
//!
//! Such a mark reaches beyond the mount namespace, so the test first leaves every filesystem behind that it did not make
//! itself, and makes sure of that.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use enforcement::{Enforcer as _, Fanotify, Judge, MarkScope, Settings};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::support::*;

/// Makes a tmpfs the root, with nothing else but `/proc`.
fn leave_everything_behind() {
    let root = std::env::temp_dir();
    mount_tmpfs(&root);
    for name in ["proc", "dev", "before", "again"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    mknod(&root.join("dev/null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
    nix::unistd::pivot_root(&root, &root.join("before")).unwrap();
    std::env::set_current_dir("/").unwrap();
    umount2("/before", MntFlags::MNT_DETACH).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let kinds: Vec<_> =
        mounts.lines().map(|line| line.split(" - ").nth(1).unwrap().split(' ').next()).collect();
    // Anything else would be restricted for the whole machine.
    assert_eq!(kinds, [Some("tmpfs"), Some("proc")], "{mounts}");
}

kernel_test! {
    fn a_filesystem_is_covered_wherever_it_is_mounted() {
        leave_everything_behind();
        let (listed, unlisted) = (Path::new("/listed"), Path::new("/unlisted"));
        let (listed_bytes, unlisted_bytes) = (payload(), payload());
        install(listed, &listed_bytes);
        install(unlisted, &unlisted_bytes);
        let judge = Arc::new(ListJudge::default());
        judge.list(&listed_bytes);
        let mut enforcer = Fanotify::new(Settings { scope: MarkScope::Filesystem, ..Settings::default() });
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
