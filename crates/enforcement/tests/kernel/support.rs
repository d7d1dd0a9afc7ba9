//! A machine to restrict: a private mount namespace, programs to run in it, and a judge that lists some of them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use domain::decision::{Decision, DecisionCause, Verdict};
use domain::digest::Sha256Digest;
use enforcement::{Denial, Enforcer as _, Fanotify, FileFacts, Judge, MarkScope, Settings};
use sha2::Digest as _;

/// Set inside the namespace, to the test's name.
const INSIDE: &str = "CORDON_KERNEL_TEST";
/// The longest that one test may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// A user that no machine has.
pub(crate) const USER: &str = "54321";

/// What the payload ends with when it ran.
pub(crate) const RAN: u8 = 42;
/// What the evil twin of the payload ends with when it ran.
pub(crate) const EVIL: u8 = 43;

/// The folder of the test. Made outside, so that it can be removed when nothing is mounted in it any more.
const FOLDER: &str = "CORDON_TEST_FOLDER";

/// Runs a test's body in a process and a mount namespace of its own, made with these further options of `unshare`.
pub(crate) fn isolated(name: &str, options: &[&str], body: fn()) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        return body();
    }
    let folder = tempfile::Builder::new().prefix("cordon-kernel-").tempdir().unwrap();
    // Kept apart, because it ends with a result of its own, which is part of this one's.
    let output = folder.path().join("output");
    let log = fs::File::create(&output).unwrap();
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(options)
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, name)
        .env(FOLDER, folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("unshare (util-linux) is needed");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            // With it goes its fanotify group, and whoever waits for an answer goes on.
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name} did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let output = fs::read_to_string(output).unwrap_or_default();
    assert!(status.success(), "{name}: {status}\n{output}");
}

/// A test that runs isolated.
macro_rules! kernel_test {
    (fn $name:ident() $body:block) => {
        kernel_test! { @with [] fn $name() $body }
    };
    // With processes of its own too: those of this machine, and their mount namespaces, are not to be found.
    (alone fn $name:ident() $body:block) => {
        kernel_test! { @with ["--pid", "--fork", "--kill-child", "--mount-proc"] fn $name() $body }
    };
    (@with $options:tt fn $name:ident() $body:block) => {
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            // The first segment is the name of the test binary.
            let name = path.split_once("::").map_or(path, |(_, rest)| rest);
            crate::support::isolated(name, &$options, || $body);
        }
    };
}
pub(crate) use kernel_test;

/// What came of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ran,
    Refused,
    /// It ended with this status: an error's number, or that of the evil twin.
    Other(u8),
}

impl Outcome {
    fn of(status: i32) -> Self {
        match u8::try_from(status).unwrap() {
            RAN => Self::Ran,
            1 => Self::Refused,
            other => Self::Other(other),
        }
    }
}

/// Who executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Root,
    User,
}

pub(crate) const BOTH: [Who; 2] = [Who::Root, Who::User];

/// Allows what lies below the system's folders, and listed contents.
#[derive(Default)]
pub(crate) struct ListJudge {
    listed: Mutex<HashSet<Sha256Digest>>,
    pub(crate) asked: AtomicU64,
    held: Mutex<bool>,
    let_go: Condvar,
    delay: Mutex<Duration>,
}

impl ListJudge {
    pub(crate) fn list(&self, bytes: &[u8]) {
        self.listed.lock().unwrap().insert(digest(bytes));
    }

    /// Holds up every decision about what is not the system's, until [`ListJudge::let_go`].
    pub(crate) fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    /// Takes this long over every decision about what is not the system's.
    pub(crate) fn slow_down(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    pub(crate) fn let_go(&self) {
        *self.held.lock().unwrap() = false;
        self.let_go.notify_all();
    }
}

impl Judge for ListJudge {
    fn judge(&self, file: &FileFacts<'_>) -> Decision {
        let system: [&[u8]; 4] = [b"/usr/", b"/lib", b"/bin/", b"/sbin/"];
        if system.iter().any(|folder| file.path.starts_with(folder)) {
            return Decision::settled(Verdict::Allow, DecisionCause::PackageDatabase);
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        drop(self.let_go.wait_while(self.held.lock().unwrap(), |held| *held).unwrap());
        let delay = *self.delay.lock().unwrap();
        std::thread::sleep(delay);
        if self.listed.lock().unwrap().contains(&file.digest) {
            Decision::settled(Verdict::Allow, DecisionCause::Rule("listed".to_owned()))
        } else {
            Decision::settled(Verdict::Deny, DecisionCause::Unlisted)
        }
    }
}

/// The machine.
pub(crate) struct Lab {
    /// On the disk that holds temporary files.
    pub(crate) disk: PathBuf,
    /// On a tmpfs of its own.
    pub(crate) memory: PathBuf,
    pub(crate) enforcer: Fanotify,
    pub(crate) judge: Arc<ListJudge>,
    actor: PathBuf,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        assert_eq!(enforcement::support(), None, "these tests need root and a kernel with fanotify");
        let folder = test_folder();
        open_to_all(&folder);
        let (disk, memory) = (folder.join("disk"), folder.join("memory"));
        for path in [&disk, &memory] {
            fs::create_dir(path).unwrap();
            open_to_all(path);
        }
        mount_tmpfs(&memory);
        let actor = folder.join("actor");
        compile_actor(&actor, &[]);
        let judge = Arc::new(ListJudge::default());
        judge.list(&fs::read(&actor).unwrap());
        let enforcer = Fanotify::new(Settings { scope: MarkScope::Mount, ..settings });
        Self { disk, memory, enforcer, judge, actor }
    }

