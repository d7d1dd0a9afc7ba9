//! Kept verdicts: the kernel does not ask again about a program that it knows, and asks as soon as the file may have
//! changed.

use std::fs;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use enforcement::{Enforcer as _, Settings};

use crate::support::*;

/// A listed program that ran once.
fn kept(lab: &mut Lab, path: &Path) -> Vec<u8> {
    let bytes = payload();
    install(path, &bytes);
    lab.judge.list(&bytes);
    lab.restrict();
    assert_eq!(lab.run(path), Outcome::Ran);
    bytes
}

fn asked(lab: &Lab) -> u64 {
    lab.enforcer.status().asked
}

kernel_test! {
    fn a_kept_verdict_is_not_asked_for_again() {
        let mut lab = Lab::new();
        let path = lab.disk.join("program");
        kept(&mut lab, &path);
        let before = asked(&lab);
        for _ in 0..100 {
            assert_eq!(lab.run(&path), Outcome::Ran);
        }
        assert_eq!(asked(&lab), before);
        assert_eq!(lab.enforcer.status().labels, 1);
    }
}

kernel_test! {
    fn without_the_cache_the_kernel_asks_and_the_label_answers() {
        let mut lab = Lab::with(Settings { verdict_cache: false, ..Settings::default() });
        let path = lab.disk.join("program");
        kept(&mut lab, &path);
        let before = asked(&lab);
        for _ in 0..100 {
            assert_eq!(lab.run(&path), Outcome::Ran);
        }
        assert_eq!(asked(&lab), before + 100);
        assert_eq!(lab.judge.asked.load(Ordering::SeqCst), 1, "judged once");
        // The label goes with the content here too.
        fs::write(&path, evil_twin(&fs::read(&path).unwrap())).unwrap();
        assert_eq!(lab.run(&path), Outcome::Refused);
    }
}

kernel_test! {
    fn whatever_may_change_the_file_makes_the_kernel_ask() {
        let mut lab = Lab::new();
        let path = lab.disk.join("program");
        let bytes = kept(&mut lab, &path);
        let at = STATUS_AT.to_string();
        let same_byte = bytes[STATUS_AT].to_string();
        let write = |how: fn(&mut fs::OpenOptions) -> &mut fs::OpenOptions| {
            how(fs::OpenOptions::new().write(true)).open(&path)
        };
        let changes: [(&str, &dyn Fn()); 6] = [
            ("opened for writing, and nothing more", &|| drop(write(|options| options).unwrap())),
            ("written", &|| write(|options| options).unwrap().write_all_at(&bytes, 0).unwrap()),
            ("written through a mapping", &|| {
                let words: [&dyn AsRef<std::ffi::OsStr>; 4] = [&"write-mapped", &path, &at, &same_byte];
                assert_eq!(Lab::act(&lab, Who::Root, &words), Outcome::Other(0));
            }),
            ("cut and written again", &|| fs::write(&path, &bytes).unwrap()),
            ("cut by its name and written again", &|| {
                nix::unistd::truncate(&path, 0).unwrap();
                fs::write(&path, &bytes).unwrap();
            }),
            ("replaced", &|| {
                let beside = path.with_extension("beside");
                install(&beside, &bytes);
                fs::rename(&beside, &path).unwrap();
            }),
        ];
        for (how, change) in changes {
            change();
            let before = asked(&lab);
            assert_eq!(lab.run(&path), Outcome::Ran, "{how}");
            assert_eq!(asked(&lab), before + 1, "{how}");
            assert_eq!(lab.run(&path), Outcome::Ran, "{how}");
            assert_eq!(asked(&lab), before + 1, "{how}, kept again");
        }
        // Times, rights and names are not content.
        let renamed = lab.disk.join("renamed");
        let changes: [(&str, &dyn Fn()); 3] = [
            ("times", &|| {
                let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
                let times = times.set_accessed(std::time::UNIX_EPOCH);
                fs::File::open(&path).unwrap().set_times(times).unwrap();
            }),
            ("rights", &|| open_to_all(&path)),
            ("name", &|| fs::rename(&path, &renamed).unwrap()),
        ];
        let before = asked(&lab);
        for (what, change) in changes {
            change();
            let path = if path.exists() { &path } else { &renamed };
            assert_eq!((lab.run(path), asked(&lab)), (Outcome::Ran, before), "{what}");
        }
        // A file that is asked about again and again is kept once.
        for _ in 0..20 {
            fs::File::open(&renamed).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
            assert_eq!(lab.run(&renamed), Outcome::Ran);
        }
        assert!(asked(&lab) >= before + 20);
        // This, the one it replaced, the actor and its loader.
        assert!(lab.enforcer.status().labels <= 4, "{:?}", lab.enforcer.status());
    }
}

kernel_test! {
    fn a_writer_that_will_not_wait_changes_nothing() {
        let mut lab = Lab::new();
        let path = lab.disk.join("program");
        kept(&mut lab, &path);
        let mut options = fs::OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        assert_eq!(options.open(&path).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        // The verdict goes even so, and the file can be written when it is gone.
        drop(until("it opens", || options.open(&path).ok()));
        assert_eq!(lab.run(&path), Outcome::Ran);
    }
}

/// Row 35: a writer changes the content as fast as it can while the file is executed as fast as it can.
fn toggle(lab: &Lab, path: &Path, good: &[u8], write: impl Fn(u8) + Sync) {
    let evil = evil_twin(good);
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut good_runs, mut others) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for byte in [evil[STATUS_AT], good[STATUS_AT]] {
                    write(byte);
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let start = Instant::now();
        let mut evil_runs = 0;
        while start.elapsed() < Duration::from_secs(10) {
            match lab.run(path) {
                Outcome::Ran => good_runs += 1,
                Outcome::Other(EVIL) => evil_runs += 1,
                Outcome::Refused | Outcome::Other(_) => others += 1,
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(evil_runs, 0, "of {} executions", good_runs + others);
    });
    let writes = writes.into_inner();
    println!("{good_runs} ran, {others} did not, {writes} writes");
    assert!(good_runs > 0 && others > 0 && writes > 4, "too little happened to show anything");
}

kernel_test! {
    fn row_35_content_that_toggles_by_writing() {
        let mut lab = Lab::new();
        let path = lab.disk.join("program");
        let good = kept(&mut lab, &path);
        toggle(&lab, &path, &good, |byte| {
            // While it runs it cannot be opened.
            if let Ok(file) = fs::OpenOptions::new().write(true).open(&path) {
                file.write_all_at(&[byte], STATUS_AT as u64).unwrap();
            }
        });
    }
}

kernel_test! {
    fn row_35_content_that_toggles_by_a_mapping() {
        let mut lab = Lab::new();
        let path = lab.disk.join("program");
        let good = kept(&mut lab, &path);
        let at = STATUS_AT.to_string();
        toggle(&lab, &path, &good, |byte| {
            let words: [&dyn AsRef<std::ffi::OsStr>; 4] = [&"write-mapped", &path, &at, &byte.to_string()];
            lab.act(Who::Root, &words);
        });
    }
}
