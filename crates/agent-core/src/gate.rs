//! The connection to the gate: one request at a time, and what the gate last said of itself.

use std::time::Duration;

use gate_protocol::{Reply, Request, Status};

use crate::effect::{Effect, Timer};
use crate::random::{Backoff, Random};
use crate::relay::PendingOrder;

/// The gate answers in milliseconds; an order with its canaries in tens of them.
const REPLY_MAX: Duration = Duration::from_secs(30);
/// Between attempts to connect: a local socket costs nothing.
const CONNECT_BASE: Duration = Duration::from_millis(50);
const CONNECT_CAP: Duration = Duration::from_secs(2);
/// How long the server is left in the belief that the machine is reachable: the gate's restart takes less.
const AWAY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Gate {
    is_connected: bool,
    asked: Option<Asked>,
    /// What it last said; from before the connection was lost, when it is not fresh.
    status: Option<Status>,
    is_fresh: bool,
    backoff: Backoff,
}

/// What is to be asked besides policies and orders.
#[derive(Debug, Default)]
pub(crate) struct Wants {
    /// The gate's state, anew.
    pub(crate) status: bool,
    /// The receipt of the last order, which nobody here has seen.
    pub(crate) receipt: bool,
    /// Refused executions.
    pub(crate) denials: bool,
}

/// The request that is not answered yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Status,
    StorePolicy,
    Apply(PendingOrder),
    LastReceipt,
    StoreBreakGlass,
    Denials,
    /// The preview of this policy.
    Preview(String),
}

impl Gate {
    pub(crate) fn new() -> Self {
        let backoff = Backoff::new(CONNECT_BASE, CONNECT_CAP);
        Self { is_connected: false, asked: None, status: None, is_fresh: false, backoff }
    }

    /// What the gate last said.
    pub(crate) fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }

    /// What the gate said over this connection.
    pub(crate) fn fresh_status(&self) -> Option<&Status> {
        self.status.as_ref().filter(|_| self.is_fresh)
    }

    pub(crate) fn connected(&mut self) {
        self.is_connected = true;
        self.is_fresh = false;
        self.asked = None;
    }

    /// Whether a request can be sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_connected && self.asked.is_none()
    }

    pub(crate) fn ask(&mut self, asked: Asked, request: Request, effects: &mut Vec<Effect>) {
        self.asked = Some(asked);
        effects.push(Effect::AskGate(request));
        effects.push(Effect::Arm(Timer::GateReply, REPLY_MAX));
    }

    /// What this reply answers. The order is durable, but its receipt still to come, after [`Reply::Accepted`].
    pub(crate) fn answered(&mut self, reply: &Reply) -> Option<Asked> {
        if let (Some(Asked::Apply(order)), Reply::Accepted { .. }) = (&self.asked, reply) {
            return Some(Asked::Apply(order.clone()));
        }
        self.asked.take()
    }

    pub(crate) fn said(&mut self, status: Status) {
        self.backoff.reset();
        self.status = Some(status);
        self.is_fresh = true;
    }

    /// Whether the request was answered, or the connection is gone anyway.
    pub(crate) fn is_overdue(&self) -> bool {
        self.is_connected && self.asked.is_some()
    }

    pub(crate) fn lost(&mut self, random: &mut Random, effects: &mut Vec<Effect>) {
        self.is_connected = false;
        self.asked = None;
        if std::mem::take(&mut self.is_fresh) {
            effects.push(Effect::Arm(Timer::GateAway, AWAY_MAX));
        }
        effects.push(Effect::Arm(Timer::GateConnect, self.backoff.next(random)));
    }
}
