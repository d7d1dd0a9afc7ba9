//! A machine with a gate, a control plane that signs for it, and programs to run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::machine_action::MachineActionId;
use domain::policy_settings::PolicySettings;
use domain::restriction::{Desired, Fence};
use domain::time::Timestamp;
use gate_protocol::{Reply, Request, Status, read_frame, write_frame};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, seteuid};
use orders::{Order, Outcome, Receipt, SigningKey, VerifiedReceipt, sign_policy};
use policy::baseline::Builder;
use sha2::Digest as _;

/// Set inside the namespace, to the test's name.
const INSIDE: &str = "CORDON_GATE_TEST";
/// The longest that one test may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The agent's user, and that of a stranger: users that no machine has.
pub(crate) const AGENT: u32 = 54_322;
pub(crate) const STRANGER: u32 = 54_321;

/// The folder of the test. Made outside, so that it can be removed when nothing is mounted in it any more.
const FOLDER: &str = "CORDON_TEST_FOLDER";

/// Runs a test's body in a process, a mount namespace and a process namespace of its own.
pub(crate) fn isolated(name: &str, body: fn()) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        return body();
    }
    let folder = tempfile::Builder::new().prefix("cordon-gate-").tempdir().unwrap();
    // Kept apart, because it ends with a result of its own, which is part of this one's.
    let output = folder.path().join("output");
    let log = fs::File::create(&output).unwrap();
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"])
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
macro_rules! gate_test {
    (fn $name:ident() $body:block) => {
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            // The first segment is the name of the test binary.
            let name = path.split_once("::").map_or(path, |(_, rest)| rest);
            crate::support::isolated(name, || $body);
        }
    };
}
pub(crate) use gate_test;

/// What came of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Execution {
    Ran,
    Refused,
}

/// A machine with its gate.
pub(crate) struct Machine {
    pub(crate) folder: PathBuf,
    gate: Option<Child>,
    keeper: Option<Child>,
    /// Whether a policy is to list what starts the gate again.
    restarts: bool,
    /// What the gate is started from.
    pub(crate) gate_program: PathBuf,
    /// The control plane's.
    pub(crate) order_key: SigningKey,
    pub(crate) id: MachineId,
    pub(crate) incarnation: u64,
    pub(crate) generation: u64,
    pub(crate) policy: Sha256Digest,
}

/// What a machine has of programs.
pub(crate) struct Programs {
    /// Nothing vouches for it.
    pub(crate) unlisted: PathBuf,
    /// A rule of the policy allows its content.
    pub(crate) listed: PathBuf,
    /// The package baseline lists it where it is.
    pub(crate) packaged: PathBuf,
    /// What the gate believes to be the agent.
    pub(crate) agent: PathBuf,
}

impl Machine {
    /// A machine whose gate runs and knows nothing.
    pub(crate) fn bare() -> Self {
        let mut machine = Self::without_gate();
        machine.start();
        machine
    }

    fn without_gate() -> Self {
        assert!(Uid::effective().is_root(), "these tests need root");
        let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
        open_to_all(&folder);
        let config = format!(
            "state_dir = {:?}\nsocket = {:?}\nagent_uid = {AGENT}\nagent_program = {:?}\nmanifests_dir = {:?}\n\
             scope = \"mount\"\nkeeper = \"none\"\nsystem_root = {:?}\ndeadman_seconds = 1\n",
            folder.join("state"),
            folder.join("socket"),
            folder.join("agent"),
            folder.join("manifests"),
            folder.join("root"),
        );
        fs::write(folder.join("gate.toml"), config).unwrap();
        fs::create_dir(folder.join("root")).unwrap();
        for name in ["unlisted", "listed", "packaged", "agent"] {
            install(&folder.join(name), &program(name));
        }
        Self {
            folder,
            gate: None,
            keeper: None,
            restarts: false,
            gate_program: PathBuf::from(env!("CARGO_BIN_EXE_cordon-gate")),
            order_key: SigningKey::generate().unwrap(),
            id: MachineId([7; 20]),
            incarnation: 1,
            generation: 0,
            policy: Sha256Digest([0; 32]),
        }
    }

