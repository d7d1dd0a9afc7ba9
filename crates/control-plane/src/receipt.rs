//! Receipts: the only way to `Succeeded`.

use domain::machine::{Machine, MachineId};
use domain::machine_action::{MachineAction, Phase};
use domain::restriction::{Desired, Reported};
use orders::{Outcome, PublicKey, Receipt, VerifiedReceipt};
use store::Tx;
use store::machine::{machine_gate_key, machine_reported};
use store::machine_action::{machine_action_fetch, machine_action_move, machine_action_receipt_keep};

use crate::machine_action::withdraw;
use crate::{ControlPlane, Error, Result, audit, machine, now};

impl ControlPlane {
    /// Believes a receipt when the machine's own gate signed it, and moves its action. One that comes too late, for an
    /// action that is final or of an earlier enrollment, moves nothing: what the machine is, its reports show. The
    /// receipt's generation, which the machine need not send again.
    ///
    /// # Errors
    /// [`Error::MachineMisbehaves`] when it is not to be believed, [`Error::NotFound`]; from the store.
    pub async fn receipt_accept(&self, id: MachineId, envelope: &str) -> Result<u64> {
        let envelope = envelope.to_owned();
        let (generation, action) = self
            .0
            .store
            .write(move |tx| {
                let gate_key_text = machine_gate_key(tx, id)?
                    .ok_or_else(|| Error::NotFound { entity: "Machine", id: id.to_string() })?;
                let gate_key: PublicKey = gate_key_text.parse().map_err(|error: orders::ParseKeyError| {
                    Error::Internal(store::StoreError::Damaged(format!("gate key of {id}: {error}")))
                })?;
                let verified = VerifiedReceipt::verify(envelope.as_bytes(), gate_key, id)?;
                let receipt = verified.receipt();
                let machine = machine::known(tx, id)?;
                if let Some(action) = machine_action_fetch(tx, receipt.action)?
                    && action.machine == id
                    && receipt.fence == action.fence
                    && receipt.fence.incarnation == machine.incarnation
                    && receipt.desired == action.kind.desired()
                {
                    settle(tx, &machine, &action, receipt, (&envelope, &gate_key_text))?;
                }
                Ok::<_, Error>((receipt.fence.generation, receipt.action))
            })
            .await?;
        self.0.watch.ended(action);
        Ok(generation)
    }
}

/// What the receipt of an action of this very enrollment changes.
fn settle(
    tx: &Tx<'_>,
    machine: &Machine,
    action: &MachineAction,
    receipt: &Receipt,
    (envelope, gate_key): (&str, &str),
) -> Result<()> {
    let at = now();
    let (phase, failure) = match &receipt.outcome {
        Outcome::Enforced => (Phase::Enforced, None),
        Outcome::Rejected(reason) => (Phase::Rejected, Some(reason.as_str())),
        Outcome::ApplyFailed(reason) => (Phase::ApplyFailed, Some(reason.as_str())),
        Outcome::ProbeFailed(reason) => (Phase::ProbeFailed, Some(reason.as_str())),
    };
    let moved = machine_action_move(tx, action, phase, failure, None, at)?;
    // Of an action that is over, a receipt is news only when nothing later was reported.
    let is_news = moved || receipt.fence.generation > machine.restriction.reported_generation;
    if receipt.outcome == Outcome::Enforced && is_news {
        let reported = match receipt.desired {
            Desired::Released => Reported::Released,
            Desired::Restricted => Reported::Restricted,
        };
        machine_reported(tx, machine.id, reported, receipt.fence.generation, at)?;
    }
    if !moved {
        return Ok(());
    }
    machine_action_receipt_keep(tx, action.id, envelope, gate_key)?;
    // A gate that refused an order will never obey it; what it could not carry out, it tries again when it starts.
    if phase == Phase::Rejected {
        withdraw(tx, machine.id, at)?;
    }
    let detail = match failure {
        None => format!("action {}", action.id.0),
        Some(reason) => format!("action {}: {reason}", action.id.0),
    };
    let operation = if phase == Phase::Enforced { "machine_action_succeed" } else { "machine_action_fail" };
    audit::record(tx, at, &format!("machine {}", machine.id), operation, machine.id, detail)?;
    Ok(())
}
