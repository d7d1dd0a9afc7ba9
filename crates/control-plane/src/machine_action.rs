//! Machine actions: made, superseded, cancelled, timed out.

use domain::allow_policy::AllowPolicy;
use domain::audit_entry::AuditEntry;
use domain::machine::Machine;
use domain::machine_action::{
    COMMENT_CHARS_MAX, Cancellation, Kind, MachineAction, MachineActionId, Phase, RequestSource,
};
use domain::permission::Requirement;
use domain::restriction::{Desired, Fence};
use domain::time::Timestamp;
use store::Tx;
use store::list::{Page, machine_action_list};
use store::machine::{machine_desire, machine_desire_withdraw};
use store::machine_action::{
    machine_action_create, machine_action_fetch, machine_action_move, machine_action_open,
    machine_action_overdue, machine_action_receipt,
};
use store::policy::policy_digest;
use store::store_epoch_fetch;
use uuid::Uuid;

use crate::machine::resolve;
use crate::order::{sign, signed_text};
use crate::{Caller, ControlPlane, Error, Result, audit, now};

/// What comes with a restrict or unrestrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Why; required.
    pub comment: String,
    /// Where it comes from.
    pub source: RequestSource,
}

/// A machine's signed answer, with what it can be verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReceipt {
    /// The signed envelope's JSON text, exactly as the machine sent it.
    pub envelope: String,
    /// The gate's public key, 64 hexadecimal digits.
    pub public_key: String,
}

impl ControlPlane {
    /// Restricts a machine (id or name): makes the action and its signed order. Durable when this returns.
    ///
    /// # Errors
    /// Everything that the contract's sections 1 and 7 name, and from the store.
    pub async fn machine_restrict(
        &self,
        caller: &Caller,
        target: &str,
        request: Request,
    ) -> Result<MachineAction> {
        self.machine_change(caller, target, Kind::Restrict, request).await
    }

    /// Lifts the restriction of a machine (id or name).
    ///
    /// # Errors
    /// Everything that the contract's sections 1 and 7 name, and from the store.
    pub async fn machine_unrestrict(
        &self,
        caller: &Caller,
        target: &str,
        request: Request,
    ) -> Result<MachineAction> {
        self.machine_change(caller, target, Kind::Unrestrict, request).await
    }

    async fn machine_change(
        &self,
        caller: &Caller,
        target: &str,
        kind: Kind,
        request: Request,
    ) -> Result<MachineAction> {
        caller.require(Requirement::RESTRICT)?;
        let comment = checked_comment(request.comment)?;
        self.0.limiter.admit(&self.0.store, operation(kind), caller.app, now())?;
        let control = self.clone();
        let (requestor, target) = (caller.name(), target.to_owned());
        let action = self
            .0
            .store
            .write(move |tx| {
                let machine = resolve(tx, &target)?;
                require_capable(&machine, kind)?;
                let action = control.new_action(tx, &machine, kind, requestor, comment, request.source)?;
                make_way(tx, &machine, &action)?;
                control.order(tx, action)
            })
            .await?;
        self.0.links.order_changed(action.machine);
        Ok(action)
    }

    /// The action that comes next for this machine. Its generation is what [`machine_desire`] will count.
    fn new_action(
        &self,
        tx: &Tx<'_>,
        machine: &Machine,
        kind: Kind,
        requestor: String,
        comment: String,
        source: RequestSource,
    ) -> Result<MachineAction> {
        let created_at = now();
        Ok(MachineAction {
            id: MachineActionId(Uuid::new_v4()),
            kind,
            phase: Phase::Queued,
            machine: machine.id,
            computer_dns_name: machine.system.computer_dns_name.clone(),
            fence: Fence {
                store_epoch: store_epoch_fetch(tx)?,
                incarnation: machine.incarnation,
                generation: machine.restriction.desired_generation + 1,
            },
            requestor,
            comment,
            source,
            external_id: None,
            created_at,
            updated_at: created_at,
            deadline: created_at.plus(self.0.settings.action_deadline),
            cancellation: None,
            failure: None,
        })
    }

