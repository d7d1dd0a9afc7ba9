//! Filesystems that another process serves: nothing there runs, and a server that stalls holds up nobody else.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use domain::decision::DecisionCause;
use enforcement::Enforcer as _;

use crate::support::*;

/// A FUSE filesystem with one program in it, served by a thread of this process.
struct Served {
    program: PathBuf,
    /// Whether the server leaves `open` without an answer.
    stalls: Arc<AtomicBool>,
    /// Tells of each `open` that has no answer; the answers come when the receiver goes.
    stalled: mpsc::Receiver<()>,
    /// Files that are open.
    open: Arc<AtomicI64>,
}

const ROOT: u64 = 1;
const PROGRAM: u64 = 2;

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `struct fuse_attr` of the folder or the program.
fn attributes(node: u64, size: usize) -> Vec<u8> {
    let mode = if node == ROOT { 0o40755 } else { 0o100_755 };
    [words64(&[node, size as u64, 1, 1, 1, 1]), words32(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
}

/// The answer to a request, or the number of an error.
fn answer(opcode: u32, node: u64, body: &[u8], bytes: &[u8]) -> Result<Vec<u8>, i32> {
    const NO_ENTRY: i32 = 2;
    const NOT_IMPLEMENTED: i32 = 38;
    Ok(match opcode {
        // LOOKUP
        1 if body == b"program\0" => {
            [words64(&[PROGRAM, 0, 60, 60]), words32(&[0, 0]), attributes(PROGRAM, bytes.len())].concat()
        }
        1 => return Err(NO_ENTRY),
        // GETATTR
        3 => [words64(&[60]), words32(&[0, 0]), attributes(node, bytes.len())].concat(),
        // OPEN
        14 => words64(&[0, 0]),
        // READ
        15 => {
            let offset = usize::try_from(u64::from_ne_bytes(body[8..16].try_into().unwrap())).unwrap();
            bytes[offset.min(bytes.len())..].to_vec()
        }
        // RELEASE, FLUSH
        18 | 25 => Vec::new(),
        // INIT
        26 => [words32(&[7, 31, 0, 0, 0, 4096, 1, 0]), vec![0; 32]].concat(),
        _ => return Err(NOT_IMPLEMENTED),
    })
}

impl Served {
    fn mount(at: &Path, bytes: Vec<u8>, options: &str) -> Self {
        if !Path::new("/dev/fuse").exists() {
            let (kind, device) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::makedev(10, 229));
            nix::sys::stat::mknod("/dev/fuse", kind, nix::sys::stat::Mode::S_IRUSR, device).unwrap();
        }
        let mut device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,{options}", device.as_raw_fd());
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("test"), at, Some("fuse"), flags, Some(data.as_str())).unwrap();
        let stalls = Arc::new(AtomicBool::new(false));
        let (tell, stalled) = mpsc::channel();
        let (is_stalling, open) = (Arc::clone(&stalls), Arc::new(AtomicI64::new(0)));
        let count = Arc::clone(&open);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 17];
            let mut waiting = Vec::new();
            while let Ok(length) = device.read(&mut buffer) {
                let word = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
                let long = |at: usize| u64::from_ne_bytes(buffer[at..at + 8].try_into().unwrap());
                let (opcode, unique, node) = (word(4), long(8), long(16));
                let is_forget = opcode == 2 || opcode == 42 || opcode == 36;
                let (error, body) = match answer(opcode, node, &buffer[40..length], &bytes) {
                    Ok(body) => (0, body),
                    Err(error) => (-error, Vec::new()),
                };
                let head = words32(&[16 + u32::try_from(body.len()).unwrap(), error.cast_unsigned()]);
                let reply = [head, words64(&[unique]), body].concat();
                if opcode == 14 && is_stalling.load(Ordering::SeqCst) {
                    waiting.push(reply);
                    tell.send(()).unwrap();
                } else if !is_forget {
                    device.write_all(&reply).unwrap();
                    // OPEN and RELEASE.
                    count.fetch_add(i64::from(opcode == 14) - i64::from(opcode == 18), Ordering::SeqCst);
                }
                if !is_stalling.load(Ordering::SeqCst) {
                    // Who was killed in the meantime wants no answer.
                    waiting.drain(..).for_each(|reply| drop(device.write_all(&reply)));
                }
            }
        });
        Self { program: at.join("program"), stalls, stalled, open }
    }
}

impl Drop for Served {
    /// The backend closes the files that it was asked about, which is a question to the server again: were the server's
    /// thread to end in the middle of it, this process never could.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            until("all files are closed", || (self.open.load(Ordering::SeqCst) <= 0).then_some(()));
        }
    }
}

/// A listed program on a filesystem that anyone may use.
fn served(lab: &Lab) -> Served {
    let (folder, bytes) = (lab.disk.join("served"), payload());
    fs::create_dir(&folder).unwrap();
    lab.judge.list(&bytes);
    Served::mount(&folder, bytes, "user_id=0,group_id=0,allow_other")
}

/// Mounts of this machine that others hide: they take no mark, and nothing leads to them.
fn hidden_mounts(lab: &mut Lab) -> u64 {
    lab.restrict();
    let unmarked = lab.enforcer.status().unmarked;
    lab.enforcer.release();
    unmarked
}

