//! Tiers T1 and T2: BPF programs decide in the kernel, by labels that were put on files ahead of time.
//!
//! The verdict never waits for this process: what has no label is refused, whoever is dead, frozen or slow. T1 hangs the
//! programs into the hooks of the kernel's security modules, T2 makes the security functions return something else;
//! both are one source (`bpf/cordon.bpf.c`). Restricting and lifting is one write to a map.
//!
//! Needs Linux 5.11 with `CONFIG_BPF_LSM` and `bpf` among the active security modules (T1) or 5.10 (T2), and for both
//! `CONFIG_DEBUG_INFO_BTF`, `CAP_BPF`, `CAP_PERFMON` and `CAP_SYS_ADMIN`. Inode storage is not used: the one map of
//! labels forgets nothing by itself, serves both tiers, and is asked once for an execution.

mod abi;
mod disks;
mod elf;
mod events;
mod labels;
mod memory;
mod programs;

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use domain::decision::DecisionCause;
use domain::digest::Sha256Digest;
use domain::execution_event::Hook;
use domain::policy_settings::{AnonymousCode, Guard, GuardMode, PolicySettings};
use domain::restriction::Tier;
use domain::time::Timestamp;
use libbpf_rs::{MapCore as _, MapFlags};

use crate::denial::{Denial, DenialLog};
use crate::{Enforcer, Error, Judge, Status};
use abi::{Control, Key, Mode, State};
use labels::{Labeller, Look, Pass, Seen};
use memory::Memory;
use programs::{Maps, Programs};

/// Labels for which there is room at least: a small machine's packages, twice.
const LABELS_MIN: usize = 65_536;
/// And at most: 160 bytes each.
const LABELS_MAX: usize = 4_000_000;

/// The number of the guard against code in memory, after those of [`Guard`] (`enum guard` of `bpf/cordon.h`).
const ANONYMOUS_CODE: usize = Guard::ALL.len();

/// How each guard is set, by its number.
fn guard_bytes(settings: &PolicySettings) -> [u8; 16] {
    let mut bytes = [0; 16];
    let anonymous_code = match settings.anonymous_code {
        AnonymousCode::Audit => GuardMode::Audit,
        AnonymousCode::Deny => GuardMode::Enforce,
    };
    let modes = Guard::ALL.map(|guard| settings.guards.mode(guard)).into_iter().chain([anonymous_code]);
    for (byte, mode) in bytes.iter_mut().zip(modes) {
        *byte = match mode {
            GuardMode::Off => 0,
            GuardMode::Audit => 1,
            GuardMode::Enforce => 2,
        };
    }
    bytes
}

/// What an event names a guard.
fn guard_name(number: u32) -> String {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let unnamed = if number == ANONYMOUS_CODE { "anonymous_code" } else { "unknown" };
    Guard::ALL.get(number).map_or(unnamed, |guard| guard.name()).to_owned()
}

/// How the backend behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSettings {
    /// A folder on a BPF filesystem for what must outlive this process; none: everything ends with it.
    pub pins: Option<PathBuf>,
    /// The gate's own files and folders, the state's folder first. A restriction that another state began is not taken
    /// over.
    pub own: Vec<PathBuf>,
    /// The gate's program: what runs from it may take a dead gate's place.
    pub gate_program: PathBuf,
    /// Larger files get no label.
    pub hash_bytes_max: u64,
    /// How many files a judge is expected to allow.
    pub places: usize,
    /// A file for what was read, so that a machine that comes up restricted need not read everything first.
    pub memory: Option<PathBuf>,
}