    /// Makes the action's state the desired one, signs the order, and records all of it.
    fn order(&self, tx: &Tx<'_>, mut action: MachineAction) -> Result<MachineAction> {
        let policy = match action.kind.desired() {
            Desired::Released => None,
            Desired::Restricted => {
                let name = AllowPolicy::DEFAULT_NAME;
                let digest = policy_digest(tx, name)?;
                Some((name, digest.ok_or_else(|| Error::NotFound { entity: "Policy", id: name.to_owned() })?))
            }
        };
        action.fence.generation = machine_desire(tx, action.machine, action.kind.desired(), policy)?;
        let order = sign(&action, policy.map(|(_, digest)| digest), action.deadline, &self.0.order_key);
        machine_action_create(tx, &action, &signed_text(&order))?;
        let detail = format!("action {}, {:?}", action.id.0, action.comment);
        audit::record(
            tx,
            action.created_at,
            &action.requestor,
            operation(action.kind),
            action.machine,
            detail,
        )?;
        Ok(action)
    }

    /// The action with this id.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn machine_action_fetch(&self, caller: &Caller, id: MachineActionId) -> Result<MachineAction> {
        caller.require(Requirement::READ)?;
        self.0.store.read(move |tx| existing(tx, id)).await
    }

    /// The actions that a query selects.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn machine_action_list(
        &self,
        caller: &Caller,
        query: odata::Query,
    ) -> Result<Page<MachineAction>> {
        caller.require(Requirement::READ)?;
        self.0.store.read_list(move |tx| Ok(machine_action_list(tx, &query)?)).await
    }

    /// Withdraws an action that is not final. The machine is then wanted to be what it last reported; when it has the
    /// order already, what it does shows as drift.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::MissingParameter`], [`Error::InvalidInput`],
    /// [`Error::BadRequest`] when it is final; from the store.
    pub async fn machine_action_cancel(
        &self,
        caller: &Caller,
        id: MachineActionId,
        comment: String,
    ) -> Result<MachineAction> {
        caller.require(Requirement::RESTRICT)?;
        let comment = checked_comment(comment)?;
        let requestor = caller.name();
        let cancelled = self
            .0
            .store
            .write(move |tx| {
                let action = existing(tx, id)?;
                let at = now();
                let cancellation = Cancellation { requestor, comment, at };
                if action.phase.is_final() || !end(tx, &action, Phase::Cancelled, Some(&cancellation), at)? {
                    return Err(Error::BadRequest(format!(
                        "the action cannot be cancelled: its status is {}",
                        action.phase.status().name()
                    )));
                }
                let detail = format!("action {}, {:?}", id.0, cancellation.comment);
                audit::record(
                    tx,
                    at,
                    &cancellation.requestor,
                    "machine_action_cancel",
                    action.machine,
                    detail,
                )?;
                existing(tx, id)
            })
            .await?;
        self.0.links.order_changed(cancelled.machine);
        Ok(cancelled)
    }

    /// The machine's signed receipt for an action.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`] when there is no such action, or no receipt; from the store.
    pub async fn machine_action_receipt(
        &self,
        caller: &Caller,
        id: MachineActionId,
    ) -> Result<StoredReceipt> {
        caller.require(Requirement::READ)?;
        self.0
            .store
            .read(move |tx| {
                existing(tx, id)?;
                match machine_action_receipt(tx, id)? {
                    Some((envelope, public_key)) => Ok(StoredReceipt { envelope, public_key }),
                    None => Err(Error::NotFound { entity: "Receipt of action", id: id.0.to_string() }),
                }
            })
            .await
    }

    /// Ends the actions whose deadline has passed; how many.
    ///
    /// # Errors
    /// From the store.
    pub async fn machine_actions_expire(&self) -> Result<usize> {
        let at = now();
        let mut ended = 0;
        loop {
            let overdue =
                self.0.store.read(move |tx| Ok::<_, Error>(machine_action_overdue(tx, at)?)).await?;
            if overdue.is_empty() {
                return Ok(ended);
            }
            let moved = self.0.store.write(move |tx| expire(tx, &overdue, at)).await?;
            ended += moved;
            if moved == 0 {
                return Ok(ended);
            }
        }
    }
}

