//! Tries: a command that makes a payload run when it gets through, and what is expected of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use gate_protocol::Denial;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::lab::{Lab, take_marker};
use crate::row::{BOTH, Expected, Got, Tier, Who};

/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the processes of tries write.
const OUTPUT: &str = "/run/cordon-marker/output";

/// Which event says what was refused.
#[derive(Debug, Clone)]
pub enum Seen {
    /// About the file at this path.
    At(PathBuf),
    /// About a file whose path has this in it.
    Containing(&'static str),
    /// With this reason code.
    Cause(&'static str),
}

impl Seen {
    /// Whether this is the event.
    pub fn is(&self, denial: &Denial) -> bool {
        match self {
            // The kernel says so of a file that is gone, the gate does not everywhere.
            Self::At(path) => {
                Path::new(denial.path.strip_suffix(" (deleted)").unwrap_or(&denial.path)) == path
            }
            Self::Containing(text) => denial.path.contains(text),
            Self::Cause(cause) => denial.cause == *cause,
        }
    }
}

/// Whom an expectation is about; none is any.
struct Case {
    tier: Option<Tier>,
    who: Option<Who>,
    expected: Expected,
}

/// Done before each run of a try.
type Before = Box<dyn Fn(Who) -> Result<()>>;

/// One try, by each user.
pub struct Try {
    name: String,
    words: Vec<OsString>,
    folder: Option<PathBuf>,
    variables: Vec<(OsString, OsString)>,
    seen: Seen,
    before: Option<Before>,
    started_before: bool,
    own_program: bool,
    cases: Vec<Case>,
}

impl Try {
    /// Executes a file.
    pub fn exec(path: &Path) -> Self {
        Self::run(&path.display().to_string(), [path], path)
    }

    /// Runs a command that makes the file at `payload` run. The event is about that file, unless [`Self::seen`] says
    /// otherwise. What is expected is [`Expected::Denied`], unless [`Self::expect`] and the like say otherwise.
    pub fn run<W: AsRef<OsStr>>(name: &str, words: impl IntoIterator<Item = W>, payload: &Path) -> Self {
        Self {
            name: name.to_owned(),
            words: words.into_iter().map(|word| word.as_ref().to_owned()).collect(),
            folder: None,
            variables: Vec::new(),
            seen: Seen::At(payload.to_owned()),
            before: None,
            started_before: false,
            own_program: false,
            cases: vec![Case { tier: None, who: None, expected: Expected::Denied }],
        }
    }

    /// A variable of its environment.
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// The folder to run it in.
    pub fn within(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Which event is about it.
    pub fn seen(mut self, seen: Seen) -> Self {
        self.seen = seen;
        self
    }

    /// Done before each run, also before it is proved that the payload runs.
    pub fn before(mut self, before: impl Fn(Who) -> Result<()> + 'static) -> Self {
        self.before = Some(Box::new(before));
        self
    }

    /// The command is started before the switch. It writes a line when it is ready, and acts when it reads one.
    pub fn started_before_the_switch(mut self) -> Self {
        self.started_before = true;
        self
    }

    /// The program is a copy of each user's own: see [`Lab::listed_copies`].
    pub fn own_program(mut self) -> Self {
        self.own_program = true;
        self
    }

    /// What is expected of both users on every tier.
    pub fn expect(mut self, expected: Expected) -> Self {
        self.cases.push(Case { tier: None, who: None, expected });
        self
    }

    /// What is expected on one tier instead.
    pub fn on(mut self, tier: Tier, expected: Expected) -> Self {
        self.cases.push(Case { tier: Some(tier), who: None, expected });
        self
    }

    /// What is expected of one user instead.
    pub fn by(mut self, who: Who, expected: Expected) -> Self {
        self.cases.push(Case { tier: None, who: Some(who), expected });
        self
    }

    /// What is expected of one user on one tier instead.
    pub fn by_on(mut self, who: Who, tier: Tier, expected: Expected) -> Self {
        self.cases.push(Case { tier: Some(tier), who: Some(who), expected });
        self
    }

    /// Only root can do it: for the user it never works, restricted or not.
    pub fn needs_root(self) -> Self {
        self.by(Who::User, Expected::OutOfReach)
    }

    /// The last that fits counts.
    fn expected(&self, tier: Tier, who: Who) -> Expected {
        let fits =
            |case: &&Case| case.tier.is_none_or(|of| of == tier) && case.who.is_none_or(|of| of == who);
        self.cases.iter().rev().find(fits).map_or(Expected::Denied, |case| case.expected)
    }

    /// Runs it, whatever holds at the moment. The marker tells whether the payload ran.
    pub fn run_now(&self, who: Who) -> Result<()> {
        self.start(who)?.finish()
    }

    fn start(&self, who: Who) -> Result<Running> {
        if let Some(before) = &self.before {
            before(who).with_context(|| format!("before {}", self.name))?;
        }
        take_marker()?;
        let program = self.words.first().context("a try without words")?;
        let mut command =
            if self.own_program { Command::new(who.own(Path::new(program))) } else { Command::new(program) };
        command.args(self.words.iter().skip(1));
        let mut running = Running::start(&mut command, who, self.folder.as_deref(), &self.variables)?;
        if self.started_before {
            running.wait_until_ready()?;
        }
        Ok(running)
    }
}

/// A process of a try, in a process group of its own.
struct Running {
    /// None when the system refused to start it, and how.
    child: Result<Child, std::io::Error>,
}

impl Running {
    fn start(
        command: &mut Command,
        who: Who,
        folder: Option<&Path>,
        variables: &[(OsString, OsString)],
    ) -> Result<Self> {
        let output = File::options().create(true).append(true).open(OUTPUT)?;
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", if who == Who::User { "/home/user" } else { "/root" })
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .current_dir(folder.unwrap_or(Path::new("/")))
            .uid(who.id())
            .gid(who.id())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output);
        Ok(Self { child: command.spawn() })
    }

    /// Waits for the line that says so.
    fn wait_until_ready(&mut self) -> Result<()> {
        let child = self.child.as_mut().map_err(|error| anyhow::anyhow!("cannot be started: {error}"))?;
        let mut byte = [0];
        let count = child.stdout.as_mut().context("no output")?.read(&mut byte)?;
        ensure!(count == 1, "it ended before it was ready: {}", output_end());
        Ok(())
    }

    /// Lets it act, and waits for its end.
    fn finish(self) -> Result<()> {
        // A program that the system refuses to start did not run; whether that is right is told by the marker.
        let Ok(mut child) = self.child else { return Ok(()) };
        if let Some(mut input) = child.stdin.take() {
            // Who does not read has no use for it.
            drop(input.write_all(b"go\n"));
        }
        let start = Instant::now();
        loop {
            if child.try_wait()?.is_some() {
                break;
            }
            if start.elapsed() > PATIENCE {
                end_group(&child);
                drop(child.wait());
                bail!("it did not end within {PATIENCE:?}: {}", output_end());
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        end_group(&child);
        Ok(())
    }
}

/// Ends what the process left behind.
fn end_group(child: &Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // Usually nobody is left.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// What the tries wrote last, for an error.
fn output_end() -> String {
    let text = std::fs::read(OUTPUT).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join(" | ")
}

/// What one run came to.
#[derive(Clone, Copy)]
struct Run {
    ran: bool,
    event: bool,
}

impl Lab {
    /// Proves that each try works while nothing restricts, restricts, tries again, and lifts.
    pub fn check(&mut self, tries: &[Try]) -> Result<()> {
        let each = || tries.iter().flat_map(|one| BOTH.map(|who| (one, who)));
        let proofs: Vec<_> = each()
            .map(|(one, who)| {
                one.run_now(who)?;
                take_marker()
            })
            .collect();
        // Each is started by its user, and waits.
        let mut waiting: Vec<Option<Result<Running>>> =
            each().map(|(one, who)| one.started_before.then(|| one.start(who))).collect();
        self.restrict()?;
        for (((one, who), proof), waiting) in each().zip(proofs).zip(waiting.iter_mut()) {
            let expected = one.expected(self.tier(), who);
            let got = match proof {
                Ok(proved) => {
                    self.run_restricted(one, who, waiting.take(), expected).and_then(|run| judge(proved, run))
                }
                Err(error) => Err(error.context("before the restriction")),
            };
            self.record(who, &one.name, expected, got);
        }
        self.lift()
    }

    fn run_restricted(
        &mut self,
        one: &Try,
        who: Who,
        waiting: Option<Result<Running>>,
        expected: Expected,
    ) -> Result<Run> {
        self.forget_events()?;
        match waiting {
            Some(running) => {
                take_marker()?;
                running?.finish()?;
            }
            None => one.run_now(who)?,
        }
        let ran = take_marker()?;
        let event = self.event(who, &one.seen, expected.has_event())?.is_some();
        Ok(Run { ran, event })
    }
}

fn judge(proved: bool, restricted: Run) -> Result<Got> {
    match (proved, restricted.ran, restricted.event) {
        (true, false, true) => Ok(Got::Denied),
        (true, false, false) => Ok(Got::DeniedUnseen),
        (true, true, true) => Ok(Got::Detected),
        (true, true, false) => Ok(Got::Ran),
        (false, false, _) => Ok(Got::OutOfReach),
        (false, true, _) => bail!("it ran while restricted, and not before"),
    }
}
