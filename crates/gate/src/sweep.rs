//! Programs that run when a restriction begins and are not listed: found, reported, and, when the policy says so, frozen
//! or killed.
//!
//! What runs was started before anybody was asked. A child that is forked has its parent's program and is found like it,
//! so the search is repeated until it finds nobody new.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::decision::{DecisionCause, Verdict};
use domain::execution_event::Hook;
use domain::policy_settings::RunningPrograms;
use enforcement::{Denial, Examined, Examiner, KnownDigests};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::clock::wall as now;
use crate::frozen::Frozen;
use crate::judge::MachineJudge;
use crate::running;
use crate::state::State;

/// How often the search is repeated: who forks faster than it is found, is found as long as it runs.
const ROUNDS_MAX: usize = 32;
/// The most findings that wait to be taken.
const FOUND_MAX: usize = 1024;
/// The most processes of one file that are named: as many as there are.
const PIDS_MAX: usize = 32_768;

/// Who is swept.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Whether only processes in the gate's own mount namespace count.
    pub own_mounts_only: bool,
    /// The agent's program, which is left alone.
    pub agent_program: PathBuf,
}

/// Finds the programs that run and are not listed.
#[derive(Debug, Default)]
pub struct Sweeper {
    reach: Reach,
    found: Arc<Mutex<VecDeque<Denial>>>,
    /// The sweep of the restriction in force.
    current: Option<Arc<Sweep>>,
    known: Arc<Mutex<KnownDigests>>,
}

#[derive(Debug)]
struct Sweep {
    ended: AtomicBool,
    frozen: Mutex<Option<Frozen>>,
}

/// What became of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Processes that are not listed.
    pub found: usize,
    /// Of these, those that were to be frozen or killed and still run.
    pub left: usize,
}

impl Sweeper {
    /// Says who is swept.
    pub fn reach(&mut self, reach: Reach) {
        self.reach = reach;
    }

    /// Sweeps, and returns when it is done. `state` keeps what must outlive the gate; `name` is that of the group in
    /// which processes are frozen.
    ///
    /// # Errors
    /// Why nobody could be looked at.
    pub fn sweep(
        &mut self,
        judge: MachineJudge,
        action: RunningPrograms,
        name: &str,
        state: &State,
    ) -> std::io::Result<Swept> {
        let work = self.prepare(judge, action, name, state);
        let swept = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("sweep".to_owned()).spawn_scoped(scope, work)?;
            thread.join().unwrap_or_else(|_panic| Err(std::io::Error::other("the sweep ended early")))
        });
        if let Some(sweep) = &self.current
            && let Some(frozen) = &*lock(&sweep.frozen)
        {
            frozen.keep(state);
        }
        swept
    }

    /// The same, in a thread of its own, and only to report.
    pub fn report(&mut self, judge: MachineJudge, name: &str, state: &State) {
        let work = self.prepare(judge, RunningPrograms::Report, name, state);
        let thread = std::thread::Builder::new().name("sweep".to_owned()).spawn(move || {
            let _is_patient = rustix::process::setpriority_process(None, 19);
            match work() {
                Ok(Swept { found: 0, .. }) => {}
                Ok(swept) => log!("{} processes run that are not listed", swept.found),
                Err(error) => log!("the programs that run cannot be looked at: {error}"),
            }
        });
        if let Err(error) = thread {
            log!("no thread to look at the programs that run: {error}");
        }
    }

    fn prepare(
        &mut self,
        judge: MachineJudge,
        action: RunningPrograms,
        name: &str,
        state: &State,
    ) -> impl FnOnce() -> std::io::Result<Swept> + Send + use<> {
        if let Some(before) = self.current.take() {
            before.ended.store(true, Ordering::Release);
        }
        let frozen = (action == RunningPrograms::Freeze).then(|| Frozen::new(name, state));
        let (frozen, unable) = match frozen {
            Some(Err(error)) => (None, Some(error)),
            other => (other.and_then(Result::ok), None),
        };
        let sweep = Arc::new(Sweep { ended: AtomicBool::new(false), frozen: Mutex::new(frozen) });
        self.current = Some(Arc::clone(&sweep));
        let (reach, found, known) = (self.reach.clone(), Arc::clone(&self.found), Arc::clone(&self.known));
        move || {
            if let Some(error) = unable {
                return Err(error);
            }
            let digests = std::mem::take(&mut *lock(&known));
            let mut examiner = Examiner::new(digests)?;
            let swept = sweep.rounds(&mut examiner, &judge, action, &reach, &found);
            *lock(&known) = examiner.into_known();
            swept
        }
    }

    /// The restriction ends: whoever was frozen goes on.
    ///
    /// # Errors
    /// When they cannot be thawed.
    pub fn lift(&mut self, name: &str, state: &State) -> std::io::Result<()> {
        let Some(sweep) = self.current.take() else {
            // A gate before this one may have frozen some.
            return match Frozen::new(name, state) {
                Ok(mut frozen) => frozen.thaw(state).map(drop),
                Err(_no_groups) => Ok(()),
            };
        };
        sweep.ended.store(true, Ordering::Release);
        let mut frozen = lock(&sweep.frozen);
        match &mut *frozen {
            Some(frozen) => frozen.thaw(state).map(drop),
            None => match Frozen::new(name, state) {
                Ok(mut frozen) => frozen.thaw(state).map(drop),
                Err(_no_groups) => Ok(()),
            },
        }
    }

    /// Takes at most `max` of the findings.
    pub fn take(&mut self, max: usize) -> Vec<Denial> {
        let mut found = lock(&self.found);
        let count = found.len().min(max);
        found.drain(..count).collect()
    }
}

