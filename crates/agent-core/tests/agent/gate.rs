//! A gate that does what the real one does with orders, without a kernel: a real fence, real signatures, a disk that
//! outlives it.

use std::collections::BTreeMap;

use domain::digest::Sha256Digest;
use domain::restriction::{CanaryOutcome, Desired, Fence, Probe, Tier};
use domain::time::Timestamp;
use gate_protocol::{BreakGlassStatus, DENIALS_MAX, Denial, Reply, Request, Status};
use orders::{Order, Outcome, PublicKey, Receipt, SigningKey, VerifiedOrder, VerifiedPolicy};

use crate::{MACHINE, identity};

/// How far a request comes before the gate is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// The request was never read.
    Before,
    /// The order is durable, and nothing else.
    AfterFence,
    /// Everything is done, and no answer was written.
    BeforeAnswer,
}

pub(crate) struct Gate {
    // What is on the disk.
    fence: Fence,
    order: Option<(String, Order)>,
    receipt: Option<String>,
    policies: BTreeMap<Sha256Digest, String>,
    pub(crate) baseline: Option<String>,
    pub(crate) break_glass: Option<BreakGlassStatus>,
    // What is lost when it is killed.
    denials: Vec<Denial>,
    dropped: u64,
    // What the test looks at.
    pub(crate) restricted: bool,
    pub(crate) applied: Vec<(u64, Desired)>,
    pub(crate) lost: u64,
    pub(crate) rejected: Vec<String>,
    pub(crate) now: Timestamp,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            fence: Fence { store_epoch: 0, incarnation: 1, generation: 0 },
            order: None,
            receipt: None,
            policies: BTreeMap::new(),
            baseline: None,
            break_glass: None,
            denials: Vec::new(),
            dropped: 0,
            restricted: false,
            applied: Vec::new(),
            lost: 0,
            rejected: Vec::new(),
            now: Timestamp::default(),
        }
    }

    fn key() -> SigningKey {
        SigningKey::from_seed(&[2; 32])
    }

    pub(crate) fn public_key() -> PublicKey {
        Self::key().public_key()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.fence.generation
    }

    /// Killed and started again: what is on the disk counts, denials that nobody fetched are gone.
    pub(crate) fn restart(&mut self) {
        self.lost += self.denials.drain(..).map(|denial| denial.count).sum::<u64>();
        self.lost += std::mem::take(&mut self.dropped);
        self.restricted = self.order.as_ref().is_some_and(|(_, order)| order.desired == Desired::Restricted);
        if let Some((_, order)) = self.order.clone()
            && self.receipt.is_none()
        {
            self.carry_out(&order);
        }
    }

    pub(crate) fn deny(&mut self, path: String) {
        if !self.restricted {
            return;
        }
        if self.denials.len() >= 1000 {
            self.dropped += 1;
            return;
        }
        self.denials.push(Denial {
            at: self.now.ticks(),
            path,
            cause: "unlisted".to_owned(),
            hook: "execute".to_owned(),
            count: 1,
            ..Denial::default()
        });
    }

    /// Answers one request; none of it when it dies on the way.
    pub(crate) fn answer(&mut self, request: Request, death: Option<Death>) -> Vec<Reply> {
        if death == Some(Death::Before) {
            return Vec::new();
        }
        let replies = match request {
            Request::Status => vec![Reply::Status(Box::new(self.status()))],
            Request::StorePolicy { envelope } => {
                match VerifiedPolicy::verify(envelope.as_bytes(), &identity().keys) {
                    Ok(policy) => {
                        self.policies.insert(policy.digest(), envelope);
                        vec![Reply::Done]
                    }
                    Err(error) => vec![Reply::Refused { reason: error.to_string() }],
                }
            }
            Request::Apply { envelope } => self.apply(&envelope, death),
            Request::LastReceipt => vec![match &self.receipt {
                Some(envelope) => Reply::Receipt { envelope: envelope.clone() },
                None => Reply::Refused { reason: "none".to_owned() },
            }],
            Request::Denials => {
                let count = self.denials.len().min(DENIALS_MAX);
                let denials: Vec<_> = self.denials.drain(..count).collect();
                if death.is_some() {
                    self.lost += denials.len() as u64;
                }
                vec![Reply::Denials { denials, dropped: self.dropped }]
            }
            other => panic!("the agent's core does not ask {other:?}"),
        };
        if death.is_some() { Vec::new() } else { replies }
    }

    fn apply(&mut self, envelope: &str, death: Option<Death>) -> Vec<Reply> {
        let order = VerifiedOrder::verify_kept(envelope.as_bytes(), &identity().keys, MACHINE).unwrap();
        let order = order.order().clone();
        let accepted = Reply::Accepted { generation: order.fence.generation };
        if self.order.as_ref().is_some_and(|(kept, _)| kept == envelope) {
            return match self.receipt.clone() {
                Some(envelope) => vec![Reply::Receipt { envelope }],
                None => vec![accepted, self.carry_out(&order)],
            };
        }
        let policy = order.policy.filter(|_| order.desired == Desired::Restricted);
        let refusal = match self.fence.admit(&order.fence) {
            Err(error) => Some(error.to_string()),
            Ok(()) if policy.is_some_and(|digest| !self.policies.contains_key(&digest)) => {
                Some("the policy is not held".to_owned())
            }
            Ok(()) => None,
        };
        if let Some(reason) = refusal {
            self.rejected.push(reason.clone());
            return vec![Self::receipt(&order, Outcome::Rejected(reason))];
        }
        self.fence = order.fence;
        self.order = Some((envelope.to_owned(), order.clone()));
        self.receipt = None;
        if death == Some(Death::AfterFence) {
            return Vec::new();
        }
        vec![accepted, self.carry_out(&order)]
    }

    fn carry_out(&mut self, order: &Order) -> Reply {
        self.restricted = order.desired == Desired::Restricted;
        self.applied.push((order.fence.generation, order.desired));
        let reply = Self::receipt(order, Outcome::Enforced);
        if let Reply::Receipt { envelope } = &reply {
            self.receipt = Some(envelope.clone());
        }
        reply
    }

    fn receipt(order: &Order, outcome: Outcome) -> Reply {
        let unlisted = match order.desired {
            Desired::Restricted => CanaryOutcome::Refused,
            Desired::Released => CanaryOutcome::Ran,
        };
        let receipt = Receipt {
            machine: MACHINE,
            fence: order.fence,
            action: order.action,
            desired: order.desired,
            probe: (outcome == Outcome::Enforced).then_some(Probe {
                unlisted,
                listed: CanaryOutcome::Ran,
                mappings: None,
            }),
            outcome,
            tier: Tier::Fanotify,
            policy: order.policy,
            baseline: None,
            boot_id: String::new(),
            issued_at: Timestamp::default(),
        };
        Reply::Receipt { envelope: String::from_utf8(receipt.sign(&Self::key()).to_bytes()).unwrap() }
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            version: String::new(),
            public_key: Self::public_key().to_string(),
            machine: Some(MACHINE.to_string()),
            incarnation: self.fence.incarnation,
            store_epoch: self.fence.store_epoch,
            generation: self.fence.generation,
            restricted: self.restricted,
            ends_at: None,
            failed_closed: None,
            tier: Some("fanotify".to_owned()),
            tier_note: String::new(),
            policies: self.policies.keys().map(ToString::to_string).collect(),
            policy: None,
            baseline: self.baseline.clone(),
            baseline_files: 0,
            break_glass: self.break_glass.clone(),
            marks: 0,
            labels: 0,
            asked: 0,
            denied: 0,
            denials_dropped: 0,
        }
    }
}
