//! Orders: what a connected machine is to be told, and what it says on the way.

use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::machine_action::{MachineAction, MachineActionId, Phase};
use domain::restriction::{Desired, Fence};
use domain::time::Timestamp;
use orders::{Envelope, Order, SigningKey, TrustedKeys, VerifiedOrder};
use store::machine_action::{
    machine_action_by_generation, machine_action_fetch, machine_action_move, machine_action_order,
    machine_action_reissue,
};
use store::{StoreError, Tx, store_epoch_fetch};

use crate::{ControlPlane, Error, Result, machine, now};

/// The order that a machine has not reported yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentOrder {
    /// The action that it belongs to.
    pub action: MachineActionId,
    /// Its generation.
    pub generation: u64,
    /// The signed envelope's JSON text.
    pub envelope: String,
    /// The policy that the machine must hold before it can obey.
    pub policy: Option<Sha256Digest>,
}

/// What has to be done before an order can be sent.
enum Lookup {
    Nothing,
    Ready(CurrentOrder),
    /// It is to be signed anew: it was signed for another enrollment, or its action is over although what it wants is
    /// wanted still, so that the machine may have refused these very bytes.
    Stale,
}

impl ControlPlane {
    /// The order that a machine is to be sent: one whose action is open, or that the machine has not reported. An order
    /// that was signed for an earlier enrollment, or whose action is over, is signed anew: what is wanted stays wanted.
    /// The gate answers an order that it knows already with the receipt that it made then.
    ///
    /// # Errors
    /// From the store.
    pub async fn order_current(&self, machine: MachineId) -> Result<Option<CurrentOrder>> {
        match self.0.store.read(move |tx| look_up(tx, machine)).await? {
            Lookup::Nothing => Ok(None),
            Lookup::Ready(order) => Ok(Some(order)),
            Lookup::Stale => {
                let control = self.clone();
                self.0.store.write(move |tx| control.reissue(tx, machine)).await
            }
        }
    }

    fn reissue(&self, tx: &Tx<'_>, id: MachineId) -> Result<Option<CurrentOrder>> {
        let machine = machine::known(tx, id)?;
        let wanted = machine.restriction.wanted_generation;
        let Some(mut action) = machine_action_by_generation(tx, id, wanted)? else { return Ok(None) };
        action.fence = Fence {
            store_epoch: store_epoch_fetch(tx)?,
            incarnation: machine.incarnation,
            generation: wanted,
        };
        // Of what was ordered then: another policy may be named meanwhile, by an order that was withdrawn.
        let policy = match action.kind.desired() {
            Desired::Released => None,
            Desired::Restricted => {
                let kept = machine_action_order(tx, action.id)?;
                let keys = TrustedKeys::new(self.order_keys());
                let kept = VerifiedOrder::verify_kept(kept.as_bytes(), &keys, id);
                kept.map_or_else(|_unreadable| policy_of(&machine), |kept| kept.order().policy)
            }
        };
        let not_after = now().plus(self.settings().action_deadline);
        let order = sign(&action, policy, not_after, &self.0.order_key);
        machine_action_reissue(tx, action.id, action.fence, &signed_text(&order))?;
        Ok(Some(CurrentOrder {
            action: action.id,
            generation: wanted,
            envelope: signed_text(&order),
            policy,
        }))
    }

    /// Records that the order was sent, some time later.
    pub fn machine_action_offered(&self, id: MachineActionId) {
        self.0.store.write_behind(move |tx| {
            if let Some(action) = machine_action_fetch(tx, id)? {
                machine_action_move(tx, &action, Phase::Offered, None, None, now())?;
            }
            Ok::<_, StoreError>(())
        });
    }

    /// Records that the order is durable on the machine, some time later: its receipt follows at once, and says more.
    pub fn machine_action_accepted(&self, machine: MachineId, generation: u64) {
        self.0.store.write_behind(move |tx| {
            if let Some(action) = machine_action_by_generation(tx, machine, generation)? {
                machine_action_move(tx, &action, Phase::Accepted, None, None, now())?;
            }
            Ok::<_, StoreError>(())
        });
    }
}

fn look_up(tx: &Tx<'_>, id: MachineId) -> Result<Lookup> {
    let machine = machine::known(tx, id)?;
    let restriction = &machine.restriction;
    let Some(action) = machine_action_by_generation(tx, id, restriction.wanted_generation)? else {
        return Ok(Lookup::Nothing);
    };
    // What was lifted on the machine itself is not brought back by the order that it was lifted from.
    if action.kind.desired() != restriction.desired {
        return Ok(Lookup::Nothing);
    }
    // What is over is not begun again, and an order of it would be refused.
    if action.ends_at.is_some_and(|ends_at| ends_at <= now()) {
        return Ok(Lookup::Nothing);
    }
    let is_reported = restriction.reported_generation >= restriction.wanted_generation;
    if action.phase.is_final() {
        return Ok(if is_reported { Lookup::Nothing } else { Lookup::Stale });
    }
    // Whoever ends overdue actions gets to it.
    if action.deadline < now() {
        return Ok(Lookup::Nothing);
    }
    if action.fence.incarnation != machine.incarnation {
        return Ok(Lookup::Stale);
    }
    let envelope = machine_action_order(tx, action.id)?;
    let generation = action.fence.generation;
    Ok(Lookup::Ready(CurrentOrder { action: action.id, generation, envelope, policy: policy_of(&machine) }))
}

fn policy_of(machine: &domain::machine::Machine) -> Option<Sha256Digest> {
    machine.restriction.policy_digest.filter(|_| machine.restriction.desired == Desired::Restricted)
}

/// The signed order of an action.
pub(crate) fn sign(
    action: &MachineAction,
    policy: Option<Sha256Digest>,
    not_after: Timestamp,
    key: &SigningKey,
) -> Envelope {
    Order {
        machine: action.machine,
        fence: action.fence,
        action: action.id,
        desired: action.kind.desired(),
        policy,
        issued_at: now(),
        not_after,
        ends_at: action.ends_at,
    }
    .sign(key)
}

/// An envelope as it is stored and sent.
pub(crate) fn signed_text(envelope: &Envelope) -> String {
    // JSON of plain strings: always UTF-8.
    String::from_utf8_lossy(&envelope.to_bytes()).into_owned()
}

impl From<orders::VerifyError> for Error {
    fn from(error: orders::VerifyError) -> Self {
        Self::MachineMisbehaves(format!("its receipt is not believed: {error}"))
    }
}
