//! Keeps every filesystem marked: those of this mount namespace, and those that only others show.
//!
//! A mark on a filesystem counts in every mount namespace, so only filesystems that this one does not show are to be
//! looked for. The kernel tells of each change of the mounts of a known namespace; new namespaces it does not tell of,
//! so processes are looked through for them, again and again. Between a mount's appearance and its mark there is a
//! moment, and in a new namespace it is as long as a round of that: see the limitations of tier T3.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use crate::fanotify::{MarkScope, Shared, spawn};
use crate::mounts::{self, Mount, Patience, Place};
use crate::{Error, sys};

/// The shortest time between two searches for namespaces.
const SEARCH_INTERVAL: Duration = Duration::from_millis(100);
/// The longest, whatever a search takes.
const SEARCH_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// A search takes at most one part in so many of a processor, however many processes there are.
const SEARCH_SHARE: u32 = 50;
/// The most namespaces that are watched; each costs two descriptors.
const VIEWS_MAX: usize = 4_096;

/// What marks are told apart by: the mount's number, or the filesystem's.
type Key = (u32, u32, u64);

/// A mount namespace as a process in it sees it.
struct View {
    root: Arc<OwnedFd>,
    mountinfo: File,
    /// Whether it belongs to the machine. Otherwise its mounts may be those of an ordinary user, who also decides what
    /// is below them.
    ours: bool,
    mounts: Vec<Mount>,
    marked: BTreeSet<Key>,
    unmarked: BTreeSet<Key>,
}

impl View {
    fn open(process: &str, ours: bool) -> io::Result<Self> {
        let mountinfo = File::open(format!("/proc/{process}/mountinfo"))?;
        let path = format!("/proc/{process}/root");
        let root = open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY, Mode::empty())?;
        let (marked, unmarked) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { root: Arc::new(root), mountinfo, ours, mounts: Vec::new(), marked, unmarked })
    }

    fn read(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        self.mountinfo.rewind()?;
        self.mountinfo.read_to_end(&mut text)?;
        self.mounts = mounts::with_programs(&text);
        Ok(())
    }

    /// Marks what is not another's word, all of it again: numbers are used again. Answers the last failure.
    fn mark(&mut self, patience: Patience, shared: &Shared) -> Option<Error> {
        let scope = shared.settings.scope;
        (self.marked, self.unmarked) = (BTreeSet::new(), BTreeSet::new());
        let mut failed = None;
        for mount in self.mounts.iter().filter(|mount| !mount.foreign) {
            let key = key(mount, scope);
            if self.marked.contains(&key) {
                continue;
            }
            let marked = mount.reopen_path(&self.root, patience).and_then(|path| {
                sys::mark_executions(shared.group.as_fd(), path.as_c_str(), scope.coverage())
            });
            match marked {
                Ok(()) => {
                    self.marked.insert(key);
                    self.unmarked.remove(&key);
                }
                // The mount went away.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
                Err(error) => {
                    self.unmarked.insert(key);
                    failed = Some(Error::new(format!("fanotify_mark mount {}", mount.id), error));
                }
            }
        }
        failed
    }
}

fn key(mount: &Mount, scope: MarkScope) -> Key {
    match scope {
        MarkScope::Filesystem => (mount.device.0, mount.device.1, 0),
        MarkScope::Mount => (0, 0, mount.id),
    }
}

/// All views; the first is this thread's.
struct Views {
    own_namespace: Option<u64>,
    own_users: Option<u64>,
    own: View,
    others: BTreeMap<u64, View>,
    next_search: Instant,
}

/// Marks everything, and goes on to mark what appears.
pub(crate) fn cover(shared: &Arc<Shared>) -> Result<(), Error> {
    // The thread's own: its mount namespace may differ from that of the process.
    let view = View::open("thread-self", true);
    let own = view.map_err(|error| Error::new("open /proc/thread-self/mountinfo", error))?;
    let mut views = Views {
        own_namespace: namespace_of("thread-self"),
        own_users: std::fs::metadata("/proc/thread-self/ns/user").map(|file| file.ino()).ok(),
        own,
        others: BTreeMap::new(),
        next_search: Instant::now(),
    };
    views.look_at_own(shared)?;
    views.search_if_due(shared);
    views.tell(shared);
    shared.foreign.wait(shared);
    spawn("mounts", shared, move |shared| {
        while let Some(changed) = views.wait(shared) {
            // A mount that takes no mark is counted, and tried again with the next change.
            if changed.contains(&None) {
                drop(views.look_at_own(shared));
            }
            for namespace in changed.iter().flatten() {
                views.look_at(*namespace, shared);
            }
            let searched = views.search_if_due(shared);
            if searched || !changed.is_empty() {
                views.tell(shared);
            }
        }
    })?;
    Ok(())
}

