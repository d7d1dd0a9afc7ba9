//! Restricting and unrestricting many machines by one call.
//!
//! The machines are taken a thousand at a time, each time in one transaction, while the orders of the next thousand are
//! signed. A machine that changed between reading and writing is read again. What one caller may change in an hour
//! is limited, unless it holds the right *Bulk remediation*.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use domain::audit_entry::AuditEntry;
use domain::digest::Sha256Digest;
use domain::machine::{Machine, MachineId};
use domain::machine_action::{Kind, MachineAction, MachineActionId};
use domain::machine_group::MachineAccess;
use domain::permission::Requirement;
use domain::restriction::Reported;
use store::audit_entry::audit_entry_create_many;
use store::list::machine_list;
use store::machine::{DesireRow, machine_desire_many, machine_fetch_many, machine_group_sizes};
use store::machine_action::{
    bulk_machines, machine_action_by_idempotency_key_many, machine_action_create_many,
    machine_action_open_many, machine_action_supersede_many,
};
use store::policy::policy_names;
use store::{StoreError, Tx, store_epoch_fetch};
use tokio::task::{JoinError, JoinHandle};
use uuid::Uuid;

use crate::machine_action::{is_made_by, known_policy, operation, require_capable};
use crate::order::{sign, signed_text};
use crate::{Caller, ControlPlane, Error, Request, Result, now};

/// The most machines of one call.
const MACHINES_MAX: usize = 100_000;
/// Machines that one transaction changes.
const BATCH: usize = 1000;
/// How often a machine that changes meanwhile is read again.
const TRIES_MAX: usize = 3;
/// The time in which what one caller changes is counted.
const COUNTED_FOR: Duration = Duration::from_secs(60 * 60);

/// Which machines.
#[derive(Debug, Clone)]
pub enum BulkTargets {
    /// These.
    Ids(Vec<MachineId>),
    /// Those that a query's filter takes.
    Query(odata::Query),
}

/// A call that changes many machines.
#[derive(Debug, Clone)]
pub struct BulkRequest {
    /// What it changes.
    pub kind: Kind,
    /// Which machines.
    pub targets: BulkTargets,
    /// The rest, which is as of one machine's.
    pub request: Request,
}

/// What a bulk call would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BulkPlan {
    /// How many machines it names.
    pub total: u64,
    /// How many of them are unknown, or not to be known of.
    pub unknown: u64,
    /// How many of them are connected.
    pub online: u64,
    /// How many are not: they obey once they connect, unless the action's deadline passes first.
    pub offline: u64,
    /// How many cannot be restricted.
    pub unsupported: u64,
    /// How many are restricted already.
    pub already_restricted: u64,
    /// How many have an action of the same kind that is not final.
    pub already_active: u64,
    /// How many would get an action.
    pub actions: u64,
    /// Why the call would be refused: it would change too many.
    pub refusal: Option<String>,
}

/// What a bulk call did about one machine.
#[derive(Debug)]
pub struct BulkResult {
    /// The machine.
    pub machine: MachineId,
    /// Its name; none when it is unknown.
    pub computer_dns_name: Option<String>,
    /// The action, or why there is none.
    pub outcome: Result<MachineActionId>,
}

/// What a bulk call did.
#[derive(Debug)]
pub struct BulkOutcome {
    /// Its id, which its actions and their audit entries carry.
    pub id: Uuid,
    /// One for each machine, in the order asked for.
    pub results: Vec<BulkResult>,
}

