//! Ways around an execution restriction, one test each: the payload runs when nothing restricts, is refused and
//! reported while restricted, and runs again after. As root and as an ordinary user.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use enforcement::Enforcer as _;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::support::*;

/// Tries `attempt` on the payload at `path` before, during and after a restriction.
fn check(lab: &mut Lab, path: &Path, attempt: impl Fn(&Lab, Who) -> Outcome) {
    check_seen_as(lab, path, path, attempt);
}

/// The same, when the kernel sees the payload at another path.
fn check_seen_as(lab: &mut Lab, path: &Path, seen: &Path, attempt: impl Fn(&Lab, Who) -> Outcome) {
    let bytes = payload();
    let install = || install(path, &bytes);
    for who in BOTH {
        install();
        assert_eq!(attempt(lab, who), Outcome::Ran, "{who:?}, before");
        install();
        lab.restrict();
        assert_eq!(attempt(lab, who), Outcome::Refused, "{who:?}, restricted");
        lab.expect_unlisted(seen, &bytes);
        lab.enforcer.release();
        install();
        assert_eq!(attempt(lab, who), Outcome::Ran, "{who:?}, after");
    }
}

kernel_test! {
    fn row_1_an_unlisted_program_is_executed() {
        let mut lab = Lab::new();
        let path = lab.disk.join("payload");
        check(&mut lab, &path, |lab, who| lab.act(who, &[&"run", &path]));
    }
}

kernel_test! {
    fn a_denial_tells_who_tried() {
        let mut lab = Lab::new();
        lab.restrict();
        let own = i32::try_from(std::process::id()).unwrap();
        // One that is gone at once was looked at before it had its answer.
        let (path, bytes) = (lab.disk.join("payload"), payload());
        install(&path, &bytes);
        assert_eq!(lab.run(&path), Outcome::Refused);
        let denial = lab.expect_unlisted(&path, &bytes);
        assert_eq!((denial.uid, denial.ppid), (Some(0), own));
        // The actor fails, and lives on until it has tried again and again. More than the log can follow, so nothing
        // that is to be found comes after it.
        let bytes = payload();
        let floods = lab.disk.join("payload.0");
        install(&floods, &bytes);
        assert_eq!(lab.act(Who::User, &[&"flood", &path, &"1", &"20000"]), Outcome::Other(0));
        let denial = lab.expect_unlisted(&floods, &bytes);
        assert!(denial.count > 1, "alike within a second are one");
        assert_eq!((denial.uid, denial.ppid), (Some(USER.parse().unwrap()), own));
        assert!(denial.parent_program.ends_with(b"/actor"), "{denial:?}");
    }
}

kernel_test! {
    fn row_6_temporary_filesystems() {
        let mut lab = Lab::new();
        let overlay = lab.memory.join("overlay");
        for name in ["upper", "work", "overlay"] {
            fs::create_dir(lab.memory.join(name)).unwrap();
            open_to_all(&lab.memory.join(name));
        }
        let (lower, upper, work) = (lab.disk.display(), lab.memory.join("upper"), lab.memory.join("work"));
        let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("overlay"), &overlay, Some("overlay"), flags, Some(options.as_str())).unwrap();
        // A tmpfs of its own takes the place of the machine's, which others use.
        mount_tmpfs(Path::new("/dev/shm"));
        for folder in [lab.memory.clone(), PathBuf::from("/dev/shm"), overlay] {
            let path = folder.join("payload");
            check(&mut lab, &path, |lab, who| lab.act(who, &[&"run", &path]));
        }
    }
}

kernel_test! {
    fn row_13_execveat_on_a_descriptor() {
        let mut lab = Lab::new();
        let path = lab.disk.join("payload");
        for how in ["fd", "fd-path"] {
            check(&mut lab, &path, |lab, who| lab.prepare(who, &[&how, &path]).go());
        }
    }
}

