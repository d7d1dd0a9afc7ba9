//! A machine: a mount namespace with a gate and an agent, and a package database of three files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::server::Server;
use crate::wait_until;

/// The user that the agent runs as. It needs no entry in `/etc/passwd`.
pub(crate) const AGENT_UID: u32 = 64_001;
/// A program that the package database lists.
pub(crate) const PACKAGED: &str = "/usr/bin/true";
/// The loader of programs, and what starts the agent: both run while restricted, too.
const ALSO_PACKAGED: &[&str] = &["/lib64/ld-linux-x86-64.so.2", "/usr/bin/setpriv"];

/// A process; killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let file = fs::File::options().create(true).append(true).open(log).unwrap();
        let child =
            command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self(child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its end by itself; its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        let mut code = None;
        wait_until("the process ends", || {
            code = self.0.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already is fine.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) struct Machine {
    pub(crate) folder: PathBuf,
    pub(crate) gate: Option<Process>,
    pub(crate) agent: Option<Process>,
    holder: Process,
    _kept: tempfile::TempDir,
}

impl Machine {
    /// A namespace without any program of ours in it. `prepare` runs in it first, as a shell script.
    pub(crate) fn new(prepare: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests are to be run as root: they enforce in a namespace"
        );
        let kept = tempfile::tempdir().unwrap();
        let folder = kept.path().to_owned();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(folder.join("bin")).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_cordon-agent"), folder.join("bin/cordon-agent")).unwrap();
        fs::copy(gate_program(), folder.join("bin/cordon-gate")).unwrap();
        fs::copy(PACKAGED, folder.join("unlisted")).unwrap();
        make_packages(&folder.join("root"));
        let agent_state = folder.join("agent");
        fs::create_dir(&agent_state).unwrap();
        std::os::unix::fs::chown(&agent_state, Some(AGENT_UID), Some(AGENT_UID)).unwrap();
        fs::set_permissions(&agent_state, fs::Permissions::from_mode(0o700)).unwrap();
        let gate = format!(
            "state_dir = {:?}\nsocket = {:?}\nagent_uid = {AGENT_UID}\nagent_program = {:?}\nscope = \"mount\"\n\
             keeper = \"none\"\nsystem_root = {:?}\n",
            folder.join("gate"),
            folder.join("gate.sock"),
            folder.join("bin/cordon-agent"),
            folder.join("system"),
        );
        fs::create_dir(folder.join("system")).unwrap();
        fs::write(folder.join("gate.toml"), gate).unwrap();
        let machine =
            Self { holder: hold_namespace(&folder, prepare), folder, gate: None, agent: None, _kept: kept };
        machine.configure("notify = false\n");
        machine
    }

    /// Writes the agent's settings, with these lines at their end.
    pub(crate) fn configure(&self, lines: &str) {
        let agent = format!(
            "state_dir = {:?}\ngate_socket = {:?}\ndpkg_root = {:?}\n{lines}",
            self.folder.join("agent"),
            self.folder.join("gate.sock"),
            self.folder.join("root"),
        );
        fs::write(self.folder.join("agent.toml"), agent).unwrap();
    }

    /// A machine that is enrolled, connected, and whose gate knows the packages.
    pub(crate) fn connected(server: &Server) -> Self {
        let mut machine = Self::new("true");
        machine.start_gate();
        machine.enroll(server);
        machine.start_agent();
        server.wait("the machine is connected", |seen| seen.links > 0 && !seen.heartbeats.is_empty());
        wait_until("the gate knows the packages", || {
            machine.gate_status()["baseline_files"].as_u64() > Some(0)
        });
        machine
    }

    /// A command inside the namespace, as root.
    pub(crate) fn inside(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount"]).args(words);
        command
    }

    pub(crate) fn start_gate(&mut self) {
        let mut command = self.inside(&[]);
        command
            .arg(self.folder.join("bin/cordon-gate"))
            .arg("--config")
            .arg(self.folder.join("gate.toml"))
            .arg("run");
        self.gate = Some(Process::start(&mut command, &self.folder.join("gate.log")));
        wait_until("the gate answers", || {
            std::os::unix::net::UnixStream::connect(self.folder.join("gate.sock")).is_ok()
        });
    }

    /// Starts the agent as an unprivileged user that may read every file, and nothing more.
    pub(crate) fn start_agent(&mut self) {
        let id = AGENT_UID.to_string();
        let mut command =
            self.inside(&["/usr/bin/setpriv", "--reuid", &id, "--regid", "tty", "--clear-groups"]);
        command.args([
            "--no-new-privs",
            "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=-all,+dac_read_search",
        ]);
        command.arg(self.folder.join("bin/cordon-agent")).arg("--config").arg(self.folder.join("agent.toml"));
        self.agent = Some(Process::start(command.arg("run"), &self.folder.join("agent.log")));
    }

    /// A command of the agent's program, as root.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.inside(&[]);
        command.arg(self.folder.join("bin/cordon-agent")).arg("--config").arg(self.folder.join("agent.toml"));
        command.args(words);
        command
    }

    pub(crate) fn enroll(&self, server: &Server) {
        let output = self.enroll_with(server, &server.pin());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn enroll_with(&self, server: &Server, pin: &str) -> Output {
        let words = ["enroll", "--server", &server.public_url(), "--token", "good-token", "--ca-pin", pin];
        self.command(&words).output().unwrap()
    }

    /// A command's output as JSON.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let output = self.command(words).args(["-o", "json"]).output().unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    pub(crate) fn gate_status(&self) -> Value {
        self.json(&["status"])["gate"].clone()
    }

    /// Whether the program runs; it must be refused by the kernel when not.
    pub(crate) fn runs(&self, program: &Path) -> bool {
        let output = self.inside(&[]).arg(program).output().unwrap();
        let refused = String::from_utf8_lossy(&output.stderr).contains("Operation not permitted");
        assert!(output.status.success() != refused, "{output:?}");
        !refused
    }

    pub(crate) fn unlisted(&self) -> PathBuf {
        self.folder.join("unlisted")
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- gate.log\n{}\n--- agent.log\n{}", self.log("gate.log"), self.log("agent.log"));
        }
    }
}

