//! Orders: what the control plane tells one machine's gate to be.

use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::machine_action::MachineActionId;
use domain::restriction::{Desired, Fence};
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, VerifyError};
use crate::key::{SigningKey, TrustedKeys};

const PAYLOAD_TYPE: &str = "application/vnd.cordon.order.v1+json";

/// An order to one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The machine that is to obey.
    pub machine: MachineId,
    /// Admits the order once, and only before any later one.
    pub fence: Fence,
    /// The machine action that the order belongs to.
    pub action: MachineActionId,
    /// What the machine is to be.
    pub desired: Desired,
    /// Digest of the signed policy that applies when restricted.
    pub policy: Option<Sha256Digest>,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// After this the gate refuses to accept it.
    pub not_after: Timestamp,
    /// When the restriction ends by itself, without another order: later than `issued_at`. None when it lasts until the
    /// next order, and in an order that releases.
    pub ends_at: Option<Timestamp>,
}

/// The order inside an envelope that a trusted key signed for this machine, not expired when verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedOrder(Order);

impl Order {
    /// The longest order, in bytes.
    pub const BYTES_MAX: usize = 8 * 1024;

    /// Signs the order.
    pub fn sign(&self, key: &SigningKey) -> Envelope {
        let document = Document {
            machine: self.machine.to_string(),
            store_epoch: self.fence.store_epoch,
            incarnation: self.fence.incarnation,
            generation: self.fence.generation,
            action: self.action.0.to_string(),
            desired: match self.desired {
                Desired::Released => DesiredName::Released,
                Desired::Restricted => DesiredName::Restricted,
            },
            policy: self.policy.map(|digest| digest.to_string()),
            issued_at: self.issued_at.ticks(),
            not_after: self.not_after.ticks(),
            ends_at: self.ends_at.map(Timestamp::ticks),
        };
        Envelope::sign(PAYLOAD_TYPE, &serde_json::to_vec(&document).unwrap_or_default(), key)
    }
}

impl VerifiedOrder {
    /// Believes `bytes` when a trusted key signed them as an order to `machine` that is not expired at `now`.
    ///
    /// # Errors
    /// [`VerifyError`], which says what is wrong.
    pub fn verify(
        bytes: &[u8],
        keys: &TrustedKeys,
        machine: MachineId,
        now: Timestamp,
    ) -> Result<Self, VerifyError> {
        let verified = Self::verify_kept(bytes, keys, machine)?;
        if now > verified.0.not_after {
            return Err(VerifyError::Expired);
        }
        Ok(verified)
    }

    /// Like [`VerifiedOrder::verify`] for an order that the gate accepted in time and kept: it does not expire.
    ///
    /// # Errors
    /// [`VerifyError`], which says what is wrong.
    pub fn verify_kept(bytes: &[u8], keys: &TrustedKeys, machine: MachineId) -> Result<Self, VerifyError> {
        let order =
            Envelope::from_bytes(bytes, Order::BYTES_MAX)?.document(PAYLOAD_TYPE, keys, Document::read)?;
        if order.machine != machine {
            return Err(VerifyError::OtherMachine(order.machine));
        }
        Ok(Self(order))
    }

    /// The order.
    pub fn order(&self) -> &Order {
        &self.0
    }
}

/// The signed bytes. Unknown fields are refused: a field that this version does not know could change the meaning.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    machine: String,
    store_epoch: u64,
    incarnation: u64,
    generation: u64,
    action: String,
    desired: DesiredName,
    policy: Option<String>,
    issued_at: i64,
    not_after: i64,
    /// Absent, and not null, without an end: orders without one have the bytes that they had before there were ends.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    ends_at: Option<i64>,
}

/// A value that is there: null is refused, so that no two documents mean the same order.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    i64::deserialize(deserializer).map(Some)
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DesiredName {
    Released,
    Restricted,
}

impl DesiredName {
    pub(crate) fn desired(self) -> Desired {
        match self {
            Self::Released => Desired::Released,
            Self::Restricted => Desired::Restricted,
        }
    }
}