    /// A machine whose restriction outlives the gate, and which may start the gate again.
    pub(crate) fn kept() -> Self {
        let mut machine = Self::restarting();
        machine.configure_keeper("connect");
        machine.start_keeper();
        machine.start();
        machine.set_up();
        machine
    }

    /// A machine without a gate so far, which may start one while none is there.
    pub(crate) fn restarting() -> Self {
        let mut machine = Self::without_gate();
        machine.restarts = true;
        let config = machine.folder.join("gate.toml");
        let text = fs::read_to_string(&config).unwrap();
        let socket = machine.folder.join("keeper");
        let text = format!("{text}keeper_socket = {socket:?}\nrestart_programs = [{STARTER:?}, {SHELL:?}]\n");
        fs::write(config, text).unwrap();
        machine
    }

    /// Says where the keeper comes from.
    pub(crate) fn configure_keeper(&self, from: &str) {
        let config = self.folder.join("gate.toml");
        let text = fs::read_to_string(&config).unwrap();
        let line = text.lines().find(|line| line.starts_with("keeper = ")).unwrap();
        fs::write(&config, text.replace(line, &format!("keeper = {from:?}"))).unwrap();
    }

    /// Enrolls, and gives the gate a policy and a package baseline.
    pub(crate) fn set_up(&mut self) {
        self.enroll();
        self.store_policy();
        assert_eq!(self.send_baseline(&self.baseline()), Reply::Done);
    }

    /// Starts a keeper as a service manager does.
    pub(crate) fn start_keeper(&mut self) {
        let mut command = Command::new(STARTER);
        // It dies with this process's namespace of processes at the latest: it forgets that it is to die with us.
        command.args(["--pdeathsig", "KILL"]).arg(&self.gate_program);
        command.arg("keeper").arg("--socket").arg(self.folder.join("keeper"));
        let log = fs::File::options().create(true).append(true).open(self.folder.join("keeper-log")).unwrap();
        self.keeper = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Waits until the keeper has the gate's restriction.
    pub(crate) fn wait_for_keeper(&self) {
        until("the keeper has files of the gate", || {
            let files = fs::read_dir(format!("/proc/{}/fd", self.keeper.as_ref().unwrap().id())).unwrap();
            let links = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
            links.into_iter().any(|link| link == self.folder.join("listed")).then_some(())
        });
    }

    /// Ends the keeper.
    pub(crate) fn stop_keeper(&mut self) {
        let mut keeper = self.keeper.take().unwrap();
        keeper.kill().unwrap();
        keeper.wait().unwrap();
    }

    /// A machine that is enrolled, and whose gate holds a policy and a package baseline.
    pub(crate) fn new() -> Self {
        let mut machine = Self::bare();
        machine.set_up();
        machine
    }

    pub(crate) fn programs(&self) -> Programs {
        let path = |name: &str| self.folder.join(name);
        Programs {
            unlisted: path("unlisted"),
            listed: path("listed"),
            packaged: path("packaged"),
            agent: path("agent"),
        }
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.folder.join("state").join(name)
    }

    /// The copy of a file of the state.
    pub(crate) fn copy_of(&self, name: &str) -> PathBuf {
        self.folder.join("state.copy").join(name)
    }

    /// The gate's command line.
    pub(crate) fn gate_command(&self) -> Command {
        self.gate_command_with(&[])
    }

    /// The same, started by nothing else: for what ends by itself.
    pub(crate) fn gate_itself(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cordon-gate"));
        command.arg("--config").arg(self.folder.join("gate.toml"));
        command
    }

    /// The same with options of `setpriv`. It dies with the test.
    pub(crate) fn gate_command_with(&self, options: &[&str]) -> Command {
        let mut command = Command::new(STARTER);
        command.args(["--pdeathsig", "KILL"]).args(options).arg(&self.gate_program);
        command.arg("--config").arg(self.folder.join("gate.toml"));
        command
    }

    /// Starts the gate; it answers when this returns.
    pub(crate) fn start(&mut self) {
        let command = self.gate_command();
        self.start_with(command);
    }

    pub(crate) fn start_with(&mut self, mut command: Command) {
        let log = fs::File::create(self.folder.join("log")).unwrap();
        self.gate = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        until("the gate answers", || {
            if let Some(status) = self.gate.as_mut().unwrap().try_wait().unwrap() {
                panic!("the gate ended with {status}: {}", self.log());
            }
            let mut stream = UnixStream::connect(self.folder.join("socket")).ok()?;
            write_frame(&mut stream, &Request::Status).ok()?;
            read_frame::<Reply>(&mut stream).ok()?
        });
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    pub(crate) fn gate_id(&self) -> u32 {
        self.gate.as_ref().unwrap().id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.gate_id().cast_signed()), signal).unwrap();
    }

