//! Machine actions: made, superseded, cancelled, timed out.

use std::time::Duration;

use domain::allow_policy::AllowPolicy;
use domain::audit_entry::AuditEntry;
use domain::digest::Sha256Digest;
use domain::machine::{Machine, MachineId};
use domain::machine_action::{
    COMMENT_CHARS_MAX, Cancellation, EXPIRES_IN, EXTERNAL_ID_CHARS_MAX, Kind, MachineAction, MachineActionId,
    Phase, RequestSource,
};
use domain::machine_group::MachineAccess;
use domain::permission::Requirement;
use domain::restriction::Fence;
use domain::time::Timestamp;
use store::Tx;
use store::list::{Page, machine_action_list};
use store::machine::{
    machine_desire, machine_desire_withdraw, machine_end_postpone, machine_fetch, machines_ending,
};
use store::machine_action::{
    machine_action_by_idempotency_key, machine_action_create, machine_action_fetch, machine_action_move,
    machine_action_open, machine_action_overdue, machine_action_receipt,
};
use store::policy::policy_digest;
use store::store_epoch_fetch;
use uuid::Uuid;

use crate::machine::resolve;
use crate::order::{sign, signed_text};
use crate::{Caller, ControlPlane, Error, Result, audit, now};

/// How long it is until a restriction that has ended, and could not be lifted, is tried to be lifted again.
const END_AGAIN_AFTER: Duration = Duration::from_secs(10 * 60);
/// The longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// What comes with a restrict or unrestrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Why; required.
    pub comment: String,
    /// Where it comes from.
    pub source: RequestSource,
    /// The caller's own reference.
    pub external_id: Option<String>,
    /// After which time a restriction ends by itself.
    pub expires_in: Option<Duration>,
    /// The allow policy of a restriction; that of the machine's group when none is named.
    pub policy: Option<String>,
    /// Names the request: the same one again changes nothing and is answered as the first was.
    pub idempotency_key: Option<String>,
}

