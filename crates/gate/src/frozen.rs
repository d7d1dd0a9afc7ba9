//! Freezes processes in a control group of their own (`cgroup.freeze`, Linux 5.2), and thaws them.
//!
//! Whoever is put into the frozen group stops before it returns from the kernel, and so do its children, which are born
//! there. Where each came from is kept beside the gate's state, so that it goes back there, also after a restart.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::state::State;

/// Where the second version of control groups is mounted: alone, or beside the first.
const ROOTS: &[&str] = &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// The longest list of origins, in processes.
const ORIGINS_MAX: usize = 32_768;
/// The name of the list in the gate's state.
const ORIGINS: &str = "frozen";

/// The group of frozen processes.
#[derive(Debug)]
pub struct Frozen {
    root: PathBuf,
    group: PathBuf,
    /// The group that each process came from.
    origins: BTreeMap<i32, String>,
}

impl Frozen {
    /// The group of this name, which need not be there yet; with the origins that were kept.
    ///
    /// # Errors
    /// When the kernel offers no such groups.
    pub fn new(name: &str, state: &State) -> io::Result<Self> {
        let root = ROOTS.iter().map(Path::new).find(|root| root.join("cgroup.controllers").exists());
        let root = root.ok_or_else(|| io::Error::other("no control groups of version 2 are mounted"))?;
        // A damaged list loses where they came from, and nothing else.
        let origins = state.load(ORIGINS).ok().flatten().unwrap_or_default();
        Ok(Self { root: root.to_owned(), group: root.join(name), origins })
    }

    /// Freezes a process with all of its threads.
    ///
    /// # Errors
    /// From the kernel: `ESRCH` when it is gone.
    pub fn freeze(&mut self, pid: i32) -> io::Result<()> {
        if !self.group.exists() {
            fs::create_dir(&self.group)?;
        }
        fs::write(self.group.join("cgroup.freeze"), "1")?;
        if let Some(origin) = group_of(pid)
            && self.origins.len() < ORIGINS_MAX
        {
            self.origins.entry(pid).or_insert(origin);
        }
        fs::write(self.group.join("cgroup.procs"), pid.to_string())
    }

    /// Makes it durable where they came from.
    pub fn keep(&self, state: &State) {
        if let Err(error) = state.save(ORIGINS, &self.origins) {
            log!("where the frozen programs came from cannot be kept: {error}");
        }
    }

    /// Whether a process is in the group.
    pub fn holds(&self, pid: i32) -> bool {
        self.members().contains(&pid)
    }

    fn members(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Lets all of them go on, each where it came from, and removes the group. How many there were.
    ///
    /// # Errors
    /// When they cannot be thawed.
    pub fn thaw(&mut self, state: &State) -> io::Result<usize> {
        if !self.group.exists() {
            return Ok(0);
        }
        fs::write(self.group.join("cgroup.freeze"), "0")?;
        let members = self.members();
        for pid in &members {
            let origin = self.origins.get(pid).map_or("", String::as_str).trim_start_matches('/');
            let home = self.root.join(origin).join("cgroup.procs");
            // A group that is gone, or takes no processes: then the first one of all.
            if fs::write(&home, pid.to_string()).is_err() {
                drop(fs::write(self.root.join("cgroup.procs"), pid.to_string()));
            }
        }
        self.origins.clear();
        self.keep(state);
        // One that was born meanwhile keeps the group, which is not frozen any more.
        drop(fs::remove_dir(&self.group));
        Ok(members.len())
    }
}

/// The group of version 2 that a process is in.
fn group_of(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let is_plain = path.starts_with('/') && !path.split('/').any(|part| part == "..");
    is_plain.then(|| path.to_owned())
}