/// A process, told from a later one with the same number.
type Identity = (i32, String);

impl Sweep {
    fn rounds(
        &self,
        examiner: &mut Examiner,
        judge: &MachineJudge,
        action: RunningPrograms,
        reach: &Reach,
        found: &Mutex<VecDeque<Denial>>,
    ) -> std::io::Result<Swept> {
        let mut seen: HashSet<Identity> = HashSet::new();
        let mut swept = Swept::default();
        for _ in 0..ROUNDS_MAX {
            let unlisted = self.unlisted(examiner, judge, reach)?;
            let mut new = 0;
            swept.left = 0;
            for (pid, file) in unlisted {
                if self.ended.load(Ordering::Acquire) {
                    return Ok(swept);
                }
                let Some(started) = started(pid) else { continue };
                let is_new = seen.insert((pid, started.clone()));
                if is_new {
                    new += 1;
                    swept.found += 1;
                    let mut found = lock(found);
                    if found.len() < FOUND_MAX {
                        found.push_back(event(pid, &file, action));
                    }
                }
                match self.act(pid, &started, action) {
                    Ok(()) => {}
                    // Gone by itself.
                    Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                    Err(error) => {
                        swept.left += 1;
                        if is_new {
                            log!("the process {pid}, which is not listed, runs on: {error}");
                        }
                    }
                }
            }
            // Killed ones are gone only when they are waited for: the next round sees.
            if new == 0 {
                break;
            }
        }
        Ok(swept)
    }

    /// The processes that execute, or have mapped to be executed, what is not listed; with one such file, the program
    /// before what is mapped.
    fn unlisted(
        &self,
        examiner: &mut Examiner,
        judge: &MachineJudge,
        reach: &Reach,
    ) -> std::io::Result<BTreeMap<i32, Examined>> {
        let own_mounts = fs::read_link("/proc/self/ns/mnt")?;
        let agent = fs::metadata(&reach.agent_program).ok().map(|agent| (agent.dev(), agent.ino()));
        let mut running = running::look_naming(PIDS_MAX)?.files;
        running.sort_by_key(|file| !file.is_program);
        let mut unlisted = BTreeMap::new();
        let is_spared = |pid: i32| {
            pid == 1
                || u32::try_from(pid) == Ok(std::process::id())
                || is_of(pid, agent)
                || (reach.own_mounts_only && !has_mounts(pid, &own_mounts))
        };
        for file in running {
            if self.ended.load(Ordering::Acquire) {
                break;
            }
            let pids: Vec<_> = file.pids.iter().copied().filter(|pid| !is_spared(*pid)).collect();
            if pids.is_empty() {
                continue;
            }
            let examined = if file.is_foreign {
                Examined::unverifiable(file.name.clone())
            } else {
                match file.open() {
                    Ok(Some(opened)) => examiner.open_file(&opened.into(), judge),
                    Ok(None) => continue,
                    Err(_) => Examined::unreadable(file.name.clone()),
                }
            };
            if examined.decision.verdict == Verdict::Deny {
                for pid in pids {
                    unlisted.entry(pid).or_insert_with(|| examined.clone());
                }
            }
        }
        Ok(unlisted)
    }

    fn act(&self, pid: i32, started_then: &str, action: RunningPrograms) -> std::io::Result<()> {
        let gone = || std::io::Error::from_raw_os_error(nix::libc::ESRCH);
        match action {
            RunningPrograms::Report => Ok(()),
            RunningPrograms::Freeze => {
                let mut frozen = lock(&self.frozen);
                // The lift waits for this lock and comes after it, or came before.
                let Some(frozen) = frozen.as_mut().filter(|_| !self.ended.load(Ordering::Acquire)) else {
                    return Ok(());
                };
                if frozen.holds(pid) {
                    return Ok(());
                }
                if started(pid).as_deref() != Some(started_then) {
                    return Err(gone());
                }
                frozen.freeze(pid)
            }
            RunningPrograms::Kill => {
                let handle = pidfd_open(Pid::from_raw(pid).ok_or_else(gone)?, PidfdFlags::empty())?;
                // The handle stands for whoever has the number now; is it still the one that was looked at?
                if started(pid).as_deref() != Some(started_then) {
                    return Err(gone());
                }
                Ok(pidfd_send_signal(&handle, Signal::KILL)?)
            }
        }
    }
}

/// When a process started, in the kernel's ticks since the boot, as text; none when it is gone or dead.
fn started(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, brackets too.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| started.to_owned())
}

fn is_of(pid: i32, program: Option<(u64, u64)>) -> bool {
    let found = fs::metadata(format!("/proc/{pid}/exe")).ok().map(|found| (found.dev(), found.ino()));
    program.is_some() && found == program
}

fn has_mounts(pid: i32, mounts: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|found| found == mounts)
}

fn event(pid: i32, file: &Examined, action: RunningPrograms) -> Denial {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    Denial {
        at: now(),
        hook: if is_of(pid, Some(file.file)) { Hook::Execute } else { Hook::Map },
        cgroup: cgroup.as_bytes().to_vec(),
        interpreter: None,
        script: None,
        audited: action == RunningPrograms::Report,
        path: file.path.clone(),
        digest: file.digest,
        cause: DecisionCause::Running,
        pid,
        ppid: field("PPid:").and_then(|text| text.parse().ok()).unwrap_or(0),
        uid: field("Uid:").and_then(|text| text.parse().ok()),
        parent_program: program.into_os_string().into_vec(),
        count: 1,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
