//! The agent: what each input changes, and what is asked of the gate next.

use std::time::Duration;

use agent_protocol::{FromAgent, FromServer, InventorySummary, PROTOCOL_VERSION, Welcome};
use domain::machine::MachineId;
use domain::restriction::Fence;
use domain::time::Timestamp;
use gate_protocol::{DENIALS_MAX, Reply, Request, Status};
use orders::{Outcome, PublicKey, Receipt, TrustedKeys, VerifiedOrder, VerifiedReceipt};

use crate::certificate::Certificate;
use crate::effect::{Effect, Level, Notice, Timer};
use crate::executions::Executions;
use crate::gate::{Asked, Gate, Wants};
use crate::input::Input;
use crate::inventory::Inventory;
use crate::link::{Link, LinkState, heartbeat};
use crate::previews::Previews;
use crate::random::Random;
use crate::relay::{PendingOrder, Relay};

/// How long an order waits for the policy and the baseline that it needs before the gate is to decide without.
const ORDER_WAIT_MAX: Duration = Duration::from_secs(120);
/// How often refused executions are fetched while restricted, and how often while there are many.
const DENIALS_EVERY: Duration = Duration::from_secs(1);
const DENIALS_EVERY_BUSY: Duration = Duration::from_millis(100);
/// A clock that is further off is worth a warning: orders expire by the machine's clock, certificates too.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(120);

/// Who the machine is, and whose orders count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The machine.
    pub machine: MachineId,
    /// Whose orders count.
    pub keys: TrustedKeys,
}

/// The machine's side, without IO.
#[derive(Debug)]
pub struct Agent {
    identity: Identity,
    random: Random,
    gate: Gate,
    link: Link,
    relay: Relay,
    executions: Executions,
    previews: Previews,
    inventory: Inventory,
    certificate: Certificate,
    /// Store epoch and generation of the newest order whose receipt the agent has had in its hands.
    receipt_seen: (u64, u64),
    wants: Wants,
    is_heartbeat_due: bool,
    is_polling_denials: bool,
    clock_ahead_ticks: Option<i64>,
}

/// How things stand, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// How far the connection to the server is.
    pub link: LinkState,
    /// Whether the gate answers.
    pub is_gate_answering: bool,
    /// How far the machine's clock is ahead of the server's, in ticks of 100 ns, as of the last welcome.
    pub clock_ahead_ticks: Option<i64>,
    /// Receipts that the server has not acknowledged.
    pub receipts_waiting: usize,
    /// Executions that the server has not acknowledged.
    pub executions_waiting: usize,
    /// Executions that were lost since the agent started.
    pub executions_dropped: u64,
    /// What the last scan found, or how far the running one is.
    pub inventory: Option<InventorySummary>,
}

impl Agent {
    /// An agent at its start, and the first things to do. `seed` spreads what would otherwise happen everywhere at once.
    pub fn start(identity: Identity, seed: u64) -> (Self, Vec<Effect>) {
        let agent = Self {
            identity,
            random: Random::new(seed),
            gate: Gate::new(),
            link: Link::new(),
            relay: Relay::default(),
            executions: Executions::default(),
            previews: Previews::default(),
            inventory: Inventory::new(),
            certificate: Certificate::default(),
            receipt_seen: (0, 0),
            wants: Wants::default(),
            is_heartbeat_due: false,
            is_polling_denials: false,
            clock_ahead_ticks: None,
        };
        (agent, vec![Effect::ConnectGate])
    }

