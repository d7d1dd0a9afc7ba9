//! Filesystems that another machine or process serves: nothing there may run, because what was read need not be what
//! runs.
//!
//! Already reading an event opens the file, which such a server can hold up at will, and so can marking. Therefore each
//! of these mounts has a group and a thread of its own: a server that stalls holds up only executions that would be
//! refused anyway.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domain::decision::DecisionCause;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::Error;
use crate::denial::{self, RawDenial};
use crate::fanotify::{Shared, event_fd, spawn};
use crate::keep::{Keep, Loan};
use crate::label::Label;
use crate::mounts::{Patience, Place};
use crate::sys::{self, Response};

/// The most mounts of this kind that are covered; each costs a thread.
const FOREIGN_MAX: usize = 256;
/// How long the switch waits for marks: servers answer at once, or not at all.
const MARKED_WITHIN: Duration = Duration::from_secs(1);

/// The foreign mounts.
#[derive(Default)]
pub(crate) struct Foreign {
    guards: Mutex<HashMap<u64, Arc<Guard>>>,
    /// How many there are, covered or not.
    total: AtomicU64,
}

/// One mount, between its thread and the one that watches mounts.
struct Guard {
    place: Place,
    /// To be given back before the group is closed.
    _loan: Option<Loan>,
    group: OwnedFd,
    /// Readable when the thread is to look: the mounts changed, or this one is gone.
    look: EventFd,
    gone: AtomicBool,
    /// Whether an attempt to mark it has ended since the mounts changed.
    tried: AtomicBool,
    marked: AtomicBool,
}

impl Foreign {
    /// Covers these mounts and lets go of all others.
    pub(crate) fn cover(&self, places: &[Place], shared: &Arc<Shared>) {
        self.total.store(places.len() as u64, Ordering::Relaxed);
        let mut guards = self.lock();
        guards.retain(|_, guard| {
            let stays = places.iter().any(|place| place.mount == guard.place.mount);
            if !stays {
                guard.gone.store(true, Ordering::Release);
            }
            // Another mount may have taken the number and the place of the one that was there.
            guard.tried.store(false, Ordering::Release);
            let _ = guard.look.write(1);
            stays
        });
        for place in places {
            if guards.len() < FOREIGN_MAX
                && !guards.contains_key(&place.mount.id)
                && let Ok(guard) = Guard::start(place, shared)
            {
                guards.insert(place.mount.id, guard);
            }
        }
    }

    /// Waits for the marks, but not for long.
    pub(crate) fn wait(&self, shared: &Shared) {
        let start = Instant::now();
        let all: Vec<_> = self.lock().values().cloned().collect();
        let is_pending = || all.iter().any(|guard| !guard.tried.load(Ordering::Acquire));
        while is_pending() && start.elapsed() < MARKED_WITHIN && !shared.stopping() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// How many mounts are covered.
    pub(crate) fn marked(&self) -> u64 {
        self.lock().values().filter(|guard| guard.marked.load(Ordering::Acquire)).count() as u64
    }

    /// How many mounts take no mark: programs run there.
    pub(crate) fn unmarked(&self) -> u64 {
        self.total.load(Ordering::Relaxed).saturating_sub(self.marked())
    }

    /// Gives a keeper that lost it everything that it is to have.
    pub(crate) fn lend_again(&self, keep: &Keep) {
        self.lock().values().for_each(|guard| keep.lend_group_again(guard.group.as_fd()));
    }

    /// Lets go of all.
    pub(crate) fn end(&self) {
        self.lock().values().for_each(|guard| sys::remove_marks(guard.group.as_fd()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Guard>>> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    fn start(place: &Place, shared: &Arc<Shared>) -> Result<Arc<Self>, Error> {
        let group = sys::fanotify_init().map_err(|error| Error::new("fanotify_init", error))?;
        let guard = Arc::new(Self {
            place: place.clone(),
            _loan: shared.keep.as_ref().map(|keep| keep.lend_group(group.as_fd())),
            group,
            look: event_fd()?,
            gone: AtomicBool::new(false),
            tried: AtomicBool::new(false),
            marked: AtomicBool::new(false),
        });
        let own = Arc::clone(&guard);
        spawn("foreign", shared, move |shared| own.refuse_all(shared))?;
        Ok(guard)
    }

    /// Marks the mount and refuses every execution below it, until it is gone or the session ends.
    fn refuse_all(&self, shared: &Shared) {
        let label = Arc::new(Label::failure(DecisionCause::Unverifiable));
        let mut buffer = [0; sys::METADATA_BYTES];
        loop {
            let _ = self.look.read();
            if self.gone.load(Ordering::Acquire) || shared.stopping() {
                // Closing the group lets through what was asked.
                return;
            }
            if !self.tried.load(Ordering::Acquire) {
                let marked =
                    self.place.mount.reopen_path(&self.place.root, Patience::Waits).and_then(|path| {
                        let coverage = shared.settings.scope.coverage();
                        sys::mark_executions(self.group.as_fd(), path.as_c_str(), coverage)
                    });
                self.marked.store(marked.is_ok(), Ordering::Release);
                self.tried.store(true, Ordering::Release);
            }
            for event in sys::read_events(self.group.as_fd(), &mut buffer).unwrap_or_default() {
                drop(sys::respond(self.group.as_fd(), event.file.as_raw_fd(), Response::Deny));
                shared.asked.fetch_add(1, Ordering::Relaxed);
                shared.denied.fetch_add(1, Ordering::Relaxed);
                // Described and closed here: closing is a question to the server too.
                let (file, label) = (Arc::new(event.file), Arc::clone(&label));
                let raw = RawDenial { file, pid: event.pid, label, process: None };
                shared.denials.add(denial::describe(&raw));
            }
            let mut polled = [
                PollFd::new(self.group.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.look.as_fd(), PollFlags::POLLIN),
                PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut polled, PollTimeout::NONE).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