impl Request {
    /// Checks what does not depend on a machine.
    pub(crate) fn checked(self, kind: Kind) -> Result<Self> {
        let invalid = |message: String| Err(Error::InvalidInput(message));
        let comment = checked_comment(self.comment)?;
        if self.external_id.as_ref().is_some_and(|id| id.chars().count() > EXTERNAL_ID_CHARS_MAX) {
            return invalid(format!("ExternalId has more than {EXTERNAL_ID_CHARS_MAX} characters"));
        }
        if let Some(key) = &self.idempotency_key
            && (!(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len())
                || !key.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return invalid(format!(
                "Idempotency-Key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters without blanks"
            ));
        }
        if kind == Kind::Unrestrict && (self.expires_in.is_some() || self.policy.is_some()) {
            return invalid("ExpiresIn and Policy are for restricting only".to_owned());
        }
        if self.expires_in.is_some_and(|expires_in| !EXPIRES_IN.contains(&expires_in)) {
            return invalid("ExpiresIn is between one minute (PT1M) and one year (P365D)".to_owned());
        }
        Ok(Self { comment, ..self })
    }
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
        let request = request.checked(kind)?;
        self.0.limiter.admit(&self.0.store, operation(kind), caller)?;
        let control = self.clone();
        let (requestor, target, access) =
            (caller.name().to_owned(), target.to_owned(), caller.machines.clone());
        let (action, superseded) = self
            .0
            .store
            .write(move |tx| {
                let machine = resolve(tx, &target, &access)?;
                if let Some(made) = made_before(tx, &machine, kind, &requestor, &request)? {
                    return Ok((made, None));
                }
                require_capable(&machine, kind)?;
                let action = control.new_action(store_epoch_fetch(tx)?, &machine, kind, requestor, &request);
                let superseded = make_way(tx, &machine, &action)?;
                Ok::<_, Error>((control.order(tx, &machine, action)?, superseded))
            })
            .await?;
        self.0.links.order_changed(action.machine);
        if let Some(superseded) = superseded {
            self.0.watch.ended(superseded);
        }
        Ok(action)
    }

    /// The action that comes next for this machine. Its generation is what [`machine_desire`] will count.
    pub(crate) fn new_action(
        &self,
        store_epoch: u64,
        machine: &Machine,
        kind: Kind,
        requestor: String,
        request: &Request,
    ) -> MachineAction {
        let created_at = now();
        let ends_at = request.expires_in.map(|expires_in| created_at.plus(expires_in));
        let deadline = created_at.plus(self.settings().action_deadline);
        MachineAction {
            // In the order of time, so that new rows are neighbors in every index.
            id: MachineActionId(Uuid::now_v7()),
            kind,
            phase: Phase::Queued,
            machine: machine.id,
            computer_dns_name: machine.system.computer_dns_name.clone(),
            fence: Fence {
                store_epoch,
                incarnation: machine.incarnation,
                generation: machine.restriction.desired_generation + 1,
            },
            requestor,
            comment: request.comment.clone(),
            source: request.source,
            external_id: request.external_id.clone(),
            policy: match kind {
                Kind::Restrict => Some(self.policy_name_for(machine, request.policy.as_deref())),
                Kind::Unrestrict => None,
            },
            ends_at,
            idempotency_key: request.idempotency_key.clone(),
            bulk: None,
            created_at,
            updated_at: created_at,
            // A restriction that would be over already is not begun.
            deadline: ends_at.map_or(deadline, |ends_at| ends_at.min(deadline)),
            cancellation: None,
            failure: None,
        }
    }

    /// The policy that a call named, else that of the machine's group, else the default.
    pub(crate) fn policy_name_for(&self, machine: &Machine, named: Option<&str>) -> String {
        let access = self.0.access.snapshot();
        let group = access.machine_groups.iter().find(|group| group.id == machine.group);
        let of_group = group.and_then(|group| group.policy.as_deref());
        named.or(of_group).unwrap_or(AllowPolicy::DEFAULT_NAME).to_owned()
    }

    /// Makes the action's state the desired one, signs the order, and records all of it.
    fn order(&self, tx: &Tx<'_>, machine: &Machine, mut action: MachineAction) -> Result<MachineAction> {
        let digest = action.policy.as_deref().map(|name| known_policy(tx, name)).transpose()?;
        let policy = action.policy.as_deref().zip(digest);
        action.fence.generation =
            machine_desire(tx, machine.id, action.kind.desired(), policy, action.ends_at)?;
        let order = sign(&action, digest, action.deadline, &self.0.order_key);
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
        let access = caller.machines.clone();
        self.0.store.read(move |tx| visible(tx, id, &access)).await
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
        let access = caller.machines.clone();
        self.0.store.read_list(move |tx| Ok(machine_action_list(tx, &query, &access)?)).await
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
        let (requestor, access) = (caller.name().to_owned(), caller.machines.clone());
        let cancelled = self
            .0
            .store
            .write(move |tx| {
                let action = visible(tx, id, &access)?;
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
        self.0.watch.ended(id);
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
        let access = caller.machines.clone();
        self.0
            .store
            .read(move |tx| {
                visible(tx, id, &access)?;
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
            for id in &moved {
                self.0.watch.ended(*id);
            }
            ended += moved.len();
            if moved.is_empty() {
                return Ok(ended);
            }
        }
    }

    /// Lifts the restrictions whose end has come, each by an ordinary action: the machine has ended its restriction by
    /// itself, or does it now, and proves it. How many.
    ///
    /// # Errors
    /// From the store.
    pub async fn machine_restrictions_end(&self) -> Result<usize> {
        let mut ended = 0;
        loop {
            let at = now();
            let ending = self.0.store.read(move |tx| Ok::<_, Error>(machines_ending(tx, at)?)).await?;
            if ending.is_empty() {
                return Ok(ended);
            }
            let control = self.clone();
            let released = self.0.store.write(move |tx| control.release_ended(tx, at)).await?;
            for (action, superseded) in &released {
                self.0.links.order_changed(action.machine);
                if let Some(superseded) = superseded {
                    self.0.watch.ended(*superseded);
                }
            }
            ended += released.len();
        }
    }

    fn release_ended(
        &self,
        tx: &Tx<'_>,
        at: Timestamp,
    ) -> Result<Vec<(MachineAction, Option<MachineActionId>)>> {
        let store_epoch = store_epoch_fetch(tx)?;
        let release = |machine: &Machine| {
            let ends_at = machine.restriction.ends_at.unwrap_or(at);
            let request = Request {
                comment: format!("the restriction was to end at {ends_at}"),
                source: RequestSource::PublicApi,
                external_id: None,
                expires_in: None,
                policy: None,
                idempotency_key: None,
            };
            let system = Caller::system().name().to_owned();
            let action = self.new_action(store_epoch, machine, Kind::Unrestrict, system, &request);
            let superseded = make_way(tx, machine, &action)?;
            Ok((self.order(tx, machine, action)?, superseded))
        };
        machines_ending(tx, at)?.iter().map(release).collect()
    }
}

fn expire(tx: &Tx<'_>, overdue: &[MachineAction], at: Timestamp) -> Result<Vec<MachineActionId>> {
    let mut ended = Vec::new();
    for action in overdue {
        // It may have moved since it was read: then the next round looks again.
        if end(tx, action, Phase::Expired, None, at)? {
            let detail = format!("action {}", action.id.0);
            audit::record(tx, at, AuditEntry::SYSTEM, "machine_action_expire", action.machine, detail)?;
            ended.push(action.id);
        }
    }
    Ok(ended)
}

/// The action that the same request has made before, as it was then.
fn made_before(
    tx: &Tx<'_>,
    machine: &Machine,
    kind: Kind,
    requestor: &str,
    request: &Request,
) -> Result<Option<MachineAction>> {
    let Some(key) = &request.idempotency_key else { return Ok(None) };
    let Some(made) = machine_action_by_idempotency_key(tx, requestor, key)? else { return Ok(None) };
    if made.machine != machine.id || made.bulk.is_some() || !is_made_by(&made, kind, request) {
        return Err(Error::InvalidInput(format!(
            "the Idempotency-Key was used for another request, which made action {}",
            made.id.0
        )));
    }
    Ok(Some(as_made(made)))
}

/// Whether a request asks for what an action is.
pub(crate) fn is_made_by(made: &MachineAction, kind: Kind, request: &Request) -> bool {
    let expires_in = made.ends_at.map(|ends_at| ends_at.since(made.created_at));
    (made.kind, &made.comment, &made.external_id, expires_in)
        == (kind, &request.comment, &request.external_id, request.expires_in)
        && (request.policy.is_none() || request.policy == made.policy)
}

/// An action as it was when it was made.
pub(crate) fn as_made(action: MachineAction) -> MachineAction {
    MachineAction {
        phase: Phase::Queued,
        updated_at: action.created_at,
        cancellation: None,
        failure: None,
        ..action
    }
}

/// The digest of a policy's newest revision.
pub(crate) fn known_policy(tx: &Tx<'_>, name: &str) -> Result<Sha256Digest> {
    let unknown = || Error::InvalidInput(format!("there is no policy {:?}", crate::caller::shown(name)));
    policy_digest(tx, name)?.ok_or_else(unknown)
}

/// What a call is counted and audited as.
pub(crate) fn operation(kind: Kind) -> &'static str {
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

/// Why a machine is known to be unable to do what an action of this kind asks; none when it is able, as far as is known.
pub fn why_not(machine: &Machine, kind: Kind) -> Option<String> {
    require_capable(machine, kind).err().map(|error| error.to_string())
}

/// Refuses what the machine is known to be unable to do. A restriction can always be lifted.
pub(crate) fn require_capable(machine: &Machine, kind: Kind) -> Result<()> {
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

/// Ends the machine's open action in favor of `newer`, unless it is of the same kind; its id.
fn make_way(tx: &Tx<'_>, machine: &Machine, newer: &MachineAction) -> Result<Option<MachineActionId>> {
    let Some(open) = machine_action_open(tx, machine.id)? else { return Ok(None) };
    if open.kind == newer.kind {
        return Err(Error::ActiveAction(open.id));
    }
    let cancellation = Cancellation {
        requestor: newer.requestor.clone(),
        comment: format!("superseded by action {}", newer.id.0),
        at: newer.created_at,
    };
    machine_action_move(tx, &open, Phase::Superseded, None, Some(&cancellation), newer.created_at)?;
    Ok(Some(open.id))
}

/// Withdraws what was wanted of a machine.
pub(crate) fn withdraw(tx: &Tx<'_>, machine: MachineId, at: Timestamp) -> Result<()> {
    machine_desire_withdraw(tx, machine)?;
    Ok(machine_end_postpone(tx, machine, at, at.plus(END_AGAIN_AFTER))?)
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
        withdraw(tx, action.machine, at)?;
    }
    Ok(moved)
}

pub(crate) fn existing(tx: &Tx<'_>, id: MachineActionId) -> Result<MachineAction> {
    machine_action_fetch(tx, id)?.ok_or_else(|| unknown(id))
}

/// The action, when the caller may know of its machine.
fn visible(tx: &Tx<'_>, id: MachineActionId, access: &MachineAccess) -> Result<MachineAction> {
    let action = existing(tx, id)?;
    if *access == MachineAccess::All {
        return Ok(action);
    }
    let machine = machine_fetch(tx, action.machine)?.filter(|machine| access.admits(machine.group));
    machine.map(|_| action).ok_or_else(|| unknown(id))
}

fn unknown(id: MachineActionId) -> Error {
    Error::NotFound { entity: "MachineAction", id: id.0.to_string() }
}
