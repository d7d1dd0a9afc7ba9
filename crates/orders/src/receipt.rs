//! Receipts: a gate's signed answer to an order.

use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::machine_action::MachineActionId;
use domain::restriction::{CanaryOutcome, Desired, Fence, MappingProbe, Probe, Tier};
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, VerifyError};
use crate::key::{PublicKey, SigningKey, TrustedKeys};
use crate::order::{DesiredName, text_of};

const PAYLOAD_TYPE: &str = "application/vnd.cordon.receipt.v1+json";
/// The longest reason and boot id, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// A gate's answer to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The machine that answers.
    pub machine: MachineId,
    /// The order's fence.
    pub fence: Fence,
    /// The order's machine action.
    pub action: MachineActionId,
    /// What the order asked for.
    pub desired: Desired,
    /// What came of it.
    pub outcome: Outcome,
    /// What the canaries did; none when nothing was switched.
    pub probe: Option<Probe>,
    /// The mechanism that enforces.
    pub tier: Tier,
    /// The policy in force.
    pub policy: Option<Sha256Digest>,
    /// SHA-256 of the package baseline in force.
    pub baseline: Option<Sha256Digest>,
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// When it was signed, by the machine's clock.
    pub issued_at: Timestamp,
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The machine is what it should be, and the canaries prove it.
    Enforced,
    /// The gate would not accept the order, for this reason.
    Rejected(String),
    /// The gate could not switch, for this reason.
    ApplyFailed(String),
    /// The gate switched, but the canaries do not prove it.
    ProbeFailed(String),
}

/// A receipt that this machine's own gate signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedReceipt(Receipt);

impl Receipt {
    /// The longest receipt, in bytes.
    pub const BYTES_MAX: usize = 8 * 1024;

    /// Signs the receipt with the gate's key.
    pub fn sign(&self, key: &SigningKey) -> Envelope {
        let (outcome, reason) = match &self.outcome {
            Outcome::Enforced => (OutcomeName::Enforced, None),
            Outcome::Rejected(reason) => (OutcomeName::Rejected, Some(reason)),
            Outcome::ApplyFailed(reason) => (OutcomeName::ApplyFailed, Some(reason)),
            Outcome::ProbeFailed(reason) => (OutcomeName::ProbeFailed, Some(reason)),
        };
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
            outcome,
            reason: reason.map(|text| capped(text)),
            probe: self.probe.map(|probe| ProbeDocument {
                unlisted: CanaryName::of(probe.unlisted),
                listed: CanaryName::of(probe.listed),
                mappings: probe.mappings.map(|found| MappingDocument {
                    mapping: CanaryName::of(found.mapping),
                    protection: CanaryName::of(found.protection),
                    memory_file: CanaryName::of(found.memory_file),
                }),
            }),
            tier: self.tier.name().to_owned(),
            policy: self.policy.map(|digest| digest.to_string()),
            baseline: self.baseline.map(|digest| digest.to_string()),
            boot_id: capped(&self.boot_id),
            issued_at: self.issued_at.ticks(),
        };
        Envelope::sign(PAYLOAD_TYPE, &serde_json::to_vec(&document).unwrap_or_default(), key)
    }
}

impl VerifiedReceipt {
    /// Believes `bytes` when `gate`, the key enrolled for `machine`, signed them as that machine's receipt.
    ///
    /// A receipt that says [`Outcome::Enforced`] without canaries that prove it is not believed either.
    ///
    /// # Errors
    /// [`VerifyError`], which says what is wrong.
    pub fn verify(bytes: &[u8], gate: PublicKey, machine: MachineId) -> Result<Self, VerifyError> {
        let receipt = Envelope::from_bytes(bytes, Receipt::BYTES_MAX)?.document(
            PAYLOAD_TYPE,
            &TrustedKeys::new([gate]),
            Document::read,
        )?;
        if receipt.machine != machine {
            return Err(VerifyError::OtherMachine(receipt.machine));
        }
        let proved = receipt.probe.is_some_and(|probe| probe.proves(receipt.desired, receipt.tier));
        if receipt.outcome == Outcome::Enforced && !proved {
            return Err(VerifyError::Unreadable("enforced, but the canaries do not prove it".to_owned()));
        }
        Ok(Self(receipt))
    }

    /// The receipt.
    pub fn receipt(&self) -> &Receipt {
        &self.0
    }
}

