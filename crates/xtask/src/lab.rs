//! A running Cordon on this machine: a server, and machines that are nothing but two namespaces.
//!
//! Each machine has a mount and a UTS namespace of its own, whose mounts are private. Its gate marks the mounts of that
//! namespace only (`scope = "mount"`), so nothing outside is ever asked, let alone refused. Every process dies with
//! this program (`PR_SET_PDEATHSIG`), and the folders go when it ends, however it ends short of SIGKILL.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::command::{self, line};
use crate::programs::Programs;

/// The user that the agent runs as. It needs no entry in `/etc/passwd`.
const AGENT_UID: u32 = 64_001;
/// How long anything but reading all packages may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long reading all packages may take: a slow disk's worth of a large machine.
const INVENTORY_PATIENCE: Duration = Duration::from_secs(1200);

/// Server settings for benches: no limit on calls that a bench could reach.
pub(crate) const UNLIMITED: &str = "rate_limit_per_minute = 1000000\nrate_limit_per_hour = 10000000\n";

/// What must go when this program ends: filled as things start.
static LEFT_BEHIND: Mutex<LeftBehind> = Mutex::new(LeftBehind { processes: Vec::new(), folders: Vec::new() });

struct LeftBehind {
    processes: Vec<u32>,
    folders: Vec<PathBuf>,
}

impl LeftBehind {
    /// Calls `with` on what is left. A panic while it was changed leaves nothing half done.
    fn update<T>(with: impl FnOnce(&mut Self) -> T) -> T {
        with(&mut LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn clean_up(&mut self) {
        for process in self.processes.drain(..).rev() {
            kill(process);
        }
        while let Some(folder) = self.folders.last().cloned() {
            self.remove(&folder);
        }
    }

    fn remove(&mut self, folder: &Path) {
        // A process that is just dying may still make a file.
        let start = Instant::now();
        while fs::remove_dir_all(folder).is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound)
            && start.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.folders.retain(|left| left != folder);
    }
}

/// Stops everything that was started and removes every folder that was made, when it is dropped and on Ctrl-C.
pub(crate) struct CleanUp(());

impl CleanUp {
    /// From here on, nothing is left behind by an error, a panic, SIGINT, SIGTERM or SIGHUP.
    pub(crate) fn on_every_end() -> Result<Self> {
        ctrlc::set_handler(|| {
            // Held until the end, so that the interrupted work neither starts anything more nor reports an error.
            LeftBehind::update(|left| {
                left.clean_up();
                eprintln!("\ninterrupted: everything that was started is stopped and removed");
                std::process::exit(130)
            })
        })?;
        Ok(Self(()))
    }
}

impl Drop for CleanUp {
    fn drop(&mut self) {
        LeftBehind::update(LeftBehind::clean_up);
    }
}

/// Makes a temporary folder that goes with this program.
pub(crate) fn folder() -> Result<PathBuf> {
    LeftBehind::update(|left| {
        let folder = tempfile::Builder::new().prefix("cordon-").tempdir()?.keep();
        left.folders.push(folder.clone());
        // The agent's user must reach its programs and files.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        Ok(folder)
    })
}

/// Whether commands are printed before they run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// Each, as a person can type it.
    Commands,
    /// None.
    Nothing,
}

impl Show {
    /// Prints a command that is about to run.
    pub(crate) fn command(self, command: &Command) {
        if self == Self::Commands {
            println!("  $ {}", line(command));
        }
    }
}

/// A process that logs to a file; stopped when dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts a command that [`dies_with_us`].
    pub(crate) fn start(command: &mut Command, log: &Path, show: Show) -> Result<Self> {
        show.command(command);
        let file = fs::File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        LeftBehind::update(|left| {
            let child = command.spawn().with_context(|| format!("cannot start {}", line(command)))?;
            left.processes.push(child.id());
            Ok(Self(child))
        })
    }

    /// Starts a command whose standard output is read here.
    pub(crate) fn start_piped(command: &mut Command) -> Result<(Self, std::process::ChildStdout)> {
        LeftBehind::update(|left| {
            let mut child = command.spawn().with_context(|| format!("cannot start {}", line(command)))?;
            left.processes.push(child.id());
            let output = child.stdout.take().context("its output is not piped")?;
            Ok((Self(child), output))
        })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        LeftBehind::update(|left| left.processes.retain(|process| *process != self.0.id()));
        Ok(())
    }

    /// An error with the end of its log when the process has ended.
    pub(crate) fn require_alive(&mut self, log: &Path) -> Result<()> {
        if let Some(status) = self.0.try_wait()? {
            bail!("{} ended with {status}:\n{}", log.display(), end_of(log));
        }
        Ok(())
    }
}