/// A process that keeps a mount namespace, whose mounts nobody else has.
fn hold_namespace(folder: &Path, prepare: &str) -> Process {
    let ready = folder.join("ready");
    let script = format!("set -e; {prepare}; touch '{}'; exec sleep infinity", ready.display());
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        &script,
    ]);
    let log = folder.join("holder.log");
    let mut holder = Process::start(&mut command, &log);
    wait_until("the namespace is there", || {
        assert!(holder.0.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&log).unwrap());
        ready.exists()
    });
    holder
}

/// A root folder with a package that shipped a few of this machine's programs.
fn make_packages(root: &Path) {
    let info = root.join("var/lib/dpkg/info");
    fs::create_dir_all(&info).unwrap();
    let package = "Package: base\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n";
    fs::write(root.join("var/lib/dpkg/status"), package).unwrap();
    let mut sums = String::new();
    for program in [&[PACKAGED], ALSO_PACKAGED].concat() {
        let real = fs::canonicalize(program).unwrap();
        let inside = real.strip_prefix("/").unwrap();
        let copy = root.join(inside);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&real, &copy).unwrap();
        let sum = Command::new("md5sum").arg(&real).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap();
        sums.push_str(&format!("{}  {}\n", &sum[..32], inside.display()));
    }
    fs::write(info.join("base.md5sums"), sums).unwrap();
}

/// The gate's program, built once by the cargo that runs this test.
fn gate_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // <target>/<profile>/deps/<this test>
        let test = std::env::current_exe().unwrap();
        let profile = test.ancestors().nth(2).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "-p", "gate", "--bin", "cordon-gate", "--target-dir"]);
        cargo.arg(profile.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "cargo build -p gate");
        profile.join("cordon-gate")
    })
}