/// The signed bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    machine: String,
    store_epoch: u64,
    incarnation: u64,
    generation: u64,
    action: String,
    desired: DesiredName,
    outcome: OutcomeName,
    reason: Option<String>,
    probe: Option<ProbeDocument>,
    tier: String,
    policy: Option<String>,
    baseline: Option<String>,
    boot_id: String,
    issued_at: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutcomeName {
    Enforced,
    Rejected,
    ApplyFailed,
    ProbeFailed,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeDocument {
    unlisted: CanaryName,
    listed: CanaryName,
    #[serde(skip_serializing_if = "Option::is_none")]
    mappings: Option<MappingDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MappingDocument {
    mapping: CanaryName,
    protection: CanaryName,
    memory_file: CanaryName,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CanaryName {
    Ran,
    Refused,
    Failed,
}

impl CanaryName {
    fn of(outcome: CanaryOutcome) -> Self {
        match outcome {
            CanaryOutcome::Ran => Self::Ran,
            CanaryOutcome::Refused => Self::Refused,
            CanaryOutcome::Failed => Self::Failed,
        }
    }

    fn read(self) -> CanaryOutcome {
        match self {
            Self::Ran => CanaryOutcome::Ran,
            Self::Refused => CanaryOutcome::Refused,
            Self::Failed => CanaryOutcome::Failed,
        }
    }
}

impl Document {
    fn read(self) -> Result<Receipt, String> {
        let reason = self.reason.as_deref().map(capped).unwrap_or_default();
        Ok(Receipt {
            machine: self.machine.parse().map_err(text_of)?,
            fence: Fence {
                store_epoch: self.store_epoch,
                incarnation: self.incarnation,
                generation: self.generation,
            },
            action: MachineActionId(self.action.parse().map_err(text_of)?),
            desired: self.desired.desired(),
            outcome: match self.outcome {
                OutcomeName::Enforced => Outcome::Enforced,
                OutcomeName::Rejected => Outcome::Rejected(reason),
                OutcomeName::ApplyFailed => Outcome::ApplyFailed(reason),
                OutcomeName::ProbeFailed => Outcome::ProbeFailed(reason),
            },
            probe: self.probe.map(|probe| Probe {
                unlisted: probe.unlisted.read(),
                listed: probe.listed.read(),
                mappings: probe.mappings.map(|found| MappingProbe {
                    mapping: found.mapping.read(),
                    protection: found.protection.read(),
                    memory_file: found.memory_file.read(),
                }),
            }),
            tier: Tier::from_name(&self.tier)
                .ok_or_else(|| format!("unknown tier {:?}", capped(&self.tier)))?,
            policy: self.policy.map(|text| text.parse()).transpose().map_err(text_of)?,
            baseline: self.baseline.map(|text| text.parse()).transpose().map_err(text_of)?,
            boot_id: capped(&self.boot_id),
            issued_at: Timestamp::from_ticks(self.issued_at),
        })
    }
}

/// The text cut to what the record keeps, at a character's border.
fn capped(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(probe: Option<Probe>) -> Receipt {
        Receipt {
            machine: MachineId([3; 20]),
            fence: Fence { store_epoch: 1, incarnation: 2, generation: 7 },
            action: MachineActionId(uuid::Uuid::from_u128(9)),
            desired: Desired::Restricted,
            outcome: Outcome::Enforced,
            probe,
            tier: Tier::Fanotify,
            policy: Some(Sha256Digest([5; 32])),
            baseline: None,
            boot_id: "b".to_owned(),
            issued_at: Timestamp::from_unix_seconds(100),
        }
    }

    #[test]
    fn success_needs_a_proof() {
        let key = SigningKey::from_seed(&[1; 32]);
        let verify = |probe| {
            let bytes = receipt(probe).sign(&key).to_bytes();
            VerifiedReceipt::verify(&bytes, key.public_key(), MachineId([3; 20]))
        };
        let proof = Probe { unlisted: CanaryOutcome::Refused, listed: CanaryOutcome::Ran, mappings: None };
        assert_eq!(verify(Some(proof)).unwrap().receipt(), &receipt(Some(proof)));
        assert!(verify(None).is_err());
        for (unlisted, listed) in [
            (CanaryOutcome::Ran, CanaryOutcome::Ran),
            (CanaryOutcome::Refused, CanaryOutcome::Refused),
            (CanaryOutcome::Failed, CanaryOutcome::Ran),
        ] {
            assert!(verify(Some(Probe { unlisted, listed, mappings: None })).is_err());
        }
    }

    #[test]
    fn a_tier_that_sees_mappings_proves_that_it_does() {
        let key = SigningKey::from_seed(&[1; 32]);
        let all = |outcome| MappingProbe { mapping: outcome, protection: outcome, memory_file: outcome };
        let verify = |mappings| {
            let probe = Probe { unlisted: CanaryOutcome::Refused, listed: CanaryOutcome::Ran, mappings };
            let receipt = Receipt { tier: Tier::BpfLsm, ..receipt(Some(probe)) };
            let verified =
                VerifiedReceipt::verify(&receipt.sign(&key).to_bytes(), key.public_key(), receipt.machine);
            verified.is_ok_and(|verified| *verified.receipt() == receipt)
        };
        let refused = all(CanaryOutcome::Refused);
        assert!(verify(Some(refused)));
        assert!(!verify(None) && !verify(Some(all(CanaryOutcome::Ran))));
        assert!(!verify(Some(MappingProbe { memory_file: CanaryOutcome::Ran, ..refused })));
    }

    #[test]
    fn another_gates_receipt_is_refused() {
        let bytes = receipt(None).sign(&SigningKey::from_seed(&[1; 32])).to_bytes();
        let other = SigningKey::from_seed(&[2; 32]).public_key();
        assert_eq!(VerifiedReceipt::verify(&bytes, other, MachineId([3; 20])), Err(VerifyError::Untrusted));
    }
}