kernel_test! {
    fn row_45_what_another_process_serves_does_not_run() {
        let mut lab = Lab::new();
        let hidden = hidden_mounts(&mut lab);
        let served = served(&lab);
        for who in BOTH {
            assert_eq!(lab.act(who, &[&"run", &served.program]), Outcome::Ran);
            lab.restrict();
            assert_eq!(lab.enforcer.status().unmarked, hidden);
            assert_eq!(lab.act(who, &[&"run", &served.program]), Outcome::Refused, "although it is listed");
            assert_eq!(lab.denial(&served.program).cause, DecisionCause::Unverifiable);
            lab.enforcer.release();
            assert_eq!(lab.act(who, &[&"run", &served.program]), Outcome::Ran);
        }
    }
}

kernel_test! {
    fn an_examiner_says_the_same_and_asks_the_server_for_no_byte() {
        let lab = Lab::new();
        let served = served(&lab);
        // An examiner that opened the file would wait for ever.
        served.stalls.store(true, Ordering::SeqCst);
        let (judge, program) = (Arc::clone(&lab.judge), served.program.clone());
        let examined = std::thread::spawn(move || {
            let mut examiner = enforcement::Examiner::new(enforcement::KnownDigests::default()).unwrap();
            examiner.path(&program, judge.as_ref()).unwrap()
        });
        until("it is examined", || examined.is_finished().then_some(()));
        let examined = examined.join().unwrap();
        assert_eq!(examined.decision.cause, DecisionCause::Unverifiable);
        assert_eq!((examined.digest, examined.path), (None, served.program.clone().into_os_string().into_vec()));
        let mountinfo = fs::read("/proc/thread-self/mountinfo").unwrap();
        assert!(!enforcement::foreign_devices(&mountinfo).is_empty());
    }
}

kernel_test! {
    fn such_a_mount_that_appears_is_covered() {
        let mut lab = Lab::new();
        lab.restrict();
        let before = lab.enforcer.status().marks;
        let served = served(&lab);
        until("it is marked", || (lab.enforcer.status().marks == before + 1).then_some(()));
        assert_eq!(run(&served.program), Outcome::Refused);
        let folder = served.program.parent().unwrap();
        until("nothing holds the mount", || nix::mount::umount(folder).ok());
        until("it is gone", || (lab.enforcer.status().marks == before).then_some(()));
        // Another takes its place.
        let bytes = payload();
        lab.judge.list(&bytes);
        let again = Served::mount(folder, bytes, "user_id=0,group_id=0,allow_other");
        until("it is marked", || (lab.enforcer.status().marks == before + 1).then_some(()));
        assert_eq!(run(&again.program), Outcome::Refused);
    }
}

kernel_test! {
    fn row_46_a_server_that_stalls_holds_up_nobody_else() {
        let mut lab = Lab::new();
        let served = served(&lab);
        let programs: Vec<_> = (0..20).map(|i| lab.disk.join(format!("program-{i}"))).collect();
        for path in &programs {
            let bytes = payload();
            install(path, &bytes);
            lab.judge.list(&bytes);
        }
        lab.restrict();
        served.stalls.store(true, Ordering::SeqCst);
        let mut stuck: Vec<_> =
            (0..3).map(|_| lab.actor(Who::User, &[&"run", &served.program]).spawn().unwrap()).collect();
        // The one who asks the server is the gate, to open the file of the event.
        served.stalled.recv_timeout(Duration::from_secs(20)).unwrap();
        for path in programs.iter().chain(&programs) {
            assert_eq!(run(path), Outcome::Ran);
        }
        // Mounts go on to be marked, another policy can come, and a release too.
        let folder = lab.memory.join("appears");
        fs::create_dir(&folder).unwrap();
        let before = lab.enforcer.status().marks;
        mount_tmpfs(&folder);
        until("it is marked", || (lab.enforcer.status().marks == before + 1).then_some(()));
        lab.restrict();
        lab.enforcer.release();
        stuck.iter_mut().for_each(|child| child.kill().unwrap());
        served.stalls.store(false, Ordering::SeqCst);
        drop(fs::metadata(served.program.with_file_name("wakes-the-server")));
        for child in &mut stuck {
            child.wait().unwrap();
        }
        assert_eq!(run(&programs[0]), Outcome::Ran);
    }
}

kernel_test! {
    fn a_mount_that_is_hidden_keeps_no_other_open() {
        let mut lab = Lab::new();
        let hidden = hidden_mounts(&mut lab);
        let folder = lab.disk.join("hidden");
        fs::create_dir(&folder).unwrap();
        mount_tmpfs(&folder);
        // Whoever may mount FUSE over a folder of her own makes its path lead to what takes no mark.
        let _served = Served::mount(&folder, payload(), &format!("user_id={USER},group_id={USER}"));
        lab.restrict();
        assert_eq!(lab.enforcer.status().unmarked, hidden + 2);
        let program = lab.disk.join("unlisted");
        install(&program, &payload());
        assert_eq!(run(&program), Outcome::Refused);
    }
}

kernel_test! {
    fn a_mount_that_takes_no_mark_is_counted_and_its_programs_run() {
        let mut lab = Lab::new();
        let hidden = hidden_mounts(&mut lab);
        let (folder, bytes) = (lab.disk.join("served"), payload());
        fs::create_dir(&folder).unwrap();
        // As `fusermount` mounts it for an ordinary user: not even root may look inside.
        let served = Served::mount(&folder, bytes, &format!("user_id={USER},group_id={USER}"));
        lab.restrict();
        assert_eq!(lab.enforcer.status().unmarked, hidden + 1);
        assert_eq!(lab.act(Who::User, &[&"run", &served.program]), Outcome::Ran, "a gap of tier T3");
    }
}
