//! fapolicyd in the place of the gate: the peer that the rows are also run against, to compare.
//!
//! Debian's package with upstream's rules. It trusts what packages shipped and, like our policy, this program and
//! the helpers. It never starts by itself: images mask its service.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use gate_protocol::Denial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::gate::digest;
use crate::log::Log;

const PROGRAM: &str = "/usr/sbin/fapolicyd";
/// What it writes about refusals.
const LOG: &str = "/var/log/fapolicyd.log";
/// Its settings.
const SETTINGS: &str = "/etc/fapolicyd/fapolicyd.conf";
/// The rules.
const RULES: &[&str] = &[
    "10-languages",
    "20-dracut",
    "21-updaters",
    "30-patterns",
    "40-bad-elf",
    "41-shared-obj",
    "42-trusted-elf",
    "70-trusted-lang",
    "72-shell",
    "90-deny-execute",
    "95-allow-open",
];
/// It reads its database of trust first, emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// fapolicyd, running while the machine is restricted.
pub struct Peer {
    daemon: Option<Child>,
    log: Log,
}

impl Peer {
    /// Tells fapolicyd to trust `files`, besides packages.
    ///
    /// # Errors
    /// When a file cannot be read, or its settings cannot be written.
    pub fn new(files: &[PathBuf]) -> Result<Self> {
        let mut trust = String::new();
        for file in files {
            let bytes = fs::read(file).with_context(|| file.display().to_string())?;
            trust.push_str(&format!("{} {} {}\n", file.display(), bytes.len(), digest(&bytes)));
        }
        fs::write("/etc/fapolicyd/fapolicyd.trust", trust)?;
        // Debian's package has upstream's rules as samples only. These are the ones that upstream's own package installs
        // ("known-libs" in their README-rules), and this is the database of a machine with dpkg.
        for rule in RULES {
            let name = format!("{rule}.rules");
            let from = Path::new("/usr/share/fapolicyd/sample-rules").join(&name);
            fs::copy(&from, Path::new("/etc/fapolicyd/rules.d").join(&name))
                .with_context(|| from.display().to_string())?;
        }
        let settings = fs::read_to_string(SETTINGS)?.replace("trust = rpmdb,file", "trust = debdb,file");
        fs::write(SETTINGS, settings)?;
        let compiled = Command::new("/usr/sbin/fagenrules").output()?;
        ensure!(Path::new("/etc/fapolicyd/compiled.rules").exists(), "fagenrules: {compiled:?}");
        for folder in ["/run/fapolicyd", "/var/lib/fapolicyd"] {
            fs::create_dir_all(folder)?;
            // Its own user is the package's.
            let status = Command::new("/bin/chown").args(["fapolicyd:fapolicyd", folder]).status()?;
            ensure!(status.success(), "chown of {folder} ended with {status}");
        }
        Ok(Self { daemon: None, log: Log::new(LOG) })
    }

    /// Starts it; it decides when this returns.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restrict(&mut self) -> Result<()> {
        let log = File::create(LOG)?;
        self.log = Log::new(LOG);
        let mut command = Command::new(PROGRAM);
        command.arg("--debug-deny").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut daemon = command.spawn().context(PROGRAM)?;
        let start = Instant::now();
        while !fs::read_to_string(LOG)?.contains("Starting to listen for events") {
            if let Some(status) = daemon.try_wait()? {
                bail!("fapolicyd ended with {status}: {}", fs::read_to_string(LOG)?);
            }
            ensure!(start.elapsed() < PATIENCE, "fapolicyd does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Whether it runs.
    pub fn is_restricting(&self) -> bool {
        self.daemon.is_some()
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it cannot be told to.
    pub fn lift(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGTERM)?;
            daemon.wait()?;
        }
        Ok(())
    }

    /// What it refused since the last look, as far as its log says.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn denials(&mut self) -> Result<Vec<Denial>> {
        let lines = self.log.lines()?;
        Ok(lines.iter().filter(|line| line.contains("dec=deny")).map(|line| denial(line)).collect())
    }
}

/// `rule=13 dec=deny_audit perm=execute auid=-1 pid=245 exe=/usr/bin/x : path=/home/user/y ftype=... trust=0`
fn denial(line: &str) -> Denial {
    let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap_or_default();
    Denial {
        at: 0,
        hook: field("perm=").to_owned(),
        path: field("path=").to_owned(),
        sha256: None,
        cause: "fapolicyd".to_owned(),
        rule: Some(field("rule=").to_owned()),
        pid: field("pid=").parse().unwrap_or_default(),
        ppid: 0,
        uid: None,
        parent_program: field("exe=").to_owned(),
        cgroup: None,
        container: None,
        interpreter: None,
        script: None,
        policy: None,
        policy_revision: None,
        audited: false,
        count: 1,
    }
}