impl Document {
    fn read(self) -> Result<Order, String> {
        let policy = self.policy.map(|text| text.parse()).transpose().map_err(text_of)?;
        let desired = self.desired.desired();
        if desired == Desired::Restricted && policy.is_none() {
            return Err("a restriction without a policy".to_owned());
        }
        if desired == Desired::Released && self.ends_at.is_some() {
            return Err("a release that ends".to_owned());
        }
        if self.ends_at.is_some_and(|ends_at| ends_at <= self.issued_at) {
            return Err("a restriction that ends before it begins".to_owned());
        }
        Ok(Order {
            machine: self.machine.parse().map_err(text_of)?,
            fence: Fence {
                store_epoch: self.store_epoch,
                incarnation: self.incarnation,
                generation: self.generation,
            },
            action: MachineActionId(self.action.parse().map_err(text_of)?),
            desired,
            policy,
            issued_at: Timestamp::from_ticks(self.issued_at),
            not_after: Timestamp::from_ticks(self.not_after),
            ends_at: self.ends_at.map(Timestamp::from_ticks),
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
pub(crate) fn text_of(error: impl ToString) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;

    use super::*;

    fn order() -> Order {
        Order {
            machine: MachineId([3; 20]),
            fence: Fence { store_epoch: 1, incarnation: 2, generation: 7 },
            action: MachineActionId(uuid::Uuid::from_u128(9)),
            desired: Desired::Restricted,
            policy: Some(Sha256Digest([5; 32])),
            issued_at: Timestamp::from_unix_seconds(100),
            not_after: Timestamp::from_unix_seconds(200),
            ends_at: None,
        }
    }

    fn verify(order: &Order, machine: MachineId, now: i64) -> Result<VerifiedOrder, VerifyError> {
        let key = SigningKey::from_seed(&[1; 32]);
        let keys = TrustedKeys::new([key.public_key()]);
        VerifiedOrder::verify(&order.sign(&key).to_bytes(), &keys, machine, Timestamp::from_unix_seconds(now))
    }

    #[test]
    fn a_signed_order_reads_back() {
        assert_eq!(verify(&order(), MachineId([3; 20]), 150).unwrap().order(), &order());
    }

    #[test]
    fn another_machines_order_is_refused() {
        let refused = verify(&order(), MachineId([4; 20]), 150);
        assert_eq!(refused, Err(VerifyError::OtherMachine(MachineId([3; 20]))));
    }

    #[test]
    fn an_expired_order_is_refused() {
        assert!(verify(&order(), MachineId([3; 20]), 200).is_ok());
        assert_eq!(verify(&order(), MachineId([3; 20]), 201), Err(VerifyError::Expired));
    }

    #[test]
    fn a_policy_or_receipt_is_no_order() {
        let key = SigningKey::from_seed(&[1; 32]);
        let keys = TrustedKeys::new([key.public_key()]);
        let policy = domain::allow_policy::AllowPolicy {
            name: "p".to_owned(),
            revision: 1,
            profile: domain::allow_policy::Profile::OsOnly,
            settings: domain::policy_settings::PolicySettings::default(),
            rules: Vec::new(),
        };
        let policy = crate::sign_policy(&policy, &key).to_bytes();
        let refused = VerifiedOrder::verify_kept(&policy, &keys, MachineId([3; 20]));
        assert!(matches!(refused, Err(VerifyError::OtherType { .. })), "{refused:?}");
        let refused = crate::VerifiedPolicy::verify(&order().sign(&key).to_bytes(), &keys);
        assert!(matches!(refused, Err(VerifyError::OtherType { .. })), "{refused:?}");
    }

    #[test]
    fn every_trusted_key_counts_and_no_other() {
        let keys: Vec<_> = (1..=3).map(|seed| SigningKey::from_seed(&[seed; 32])).collect();
        let trusted = TrustedKeys::new(keys.iter().take(2).map(SigningKey::public_key));
        let verified = keys.iter().map(|key| {
            VerifiedOrder::verify_kept(&order().sign(key).to_bytes(), &trusted, MachineId([3; 20])).is_ok()
        });
        assert_eq!(verified.collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn what_is_signed_is_read_strictly() {
        let key = SigningKey::from_seed(&[1; 32]);
        let keys = TrustedKeys::new([key.public_key()]);
        let good = format!(
            r#"{{"machine":"{}","store_epoch":1,"incarnation":2,"generation":7,"action":"{}","desired":"released","issued_at":1,"not_after":2}}"#,
            MachineId([3; 20]),
            uuid::Uuid::from_u128(9)
        );
        let verify = |payload: &str| {
            let bytes = Envelope::sign(PAYLOAD_TYPE, payload.as_bytes(), &key).to_bytes();
            VerifiedOrder::verify_kept(&bytes, &keys, MachineId([3; 20]))
        };
        assert!(verify(&good).is_ok());
        for (from, to) in [
            (r#""generation":7"#, r#""generation":7,"generation":8"#),
            (r#""generation":7"#, r#""generation":7,"unless":"tuesday""#),
            (r#""generation":7"#, r#""generation":-7"#),
            (r#""generation":7,"#, ""),
            ("released", "freed"),
            (r#""not_after":2"#, r#""not_after":2,"ends_at":null"#),
            (r#""not_after":2"#, r#""not_after":2,"ends_at":3"#),
        ] {
            let refused = verify(&good.replace(from, to));
            assert!(matches!(refused, Err(VerifyError::Unreadable(_))), "{to}: {refused:?}");
        }
    }

    #[test]
    fn a_restriction_without_policy_is_refused() {
        let refused = verify(&Order { policy: None, ..order() }, MachineId([3; 20]), 150);
        assert!(matches!(refused, Err(VerifyError::Unreadable(_))));
    }

    #[test]
    fn an_end_is_for_restrictions_and_after_their_beginning() {
        let ending = |seconds| Order { ends_at: Some(Timestamp::from_unix_seconds(seconds)), ..order() };
        assert_eq!(verify(&ending(101), MachineId([3; 20]), 150).unwrap().order(), &ending(101));
        let release = Order { desired: Desired::Released, policy: None, ..ending(300) };
        for bad in [ending(100), ending(99), ending(i64::MIN), release] {
            let refused = verify(&bad, MachineId([3; 20]), 150);
            assert!(matches!(refused, Err(VerifyError::Unreadable(_))), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn an_order_without_an_end_has_the_bytes_that_it_always_had() {
        let payload = |order: &Order| {
            let bytes = order.sign(&SigningKey::from_seed(&[1; 32])).to_bytes();
            let envelope: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            let payload = envelope["payload"].as_str().unwrap();
            String::from_utf8(base64::engine::general_purpose::STANDARD.decode(payload).unwrap()).unwrap()
        };
        let old = format!(
            r#"{{"machine":"{}","store_epoch":1,"incarnation":2,"generation":7,"action":"{}","desired":"restricted","policy":"{}","issued_at":1000000000,"not_after":2000000000}}"#,
            MachineId([3; 20]),
            uuid::Uuid::from_u128(9),
            Sha256Digest([5; 32])
        );
        assert_eq!(payload(&order()), old);
        let ending = Order { ends_at: Some(Timestamp::from_unix_seconds(300)), ..order() };
        assert_eq!(payload(&ending), old.replace('}', r#","ends_at":3000000000}"#));
    }

    fn any_order() -> impl Strategy<Value = Order> {
        let fence = any::<(u64, u64, u64)>().prop_map(|(store_epoch, incarnation, generation)| Fence {
            store_epoch,
            incarnation,
            generation,
        });
        let policy = proptest::option::weighted(0.8, any::<[u8; 32]>());
        let times = (-3..3_i64, any::<i64>(), proptest::option::of(prop_oneof![-3..4_i64, any::<i64>()]));
        (any::<[u8; 20]>(), fence, any::<u128>(), any::<bool>(), policy, times).prop_map(
            |(machine, fence, action, is_restricted, policy, (issued_at, not_after, ends_at))| Order {
                machine: MachineId(machine),
                fence,
                action: MachineActionId(uuid::Uuid::from_u128(action)),
                desired: if is_restricted { Desired::Restricted } else { Desired::Released },
                policy: policy.map(Sha256Digest),
                issued_at: Timestamp::from_ticks(issued_at),
                not_after: Timestamp::from_ticks(not_after),
                ends_at: ends_at.map(Timestamp::from_ticks),
            },
        )
    }

    proptest! {
        /// An order is believed when it makes sense, and then reads back as what was signed.
        #[test]
        fn what_makes_sense_reads_back_and_nothing_else(order in any_order()) {
            let is_restricted = order.desired == Desired::Restricted;
            let makes_sense = (!is_restricted || order.policy.is_some())
                && order.ends_at.is_none_or(|ends_at| is_restricted && ends_at > order.issued_at);
            let key = SigningKey::from_seed(&[1; 32]);
            let keys = TrustedKeys::new([key.public_key()]);
            let verified = VerifiedOrder::verify_kept(&order.sign(&key).to_bytes(), &keys, order.machine);
            match verified {
                Ok(verified) => {
                    prop_assert!(makes_sense);
                    prop_assert_eq!(verified.order(), &order);
                }
                Err(VerifyError::Unreadable(_)) => prop_assert!(!makes_sense),
                Err(other) => return Err(TestCaseError::fail(other.to_string())),
            }
        }
    }

    #[test]
    fn an_oversized_order_is_refused_before_it_is_read() {
        let keys = TrustedKeys::new([]);
        let bytes = vec![b'['; Order::BYTES_MAX + 1];
        let refused = VerifiedOrder::verify(&bytes, &keys, MachineId([3; 20]), Timestamp::default());
        assert!(matches!(refused, Err(VerifyError::TooLarge { .. })));
    }
}