kernel_test! {
    fn row_13_a_descriptor_opened_before_the_switch() {
        let mut lab = Lab::new();
        let (path, bytes) = (lab.disk.join("payload"), payload());
        install(&path, &bytes);
        for how in ["fd", "fd-path"] {
            for who in BOTH {
                let opened = lab.prepare(who, &[&how, &path]);
                lab.restrict();
                assert_eq!(opened.go(), Outcome::Refused, "{who:?} {how}");
                lab.expect_unlisted(&path, &bytes);
                lab.enforcer.release();
            }
        }
    }
}

kernel_test! {
    fn row_14_paths_through_proc() {
        let mut lab = Lab::new();
        let path = lab.disk.join("payload");
        check(&mut lab, &path, |lab, who| lab.act(who, &[&"proc-fd", &path]));
        let below_root = format!("/proc/{}/root{}", std::process::id(), path.display());
        let below_folder = format!("/proc/{}/cwd/payload", std::process::id());
        std::env::set_current_dir(&lab.disk).unwrap();
        for alias in [below_root, below_folder] {
            // Another's /proc folder is closed to an ordinary user.
            let bytes = payload();
            install(&path, &bytes);
            assert_eq!(lab.act(Who::Root, &[&"run", &alias]), Outcome::Ran);
            lab.restrict();
            assert_eq!(lab.act(Who::Root, &[&"run", &alias]), Outcome::Refused);
            lab.expect_unlisted(&path, &bytes);
            lab.enforcer.release();
            assert_eq!(lab.act(Who::Root, &[&"run", &alias]), Outcome::Ran);
        }
    }
}

kernel_test! {
    fn row_14_the_file_of_a_running_program() {
        let mut lab = Lab::new();
        // A program that is running when the switch comes: an unlisted copy of the actor.
        let path = lab.disk.join("running");
        let mut bytes = fs::read(lab.actor_path()).unwrap();
        bytes.extend(b"unlisted");
        install(&path, &bytes);
        install(&lab.disk.join("any"), &payload());
        let running = Waiting::start(&path, Who::Root, &[&"fd", &lab.disk.join("any")]);
        let alias = format!("/proc/{}/exe", running.id());
        lab.restrict();
        assert_eq!(lab.act(Who::Root, &[&"run", &alias]), Outcome::Refused);
        lab.expect_unlisted(&path, &bytes);
        lab.enforcer.release();
        assert_eq!(lab.act(Who::Root, &[&"run", &alias]), Outcome::Other(98), "it runs, and misses its arguments");
        assert_eq!(running.go(), Outcome::Ran);
    }
}

kernel_test! {
    fn row_15_a_deleted_file() {
        let mut lab = Lab::new();
        // The user deletes it herself.
        fs::set_permissions(&lab.disk, fs::Permissions::from_mode(0o777)).unwrap();
        let path = lab.disk.join("payload");
        let seen = PathBuf::from(format!("{} (deleted)", path.display()));
        check_seen_as(&mut lab, &path, &seen, |lab, who| lab.act(who, &[&"deleted", &path]));
    }
}

kernel_test! {
    fn row_20_set_user_id_and_capabilities() {
        let mut lab = Lab::new();
        let path = lab.disk.join("payload");
        check(&mut lab, &path, |lab, who| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
            lab.act(who, &[&"run", &path])
        });
        check(&mut lab, &path, |lab, who| {
            assert_eq!(lab.act(Who::Root, &[&"setcap", &path]), Outcome::Other(0));
            lab.act(who, &[&"run", &path])
        });
    }
}

/// A script that ends like the payload, of its own content.
fn script(interpreter: &Path, mark: &str) -> Vec<u8> {
    format!("#!{}\n# {mark}\nexit {RAN}\n", interpreter.display()).into_bytes()
}