impl ControlPlane {
    /// Restricts or unrestricts many machines. What is answered as accepted is durable.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`], [`Error::RateLimited`], [`Error::Disabled`] and
    /// [`Error::Disallowed`] when the caller may change none, or not so many; from the store. A machine's own trouble is
    /// in its result.
    pub async fn machine_bulk(&self, caller: &Caller, bulk: BulkRequest) -> Result<BulkOutcome> {
        caller.require(Requirement::RESTRICT)?;
        let request = bulk.request.checked(bulk.kind)?;
        self.0.limiter.admit(&self.0.store, bulk_operation(bulk.kind), caller)?;
        // One after another, so that two calls cannot both use what is left of a limit.
        let _turn = self.0.bulk_turn.lock().await;
        // It may have waited long: what was revoked meanwhile does not count.
        let caller = &self.caller_again(caller)?;
        caller.require(Requirement::RESTRICT)?;
        let (mut machines, unknown) = self.bulk_targets(caller, bulk.targets).await?;
        self.require_within_limit(caller, bulk.kind, &machines).await?;
        if let Some(policy) = request.policy.clone() {
            self.0.store.read(move |tx| known_policy(tx, &policy)).await?;
        }
        let (kind, requestor) = (bulk.kind, caller.name().to_owned());
        let job = Arc::new(Job { id: Uuid::now_v7(), kind, requestor, request });
        let mut outcomes = HashMap::with_capacity(machines.len());
        let names = machines.iter().map(|machine| (machine.id, machine.system.computer_dns_name.clone()));
        let names: Vec<(MachineId, String)> = names.collect();
        // Neighbors in the database, so that a page of it is changed once.
        machines.sort_unstable_by_key(|machine| machine.id);
        let mut rest = machines.into_iter();
        let mut failure = None;
        let mut next = self.bulk_sign_ahead(&job, &mut rest);
        while let Some(signing) = next {
            let signed = signing.await;
            // The next batch is signed while this one is written.
            next = self.bulk_sign_ahead(&job, &mut rest);
            let written = match joined(signed) {
                Ok(signed) => self.bulk_batch(caller, &job, signed).await,
                Err(error) => Err(error),
            };
            match written {
                Ok(of_batch) => outcomes.extend(of_batch),
                Err(error) if outcomes.is_empty() => return Err(error),
                // What is committed is told all the same, and the reason once.
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let not_tried =
            || Error::BadRequest("the call ended before this machine's turn: try again".to_owned());
        let known = names.into_iter().map(|(machine, name)| BulkResult {
            machine,
            computer_dns_name: Some(name),
            outcome: outcomes
                .remove(&machine)
                .unwrap_or_else(|| Err(failure.take().unwrap_or_else(not_tried))),
        });
        let unknown = unknown.into_iter().map(|machine| BulkResult {
            machine,
            computer_dns_name: None,
            outcome: Err(Error::NotFound { entity: "Machine", id: machine.to_string() }),
        });
        Ok(BulkOutcome { id: job.id, results: known.chain(unknown).collect() })
    }

    /// What [`Self::machine_bulk`] would do. Changes nothing; counts as a call of it.
    ///
    /// # Errors
    /// As [`Self::machine_bulk`], except that too many machines are only told; [`Error::Forbidden`] also for callers
    /// that may not read.
    pub async fn machine_bulk_plan(&self, caller: &Caller, bulk: BulkRequest) -> Result<BulkPlan> {
        caller.require(Requirement::RESTRICT)?;
        caller.require(Requirement::READ)?;
        let request = bulk.request.checked(bulk.kind)?;
        self.0.limiter.admit(&self.0.store, bulk_operation(bulk.kind), caller)?;
        // As much work as the call itself: one at a time.
        let _turn = self.0.bulk_turn.lock().await;
        if let Some(policy) = request.policy {
            self.0.store.read(move |tx| known_policy(tx, &policy)).await?;
        }
        let (machines, unknown) = self.bulk_targets(caller, bulk.targets).await?;
        let ids: Vec<_> = machines.iter().map(|machine| machine.id).collect();
        let open = self.0.store.read_list(move |tx| Ok::<_, Error>(open_of(tx, &ids)?)).await?;
        let (known, unknown) = (machines.len() as u64, unknown.len() as u64);
        let mut plan = BulkPlan { total: known + unknown, unknown, ..BulkPlan::default() };
        for machine in &machines {
            let online = self.0.links.is_connected(machine.id);
            let unsupported = require_capable(machine, bulk.kind).is_err();
            let active = open.get(&machine.id).is_some_and(|open| open.kind == bulk.kind);
            plan.online += u64::from(online);
            plan.offline += u64::from(!online);
            plan.unsupported += u64::from(unsupported);
            plan.already_restricted += u64::from(machine.restriction.reported == Reported::Restricted);
            plan.already_active += u64::from(active);
            plan.actions += u64::from(!unsupported && !active);
        }
        match self.require_within_limit(caller, bulk.kind, &machines).await {
            Ok(()) => Ok(plan),
            Err(Error::Disallowed(why)) => Ok(BulkPlan { refusal: Some(why), ..plan }),
            Err(other) => Err(other),
        }
    }

    /// The machines, and the ids that the caller may not know of.
    async fn bulk_targets(
        &self,
        caller: &Caller,
        targets: BulkTargets,
    ) -> Result<(Vec<Machine>, Vec<MachineId>)> {
        let access = caller.machines.clone();
        let (machines, unknown) = match targets {
            BulkTargets::Ids(ids) => {
                self.0.store.read_list(move |tx| machines_by_id(tx, &ids, &access)).await?
            }
            BulkTargets::Query(query) => {
                caller.require(Requirement::READ)?;
                let machines =
                    self.0.store.read_list(move |tx| machines_by_query(tx, query, &access)).await?;
                (machines, Vec::new())
            }
        };
        if machines.len() > MACHINES_MAX {
            return Err(Error::InvalidInput(format!("a call changes at most {MACHINES_MAX} machines")));
        }
        Ok((machines, unknown))
    }

    /// Refuses to change more machines than the caller may in an hour. A machine counts once, however often it is
    /// changed: what was changed can always be changed back.
    async fn require_within_limit(&self, caller: &Caller, kind: Kind, machines: &[Machine]) -> Result<()> {
        if caller.is_unlimited() {
            return Ok(());
        }
        let requestor = caller.name().to_owned();
        let (changed, sizes) = self
            .0
            .store
            .read(move |tx| {
                let changed = bulk_machines(tx, &requestor, now().minus(COUNTED_FOR))?;
                Ok::<_, Error>((changed, machine_group_sizes(tx)?))
            })
            .await?;
        let mut planned: HashMap<i64, (u64, &str)> = HashMap::new();
        for machine in machines {
            if require_capable(machine, kind).is_ok() && !changed.contains_key(&machine.id) {
                planned.entry(machine.group).or_insert((0, &machine.group_name)).0 += 1;
            }
        }
        let remedy = "The right \"Bulk remediation\" lifts the limit.";
        let total: u64 = planned.values().map(|(count, _)| count).sum();
        let before = changed.len() as u64;
        let max = u64::from(caller.bulk_machines_max);
        if total > 0 && max == 0 {
            return Err(Error::Disabled(format!("bulk calls are switched off for this caller. {remedy}")));
        }
        if total > 0 && before.saturating_add(total) > max {
            return Err(Error::Disallowed(format!(
                "This would change {total} machines; bulk calls of this caller may change {max} in an hour, and have \
                 changed {before}. {remedy}"
            )));
        }
        let mut changed_of: HashMap<i64, u64> = HashMap::new();
        for group in changed.into_values() {
            *changed_of.entry(group).or_default() += 1;
        }
        let blast_radius = self.settings().blast_radius;
        for (group, (count, name)) in planned {
            let size = sizes.get(&group).copied().unwrap_or_default();
            let (before, max) =
                (changed_of.get(&group).copied().unwrap_or_default(), blast_radius.of_group(size));
            if before.saturating_add(count) > max {
                return Err(Error::Disallowed(format!(
                    "This would change {count} of the {size} machines of the group {name:?}; bulk calls of this caller \
                     may change {max} of them ({} %) in an hour, and have changed {before}. {remedy}",
                    blast_radius.group_percent_max
                )));
            }
        }
        Ok(())
    }

    /// Begins to sign the next batch of the rest; none when nothing is left.
    fn bulk_sign_ahead(
        &self,
        job: &Arc<Job>,
        rest: &mut std::vec::IntoIter<Machine>,
    ) -> Option<JoinHandle<Result<SignedBatch>>> {
        let batch: Vec<Machine> = rest.take(BATCH).collect();
        if batch.is_empty() {
            return None;
        }
        let (control, job) = (self.clone(), Arc::clone(job));
        Some(tokio::spawn(async move { control.bulk_signed(&job, batch).await }))
    }

    /// A batch with its orders. Signatures take the time of a processor: not that of the thread that writes.
    async fn bulk_signed(&self, job: &Arc<Job>, batch: Vec<Machine>) -> Result<SignedBatch> {
        let given = self.0.store.read(given).await?;
        let (control, job) = (self.clone(), Arc::clone(job));
        joined(tokio::task::spawn_blocking(move || Ok(control.bulk_sign(&job, given, batch))).await)
    }

    /// Changes a batch of machines in one transaction, and again those that changed meanwhile.
    async fn bulk_batch(
        &self,
        caller: &Caller,
        job: &Arc<Job>,
        mut signed: SignedBatch,
    ) -> Result<HashMap<MachineId, Result<MachineActionId>>> {
        let mut outcomes = HashMap::with_capacity(signed.orders.len() + signed.refused.len());
        let mut tries = 0;
        loop {
            outcomes.extend(signed.refused);
            let (for_writing, orders, policies) = (Arc::clone(job), signed.orders, signed.policies);
            let written = self.0.store.write(move |tx| write(tx, &for_writing, orders, &policies)).await?;
            for (machine, superseded) in written.changed {
                self.0.links.order_changed(machine);
                if let Some(superseded) = superseded {
                    self.0.watch.ended(superseded);
                }
            }
            outcomes.extend(written.outcomes);
            if written.again.is_empty() {
                return Ok(outcomes);
            }
            let (again, access) = (written.again, self.caller_again(caller)?.machines);
            let (machines, gone) =
                self.0.store.read_list(move |tx| machines_by_id(tx, &again, &access)).await?;
            let unknown = |id: MachineId| Error::NotFound { entity: "Machine", id: id.to_string() };
            outcomes.extend(gone.into_iter().map(|id| (id, Err(unknown(id)))));
            tries += 1;
            if tries == TRIES_MAX {
                let busy = || {
                    Error::BadRequest("the machine is changed by others at this moment: try again".to_owned())
                };
                outcomes.extend(machines.into_iter().map(|machine| (machine.id, Err(busy()))));
                return Ok(outcomes);
            }
            signed = self.bulk_signed(job, machines).await?;
        }
    }

    /// The actions of a batch with their signed orders, and the machines that cannot have one.
    fn bulk_sign(&self, job: &Job, given: Given, machines: Vec<Machine>) -> SignedBatch {
        let (mut orders, mut refused) = (Vec::with_capacity(machines.len()), Vec::new());
        for machine in machines {
            if let Err(error) = require_capable(&machine, job.kind) {
                refused.push((machine.id, Err(error)));
                continue;
            }
            let requestor = job.requestor.clone();
            let action = self.new_action(given.store_epoch, &machine, job.kind, requestor, &job.request);
            let action = MachineAction { bulk: Some(job.id), ..action };
            let digest = action.policy.as_ref().map(|name| given.policies.get(name).copied().ok_or(name));
            match digest.transpose() {
                Ok(digest) => {
                    let order = signed_text(&sign(&action, digest, action.deadline, &self.0.order_key));
                    orders.push(Signed { action, group: machine.group, digest, order });
                }
                Err(name) => {
                    let message = format!("there is no policy {:?}", crate::caller::shown(name));
                    refused.push((machine.id, Err(Error::InvalidInput(message))));
                }
            }
        }
        SignedBatch { orders, refused, policies: given.policies }
    }
}

/// What a task answered, unless it stopped.
fn joined<T>(ended: std::result::Result<Result<T>, JoinError>) -> Result<T> {
    let stopped = |error| Error::Internal(StoreError::Unsupported(format!("signing stopped: {error}")));
    ended.map_err(stopped)?
}

/// What orders are signed with, as it is at one moment.
struct Given {
    store_epoch: u64,
    policies: Policies,
}

/// The digest of each policy's newest revision.
type Policies = HashMap<String, Sha256Digest>;

fn given(tx: &Tx<'_>) -> Result<Given> {
    let digest = |name: String| {
        let digest = known_policy(tx, &name)?;
        Ok((name, digest))
    };
    let policies = policy_names(tx)?.into_iter().map(digest).collect::<Result<_>>()?;
    Ok(Given { store_epoch: store_epoch_fetch(tx)?, policies })
}

/// What holds for all machines of a call.
struct Job {
    id: Uuid,
    kind: Kind,
    requestor: String,
    request: Request,
}

/// What was signed of a batch.
struct SignedBatch {
    orders: Vec<Signed>,
    refused: Vec<(MachineId, Result<MachineActionId>)>,
    policies: Policies,
}

/// An action whose order is signed for the generation that its machine will have.
struct Signed {
    action: MachineAction,
    /// The group of its machine, whose policy it has.
    group: i64,
    digest: Option<Sha256Digest>,
    order: String,
}

/// What a transaction did.
#[derive(Default)]
struct Written {
    outcomes: Vec<(MachineId, Result<MachineActionId>)>,
    /// Machines with another order, and the actions that made way.
    changed: Vec<(MachineId, Option<MachineActionId>)>,
    /// Machines that changed since they were read.
    again: Vec<MachineId>,
}

fn write(tx: &Tx<'_>, job: &Job, signed: Vec<Signed>, policies: &Policies) -> Result<Written> {
    let mut written = Written::default();
    let ids: Vec<MachineId> = signed.iter().map(|signed| signed.action.machine).collect();
    if given(tx)?.policies != *policies {
        // A revision was saved since: the orders are to name it.
        written.again = ids;
        return Ok(written);
    }
    let made = match &job.request.idempotency_key {
        Some(key) => by_machine(machine_action_by_idempotency_key_many(tx, &job.requestor, key, &ids)?),
        None => HashMap::new(),
    };
    let open = open_of(tx, &ids)?;
    let mut wanted = Vec::with_capacity(signed.len());
    for signed in signed {
        let machine = signed.action.machine;
        if let Some(made) = made.get(&machine) {
            written.outcomes.push((machine, job.made_before(made)));
        } else if let Some(same) = open.get(&machine).filter(|open| open.kind == job.kind) {
            written.outcomes.push((machine, Err(Error::ActiveAction(same.id))));
        } else {
            wanted.push(signed);
        }
    }
    let rows: Vec<DesireRow> = wanted.iter().map(Signed::row).collect();
    let changed: HashSet<MachineId> =
        machine_desire_many(tx, job.kind.desired(), &rows)?.into_iter().collect();
    let (made, again): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|signed| changed.contains(&signed.action.machine));
    written.again = again.iter().map(|signed| signed.action.machine).collect();
    let superseded: Vec<_> = made
        .iter()
        .filter(|signed| open.contains_key(&signed.action.machine))
        .map(|signed| (signed.action.machine, signed.action.id))
        .collect();
    let at = now();
    machine_action_supersede_many(tx, &superseded, &job.requestor, at)?;
    let entries: Vec<_> = made.iter().map(|signed| job.audit_entry(&signed.action)).collect();
    let made: Vec<_> = made.into_iter().map(|signed| (signed.action, signed.order)).collect();
    machine_action_create_many(tx, &made)?;
    audit_entry_create_many(tx, &entries)?;
    for (action, _) in made {
        written.changed.push((action.machine, open.get(&action.machine).map(|open| open.id)));
        written.outcomes.push((action.machine, Ok(action.id)));
    }
    Ok(written)
}

impl Signed {
    fn row(&self) -> DesireRow {
        let action = &self.action;
        DesireRow {
            id: action.machine,
            generation_before: action.fence.generation - 1,
            policy: action.policy.clone().zip(self.digest),
            ends_at: action.ends_at,
            group: self.group,
        }
    }
}

impl Job {
    fn audit_entry(&self, action: &MachineAction) -> AuditEntry {
        AuditEntry {
            at: action.created_at,
            actor: self.requestor.clone(),
            operation: operation(self.kind).to_owned(),
            subject: action.machine.to_string(),
            detail: format!("action {}, {:?}, bulk {}", action.id.0, action.comment, self.id),
        }
    }