/// The last lines of a log.
pub(crate) fn end_of(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}

/// Kills a process that was started here and has not been waited for.
pub(crate) fn kill(process: u32) {
    if let Ok(pid) = i32::try_from(process) {
        // A process that is gone already is what we want.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already is fine.
        drop(self.kill());
    }
}

/// A server with its data in a temporary folder.
pub(crate) struct Lab {
    /// The programs in use, copied to where every user may run them.
    pub(crate) programs: Programs,
    /// Everything lies here.
    pub(crate) folder: PathBuf,
    /// `https://localhost:port`.
    pub(crate) url: String,
    /// The tenant's id.
    pub(crate) tenant: String,
    /// The administrator's `client_id`.
    pub(crate) client_id: String,
    /// The administrator's `client_secret`.
    pub(crate) client_secret: String,
    /// The certificate authority's certificate.
    pub(crate) ca_file: PathBuf,
    /// SHA-256 of the certificate authority's certificate.
    ca_pin: String,
    /// The secret of an enrollment token.
    enrollment_token: String,
    server: Process,
    show: Show,
}

/// What a machine's gate is told to do differently.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum VerdictCache {
    /// Verdicts are kept by the kernel, as in production.
    On,
    /// Every execution is asked about, for measuring what that costs.
    Off,
}

impl Lab {
    /// Starts a server. `settings` is appended to its configuration.
    pub(crate) fn start(programs: &Programs, settings: &str, show: Show) -> Result<Self> {
        let folder = folder()?;
        let programs = copy_programs(programs, &folder.join("bin"))?;
        let (api_port, agent_port) = free_ports()?;
        let url = format!("https://localhost:{api_port}");
        let config = folder.join("server.toml");
        let data = folder.join("server");
        fs::write(
            &config,
            format!(
                "data_dir = {data:?}\nlisten = \"127.0.0.1:{api_port}\"\nagent_listen = \"127.0.0.1:{agent_port}\"\n\
                 public_url = \"{url}\"\nagent_url = \"https://localhost:{agent_port}\"\n{settings}"
            ),
        )?;
        let mut init = Command::new(&programs.server);
        init.args(["init", "-o", "json", "--config"]).arg(&config);
        show.command(&init);
        let init: Value =
            serde_json::from_str(&command::output(&mut init)?).context("output of cordon-server init")?;
        let field = |name: &str| text(&init, name);
        let log = folder.join("server.log");
        let mut run = dies_with_us();
        run.arg(&programs.server).args(["run", "--config"]).arg(&config);
        let mut server = Process::start(&mut run, &log, show)?;
        wait_until("the server answers", || {
            server.require_alive(&log)?;
            Ok([api_port, agent_port].iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()))
        })?;
        Ok(Self {
            programs,
            url,
            tenant: field("tenant")?,
            client_id: field("client_id")?,
            client_secret: field("client_secret")?,
            ca_pin: field("ca_pin")?,
            enrollment_token: field("enrollment_token")?,
            ca_file: PathBuf::from(field("ca_certificate")?),
            folder,
            server,
            show,
        })
    }

    /// The server's process id.
    pub(crate) fn server_id(&self) -> u32 {
        self.server.id()
    }

    /// A command of `cordon`, the operator's program, with its credentials in the environment.
    pub(crate) fn cordon(&self) -> Command {
        let mut command = Command::new(&self.programs.cli);
        command
            .env("CORDON_SERVER", &self.url)
            .env("CORDON_CLIENT_ID", &self.client_id)
            .env("CORDON_CLIENT_SECRET", &self.client_secret)
            .env("CORDON_CA_FILE", &self.ca_file);
        command
    }

    /// Prints the end of every log, for finding out why something failed.
    pub(crate) fn print_logs(&self) {
        let logs =
            ["server.log", "*/gate.log", "*/agent.log"].map(|log| format!("{}/{log}", self.folder.display()));
        let script = format!("tail -v -n 20 {}", logs.join(" "));
        // The failure itself matters more than a log that is not there.
        drop(Command::new("sh").args(["-c", &script]).status());
    }

    /// Starts a machine and enrolls it; its gate and agent run when this returns.
    pub(crate) fn machine(&self, name: &str, cache: VerdictCache) -> Result<Machine> {
        let namespace = Namespace::start(&self.folder, name, self.show)?;
        let folder = namespace.folder();
        let agent_state = folder.join("agent");
        fs::create_dir_all(&agent_state)?;
        std::os::unix::fs::chown(&agent_state, Some(AGENT_UID), Some(AGENT_UID))?;
        fs::set_permissions(&agent_state, fs::Permissions::from_mode(0o700))?;
        let socket = folder.join("gate.sock");
        fs::write(
            folder.join("gate.toml"),
            format!(
                "state_dir = {:?}\nsocket = {socket:?}\nagent_uid = {AGENT_UID}\nagent_program = {:?}\n\
                 scope = \"mount\"\nverdict_cache = {}\nkeeper = \"none\"\nsystem_root = {:?}\n",
                folder.join("gate"),
                self.programs.agent,
                cache == VerdictCache::On,
                folder.join("system"),
            ),
        )?;
        // The machine around it is not the one that is restricted.
        fs::create_dir(folder.join("system"))?;
        fs::write(
            folder.join("agent.toml"),
            format!("state_dir = {agent_state:?}\ngate_socket = {socket:?}\nnotify = false\n"),
        )?;
        let mut machine = Machine {
            gate_program: self.programs.gate.clone(),
            agent_program: self.programs.agent.clone(),
            namespace,
            gate: None,
            agent: None,
            show: self.show,
        };
        machine.start_gate()?;
        let mut enroll = machine.inside(&[]);
        enroll.arg(&self.programs.agent).arg("--config").arg(machine.folder().join("agent.toml"));
        enroll.args([
            "enroll",
            "--server",
            &self.url,
            "--token",
            &self.enrollment_token,
            "--ca-pin",
            &self.ca_pin,
        ]);
        self.show.command(&enroll);
        let enrolled = enroll.output()?;
        ensure!(
            enrolled.status.success(),
            "enrollment of {name}: {}",
            String::from_utf8_lossy(&enrolled.stderr)
        );
        machine.start_agent()?;
        Ok(machine)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.server.kill());
        LeftBehind::update(|left| left.remove(&self.folder));
    }
}