/// Restricts by BPF programs.
pub struct Kernel {
    tier: Tier,
    settings: KernelSettings,
    shared: Arc<Shared>,
    preparation: Option<Preparation>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
struct Shared {
    maps: Maps,
    labeller: Labeller,
    /// What judges now; none while the judge of an adopted restriction is not known yet.
    in_force: Mutex<Option<(Arc<dyn Judge>, u32)>>,
    denials: DenialLog,
    unread: events::Unread,
    labels: AtomicU64,
    stopped: AtomicBool,
    /// Holds the programs where they are not pinned.
    _programs: Vec<libbpf_rs::Link>,
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Judges a file by what is in force.
    fn look_in_force(&self, path: &Path, key: Key) -> Option<Look> {
        let (judge, epoch) = self.in_force().clone()?;
        let (none, wanted) = (Memory::default(), || !self.stopping());
        let pass = Pass { judge: judge.as_ref(), epoch, memory: &none, wanted: &wanted };
        Some(self.labeller.look(&self.maps, path, Some(key), pass))
    }

    fn in_force(&self) -> MutexGuard<'_, Option<(Arc<dyn Judge>, u32)>> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Labels for a judge, being made or made.
struct Preparation {
    judge: Arc<dyn Judge>,
    epoch: u32,
    cancelled: Arc<AtomicBool>,
    thread: Option<JoinHandle<Labelled>>,
    /// How many labels there were when all places had been looked at; none before.
    labels: Option<u64>,
    /// The files that have a label by what was remembered of them.
    remembered: Vec<PathBuf>,
}

/// What came of looking at all places.
#[derive(Default)]
struct Labelled {
    labels: u64,
    remembered: Vec<PathBuf>,
}

impl Preparation {
    fn is_for(&self, judge: &dyn Judge) -> bool {
        judge.id().is_some() && self.judge.id() == judge.id()
    }

    /// Waits until it is done. False when it came to nothing.
    fn finish(&mut self) -> bool {
        match self.thread.take().map(JoinHandle::join) {
            None => true,
            Some(Ok(labelled)) => {
                self.labels = Some(labelled.labels);
                self.remembered.extend(labelled.remembered);
                true
            }
            Some(Err(_panic)) => false,
        }
    }

    fn cancel(mut self) {
        self.cancelled.store(true, Ordering::Release);
        self.finish();
    }
}

/// Why a tier cannot work here, as far as can be seen without trying; none when it may.
pub fn kernel_obstacle(tier: Tier) -> Option<String> {
    programs::obstacle(tier)
}

impl Kernel {
    /// Loads the programs, or takes over those of an earlier gate, and shows that they are asked.
    ///
    /// # Errors
    /// [`Error`] when this kernel or this process cannot; nothing of it is left then, unless it was there before.
    pub fn start(tier: Tier, settings: KernelSettings) -> Result<Self, Error> {
        let room = settings.places.saturating_mul(2).clamp(LABELS_MIN, LABELS_MAX);
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let Programs { maps, links, adopted } = Programs::start(tier, settings.pins.as_deref(), room)?;
        let mode = mode_of(&maps);
        let mut control = control_of(&maps);
        control.gate = std::process::id();
        if let Some(pins) = &settings.pins {
            control.pins_device = programs::device_of(pins).map_err(|error| Error::new("the pins", error))?;
        }
        if mode.state == State::Watching {
            control.guards = guard_bytes(&PolicySettings::default());
        }
        write(&maps.control, &control.to_bytes())?;
        if mode.state == State::Watching {
            write(&maps.mode, &mode.to_bytes())?;
        }
        let hash_bytes_max = settings.hash_bytes_max;
        let shared = Arc::new(Shared {
            maps,
            labeller: Labeller::new(settings.gate_program.clone(), hash_bytes_max),
            in_force: Mutex::new(None),
            denials: DenialLog::default(),
            unread: events::Unread::default(),
            labels: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            _programs: links,
        });
        let mut own = settings.own.clone();
        own.extend(settings.pins.as_deref().map(programs::folders).unwrap_or_default());
        let mut kernel = Self { tier, settings, shared, preparation: None, threads: Vec::new() };
        kernel.own(&own, adopted && mode.state == State::Restricting)?;
        kernel.spawn("events", events::receive)?;
        kernel.spawn("unread", events::read)?;
        kernel.spawn("disks", disks::watch)?;
        Ok(kernel)
    }