    /// The action that an earlier call with the same key made, if that asked for the same.
    fn made_before(&self, made: &MachineAction) -> Result<MachineActionId> {
        if made.bulk.is_some() && is_made_by(made, self.kind, &self.request) {
            return Ok(made.id);
        }
        Err(Error::InvalidInput(format!(
            "the Idempotency-Key was used for another request, which made action {}",
            made.id.0
        )))
    }
}

fn open_of(
    tx: &Tx<'_>,
    ids: &[MachineId],
) -> std::result::Result<HashMap<MachineId, MachineAction>, StoreError> {
    Ok(by_machine(machine_action_open_many(tx, ids)?))
}

fn by_machine(actions: Vec<MachineAction>) -> HashMap<MachineId, MachineAction> {
    actions.into_iter().map(|action| (action.machine, action)).collect()
}

fn machines_by_id(
    tx: &Tx<'_>,
    ids: &[MachineId],
    access: &MachineAccess,
) -> Result<(Vec<Machine>, Vec<MachineId>)> {
    let mut seen = HashSet::with_capacity(ids.len());
    let ids: Vec<MachineId> = ids.iter().copied().filter(|id| seen.insert(*id)).collect();
    let found = machine_fetch_many(tx, &ids)?.into_iter().filter(|machine| access.admits(machine.group));
    let mut found: HashMap<MachineId, Machine> = found.map(|machine| (machine.id, machine)).collect();
    let (mut machines, mut unknown) = (Vec::with_capacity(ids.len()), Vec::new());
    for id in ids {
        match found.remove(&id) {
            Some(machine) => machines.push(machine),
            None => unknown.push(id),
        }
    }
    Ok((machines, unknown))
}

fn machines_by_query(tx: &Tx<'_>, mut query: odata::Query, access: &MachineAccess) -> Result<Vec<Machine>> {
    let mut machines = Vec::new();
    loop {
        let page = machine_list(tx, &query, access, now())?;
        machines.extend(page.rows);
        match page.next {
            Some(next) if machines.len() <= MACHINES_MAX => query.skip_token = Some(next),
            Some(_) | None => return Ok(machines),
        }
    }
}

/// What a bulk call is counted as.
fn bulk_operation(kind: Kind) -> &'static str {
    match kind {
        Kind::Restrict => "machine_restrict_bulk",
        Kind::Unrestrict => "machine_unrestrict_bulk",
    }
}