/// A mount and a UTS namespace with a folder; both go when it is dropped.
pub(crate) struct Namespace {
    name: String,
    folder: PathBuf,
    /// The process that keeps them.
    holder: Process,
}

impl Namespace {
    /// Makes the namespaces, named `name`, with a folder of that name in `parent`.
    pub(crate) fn start(parent: &Path, name: &str, show: Show) -> Result<Self> {
        let folder = parent.join(name);
        fs::create_dir(&folder)?;
        let mut unshare = dies_with_us();
        unshare.args(["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c"]);
        unshare.arg(format!("hostname {name} && exec sleep infinity"));
        let log = folder.join("namespace.log");
        let mut namespace =
            Self { name: name.to_owned(), holder: Process::start(&mut unshare, &log, show)?, folder };
        wait_until("the machine has its name", || {
            namespace.holder.require_alive(&log)?;
            Ok(namespace.inside(&["hostname"]).output()?.stdout == format!("{name}\n").as_bytes())
        })?;
        // What is marked in there must never be our own mounts.
        let mounts_of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
        ensure!(
            mounts_of(&namespace.holder.id().to_string())? != mounts_of("self")?,
            "the machine {name} has no mount namespace of its own"
        );
        Ok(namespace)
    }

    /// What belongs to the machine; its programs see the folder too.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command inside the namespaces, as root.
    pub(crate) fn inside(&self, words: &[&str]) -> Command {
        self.enter(Command::new("nsenter"), words)
    }

    /// The same for a command that outlives a moment: it dies with this program.
    pub(crate) fn lasting(&self, words: &[&str]) -> Command {
        let mut command = dies_with_us();
        command.arg("nsenter");
        self.enter(command, words)
    }

    fn enter(&self, mut command: Command, words: &[&str]) -> Command {
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--uts"]).args(words);
        command
    }
}

/// A machine: namespaces with a gate and an agent inside.
pub(crate) struct Machine {
    namespace: Namespace,
    gate_program: PathBuf,
    agent_program: PathBuf,
    gate: Option<Process>,
    agent: Option<Process>,
    show: Show,
}

impl Machine {
    /// The machine's name.
    pub(crate) fn name(&self) -> &str {
        &self.namespace.name
    }

    /// Where it lives.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The machine's folder, which its programs see too.
    pub(crate) fn folder(&self) -> &Path {
        self.namespace.folder()
    }

    /// A command inside the machine's namespaces, as root.
    pub(crate) fn inside(&self, words: &[&str]) -> Command {
        self.namespace.inside(words)
    }

    /// Starts the gate; it answers on its socket when this returns.
    pub(crate) fn start_gate(&mut self) -> Result<()> {
        let log = self.folder().join("gate.log");
        let socket = self.folder().join("gate.sock");
        let mut command = self.namespace.lasting(&[]);
        command.arg(&self.gate_program).arg("--config").arg(self.folder().join("gate.toml")).arg("run");
        let mut gate = Process::start(&mut command, &log, self.show)?;
        wait_until("the gate answers", || {
            gate.require_alive(&log)?;
            Ok(UnixStream::connect(&socket).is_ok())
        })?;
        self.gate = Some(gate);
        Ok(())
    }