    pub(crate) fn restrict(&mut self) {
        self.enforcer.restrict(Arc::clone(&self.judge) as Arc<dyn Judge>).unwrap();
    }

    /// Root executes in the plain way.
    pub(crate) fn run(&self, path: &Path) -> Outcome {
        run(path)
    }

    /// The actor does something with a file, as root or as an ordinary user.
    pub(crate) fn act(&self, who: Who, words: &[&dyn AsRef<OsStr>]) -> Outcome {
        Outcome::of(self.actor(who, words).status().unwrap().code().unwrap())
    }

    pub(crate) fn actor(&self, who: Who, words: &[&dyn AsRef<OsStr>]) -> Command {
        command(&self.actor, who, words)
    }

    /// Where the actor is; the judge lists it.
    pub(crate) fn actor_path(&self) -> &Path {
        &self.actor
    }

    /// The actor prepares something, and waits for [`Waiting::go`].
    pub(crate) fn prepare(&self, who: Who, words: &[&dyn AsRef<OsStr>]) -> Waiting {
        Waiting::start(&self.actor, who, words)
    }

    /// The denials of a file, once there are any.
    pub(crate) fn denial(&mut self, path: &Path) -> Denial {
        let path = path.as_os_str().as_encoded_bytes();
        until("the denial is reported", || {
            self.enforcer.take_denials(100).into_iter().find(|denial| denial.path == path)
        })
    }

    /// Holds that the file was refused because nothing lists its content.
    pub(crate) fn expect_unlisted(&mut self, path: &Path, bytes: &[u8]) -> Denial {
        let denial = self.denial(path);
        assert_eq!((&denial.cause, denial.digest), (&DecisionCause::Unlisted, Some(digest(bytes))));
        denial
    }
}

/// The folder of this test.
pub(crate) fn test_folder() -> PathBuf {
    PathBuf::from(std::env::var_os(FOLDER).unwrap())
}

/// Compiles the actor, with these further options.
pub(crate) fn compile_actor(at: &Path, options: &[&str]) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel/actor.c");
    let compiled = Command::new("cc").args(["-O1", "-o"]).arg(at).args(options).arg(source).status();
    assert!(compiled.expect("a C compiler is needed").success());
}

pub(crate) fn command(actor: &Path, who: Who, words: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new(actor);
    if who == Who::User {
        command.args(["as", USER]);
    }
    command.args(words);
    command
}

/// Executes in the plain way.
pub(crate) fn run(path: &Path) -> Outcome {
    match Command::new(path).stdin(Stdio::null()).status() {
        Ok(status) => Outcome::of(status.code().unwrap()),
        Err(error) => Outcome::of(error.raw_os_error().unwrap()),
    }
}

/// An actor in the middle of its act.
pub(crate) struct Waiting(Child);

impl Waiting {
    /// This actor prepares something, and waits for [`Waiting::go`].
    pub(crate) fn start(actor: &Path, who: Who, words: &[&dyn AsRef<OsStr>]) -> Self {
        let mut command = command(actor, who, words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the actor ended with {:?}", child.try_wait());
        Self(child)
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn go(mut self) -> Outcome {
        self.0.stdin.take().unwrap().write_all(b"!").unwrap();
        Outcome::of(self.0.wait().unwrap().code().unwrap())
    }
}

/// A program of its own content each time.
pub(crate) fn payload() -> Vec<u8> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = program(RAN);
    bytes.extend(COUNT.fetch_add(1, Ordering::SeqCst).to_le_bytes());
    bytes.extend(std::process::id().to_le_bytes());
    bytes
}

/// The same program with one byte changed, so that it ends with [`EVIL`].
pub(crate) fn evil_twin(payload: &[u8]) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    bytes[STATUS_AT] = program(EVIL)[STATUS_AT];
    bytes
}

/// Where payload and evil twin differ: in the status, behind the ELF headers.
#[cfg(target_arch = "x86_64")]
pub(crate) const STATUS_AT: usize = 121;
#[cfg(target_arch = "aarch64")]
pub(crate) const STATUS_AT: usize = 120;

/// A static ELF program that exits with `status`.
fn program(status: u8) -> Vec<u8> {
    // mov edi, status; mov eax, 60; syscall.
    #[cfg(target_arch = "x86_64")]
    let (machine, code) = (62_u16, [0xbf, status, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    // mov x0, status; mov x8, 93; svc 0.
    #[cfg(target_arch = "aarch64")]
    let (machine, code) = {
        let [low, high] = (u16::from(status) << 5).to_le_bytes();
        (183_u16, [low, high, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4])
    };
    let (base, headers) = (0x40_0000_u64, 120_u64);
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    for word in [base + headers, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    for word in [0, base, base, headers + 12, headers + 12, 0x1000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(code);
    bytes
}

/// Writes a program that anyone may execute.
pub(crate) fn install(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    open_to_all(path);
}

pub(crate) fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn mount_tmpfs(at: &Path) {
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("mode=755")).unwrap();
}

pub(crate) fn digest(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(sha2::Sha256::digest(bytes).into())
}

/// Polls until there is an answer, and fails when there is none in time.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