kernel_test! {
    fn row_21_a_script_needs_its_own_listing() {
        let mut lab = Lab::new();
        let (path, bytes) = (lab.disk.join("script"), script(Path::new("/bin/sh"), "21"));
        install(&path, &bytes);
        for who in BOTH {
            assert_eq!(lab.act(who, &[&"run", &path]), Outcome::Ran);
            lab.restrict();
            assert_eq!(lab.act(who, &[&"run", &path]), Outcome::Refused);
            lab.expect_unlisted(&path, &bytes);
            lab.enforcer.release();
            assert_eq!(lab.act(who, &[&"run", &path]), Outcome::Ran);
        }
        lab.judge.list(&bytes);
        lab.restrict();
        for who in BOTH {
            assert_eq!(lab.act(who, &[&"run", &path]), Outcome::Ran);
        }
    }
}

kernel_test! {
    fn row_22_every_link_of_a_chain_of_interpreters() {
        const TOO_MANY_LINKS: u8 = 40;
        let mut lab = Lab::new();
        for depth in 1..=6 {
            let paths: Vec<_> = (0..depth).map(|i| lab.disk.join(format!("chain-{depth}-{i}"))).collect();
            let scripts: Vec<_> = (0..depth)
                .map(|i| {
                    let interpreter = if i == 0 { Path::new("/bin/sh") } else { paths[i - 1].as_path() };
                    script(interpreter, &format!("{depth} {i}"))
                })
                .collect();
            for (path, script) in paths.iter().zip(&scripts) {
                install(path, script);
            }
            let end = &paths[depth - 1];
            let expected = if depth > 5 { Outcome::Other(TOO_MANY_LINKS) } else { Outcome::Ran };
            assert_eq!(lab.act(Who::User, &[&"run", end]), expected, "{depth}, before");
            for unlisted in 0..depth {
                let judge = ListJudge::default();
                judge.list(&fs::read(lab.actor_path()).unwrap());
                scripts.iter().enumerate().filter(|(i, _)| *i != unlisted).for_each(|(_, s)| judge.list(s));
                lab.judge = judge.into();
                lab.restrict();
                assert_eq!(lab.act(Who::User, &[&"run", end]), Outcome::Refused, "{unlisted} of {depth}");
                lab.expect_unlisted(&paths[unlisted], &scripts[unlisted]);
            }
            scripts.iter().for_each(|script| lab.judge.list(script));
            lab.restrict();
            assert_eq!(lab.act(Who::User, &[&"run", end]), expected, "{depth}, all listed");
            lab.enforcer.release();
            assert_eq!(lab.act(Who::User, &[&"run", end]), expected, "{depth}, after");
        }
    }
}

/// A listed program that ran, so that its verdict is kept, and its evil twin.
fn trusted(lab: &mut Lab, path: &Path) -> (Vec<u8>, Vec<u8>) {
    let good = payload();
    let evil = evil_twin(&good);
    install(path, &good);
    lab.judge.list(&good);
    lab.restrict();
    for who in BOTH {
        assert_eq!(lab.act(who, &[&"run", &path]), Outcome::Ran);
    }
    (good, evil)
}

fn expect_evil_refused(lab: &mut Lab, path: &Path, evil: &[u8]) {
    for who in BOTH {
        assert_eq!(lab.act(who, &[&"run", &path]), Outcome::Refused);
        lab.expect_unlisted(path, evil);
    }
    lab.enforcer.release();
    assert_eq!(lab.act(Who::Root, &[&"run", &path]), Outcome::Other(EVIL));
}

kernel_test! {
    fn row_33_overwritten_in_place() {
        let mut lab = Lab::new();
        for folder in [lab.disk.clone(), lab.memory.clone()] {
            let path = folder.join("trusted");
            let (_, evil) = trusted(&mut lab, &path);
            fs::write(&path, &evil).unwrap();
            expect_evil_refused(&mut lab, &path, &evil);
        }
    }
}

kernel_test! {
    fn row_33_overwritten_through_a_mapping() {
        let mut lab = Lab::new();
        for folder in [lab.disk.clone(), lab.memory.clone()] {
            let path = folder.join("trusted");
            let (_, evil) = trusted(&mut lab, &path);
            let (at, byte) = (STATUS_AT.to_string(), evil[STATUS_AT].to_string());
            assert_eq!(lab.act(Who::Root, &[&"write-mapped", &path, &at, &byte]), Outcome::Other(0));
            assert_eq!(fs::read(&path).unwrap(), evil);
            expect_evil_refused(&mut lab, &path, &evil);
        }
    }
}

