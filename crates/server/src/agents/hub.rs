//! Which machines are connected, and how to wake their connections.
//!
//! What has changed is a level, not a message: a connection that is woken reads the current state. So nothing queues
//! up, however fast things change or however slow a machine is. Presence lives here; the database hears a batch of
//! last-seen times every few seconds.

mod previews;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_plane::{Links, PreviewStanding};
use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::time::Timestamp;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use previews::Previews;

/// The connections of this server.
pub(crate) struct Hub {
    connections: Mutex<Connections>,
    connected: watch::Sender<usize>,
    policy_turns: Semaphore,
}

/// How many machines are sent a policy at a time: each holds a few copies of up to 4 MiB until its machine has read it.
const POLICIES_AT_ONCE: usize = 8;

impl Default for Hub {
    fn default() -> Self {
        Self {
            connections: Mutex::default(),
            connected: watch::Sender::default(),
            policy_turns: Semaphore::new(POLICIES_AT_ONCE),
        }
    }
}

#[derive(Default)]
struct Connections {
    by_machine: HashMap<MachineId, Arc<Connection>>,
    /// When machines were last heard whose connection has ended since the last [`Hub::take_seen`].
    gone: HashMap<MachineId, Timestamp>,
    stopping: bool,
}

#[derive(Default)]
struct Connection {
    raised: AtomicU8,
    wake: Notify,
    /// When the machine was last heard, and what of that the database has been told.
    heard: AtomicI64,
    told: AtomicI64,
    /// Whether the agent knows what an impact preview is.
    can_preview: bool,
    previews: Previews,
}

/// What a connection has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signals(u8);

impl Signals {
    /// The machine's order changed.
    pub(super) const ORDER: Self = Self(1);
    /// There are policies that the machine may not have.
    pub(super) const POLICIES: Self = Self(2);
    /// The machine has a newer connection.
    pub(super) const REPLACED: Self = Self(4);
    /// The server stops.
    pub(super) const STOPPING: Self = Self(8);
    /// An impact preview is wanted of the machine.
    pub(super) const PREVIEW: Self = Self(16);

    pub(super) fn holds(self, signal: Self) -> bool {
        self.0 & signal.0 != 0
    }
}

/// A connection's place in the hub, given up when dropped.
pub(super) struct Place {
    hub: Arc<Hub>,
    machine: MachineId,
    connection: Arc<Connection>,
}

impl Hub {
    /// Enters a connection, in place of an older one of the same machine. None when the server stops.
    pub(super) fn enter(self: &Arc<Self>, machine: MachineId, can_preview: bool) -> Option<Place> {
        let connection = Connection { can_preview, ..Connection::default() };
        let connection = Arc::new(connection);
        let mut connections = self.lock();
        if connections.stopping {
            return None;
        }
        if let Some(older) = connections.by_machine.insert(machine, Arc::clone(&connection)) {
            older.raise(Signals::REPLACED);
        }
        self.connected.send_replace(connections.by_machine.len());
        drop(connections);
        Some(Place { hub: Arc::clone(self), machine, connection })
    }

    /// The machines heard since the last call, with the time when.
    pub(crate) fn take_seen(&self) -> Vec<(MachineId, Timestamp)> {
        let mut connections = self.lock();
        let mut seen = std::mem::take(&mut connections.gone);
        for (machine, connection) in &connections.by_machine {
            seen.extend(connection.take_heard().map(|at| (*machine, at)));
        }
        seen.into_iter().collect()
    }