fn expire(tx: &Tx<'_>, overdue: &[MachineAction], at: Timestamp) -> Result<usize> {
    let mut ended = 0;
    for action in overdue {
        // It may have moved since it was read: then the next round looks again.
        if end(tx, action, Phase::Expired, None, at)? {
            let detail = format!("action {}", action.id.0);
            audit::record(tx, at, AuditEntry::SYSTEM, "machine_action_expire", action.machine, detail)?;
            ended += 1;
        }
    }
    Ok(ended)
}

/// What a call is counted and audited as.
fn operation(kind: Kind) -> &'static str {
    match kind {
        Kind::Restrict => "machine_restrict",
        Kind::Unrestrict => "machine_unrestrict",
    }
}

fn checked_comment(comment: String) -> Result<String> {
    if comment.trim().is_empty() {
        return Err(Error::MissingParameter("Comment"));
    }
    let length = comment.chars().count();
    if length > COMMENT_CHARS_MAX {
        let message = format!("Comment has {length} characters, at most {COMMENT_CHARS_MAX} are possible");
        return Err(Error::InvalidInput(message));
    }
    Ok(comment)
}

/// Refuses what the machine is known to be unable to do. A restriction can always be lifted.
fn require_capable(machine: &Machine, kind: Kind) -> Result<()> {
    let Some(capabilities) = machine.capabilities.as_ref().filter(|_| kind == Kind::Restrict) else {
        return Ok(());
    };
    let platform = &machine.system.os_platform;
    if platform != "Linux" {
        return Err(Error::OsPlatformNotSupported(format!(
            "machine {} runs {platform:?}: only Linux can be restricted",
            machine.id
        )));
    }
    if capabilities.tier.is_none() {
        let why =
            capabilities.missing.as_deref().unwrap_or("its agent names no mechanism that this version knows");
        return Err(Error::ClientVersionNotSupported(format!(
            "machine {} cannot be restricted: {why}",
            machine.id
        )));
    }
    Ok(())
}

/// Ends the machine's open action in favor of `newer`, unless it is of the same kind.
fn make_way(tx: &Tx<'_>, machine: &Machine, newer: &MachineAction) -> Result<()> {
    let Some(open) = machine_action_open(tx, machine.id)? else { return Ok(()) };
    if open.kind == newer.kind {
        return Err(Error::ActiveAction(open.id));
    }
    let cancellation = Cancellation {
        requestor: newer.requestor.clone(),
        comment: format!("superseded by action {}", newer.id.0),
        at: newer.created_at,
    };
    machine_action_move(tx, &open, Phase::Superseded, None, Some(&cancellation), newer.created_at)?;
    Ok(())
}

/// Ends an open action without a result and withdraws what it wanted; whether it was still in the phase read.
fn end(
    tx: &Tx<'_>,
    action: &MachineAction,
    phase: Phase,
    cancellation: Option<&Cancellation>,
    at: Timestamp,
) -> Result<bool> {
    let moved = machine_action_move(tx, action, phase, None, cancellation, at)?;
    if moved {
        machine_desire_withdraw(tx, action.machine)?;
    }
    Ok(moved)
}

fn existing(tx: &Tx<'_>, id: MachineActionId) -> Result<MachineAction> {
    machine_action_fetch(tx, id)?
        .ok_or_else(|| Error::NotFound { entity: "MachineAction", id: id.0.to_string() })
}