    /// Makes files and folders the gate's own. Shows as well that the hooks are asked: nothing is seen otherwise.
    fn own(&self, paths: &[PathBuf], restricted: bool) -> Result<(), Error> {
        let maps = &self.shared.maps;
        for (index, path) in paths.iter().enumerate() {
            let sight = Seen::of_any(path, maps).map_err(|error| {
                Error::new(format!("the BPF programs saw nothing of {}", path.display()), error)
            })?;
            let key = sight.key.to_bytes();
            let known = maps.own.lookup(&key, MapFlags::ANY).ok().flatten().is_some();
            if restricted && index == 0 && !known {
                let what =
                    std::io::Error::other("the restriction in force was begun by a gate with another state");
                return Err(Error::new("taking over", what));
            }
            maps.own.update(&key, &1_u32.to_ne_bytes(), MapFlags::ANY).map_err(|error| {
                Error::new("the map of own files", std::io::Error::other(error.to_string()))
            })?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce(&Shared) + Send + 'static) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(512 * 1024)
            .spawn(move || body(&shared))
            .map_err(|error| Error::new(format!("starting the thread {name}"), error))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Begins to label for a judge, or looks again at what was labelled for it. In haste, what is remembered of files is
    /// believed until they are read.
    fn begin(&mut self, judge: &Arc<dyn Judge>, haste: bool) -> Result<(), Error> {
        let in_force = mode_of(&self.shared.maps).epoch;
        let (mut epoch, mut labels, mut remembered) = (None, None, Vec::new());
        let mut last = in_force;
        if let Some(mut before) = self.preparation.take() {
            last = before.epoch;
            let same = before.is_for(judge.as_ref());
            if same && before.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
                self.preparation = Some(before);
                return Ok(());
            }
            if same && before.finish() {
                // What was labelled stays so; what has come since is added.
                (epoch, labels) = (Some(before.epoch), before.labels);
                remembered = std::mem::take(&mut before.remembered);
            } else {
                before.cancel();
            }
        }
        let epoch = epoch.unwrap_or_else(|| next_epoch(in_force, last));
        let cancelled = Arc::new(AtomicBool::new(false));
        let (shared, stop, own_judge) = (Arc::clone(&self.shared), Arc::clone(&cancelled), Arc::clone(judge));
        let memory = self.settings.memory.clone();
        let thread = std::thread::Builder::new()
            .name("label".to_owned())
            .stack_size(512 * 1024)
            .spawn(move || label_all(&shared, own_judge.as_ref(), epoch, memory.as_deref(), haste, &stop))
            .map_err(|error| Error::new("starting the thread label", error))?;
        let (thread, judge) = (Some(thread), Arc::clone(judge));
        self.preparation = Some(Preparation { judge, epoch, cancelled, thread, labels, remembered });
        Ok(())
    }

    /// Whether the restriction in force is that of this judge.
    fn is_in_force(&self, id: Option<Sha256Digest>) -> Option<u32> {
        let mode = mode_of(&self.shared.maps);
        let known = control_of(&self.shared.maps).judge;
        (mode.state == State::Restricting && id.is_some_and(|id| id.0 == known)).then_some(mode.epoch)
    }
}

/// The epoch after `last` whose labels stand in another place than those of the one in force.
fn next_epoch(in_force: u32, last: u32) -> u32 {
    let next = last.wrapping_add(1).max(1);
    if next & 1 == in_force & 1 { next.wrapping_add(1).max(1) } else { next }
}

/// Labels every file that the judge can show, and keeps what was read of them.
fn label_all(
    shared: &Shared,
    judge: &dyn Judge,
    epoch: u32,
    memory: Option<&Path>,
    haste: bool,
    cancelled: &AtomicBool,
) -> Labelled {
    let wanted = || !cancelled.load(Ordering::Acquire) && !shared.stopping();
    let known = memory.filter(|_| haste).map(Memory::read).unwrap_or_default();
    let mut read = Memory::default();
    let mut labelled = Labelled::default();
    judge.for_each_place(&mut |place| {
        if !wanted() {
            return ControlFlow::Break(());
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(place));
        let pass = Pass { judge, epoch, memory: &known, wanted: &wanted };
        let look = shared.labeller.look(&shared.maps, path, None, pass);
        labelled.labels += u64::from(look.labelled);
        if look.remembered {
            labelled.remembered.push(path.to_owned());
        }
        if let (true, Some(key), Some(version), Some(digest)) =
            (look.labelled, look.key, look.version, look.digest)
        {
            read.add(path, &key, &version, digest);
        }
        ControlFlow::Continue(())
    });
    if let Some(memory) = memory.filter(|_| wanted()) {
        // Without it the next boot takes longer.
        drop(read.write(memory));
    }
    labelled
}

/// Reads what was only remembered. What is something else has no label from then on, and is told of.
fn verify(shared: &Shared, places: &[PathBuf], memory: Option<&Path>) {
    for place in places {
        if shared.stopping() {
            return;
        }
        if !shared.labeller.verify(&shared.maps, place, &|| !shared.stopping()) {
            // Nothing of it is believed again.
            drop(memory.map(std::fs::remove_file));
            shared.denials.add(Denial {
                at: Timestamp::from(SystemTime::now()),
                hook: Hook::Execute,
                path: place.as_os_str().as_bytes().to_vec(),
                digest: None,
                cause: DecisionCause::Changed,
                pid: 0,
                ppid: 0,
                uid: None,
                parent_program: Vec::new(),
                cgroup: Vec::new(),
                interpreter: None,
                script: None,
                audited: true,
                count: 1,
            });
        }
    }
}

impl Enforcer for Kernel {
    fn tier(&self) -> Tier {
        self.tier
    }