impl Views {
    /// Waits until mounts change or a search is due. Answers whose changed, none for our own; nothing at the end.
    fn wait(&self, shared: &Shared) -> Option<Vec<Option<u64>>> {
        if shared.stopping() {
            return None;
        }
        let mut polled = vec![
            PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.own.mountinfo.as_fd(), PollFlags::POLLPRI),
        ];
        polled
            .extend(self.others.values().map(|view| PollFd::new(view.mountinfo.as_fd(), PollFlags::POLLPRI)));
        let timeout = match shared.settings.scope {
            MarkScope::Mount => PollTimeout::NONE,
            MarkScope::Filesystem => {
                let left = self.next_search.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        if poll(&mut polled, timeout).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let names = std::iter::once(None).chain(self.others.keys().map(|namespace| Some(*namespace)));
        let changed = polled.iter().skip(1).zip(names).filter(|(polled, _)| polled.any() == Some(true));
        (!shared.stopping()).then(|| changed.map(|(_, name)| name).collect())
    }

    fn look_at_own(&mut self, shared: &Shared) -> Result<(), Error> {
        self.own.read().map_err(|error| Error::new("read mountinfo", error))?;
        match self.own.mark(Patience::Waits, shared) {
            // One mount that takes no mark, which any user may be able to arrange, must not keep the others open.
            Some(error) if self.own.marked.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    fn look_at(&mut self, namespace: u64, shared: &Shared) {
        let Some(view) = self.others.get_mut(&namespace) else { return };
        if view.read().is_ok() && view.ours {
            // Who serves a folder there must not hold up the marks of everybody else.
            let serves = view.mounts.iter().any(|mount| mount.foreign);
            let patience = if serves { Patience::None } else { Patience::Waits };
            drop(view.mark(patience, shared));
        }
    }

    /// Looks for namespaces when it is time to. Answers whether any came or went.
    fn search_if_due(&mut self, shared: &Shared) -> bool {
        if shared.settings.scope == MarkScope::Mount || Instant::now() < self.next_search {
            return false;
        }
        let start = worked();
        let before = self.others.len();
        let found = self.processes_by_namespace();
        self.others.retain(|namespace, _| found.contains_key(namespace));
        let mut changed = self.others.len() != before;
        for (namespace, process) in found {
            if self.others.len() < VIEWS_MAX
                && !self.others.contains_key(&namespace)
                && let Ok(view) = View::open(&process, self.is_ours(&process))
                // The process may have gone elsewhere in the meantime.
                && namespace_of(&process) == Some(namespace)
            {
                self.others.insert(namespace, view);
                self.look_at(namespace, shared);
                changed = true;
            }
        }
        let rest = worked().saturating_sub(start) * SEARCH_SHARE;
        self.next_search = Instant::now() + rest.clamp(SEARCH_INTERVAL, SEARCH_INTERVAL_MAX);
        changed
    }

    /// One process of each mount namespace but our own.
    fn processes_by_namespace(&self) -> BTreeMap<u64, String> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            if let Ok(process) = entry.file_name().into_string()
                && process.starts_with(|digit: char| digit.is_ascii_digit())
                && let Some(namespace) = namespace_of(&process)
                && Some(namespace) != self.own_namespace
            {
                found.entry(namespace).or_insert(process);
            }
        }
        found
    }

    fn is_ours(&self, process: &str) -> bool {
        let owner = File::open(format!("/proc/{process}/ns/mnt"))
            .and_then(|namespace| sys::owner_of_namespace(namespace.as_fd()))
            .and_then(|owner| File::from(owner).metadata())
            .map(|owner| owner.ino());
        owner.is_ok_and(|owner| Some(owner) == self.own_users)
    }

    /// Has the foreign mounts covered, and says how much is.
    fn tell(&self, shared: &Arc<Shared>) {
        let scope = shared.settings.scope;
        let all = || std::iter::once(&self.own).chain(self.others.values());
        let ours = || all().filter(|view| view.ours);
        let marked: BTreeSet<Key> = ours().flat_map(|view| &view.marked).copied().collect();
        let unmarked = ours().flat_map(|view| &view.unmarked).collect::<BTreeSet<_>>();
        let unmarked = unmarked.into_iter().filter(|key| !marked.contains(key)).count();
        shared.marks.store(marked.len() as u64, Ordering::Relaxed);
        shared.unmarked.store(unmarked as u64, Ordering::Relaxed);
        let known: BTreeSet<Key> =
            ours().flat_map(|view| &view.mounts).map(|mount| key(mount, scope)).collect();
        let (mut places, mut seen) = (Vec::new(), BTreeSet::new());
        for view in ours().chain(all().filter(|view| !view.ours)) {
            let is_foreign = |mount: &&Mount| {
                let key = key(mount, scope);
                !seen.contains(&key) && if view.ours { mount.foreign } else { !known.contains(&key) }
            };
            let new: Vec<_> = view.mounts.iter().filter(is_foreign).cloned().collect();
            seen.extend(new.iter().map(|mount| key(mount, scope)));
            places.extend(new.into_iter().map(|mount| Place { mount, root: Arc::clone(&view.root) }));
        }
        shared.foreign.cover(&places, shared);
    }
}

/// For how long this thread has had a processor.
fn worked() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(Duration::ZERO, Duration::from)
}

/// The number of a process's mount namespace; none when the process is gone.
fn namespace_of(process: &str) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok()?;
    link.to_str()?.strip_prefix("mnt:[")?.strip_suffix("]")?.parse().ok()
}
