//! Policies and orders on their way to the gate, receipts on their way to the server.
//!
//! One policy, one order, one statement of break-glass codes and a few receipts are held, never more: of several orders
//! and statements only the newest counts.

use std::collections::{BTreeSet, VecDeque};

use agent_protocol::FromAgent;
use domain::digest::Sha256Digest;
use domain::restriction::{Desired, Fence};
use gate_protocol::Status;
use orders::{Envelope, VerifiedOrder, VerifiedPolicy};

use crate::effect::{Effect, Level};

/// How many receipts are held for the server; the oldest goes first. Each belongs to an order that was obeyed.
const RECEIPTS_MAX: usize = 16;

/// An order that a trusted key signed for this machine. Whether it may be obeyed is the gate's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingOrder {
    pub(crate) envelope: String,
    pub(crate) fence: Fence,
    desired: Desired,
    policy: Option<Sha256Digest>,
}

#[derive(Debug, Default)]
pub(crate) struct Relay {
    /// Until the gate keeps or refuses it, so that a gate that goes away in between gets it again.
    policy: Option<String>,
    order: Option<PendingOrder>,
    /// The order that the gate is carrying out.
    at_gate: Option<PendingOrder>,
    /// The order does not wait any longer.
    is_impatient: bool,
    receipts: VecDeque<(u64, String)>,
    /// Policies that the gate holds.
    held: BTreeSet<Sha256Digest>,
    /// The statement of break-glass codes that the gate is to keep. Whether it counts is the gate's business.
    break_glass: Option<String>,
}

impl PendingOrder {
    pub(crate) fn new(envelope: String, order: &VerifiedOrder) -> Self {
        let order = order.order();
        Self { envelope, fence: order.fence, desired: order.desired, policy: order.policy }
    }

    /// Of two orders the one with the greater rank counts.
    fn rank(&self) -> (u64, u64) {
        (self.fence.store_epoch, self.fence.generation)
    }
}

impl Relay {
    /// Whether another policy can be held.
    pub(crate) fn has_room(&self) -> bool {
        self.policy.is_none()
    }

    pub(crate) fn take_up_policy(&mut self, envelope: String) {
        self.policy = Some(envelope);
    }

    /// Holds the order unless a newer one, or this one, is on its way already. Answers whether it is held.
    pub(crate) fn take_up_order(&mut self, order: PendingOrder) -> bool {
        let is_newest =
            [&self.order, &self.at_gate].into_iter().flatten().all(|other| order.rank() > other.rank());
        if is_newest {
            self.order = Some(order);
            self.is_impatient = false;
        }
        is_newest
    }

    pub(crate) fn be_impatient(&mut self) {
        self.is_impatient = true;
    }

    /// The generation of an order that waits for what it needs.
    pub(crate) fn waiting(&self, status: &Status, is_baseline_underway: bool) -> Option<u64> {
        let order = self.order.as_ref()?;
        (!self.is_ready(order, status, is_baseline_underway)).then_some(order.fence.generation)
    }

    /// A restriction without the policy would be refused by the gate, and one without the packages would refuse
    /// the login shell.
    fn is_ready(&self, order: &PendingOrder, status: &Status, is_baseline_underway: bool) -> bool {
        let needs_policy = order.policy.is_some_and(|policy| !self.held.contains(&policy));
        let needs_baseline = is_baseline_underway && !status.restricted;
        self.is_impatient || order.desired == Desired::Released || !(needs_policy || needs_baseline)
    }

    /// The policy to store next: the same one until the gate is done with it.
    pub(crate) fn next_policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// The order to carry out next.
    pub(crate) fn next_order(&mut self, status: &Status, is_baseline_underway: bool) -> Option<PendingOrder> {
        let order = self.order.take()?;
        if self.is_ready(&order, status, is_baseline_underway) {
            self.at_gate = Some(order.clone());
            return Some(order);
        }
        self.order = Some(order);
        None
    }

    pub(crate) fn take_up_break_glass(&mut self, envelope: String) {
        self.break_glass = Some(envelope);
    }

    /// The statement of break-glass codes to store next: the same one until the gate is done with it. An older gate
    /// would not understand it.
    pub(crate) fn next_break_glass(&self, status: &Status) -> Option<&str> {
        self.break_glass.as_deref().filter(|_| status.break_glass.is_some())
    }

    /// The gate is done with the statement, in whatever way. The next connection to the server brings it again.
    pub(crate) fn break_glass_ended(&mut self) {
        self.break_glass = None;
    }

    /// The gate keeps the policy.
    pub(crate) fn policy_stored(&mut self) {
        let Some(envelope) = self.policy.take() else { return };
        let digest = Envelope::from_bytes(envelope.as_bytes(), VerifiedPolicy::BYTES_MAX)
            .and_then(|envelope| envelope.payload_digest());
        if let Ok(digest) = digest {
            self.held.insert(digest);
        }
    }

    /// The gate does not keep the policy. The next connection to the server brings it again.
    pub(crate) fn policy_refused(&mut self) {
        self.policy = None;
    }

    /// The gate said which policies it holds.
    pub(crate) fn policies_held(&mut self, status: &Status) {
        self.held = status.policies.iter().filter_map(|text| text.parse().ok()).collect();
    }

    /// The gate is done with the order, in whatever way.
    pub(crate) fn order_ended(&mut self) {
        self.at_gate = None;
    }

    /// The gate went away: the order counts as not carried out, unless a newer one is there. Answers whether it is held
    /// again, and may have to wait again.
    pub(crate) fn gate_lost(&mut self) -> bool {
        self.at_gate.take().is_some_and(|order| self.take_up_order(order))
    }

    /// Keeps a receipt until the server has it.
    pub(crate) fn take_up_receipt(&mut self, generation: u64, envelope: String, effects: &mut Vec<Effect>) {
        self.receipts.retain(|(known, _)| *known != generation);
        if self.receipts.len() >= RECEIPTS_MAX
            && let Some((lost, _)) = self.receipts.pop_front()
        {
            let text = format!("the server never took the receipt of generation {lost}; it is given up");
            effects.push(Effect::Log(Level::Warn, text));
        }
        self.receipts.push_back((generation, envelope));
    }

    pub(crate) fn receipt_stored(&mut self, generation: u64) {
        self.receipts.retain(|(known, _)| *known != generation);
    }

    pub(crate) fn receipts(&self) -> usize {
        self.receipts.len()
    }

    /// Sends every receipt that the server has not acknowledged.
    pub(crate) fn send_receipts(&self, effects: &mut Vec<Effect>) {
        for (_, envelope) in &self.receipts {
            effects.push(Effect::Send(Box::new(FromAgent::Receipt { envelope: envelope.clone() })));
        }
    }
}