    /// Ends the gate by a signal.
    pub(crate) fn stop(&mut self, signal: Signal) {
        self.signal(signal);
        let status = self.gate.take().unwrap().wait().unwrap();
        assert_eq!(status.signal(), Some(signal as i32), "{status}");
    }

    pub(crate) fn restart(&mut self) {
        self.stop(Signal::SIGKILL);
        self.start();
    }

    /// A connection as root.
    pub(crate) fn connect(&self) -> Client {
        Client(UnixStream::connect(self.folder.join("socket")).unwrap())
    }

    /// A connection as another user.
    pub(crate) fn connect_as(&self, user: u32) -> Client {
        seteuid(Uid::from_raw(user)).unwrap();
        let stream = UnixStream::connect(self.folder.join("socket"));
        seteuid(Uid::from_raw(0)).unwrap();
        Client(stream.unwrap())
    }

    pub(crate) fn ask(&self, request: &Request) -> Reply {
        self.connect().ask(request)
    }

    pub(crate) fn status(&self) -> Status {
        self.connect().status()
    }

    pub(crate) fn enroll_request(&self) -> Request {
        Request::Enroll {
            machine: self.id.to_string(),
            incarnation: self.incarnation,
            order_keys: vec![self.order_key.public_key().to_string()],
        }
    }

    pub(crate) fn enroll(&self) {
        assert_eq!(self.ask(&self.enroll_request()), Reply::Done);
    }

    /// A policy that lists the listed program.
    pub(crate) fn store_policy(&mut self) {
        self.store_policy_with(&[]);
    }

    /// The same with settings.
    pub(crate) fn store_policy_with(&mut self, settings: &[(&str, &str)]) {
        self.store_policy_of(1, Profile::OsAndApproved, settings);
    }

    /// The same as another revision, which is obeyed from the next order on.
    pub(crate) fn store_revision(&mut self, revision: u64) {
        self.store_policy_of(revision, Profile::OsAndApproved, &[]);
    }

    /// Any policy that lists the listed program.
    pub(crate) fn store_policy_of(&mut self, revision: u64, profile: Profile, settings: &[(&str, &str)]) {
        let rule = |id: &str, bytes: &[u8]| Rule {
            id: id.to_owned(),
            matcher: Matcher::Sha256(digest(bytes)),
            effect: Effect::Allow,
            comment: String::new(),
        };
        let mut rules = vec![rule("listed", &program("listed"))];
        if self.restarts {
            // What starts the gate again, and a gate that is newer than this one.
            for (id, path) in
                [("starter", Path::new(STARTER)), ("shell", Path::new(SHELL)), ("loader", &loader())]
            {
                rules.push(rule(id, &fs::read(path).unwrap()));
            }
            rules.push(rule("newer", &newer_gate()));
        }
        let policy = AllowPolicy {
            name: "default".to_owned(),
            revision,
            profile,
            settings: PolicySettings::of_entries(settings.iter().copied()).unwrap(),
            rules,
        };
        let envelope = sign_policy(&policy, &self.order_key);
        self.policy = envelope.payload_digest().unwrap();
        let envelope = String::from_utf8(envelope.to_bytes()).unwrap();
        assert_eq!(self.ask(&Request::StorePolicy { envelope }), Reply::Done);
    }