    fn prepare(&mut self, judge: Arc<dyn Judge>) {
        if self.is_in_force(judge.id()).is_none() {
            // Without it, restricting takes longer, and says what is wrong.
            drop(self.begin(&judge, false));
        }
    }

    fn restrict(&mut self, judge: Arc<dyn Judge>) -> Result<(), Error> {
        if let Some(epoch) = self.is_in_force(judge.id()) {
            *self.shared.in_force() = Some((judge, epoch));
            return Ok(());
        }
        if !self.preparation.as_ref().is_some_and(|known| known.is_for(judge.as_ref())) {
            self.begin(&judge, true)?;
        }
        let Some(preparation) = &mut self.preparation else {
            return Err(Error::new("labelling", std::io::ErrorKind::NotFound));
        };
        // A second look at what is labelled already need not be waited for.
        if preparation.labels.is_none() && !preparation.finish() {
            return Err(Error::new("labelling", std::io::Error::other("the thread that labels ended")));
        }
        let (epoch, labels) = (preparation.epoch, preparation.labels.unwrap_or(0));
        let remembered = std::mem::take(&mut preparation.remembered);
        let maps = &self.shared.maps;
        let control = Control { judge: judge.id().map_or([0; 32], |id| id.0), ..control_of(maps) };
        write(&maps.control, &control.to_bytes())?;
        write(&maps.mode, &Mode { state: State::Restricting, epoch }.to_bytes())?;
        self.shared.labels.store(labels, Ordering::Relaxed);
        *self.shared.in_force() = Some((judge, epoch));
        if !remembered.is_empty() {
            let memory = self.settings.memory.clone();
            let own = memory.clone();
            let started = self.spawn("verify", move |shared| verify(shared, &remembered, own.as_deref()));
            if started.is_err() {
                // The machine is restricted, and the next boot reads everything.
                drop(memory.map(std::fs::remove_file));
            }
        }
        Ok(())
    }

    fn release(&mut self) {
        let maps = &self.shared.maps;
        let mode = Mode { state: State::Watching, ..mode_of(maps) };
        // A write to a map of one element, through a descriptor that is held, has nothing that it could fail for.
        drop(write(&maps.mode, &mode.to_bytes()));
        *self.shared.in_force() = None;
    }

    fn configure(&mut self, settings: &PolicySettings) {
        let maps = &self.shared.maps;
        let control = Control { guards: guard_bytes(settings), ..control_of(maps) };
        // As in releasing.
        drop(write(&maps.control, &control.to_bytes()));
    }

