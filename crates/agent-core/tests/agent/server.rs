//! A server that keeps to the protocol: one machine, its current order, and what the machine sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agent_protocol::{FromAgent, FromServer, Limited as _, PROTOCOL_VERSION, RestrictionReport, Welcome};
use domain::allow_policy::{AllowPolicy, Profile};
use domain::digest::Sha256Digest;
use domain::machine_action::MachineActionId;
use domain::policy_settings::PolicySettings;
use domain::restriction::{Desired, Fence};
use domain::time::Timestamp;
use orders::{Envelope, Order, Outcome, VerifiedReceipt, sign_policy};
use uuid::Uuid;

use crate::gate::Gate;
use crate::{MACHINE, order_key};

pub(crate) struct Server {
    pub(crate) generation: u64,
    pub(crate) desired: Desired,
    order: Option<String>,
    policies: Vec<(Sha256Digest, String)>,
    /// The outcome of each generation that a receipt came for; the first one that says enforced stays.
    pub(crate) outcomes: BTreeMap<u64, Outcome>,
    pub(crate) events: BTreeSet<String>,
    pub(crate) dropped: BTreeMap<(u64, u64), u64>,
    pub(crate) reported: Option<RestrictionReport>,
}

impl Server {
    pub(crate) fn new() -> Self {
        let mut server = Self {
            generation: 0,
            desired: Desired::Released,
            order: None,
            policies: Vec::new(),
            outcomes: BTreeMap::new(),
            events: BTreeSet::new(),
            dropped: BTreeMap::new(),
            reported: None,
        };
        server.make_policy();
        server
    }

    /// A new revision of the policy; the frame that tells connected machines.
    pub(crate) fn make_policy(&mut self) -> FromServer {
        let policy = AllowPolicy {
            name: "default".to_owned(),
            revision: self.policies.len() as u64 + 1,
            profile: Profile::OsAndApproved,
            settings: PolicySettings::default(),
            rules: Vec::new(),
        };
        let envelope = sign_policy(&policy, &order_key());
        let text = text_of(&envelope);
        self.policies.push((envelope.payload_digest().unwrap(), text.clone()));
        FromServer::Policy { envelope: text }
    }

    /// Another order; the frame that tells a connected machine.
    pub(crate) fn make_order(&mut self, desired: Desired) -> FromServer {
        self.generation += 1;
        self.desired = desired;
        let envelope = order(self.generation, desired, self.policies.last().map(|(digest, _)| *digest));
        self.order = Some(envelope.clone());
        FromServer::Order { envelope }
    }

    /// What it answers to a frame of connection `connection`.
    pub(crate) fn take(&mut self, frame: FromAgent, connection: u64) -> Vec<FromServer> {
        frame.check().unwrap();
        match frame {
            FromAgent::Hello(hello) => {
                let mut frames = vec![FromServer::Welcome(Welcome {
                    protocol: PROTOCOL_VERSION,
                    now: 0,
                    heartbeat_seconds: 60,
                    reconnect_seconds_max: 30,
                })];
                let missing = |digest: &Sha256Digest| !hello.policies.contains(&digest.to_string());
                let missing = self.policies.iter().rev().take(8).rev().filter(|(digest, _)| missing(digest));
                frames.extend(missing.map(|(_, envelope)| FromServer::Policy { envelope: envelope.clone() }));
                frames.extend(self.current_order(&hello.restriction));
                frames
            }
            FromAgent::Heartbeat(heartbeat) => self.current_order(&heartbeat.restriction),
            FromAgent::Receipt { envelope } => {
                let receipt =
                    VerifiedReceipt::verify(envelope.as_bytes(), Gate::public_key(), MACHINE).unwrap();
                let Fence { generation, .. } = receipt.receipt().fence;
                let known = self.outcomes.entry(generation).or_insert(receipt.receipt().outcome.clone());
                if *known != Outcome::Enforced {
                    *known = receipt.receipt().outcome.clone();
                }
                vec![FromServer::ReceiptStored { generation }]
            }
            FromAgent::Executions { batch, events, dropped } => {
                self.events.extend(events.into_iter().map(|event| event.path));
                self.dropped.insert((connection, batch), dropped);
                vec![FromServer::ExecutionsStored { batch }]
            }
            FromAgent::Accepted { .. } | FromAgent::Inventory(_) | FromAgent::Preview(_) => Vec::new(),
        }
    }

    fn current_order(&mut self, reported: &RestrictionReport) -> Vec<FromServer> {
        self.reported = Some(reported.clone());
        let order = self.order.clone().filter(|_| reported.generation < self.generation);
        order.map(|envelope| FromServer::Order { envelope }).into_iter().collect()
    }
}

/// A signed order of this generation.
pub(crate) fn order(generation: u64, desired: Desired, policy: Option<Sha256Digest>) -> String {
    let order = Order {
        machine: MACHINE,
        fence: Fence { store_epoch: 1, incarnation: 1, generation },
        action: MachineActionId(Uuid::from_u128(generation.into())),
        desired,
        policy,
        issued_at: Timestamp::default(),
        not_after: Timestamp::default().plus(Duration::from_secs(1 << 40)),
        ends_at: None,
    };
    text_of(&order.sign(&order_key()))
}

fn text_of(envelope: &Envelope) -> String {
    String::from_utf8(envelope.to_bytes()).unwrap()
}