    /// A baseline that lists the packaged program.
    pub(crate) fn baseline(&self) -> Vec<u8> {
        let mut builder = Builder::default();
        let path = self.programs().packaged;
        assert!(builder.add(digest(&program("packaged")), path.as_os_str().as_encoded_bytes()));
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn send_baseline(&self, bytes: &[u8]) -> Reply {
        self.connect_as(AGENT).send_baseline(bytes)
    }

    /// The next order.
    pub(crate) fn order(&mut self, desired: Desired) -> Order {
        self.generation += 1;
        let now = Timestamp::from(SystemTime::now());
        Order {
            machine: self.id,
            fence: Fence { store_epoch: 1, incarnation: self.incarnation, generation: self.generation },
            action: MachineActionId(uuid::Uuid::new_v4()),
            desired,
            policy: (desired == Desired::Restricted).then_some(self.policy),
            issued_at: now,
            not_after: now.plus(Duration::from_secs(3600)),
            ends_at: None,
        }
    }

    pub(crate) fn sign(&self, order: &Order) -> String {
        String::from_utf8(order.sign(&self.order_key).to_bytes()).unwrap()
    }

    /// Gives an order to the gate; its receipt. A refusal to even look at it is an error.
    pub(crate) fn apply(&self, envelope: &str) -> Result<Receipt, String> {
        let mut agent = self.connect_as(AGENT);
        let key = self.status().public_key.parse().unwrap();
        let mut reply = agent.ask(&Request::Apply { envelope: envelope.to_owned() });
        if let Reply::Accepted { .. } = reply {
            reply = agent.next();
        }
        match reply {
            Reply::Receipt { envelope } => {
                let receipt = VerifiedReceipt::verify(envelope.as_bytes(), key, self.id).unwrap();
                Ok(receipt.receipt().clone())
            }
            Reply::Refused { reason } => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// Orders, and holds that it is obeyed and proved. The order's exact bytes.
    pub(crate) fn obeyed(&mut self, desired: Desired) -> String {
        let order = self.order(desired);
        let envelope = self.sign(&order);
        let receipt = self.apply(&envelope).unwrap();
        assert_eq!(receipt.outcome, Outcome::Enforced);
        assert!(receipt.probe.unwrap().proves(desired, receipt.tier));
        assert_eq!((receipt.fence, receipt.action, receipt.desired), (order.fence, order.action, desired));
        self.expect(desired);
        envelope
    }

    /// Holds that the machine is what it is said to be, by the gate's word and in fact.
    pub(crate) fn expect(&self, desired: Desired) {
        let status = self.status();
        assert_eq!((status.restricted, status.generation), (desired == Desired::Restricted, self.generation));
        let programs = self.programs();
        let expected = if desired == Desired::Restricted { Execution::Refused } else { Execution::Ran };
        assert_eq!(run(&programs.unlisted), expected);
        for path in [&programs.listed, &programs.packaged, &programs.agent] {
            assert_eq!(run(path), Execution::Ran, "{}", path.display());
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(gate) = &mut self.gate {
            drop(gate.kill());
            drop(gate.wait());
        }
        if self.keeper.is_some() {
            self.stop_keeper();
        }
        if std::thread::panicking() {
            eprintln!("the gate's log: {}", fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
    }
}

/// Starts the gate so that it dies with the test.
pub(crate) const STARTER: &str = "/usr/bin/setpriv";

/// Another program that may start the gate.
pub(crate) const SHELL: &str = "/bin/sh";

/// The loader of dynamic programs.
fn loader() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/ld-"));
    PathBuf::from(path.expect("a dynamic test"))
}

/// The gate's program with another digest, as an upgrade brings it.
pub(crate) fn newer_gate() -> Vec<u8> {
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_cordon-gate")).unwrap();
    bytes.extend(b"newer");
    bytes
}

/// A connection to the gate.
pub(crate) struct Client(pub(crate) UnixStream);

impl Client {
    pub(crate) fn send(&mut self, request: &Request) {
        write_frame(&mut self.0, request).unwrap();
    }

    pub(crate) fn next(&mut self) -> Reply {
        read_frame(&mut self.0).unwrap().expect("an answer")
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        self.send(request);
        self.next()
    }

    /// Why the request was not carried out.
    pub(crate) fn refusal(&mut self, request: &Request) -> String {
        match self.ask(request) {
            Reply::Refused { reason } => reason,
            other => panic!("{request:?} was answered by {other:?}"),
        }
    }

    pub(crate) fn status(&mut self) -> Status {
        match self.ask(&Request::Status) {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn send_baseline(&mut self, bytes: &[u8]) -> Reply {
        let begin = begin(bytes);
        let reply = self.ask(&begin);
        if reply != Reply::Done {
            return reply;
        }
        for piece in bytes.chunks(gate_protocol::CHUNK_BYTES_MAX) {
            assert_eq!(self.ask(&chunk(piece)), Reply::Done);
        }
        self.ask(&Request::BaselineEnd)
    }
}

/// What the gate has written of its last order.
pub(crate) fn fence(machine: &Machine) -> serde_json::Value {
    let text = fs::read_to_string(machine.state("fence")).unwrap();
    serde_json::from_str(text.split_once('\n').unwrap().1).unwrap()
}

/// Writes something else there.
pub(crate) fn edit_fence(machine: &Machine, edit: impl FnOnce(&mut serde_json::Value)) {
    let mut fence = fence(machine);
    edit(&mut fence);
    let body = fence.to_string();
    fs::write(machine.state("fence"), format!("{}\n{body}", digest(body.as_bytes()))).unwrap();
}

pub(crate) fn begin(bytes: &[u8]) -> Request {
    Request::BaselineBegin { bytes: bytes.len() as u64, sha256: digest(bytes).to_string() }
}

pub(crate) fn chunk(piece: &[u8]) -> Request {
    Request::BaselineChunk { data: base64::engine::general_purpose::STANDARD.encode(piece) }
}

/// Executes a program.
pub(crate) fn run(path: &Path) -> Execution {
    match Command::new(path).stdin(Stdio::null()).status() {
        Ok(status) => {
            assert_eq!(status.code(), Some(42), "{}", path.display());
            Execution::Ran
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM), "{}", path.display());
            Execution::Refused
        }
    }
}

/// A static ELF program that exits with 42, and has `name` in its content.
pub(crate) fn program(name: &str) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    let code = b"\xbf\x2a\0\0\0\xb8\x3c\0\0\0\x0f\x05";
    #[cfg(target_arch = "aarch64")]
    let code = b"\x40\x05\x80\xd2\xa8\x0b\x80\xd2\x01\0\0\xd4";
    program_of(code, name)
}

/// A static ELF program of this code, which has `name` in its content.
pub(crate) fn program_of(code: &[u8], name: &str) -> Vec<u8> {
    let machine = if cfg!(target_arch = "x86_64") { 62_u16 } else { 183 };
    let (base, headers) = (0x40_0000_u64, 120_u64);
    let length = headers + code.len() as u64;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([base + headers, 64, 0].map(u64::to_le_bytes).concat());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend([64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    bytes.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    bytes.extend([0, base, base, length, length, 0x1000].map(u64::to_le_bytes).concat());
    bytes.extend(code);
    bytes.extend(name.as_bytes());
    bytes
}

/// Writes a program that anyone may execute.
pub(crate) fn install(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("beside");
    fs::write(&beside, bytes).unwrap();
    open_to_all(&beside);
    fs::rename(&beside, path).unwrap();
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
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