    /// Starts the agent as an unprivileged user that may read every file, and nothing more.
    pub(crate) fn start_agent(&mut self) -> Result<()> {
        let id = AGENT_UID.to_string();
        // Becoming another user forgets that it is to die with us, so that is said again.
        let mut command = self.namespace.lasting(&[
            "setpriv",
            "--reuid",
            &id,
            "--regid",
            &id,
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=-all,+dac_read_search",
            "--bounding-set=-all,+dac_read_search",
            "--pdeathsig",
            "KILL",
        ]);
        command.arg(&self.agent_program).arg("--config").arg(self.folder().join("agent.toml")).arg("run");
        self.agent = Some(Process::start(&mut command, &self.folder().join("agent.log"), self.show)?);
        Ok(())
    }

    /// Kills the agent as an attacker would, with SIGKILL.
    pub(crate) fn kill_agent(&mut self) -> Result<()> {
        self.agent.as_mut().context("no agent")?.kill()
    }

    /// Kills the gate as an attacker would, with SIGKILL.
    pub(crate) fn kill_gate(&mut self) -> Result<()> {
        self.gate.as_mut().context("no gate")?.kill()
    }

    /// Process ids of the gate and the agent.
    pub(crate) fn program_ids(&self) -> Result<(u32, u32)> {
        let id = |process: &Option<Process>| process.as_ref().map(Process::id).context("not started");
        Ok((id(&self.gate)?, id(&self.agent)?))
    }

    /// The gate's state, as it says itself.
    pub(crate) fn gate_status(&self) -> Result<Value> {
        let mut command = self.inside(&[]);
        command.arg(&self.gate_program).arg("--config").arg(self.folder().join("gate.toml"));
        let status = command::output(command.args(["status", "-o", "json"]))?;
        serde_json::from_str(&status).context("output of cordon-gate status")
    }

    /// Waits until the gate holds what the machine's packages shipped.
    pub(crate) fn wait_for_baseline(&mut self) -> Result<u64> {
        let logs = ["gate.log", "agent.log"].map(|log| self.folder().join(log));
        let mut files = 0;
        wait_at_most(
            INVENTORY_PATIENCE,
            Duration::from_millis(200),
            "the gate holds the package baseline",
            || {
                for (process, log) in [&mut self.gate, &mut self.agent].into_iter().flatten().zip(&logs) {
                    process.require_alive(log)?;
                }
                let status = self.gate_status()?;
                files = status.get("baseline_files").and_then(Value::as_u64).context("no baseline_files")?;
                Ok(files > 0)
            },
        )?;
        Ok(files)
    }
}

/// `setpriv --pdeathsig KILL`, to be followed by a command: it ends with this program, however that ends.
fn dies_with_us() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    command
}

fn copy_programs(programs: &Programs, folder: &Path) -> Result<Programs> {
    fs::create_dir_all(folder)?;
    let copy = |program: &Path| -> Result<PathBuf> {
        let target = folder.join(program.file_name().context("a program without name")?);
        fs::copy(program, &target).with_context(|| program.display().to_string())?;
        Ok(target)
    };
    Ok(Programs {
        server: copy(&programs.server)?,
        agent: copy(&programs.agent)?,
        gate: copy(&programs.gate)?,
        cli: copy(&programs.cli)?,
    })
}

/// Two ports that were free a moment ago.
fn free_ports() -> Result<(u16, u16)> {
    // Both at once, or the second could be the first again.
    let listeners = [TcpListener::bind(("127.0.0.1", 0))?, TcpListener::bind(("127.0.0.1", 0))?];
    let [first, second] = listeners.map(|listener| listener.local_addr().map(|address| address.port()));
    Ok((first?, second?))
}

/// A text field of a JSON object.
pub(crate) fn text(value: &Value, field: &str) -> Result<String> {
    let text = value.get(field).and_then(Value::as_str).with_context(|| format!("no {field} in {value}"))?;
    Ok(text.to_owned())
}

/// Waits for a state, at most a minute.
pub(crate) fn wait_until(state: &str, reached: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_at_most(PATIENCE, Duration::from_millis(10), state, reached)
}

fn wait_at_most(
    patience: Duration,
    interval: Duration,
    state: &str,
    mut reached: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !reached()? {
        ensure!(start.elapsed() < patience, "waited {patience:.0?} in vain until {state}");
        std::thread::sleep(interval);
    }
    Ok(())
}