kernel_test! {
    fn row_34_same_size_and_times() {
        let mut lab = Lab::new();
        let path = lab.disk.join("trusted");
        let (good, evil) = trusted(&mut lab, &path);
        let before = fs::metadata(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &evil, 0).unwrap();
        let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
        file.set_times(times.set_accessed(before.accessed().unwrap())).unwrap();
        drop(file);
        let after = fs::metadata(&path).unwrap();
        assert_eq!((after.len(), after.modified().unwrap()), (good.len() as u64, before.modified().unwrap()));
        expect_evil_refused(&mut lab, &path, &evil);
    }
}

kernel_test! {
    fn row_37_a_writable_mapping_kept_after_close() {
        let mut lab = Lab::new();
        let path = lab.disk.join("trusted");
        let good = payload();
        install(&path, &good);
        lab.judge.list(&good);
        let mapping = lab.prepare(Who::Root, &[&"hold-mapping", &path]);
        lab.restrict();
        assert_eq!(lab.run(&path), Outcome::Refused);
        assert_eq!(lab.denial(&path).cause.code(), "being-written");
        assert_eq!(mapping.go(), Outcome::Other(0));
        assert_eq!(lab.run(&path), Outcome::Ran);
    }
}

kernel_test! {
    fn row_39_an_unlisted_file_renamed_over_a_trusted_one() {
        let mut lab = Lab::new();
        let path = lab.disk.join("trusted");
        let (_, evil) = trusted(&mut lab, &path);
        install(&lab.disk.join("evil"), &evil);
        fs::rename(lab.disk.join("evil"), &path).unwrap();
        expect_evil_refused(&mut lab, &path, &evil);
    }
}

kernel_test! {
    fn row_40_a_trusted_file_under_another_name() {
        let mut lab = Lab::new();
        let path = lab.disk.join("trusted");
        trusted(&mut lab, &path);
        fs::hard_link(&path, lab.disk.join("linked")).unwrap();
        fs::rename(&path, lab.disk.join("renamed")).unwrap();
        for name in ["linked", "renamed"] {
            for who in BOTH {
                assert_eq!(lab.act(who, &[&"run", &lab.disk.join(name)]), Outcome::Ran, "{name}");
            }
        }
    }
}

/// Executes `path` many times while `swap` changes what it names: the evil twin must never run.
fn race(lab: &mut Lab, path: &Path, swap: impl Fn() + Send + Sync) {
    let stop = AtomicBool::new(false);
    let (mut ran, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                swap();
            }
        });
        for _ in 0..3_000 {
            match lab.run(path) {
                Outcome::Ran => ran += 1,
                Outcome::Refused => refused += 1,
                other => {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{other:?}");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(ran > 100 && refused > 100, "{ran} ran, {refused} refused: too few of one to show anything");
}

kernel_test! {
    fn row_42_a_link_that_changes() {
        let mut lab = Lab::new();
        let (good, evil) = (lab.disk.join("good"), lab.disk.join("evil"));
        let (_, evil_bytes) = trusted(&mut lab, &good);
        install(&evil, &evil_bytes);
        let link = lab.disk.join("link");
        symlink(&good, &link).unwrap();
        let next = lab.disk.join("next");
        race(&mut lab, &link, || {
            for target in [&evil, &good] {
                symlink(target, &next).unwrap();
                fs::rename(&next, &link).unwrap();
            }
        });
    }
}

kernel_test! {
    fn row_42_folders_that_change_places() {
        let mut lab = Lab::new();
        let (one, two) = (lab.disk.join("one"), lab.disk.join("two"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        let path = one.join("program");
        let (_, evil) = trusted(&mut lab, &path);
        install(&two.join("program"), &evil);
        race(&mut lab, &path, || renameat2(AT_FDCWD, &one, AT_FDCWD, &two, RenameFlags::RENAME_EXCHANGE).unwrap());
    }
}