    /// Takes note of one thing that happened, and says what is to be done about it. `now` is the machine's clock.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.take_note(input, now, &mut effects);
        self.ask_gate(&mut effects);
        effects
    }

    /// Whether the next frame may be read. While a policy waits for the gate nothing is, so that no more than one is
    /// ever in memory, and an order never overtakes the policy that was sent before it.
    pub fn wants_frames(&self) -> bool {
        self.relay.has_room()
    }

    /// How things stand.
    pub fn snapshot(&self) -> Snapshot {
        let (executions_waiting, executions_dropped) = self.executions.counts();
        Snapshot {
            link: self.link.state,
            is_gate_answering: self.gate.fresh_status().is_some(),
            clock_ahead_ticks: self.clock_ahead_ticks,
            receipts_waiting: self.relay.receipts(),
            executions_waiting,
            executions_dropped,
            inventory: self.inventory.summary().cloned(),
        }
    }

    fn take_note(&mut self, input: Input, now: Timestamp, effects: &mut Vec<Effect>) {
        match input {
            Input::GateConnected => {
                self.gate.connected();
                self.previews.look_again();
                self.inventory.gate_connected();
            }
            Input::GateLost(reason) => self.gate_lost(&reason, effects),
            Input::GateReplied(reply) => self.gate_replied(*reply, effects),
            Input::LinkConnected(facts) => match self.gate.status() {
                Some(status) if self.link.state == LinkState::Connecting => {
                    self.link.greet(*facts, status, effects);
                }
                _ => {}
            },
            Input::LinkLost(reason) => {
                if self.link.is_open() {
                    effects.push(warn(format!("the server is not connected: {reason}")));
                    self.link.back_off(&mut self.random, effects);
                }
            }
            Input::FrameReceived(frame) => {
                self.link.heard();
                match self.link.state {
                    LinkState::Greeting | LinkState::Up => self.frame_received(*frame, now, effects),
                    LinkState::AwaitingGate | LinkState::BackingOff | LinkState::Connecting => {}
                }
            }
            Input::ServerHeard => self.link.heard(),
            Input::TimerFired(timer) => self.timer_fired(timer, now, effects),
            Input::PackagesChanged => self.inventory.packages_changed(),
            Input::InventoryProgressed(summary) => {
                self.inventory.progressed(summary, self.link.is_up(), effects);
            }
            Input::InventoryEnded(end) => {
                self.inventory.ended(end, self.link.is_up(), &mut self.random, effects);
                self.wants.status = true;
            }
            Input::CertificateInUse(validity) => {
                self.certificate.use_from(validity, now, &mut self.random, effects);
            }
            Input::RenewalFailed(reason) => self.certificate.failed(&reason, &mut self.random, effects),
        }
        if let Some(status) = self.gate.fresh_status() {
            self.inventory.consider(status, effects);
        }
    }

    /// Asks the gate the next thing, when it can be asked: its state first, then what a policy, a lost answer or an
    /// order needs, then what can wait.
    fn ask_gate(&mut self, effects: &mut Vec<Effect>) {
        if !self.gate.is_idle() {
            return;
        }
        let Some(status) = self.gate.fresh_status() else {
            self.wants.status = false;
            return self.gate.ask(Asked::Status, Request::Status, effects);
        };
        let is_baseline_underway = self.inventory.is_first_underway(status);
        let (asked, request) = if let Some(envelope) = self.relay.next_policy() {
            (Asked::StorePolicy, Request::StorePolicy { envelope: envelope.to_owned() })
        } else if std::mem::take(&mut self.wants.receipt) {
            (Asked::LastReceipt, Request::LastReceipt)
        } else if let Some(order) = self.relay.next_order(status, is_baseline_underway) {
            let envelope = order.envelope.clone();
            (Asked::Apply(order), Request::Apply { envelope })
        } else if let Some(envelope) = self.relay.next_break_glass(status) {
            (Asked::StoreBreakGlass, Request::StoreBreakGlass { envelope: envelope.to_owned() })
        } else if std::mem::take(&mut self.wants.status) {
            (Asked::Status, Request::Status)
        } else if std::mem::take(&mut self.wants.denials) {
            (Asked::Denials, Request::Denials)
        } else if let Some((policy, request)) = self.previews.next() {
            (Asked::Preview(policy), request)
        } else {
            return;
        };
        self.gate.ask(asked, request, effects);
    }

    fn gate_lost(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        if self.gate.fresh_status().is_some() {
            effects.push(warn(format!("the gate does not answer: {reason}")));
        }
        if self.relay.gate_lost() {
            effects.push(Effect::Arm(Timer::OrderWait, ORDER_WAIT_MAX));
        }
        self.gate.lost(&mut self.random, effects);
    }

    fn gate_replied(&mut self, reply: Reply, effects: &mut Vec<Effect>) {
        let answers = self.gate.answered(&reply);
        if let Some(Asked::Preview(policy)) = answers {
            if !self.previews.answered(&policy, reply, effects) {
                effects.push(Effect::DropGate);
                self.gate_lost("it answered what was not asked", effects);
            }
            return;
        }
        match (answers, reply) {
            (Some(Asked::Status), Reply::Status(status)) => self.gate_said(*status, effects),
            (Some(Asked::StorePolicy), Reply::Done) => self.relay.policy_stored(),
            (Some(Asked::StorePolicy), Reply::Refused { reason }) => {
                self.relay.policy_refused();
                effects.push(warn(format!("the gate does not keep a policy: {reason}")));
            }
            (Some(Asked::StoreBreakGlass), Reply::Done) => {
                self.relay.break_glass_ended();
                // The server shows no code that it does not know the gate to hold.
                self.report_change();
            }
            (Some(Asked::StoreBreakGlass), Reply::Refused { reason }) => {
                self.relay.break_glass_ended();
                effects.push(warn(format!("the gate does not keep the break-glass codes: {reason}")));
            }
            (Some(Asked::Apply(_)), Reply::Accepted { generation }) => {
                effects.push(Effect::Log(
                    Level::Info,
                    format!("the gate accepted the order of generation {generation}"),
                ));
                if self.link.is_up() {
                    effects.push(Effect::Send(Box::new(FromAgent::Accepted { generation })));
                }
            }
            (Some(Asked::Apply(_)), Reply::Receipt { envelope }) => {
                self.relay.order_ended();
                self.take_receipt(envelope, effects);
                self.report_change();
                // What was refused until now, should the restriction have been short.
                self.wants.denials = true;
            }
            (Some(Asked::Apply(order)), Reply::Refused { reason }) => {
                self.relay.order_ended();
                let Fence { generation, .. } = order.fence;
                effects
                    .push(warn(format!("the gate refuses the order of generation {generation}: {reason}")));
                self.report_change();
            }
            (Some(Asked::LastReceipt), Reply::Receipt { envelope }) => self.take_receipt(envelope, effects),
            // An order whose answer never came about: the server offers it again, or it is on its way.
            (Some(Asked::LastReceipt), Reply::Refused { reason: _ }) => {}
            (Some(Asked::Denials), Reply::Denials { denials, dropped }) => {
                if denials.len() >= DENIALS_MAX {
                    self.is_polling_denials = true;
                    effects.push(Effect::Arm(Timer::Denials, DENIALS_EVERY_BUSY));
                }
                self.executions.add(denials, dropped);
                if self.link.is_up() {
                    self.executions.send_next(effects);
                }
            }
            (asked, _) => {
                drop(asked);
                effects.push(Effect::DropGate);
                self.gate_lost("it answered what was not asked", effects);
            }
        }
    }

    /// The gate is asked anew, and the server hears it.
    fn report_change(&mut self) {
        self.wants.status = true;
        self.is_heartbeat_due = true;
    }

    /// Keeps a receipt of this machine's gate, and sends it. Which order it answers only the receipt itself says: an
    /// order whose answer got lost may have been carried out since.
    fn take_receipt(&mut self, envelope: String, effects: &mut Vec<Effect>) {
        let key = self.gate.status().and_then(|status| status.public_key.parse::<PublicKey>().ok());
        let Some(key) = key else { return effects.push(warn("the gate has no usable key".to_owned())) };
        let receipt = match VerifiedReceipt::verify(envelope.as_bytes(), key, self.identity.machine) {
            Ok(receipt) => receipt,
            Err(error) => return effects.push(warn(format!("a receipt is not the gate's: {error}"))),
        };
        let Receipt { fence, outcome, .. } = receipt.receipt();
        self.receipt_seen = self.receipt_seen.max((fence.store_epoch, fence.generation));
        effects.push(match outcome {
            Outcome::Enforced => {
                let text = format!("the order of generation {} is enforced, and proved", fence.generation);
                Effect::Log(Level::Info, text)
            }
            Outcome::Rejected(reason) | Outcome::ApplyFailed(reason) | Outcome::ProbeFailed(reason) => {
                warn(format!("the order of generation {} failed: {reason}", fence.generation))
            }
        });
        if self.link.is_up() {
            effects.push(Effect::Send(Box::new(FromAgent::Receipt { envelope: envelope.clone() })));
        }
        self.relay.take_up_receipt(fence.generation, envelope, effects);
    }

    fn gate_said(&mut self, status: Status, effects: &mut Vec<Effect>) {
        let before = self.gate.status().map(|status| status.restricted);
        // What was in force when the agent started is no news to those who are logged in.
        if let Some(before) = before
            && before != status.restricted
        {
            let notice = if status.restricted { Notice::Restricted } else { Notice::Released };
            effects.push(Effect::TellPeople(notice));
            self.is_heartbeat_due = true;
        }
        // What was refused last, or while no agent ran, is fetched too.
        if before != Some(status.restricted) || self.gate.fresh_status().is_none() {
            self.wants.denials = true;
        }
        if status.restricted && !self.is_polling_denials {
            self.is_polling_denials = true;
            effects.push(Effect::Arm(Timer::Denials, DENIALS_EVERY));
        }
        self.wants.receipt = self.receipt_seen < (status.store_epoch, status.generation);
        self.relay.policies_held(&status);
        self.inventory.compare(&status);
        if self.link.is_up() && std::mem::take(&mut self.is_heartbeat_due) {
            effects.push(heartbeat(&status));
        }
        self.gate.said(status);
        if self.link.state == LinkState::AwaitingGate {
            self.link.connect(effects);
        }
    }

    fn frame_received(&mut self, frame: FromServer, now: Timestamp, effects: &mut Vec<Effect>) {
        match frame {
            FromServer::Welcome(welcome) => self.welcomed(&welcome, now, effects),
            FromServer::Policy { envelope } => {
                if self.relay.has_room() {
                    self.relay.take_up_policy(envelope);
                } else {
                    // Nobody was to read it. The next connection brings it again.
                    self.drop_link("a policy came before the last one was kept", effects);
                }
            }
            FromServer::Order { envelope } => self.order_received(envelope, effects),
            FromServer::BreakGlass { envelope } => self.relay.take_up_break_glass(envelope),
            FromServer::Preview { policy, age_seconds_max } => {
                self.previews.want(policy, age_seconds_max, effects);
            }
            FromServer::ExecutionsStored { batch } => self.executions.stored(batch, effects),
            FromServer::ReceiptStored { generation } => self.relay.receipt_stored(generation),
            FromServer::Goodbye { reason } => self.drop_link(&format!("the server says: {reason}"), effects),
        }
    }

    fn welcomed(&mut self, welcome: &Welcome, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.link.is_up() {
            return;
        }
        if welcome.protocol < PROTOCOL_VERSION {
            let theirs = welcome.protocol;
            let text = format!(
                "it speaks protocol {theirs}, this agent {PROTOCOL_VERSION}: update the server first"
            );
            return self.drop_link(&text, effects);
        }
        self.link.welcomed(welcome, &mut self.random, effects);
        let ahead = now.ticks().saturating_sub(welcome.now);
        self.clock_ahead_ticks = Some(ahead);
        let difference = Duration::from_nanos(ahead.unsigned_abs().saturating_mul(100));
        if difference > CLOCK_TOLERANCE {
            let direction = if ahead > 0 { "ahead of" } else { "behind" };
            let seconds = difference.as_secs();
            effects.push(warn(format!(
                "this machine's clock is {seconds} s {direction} the server's: correct it"
            )));
        }
        effects.push(Effect::Log(Level::Info, "connected to the server".to_owned()));
        self.relay.send_receipts(effects);
        self.inventory.send(effects);
        self.executions.connected(effects);
        // What the connection before wanted, nobody waits for.
        self.previews.forget();
        // The greeting may be older than what the gate has done since.
        self.report_change();
    }

    fn order_received(&mut self, envelope: String, effects: &mut Vec<Effect>) {
        let Identity { machine, keys } = &self.identity;
        // An order that has ended is for the gate to refuse: its signed answer is what the server needs.
        let order = match VerifiedOrder::verify_kept(envelope.as_bytes(), keys, *machine) {
            Ok(order) => PendingOrder::new(envelope, &order),
            Err(error) => return effects.push(warn(format!("an order is not for this machine: {error}"))),
        };
        if !self.relay.take_up_order(order) {
            return;
        }
        // In any case: it can come to wait later, when the gate goes away and comes back with less than it had.
        effects.push(Effect::Arm(Timer::OrderWait, ORDER_WAIT_MAX));
        if let Some(status) = self.gate.status()
            && let Some(generation) = self.relay.waiting(status, self.inventory.is_first_underway(status))
        {
            let text = format!("the order of generation {generation} waits until the gate has what it needs");
            effects.push(Effect::Log(Level::Info, text));
        }
    }

    fn drop_link(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        effects.push(warn(format!("leaving the server: {reason}")));
        effects.push(Effect::DropLink);
        self.link.back_off(&mut self.random, effects);
    }

    fn timer_fired(&mut self, timer: Timer, now: Timestamp, effects: &mut Vec<Effect>) {
        match timer {
            Timer::GateConnect => effects.push(Effect::ConnectGate),
            Timer::GateReply => {
                if self.gate.is_overdue() {
                    effects.push(Effect::DropGate);
                    self.gate_lost("no answer in time", effects);
                }
            }
            Timer::GateAway => {
                if self.gate.fresh_status().is_none() && self.link.is_open() {
                    effects.push(warn("leaving the server until the gate answers again".to_owned()));
                    effects.push(Effect::DropLink);
                    self.link.state = LinkState::AwaitingGate;
                }
            }
            Timer::LinkConnect => match self.link.state {
                LinkState::BackingOff if self.gate.fresh_status().is_some() => self.link.connect(effects),
                LinkState::BackingOff => self.link.state = LinkState::AwaitingGate,
                LinkState::AwaitingGate | LinkState::Connecting | LinkState::Greeting | LinkState::Up => {}
            },
            Timer::LinkSetup => match self.link.state {
                LinkState::Connecting | LinkState::Greeting => {
                    self.drop_link("it did not answer in time", effects)
                }
                LinkState::AwaitingGate | LinkState::BackingOff | LinkState::Up => {}
            },
            Timer::Heartbeat => self.beat(effects),
            Timer::OrderWait => self.relay.be_impatient(),
            Timer::Denials => self.poll_denials(now, effects),
            Timer::Preview => self.previews.look_again(),
            Timer::Batch => self.executions.paced(self.link.is_up(), effects),
            Timer::Inventory => self.inventory.pause_ended(),
            Timer::Renewal => self.certificate.look(now, effects),
        }
    }

    fn beat(&mut self, effects: &mut Vec<Effect>) {
        if !self.link.is_up() {
            return;
        }
        if !self.link.beat(&mut self.random, effects) {
            return self.drop_link("it gives no sign of life", effects);
        }
        self.report_change();
        self.relay.send_receipts(effects);
        self.executions.send_in_flight(effects);
    }

    fn poll_denials(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.is_polling_denials = self.gate.status().is_some_and(|status| status.restricted);
        // The gate releases by itself and tells nobody. By its own clock, so it may not be then, but before the next
        // heartbeat, usually.
        let ends_at = self.gate.status().and_then(|status| status.ends_at);
        if self.is_polling_denials && ends_at.is_some_and(|ends_at| now.ticks() >= ends_at) {
            self.wants.status = true;
        }
        self.wants.denials = true;
        if self.is_polling_denials {
            effects.push(Effect::Arm(Timer::Denials, DENIALS_EVERY));
        }
    }
}

fn warn(text: String) -> Effect {
    Effect::Log(Level::Warn, text)
}

/// The text, cut at a character's border to what a frame bears.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}