    fn make_room(&mut self, files: usize) {
        let maps = &self.shared.maps;
        let room = usize::try_from(maps.labels.max_entries()).unwrap_or(usize::MAX);
        let needed = files.saturating_mul(2).min(LABELS_MAX);
        if needed <= room || mode_of(maps).state == State::Restricting {
            return;
        }
        let settings = KernelSettings { places: files, ..self.settings.clone() };
        // A map cannot grow. Nothing is restricted, so the programs may go for a moment.
        let unpinned = settings.pins.as_deref().map_or(Ok(()), programs::unpin);
        if let Ok(larger) = unpinned.and_then(|()| Self::start(self.tier, settings)) {
            *self = larger;
        }
    }

    fn status(&self) -> Status {
        let maps = &self.shared.maps;
        let count = |counter: u32| {
            let values = maps.counters.lookup_percpu(&counter.to_ne_bytes(), MapFlags::ANY).ok().flatten();
            let number = |value: &Vec<u8>| value.first_chunk().copied().map_or(0, u64::from_ne_bytes);
            values.unwrap_or_default().iter().map(number).sum::<u64>()
        };
        Status {
            restricted: mode_of(maps).state == State::Restricting,
            marks: 0,
            unmarked: 0,
            labels: self.shared.labels.load(Ordering::Relaxed),
            asked: count(0),
            denied: count(1),
            denials_dropped: self.shared.denials.dropped() + count(2),
        }
    }

    fn take_denials(&mut self, max: usize) -> Vec<Denial> {
        self.shared.denials.take(max)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(preparation) = self.preparation.take() {
            preparation.cancel();
        }
        self.shared.stopped.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to stop.
            drop(thread.join());
        }
    }
}

fn write(map: &libbpf_rs::MapHandle, value: &[u8]) -> Result<(), Error> {
    map.update(&0_u32.to_ne_bytes(), value, MapFlags::ANY)
        .map_err(|error| Error::new("writing to a BPF map", std::io::Error::other(error.to_string())))
}

/// What cannot be read restricts.
fn mode_of(maps: &Maps) -> Mode {
    let bytes = maps.mode.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).ok().flatten();
    bytes.map_or(Mode { state: State::Restricting, epoch: 0 }, |bytes| Mode::from_bytes(&bytes))
}

fn control_of(maps: &Maps) -> Control {
    let bytes = maps.control.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).ok().flatten();
    bytes.map_or_else(Control::default, |bytes| Control::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_epoch_stands_in_the_other_place() {
        for in_force in [0, 1, 2, 7, u32::MAX - 1, u32::MAX] {
            for last in [in_force, in_force.wrapping_add(1), in_force.wrapping_add(2)] {
                let next = next_epoch(in_force, last);
                assert!(next != 0 && next != last && next & 1 != in_force & 1, "{in_force} {last} {next}");
            }
        }
    }

    #[test]
    fn guards_stand_at_their_numbers() {
        let mut settings = PolicySettings::default();
        settings.guards.set(Guard::Ptrace, GuardMode::Off);
        assert_eq!(guard_bytes(&settings), [1, 2, 2, 0, 2, 2, 2, 1, 2, 2, 2, 1, 0, 0, 0, 0]);
        settings.anonymous_code = AnonymousCode::Deny;
        assert_eq!(guard_bytes(&settings)[ANONYMOUS_CODE], 2);
        let names = [3, 10, 11, 12].map(guard_name);
        assert_eq!(names, ["ptrace", "own_bpf", "anonymous_code", "unknown"]);
        // The C side's order.
        let header = include_str!("../bpf/cordon.h");
        let (_, guards) = header.split_once("enum guard {").unwrap();
        let names =
            guards.split_once("GUARDS,").unwrap().0.split(',').map(str::trim).filter(|name| !name.is_empty());
        for (number, name) in (0_u32..).zip(names) {
            assert_eq!(format!("GUARD_{}", guard_name(number).to_uppercase()), name);
        }
    }
}