    /// Tells every connection to end, and waits until they have, but not for long.
    pub(crate) async fn stop(&self, time_max: Duration) {
        let mut connected = self.connected.subscribe();
        {
            let mut connections = self.lock();
            connections.stopping = true;
            connections.by_machine.values().for_each(|connection| connection.raise(Signals::STOPPING));
        }
        if tokio::time::timeout(time_max, connected.wait_for(|count| *count == 0)).await.is_err() {
            tracing::warn!("connections of machines were cut off");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links for Hub {
    fn order_changed(&self, machine: MachineId) {
        if let Some(connection) = self.lock().by_machine.get(&machine) {
            connection.raise(Signals::ORDER);
        }
    }

    fn is_connected(&self, machine: MachineId) -> bool {
        self.lock().by_machine.contains_key(&machine)
    }

    fn policies_changed(&self) {
        self.lock().by_machine.values().for_each(|connection| connection.raise(Signals::POLICIES));
    }

    fn preview_wanted(&self, machine: MachineId, policy: Sha256Digest, age_max: Duration) -> PreviewStanding {
        let connection = self.lock().by_machine.get(&machine).map(Arc::clone);
        let Some(connection) = connection else { return PreviewStanding::NotConnected };
        if !connection.can_preview {
            return PreviewStanding::NotSupported;
        }
        let (standing, is_to_be_asked) = connection.previews.want(policy, age_max);
        if is_to_be_asked {
            connection.raise(Signals::PREVIEW);
        }
        standing
    }
}

impl Connection {
    fn raise(&self, signals: Signals) {
        self.raised.fetch_or(signals.0, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// When the machine was heard, if that has not been taken yet.
    fn take_heard(&self) -> Option<Timestamp> {
        let heard = self.heard.load(Ordering::Relaxed);
        (self.told.swap(heard, Ordering::Relaxed) != heard).then(|| Timestamp::from_ticks(heard))
    }
}

impl Place {
    /// Waits until there is something to look at. Nothing is lost when the wait is given up.
    pub(super) async fn signals(&self) -> Signals {
        loop {
            let raised = self.connection.raised.swap(0, Ordering::AcqRel);
            if raised != 0 {
                return Signals(raised);
            }
            self.connection.wake.notified().await;
        }
    }

    /// Raises signals for this very connection.
    pub(super) fn raise(&self, signals: Signals) {
        self.connection.raise(signals);
    }

    /// Waits for the turn to send a policy; none when turns are not given any more, which they always are.
    pub(super) async fn turn_to_send_policy(&self) -> Option<SemaphorePermit<'_>> {
        self.hub.policy_turns.acquire().await.ok()
    }

    /// Takes the impact previews that the machine is to be asked for, each of at most an age.
    pub(super) fn take_previews_wanted(&self) -> Vec<(Sha256Digest, Duration)> {
        self.connection.previews.take_wanted()
    }

    /// Whether the machine was asked for a preview for this policy.
    pub(super) fn is_preview_wanted(&self, policy: Sha256Digest) -> bool {
        self.connection.previews.is_wanted(policy)
    }

    /// Notes how far the machine is with a preview.
    pub(super) fn preview_progressed(&self, policy: Sha256Digest, files_done: u64, files_total: u64) {
        self.connection.previews.progressed(policy, files_done, files_total);
    }

    /// Notes that there will be no preview.
    pub(super) fn preview_failed(&self, policy: Sha256Digest, reason: String) {
        self.connection.previews.failed(policy, reason);
    }

    /// Notes that the preview is stored.
    pub(super) fn preview_made(&self, policy: Sha256Digest) {
        self.connection.previews.made(policy);
    }

    /// Notes that the machine was heard at `now`.
    pub(super) fn heard(&self, now: Timestamp) {
        self.connection.heard.store(now.ticks(), Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.hub.lock();
        if let Some(at) = self.connection.take_heard() {
            connections.gone.insert(self.machine, at);
        }
        let current = connections.by_machine.get(&self.machine);
        if current.is_some_and(|current| Arc::ptr_eq(current, &self.connection)) {
            connections.by_machine.remove(&self.machine);
            self.hub.connected.send_replace(connections.by_machine.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MachineId = MachineId([1; 20]);
    const B: MachineId = MachineId([2; 20]);

    #[tokio::test]
    async fn changes_wake_whom_they_concern_once() {
        let hub = Arc::new(Hub::default());
        let (a, b) = (hub.enter(A, true).unwrap(), hub.enter(B, true).unwrap());
        hub.order_changed(A);
        hub.order_changed(A);
        hub.policies_changed();
        let raised = a.signals().await;
        assert!(raised.holds(Signals::ORDER) && raised.holds(Signals::POLICIES));
        assert_eq!(b.signals().await, Signals::POLICIES);
        assert!(tokio::time::timeout(Duration::from_millis(20), a.signals()).await.is_err());
    }

    #[tokio::test]
    async fn the_newer_connection_counts() {
        let hub = Arc::new(Hub::default());
        let older = hub.enter(A, true).unwrap();
        let newer = hub.enter(A, true).unwrap();
        assert_eq!(older.signals().await, Signals::REPLACED);
        drop(older);
        hub.order_changed(A);
        assert_eq!(newer.signals().await, Signals::ORDER);
    }

    #[tokio::test]
    async fn last_seen_is_told_once_and_survives_the_connection() {
        let hub = Arc::new(Hub::default());
        let (a, b) = (hub.enter(A, true).unwrap(), hub.enter(B, true).unwrap());
        assert_eq!(hub.take_seen(), []);
        a.heard(Timestamp::from_ticks(5));
        assert_eq!(hub.take_seen(), [(A, Timestamp::from_ticks(5))]);
        assert_eq!(hub.take_seen(), []);
        b.heard(Timestamp::from_ticks(7));
        drop(b);
        assert_eq!(hub.take_seen(), [(B, Timestamp::from_ticks(7))]);
        assert_eq!(hub.take_seen(), []);
    }

    #[tokio::test]
    async fn a_stopping_hub_lets_nobody_in() {
        let hub = Arc::new(Hub::default());
        let place = hub.enter(A, true).unwrap();
        let end = tokio::spawn(async move {
            let signals = place.signals().await;
            drop(place);
            signals
        });
        hub.stop(Duration::from_secs(10)).await;
        assert_eq!(end.await.unwrap(), Signals::STOPPING);
        assert!(hub.enter(B, true).is_none());
    }
}
