//! What the programs told, after the fact: who was refused what. Files without a label are read now, and get one when
//! the judge allows them; the verdict did not wait for that.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use domain::decision::DecisionCause;
use domain::execution_event::Hook;
use domain::time::Timestamp;
use libbpf_rs::RingBufferBuilder;

use super::abi::{Event, Reason};
use super::{Shared, guard_name};
use crate::denial::{Denial, Process};

/// How long a look at the events may take until it is seen that the end has come.
const LOOK: Duration = Duration::from_millis(100);
/// The most refused files of one user that wait to be read.
const USER_MAX: usize = 64;
/// The most users with such files.
const USERS_MAX: usize = 256;

/// Refused files that wait to be read: users take turns, so that none holds up another.
#[derive(Default)]
pub(super) struct Unread {
    waiting: Mutex<BTreeMap<u32, VecDeque<Event>>>,
    wake: Condvar,
}

impl Unread {
    /// Takes an event in, or gives it back when this user, or everyone, has too many waiting.
    fn push(&self, event: Event) -> Result<(), Event> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= USERS_MAX && !waiting.contains_key(&event.user) {
            return Err(event);
        }
        let queue = waiting.entry(event.user).or_default();
        if queue.len() >= USER_MAX {
            return Err(event);
        }
        queue.push_back(event);
        self.wake.notify_one();
        Ok(())
    }

    /// The next in turn after `last`, the user whose turn was before; waits for one, but not for long.
    fn next(&self, last: u32) -> Option<Event> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut waiting, _) = self
            .wake
            .wait_timeout_while(waiting, LOOK, |waiting| waiting.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let after = last.checked_add(1).and_then(|next| waiting.range(next..).next());
        let user = *after.or_else(|| waiting.iter().next())?.0;
        let queue = waiting.get_mut(&user)?;
        let event = queue.pop_front();
        if queue.is_empty() {
            waiting.remove(&user);
        }
        event
    }
}

/// Takes events from the kernel until the end.
pub(super) fn receive(shared: &Shared) {
    let mut builder = RingBufferBuilder::new();
    let take = move |bytes: &[u8]| {
        match Event::from_bytes(bytes) {
            Some(event) => take(event, shared),
            None => shared.denials.count_dropped(),
        }
        0
    };
    let ring = builder.add(&shared.maps.events, take).map(drop).and_then(|()| builder.build());
    let Ok(ring) = ring else { return shared.denials.count_dropped() };
    while !shared.stopping() {
        // An interrupted look is tried again.
        drop(ring.poll(LOOK));
    }
}

fn take(event: Event, shared: &Shared) {
    let is_file = matches!(event.hook, Hook::Execute | Hook::Map | Hook::Protect | Hook::ReadKernelFile);
    let unread =
        matches!(event.reason, Reason::Unlisted | Reason::Changed | Reason::Stale | Reason::BeingWritten);
    if !(is_file && unread) {
        let cause = match event.reason {
            Reason::Anonymous | Reason::Stack => DecisionCause::AnonymousCode,
            Reason::BeingWritten => DecisionCause::BeingWritten,
            Reason::Guard(number) => DecisionCause::Guard(guard_name(number)),
            Reason::Unlisted | Reason::Changed | Reason::Stale => DecisionCause::Unlisted,
        };
        return shared.denials.add(denial(&event, cause, None));
    }
    if let Err(event) = shared.unread.push(event) {
        shared.denials.add(denial(&event, DecisionCause::Unlisted, None));
    }
}

/// Reads refused files until the end.
pub(super) fn read(shared: &Shared) {
    let mut last = 0;
    while !shared.stopping() {
        let Some(event) = shared.unread.next(last) else { continue };
        last = event.user;
        let path = Path::new(std::ffi::OsStr::from_bytes(&event.path));
        let (cause, digest) = match shared.look_in_force(path, event.key) {
            Some(look) if look.labelled => (DecisionCause::Changed, look.digest),
            // Another file by that name, or none: what was refused had no label, and that is all there is to say.
            Some(look) if look.key != Some(event.key) => (DecisionCause::Unlisted, None),
            Some(look) => (look.decision.cause, look.digest),
            None => (DecisionCause::Unlisted, None),
        };
        shared.denials.add(denial(&event, cause, digest));
    }
}

fn denial(event: &Event, cause: DecisionCause, digest: Option<domain::digest::Sha256Digest>) -> Denial {
    let since = crate::sys::monotonic().saturating_sub(Duration::from_nanos(event.at));
    let at = SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH);
    // The programs tell their path of executions only. Who was refused is mostly still there.
    let process = Process::of(event.pid);
    let (program, cgroup) =
        process.map_or_else(Default::default, |process| (process.program, process.cgroup));
    Denial {
        at: Timestamp::from(at),
        hook: event.hook,
        path: event.path.clone(),
        digest,
        cause,
        pid: event.pid,
        ppid: event.parent,
        uid: Some(event.user),
        parent_program: if event.program.is_empty() { program } else { event.program.clone() },
        cgroup,
        interpreter: None,
        script: None,
        audited: !event.refused,
        count: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(user: u32, pid: i32) -> Event {
        let mut bytes = vec![0; Event::BYTES];
        bytes[48] = 1;
        bytes[52] = 1;
        Event { user, pid, ..Event::from_bytes(&bytes).unwrap() }
    }

    #[test]
    fn users_take_turns() {
        let unread = Unread::default();
        for (user, pid) in [(1, 10), (1, 11), (1, 12), (2, 20), (3, 30)] {
            unread.push(event(user, pid)).unwrap();
        }
        let mut last = 0;
        let order = std::iter::from_fn(|| {
            let next = unread.next(last)?;
            last = next.user;
            Some(next.pid)
        });
        assert_eq!(order.collect::<Vec<_>>(), [10, 20, 30, 11, 12]);
    }

    #[test]
    fn one_user_cannot_fill_it() {
        let unread = Unread::default();
        let taken = (0..1000).filter(|_| unread.push(event(1, 1)).is_ok()).count();
        assert_eq!(taken, USER_MAX);
        unread.push(event(2, 2)).unwrap();
        let users = (3..10_000).filter(|user| unread.push(event(*user, 1)).is_ok()).count();
        assert_eq!(users, USERS_MAX - 2);
    }
}
