//! The gate itself: obeys orders, keeps its word over restarts, proves what it did.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use domain::allow_policy::{AllowPolicy, PolicyError, Profile};
use domain::decision::{DecisionCause, Verdict};
use domain::digest::Sha256Digest;
use domain::policy_settings::{PolicySettings, SurvivalCheck};
use domain::restriction::{Desired, Fence, Probe};
use domain::time::Timestamp;
use enforcement::canary::Canaries;
use enforcement::{Denial, Enforcer, KnownDigests};
use gate_protocol::{BreakGlassStatus, Explanation, Reply, Status};
use orders::{
    BreakGlassCode, CodeNumber, Order, Outcome, Receipt, SigningKey, TrustedKeys, VerifiedOrder,
    VerifiedPolicy, VerifyError,
};
use policy::CompiledPolicy;
use policy::baseline::Baseline;
use sha2::Digest as _;

use crate::break_glass::{BreakGlass, Lift};
use crate::clock::{self, Alarm, wall as now};
use crate::end::{Anchor, Standing, Term};
use crate::judge::MachineJudge;
use crate::manifests::ReadManifests;
use crate::state::{Accepted, Enrollment, FailedClosed, State, put_in_place};
use crate::survival::{SurvivalSet, Survivors};
use crate::tier::Chosen;
use crate::transaction;

mod around;

use around::Around;

/// How long until it is tried again when the end of a restriction cannot be made durable.
const END_RETRY: Duration = Duration::from_secs(5);

/// The most denials of a policy before that wait to be taken: what an enforcer holds of them itself.
const DENIED_BEFORE_MAX: usize = 1024;

/// The gate, behind one lock. The thread that answers the kernel never takes it.
pub struct Gate {
    state: State,
    key: SigningKey,
    boot_id: String,
    enforcer: Box<dyn Enforcer>,
    /// Why the enforcer cannot work here, when it cannot.
    unsupported: Option<String>,
    /// What is to be known of the tier: see [`Chosen`].
    tier_note: String,
    canaries: Canaries,
    survival: SurvivalSet,
    /// Where signed manifests lie.
    manifests: PathBuf,
    enrollment: Option<Enrollment>,
    accepted: Accepted,
    baseline: Option<HeldBaseline>,
    /// What a restriction restricts to; none while the machine is to be released.
    set: Option<PredefinedSet>,
    failed_closed: Option<FailedClosed>,
    break_glass: BreakGlass,
    /// The order in force, when its restriction ends by itself.
    ending: Option<Order>,
    alarm: Arc<Alarm>,
    /// What else of the state is damaged.
    damage: Vec<String>,
    /// Denials that were made by the policy before.
    denied_before: Vec<Denied>,
    /// The policy that denials are made by from here on.
    denying: Option<PolicyRevision>,
    denials_lost: u64,
    around: Around,
}

/// The name and the revision of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRevision(pub String, pub u64);

/// A denial, and by which policy; by none when the gate failed closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied(pub Denial, pub Option<PolicyRevision>);

/// What an order that may be obeyed needs.
struct Admitted {
    policy: Option<(VerifiedPolicy, String)>,
    end: Option<Anchor>,
}

/// A policy with the survival set that was found when it came into force.
struct PredefinedSet {
    /// Digest of the signed policy; none for the set that applies when the gate fails closed.
    digest: Option<Sha256Digest>,
    revision: Option<PolicyRevision>,
    policy: CompiledPolicy,
    settings: PolicySettings,
    survival: Survivors,
}

struct HeldBaseline {
    baseline: Arc<Baseline<File>>,
    digest: Sha256Digest,
}

/// A package baseline that was received whole and read once.
pub struct ReceivedBaseline {
    path: PathBuf,
    baseline: Baseline<File>,
    digest: Sha256Digest,
}

impl ReceivedBaseline {
    /// Reads all of a baseline. May take long, so never under the gate's lock.
    ///
    /// # Errors
    /// When it is not a sound baseline, or cannot be read.
    pub fn verify(path: &Path, file: File, digest: Sha256Digest) -> Result<Self> {
        file.sync_all()?;
        let baseline = Baseline::open(file)?;
        baseline.verify()?;
        Ok(Self { path: path.to_owned(), baseline, digest })
    }
}

impl Gate {
    /// Reads the state and is at once what the last accepted order says. Damaged state restricts: it never ends the
    /// gate, because a gate that is not there restricts nothing.
    ///
    /// # Errors
    /// When the machine cannot be restricted although it must be and could be.
    pub fn start(state: State, agent_program: &Path, manifests: &Path, chosen: Chosen) -> Result<Self> {
        let mut damage = Vec::new();
        let had_key = state.has_key();
        let key = match state.key() {
            Ok(key) => key,
            Err(error) => {
                damage.push(format!("the gate's key cannot be kept: {}", chain(&error)));
                SigningKey::generate().context("no random numbers for a key")?
            }
        };
        let mut gate = Self {
            key,
            boot_id: clock::boot_id(),
            enforcer: chosen.enforcer,
            unsupported: chosen.unsupported,
            tier_note: chosen.note,
            canaries: Canaries::new(&state.canaries()),
            survival: SurvivalSet::new(agent_program).context("cannot read the gate's own program")?,
            manifests: manifests.to_owned(),
            enrollment: None,
            accepted: Accepted::none(0),
            baseline: None,
            set: None,
            failed_closed: None,
            break_glass: BreakGlass::default(),
            ending: None,
            alarm: Arc::new(Alarm::new().context("no timer for the end of a restriction")?),
            damage,
            denied_before: Vec::new(),
            denying: None,
            denials_lost: 0,
            around: Around::default(),
            state,
        };
        match gate.read_baseline() {
            Ok(baseline) => gate.baseline = baseline,
            Err(error) => gate.damage.push(format!("the package baseline cannot be used: {error:#}")),
        }
        match gate.state.break_glass() {
            Ok(break_glass) => gate.break_glass = break_glass,
            Err(error) => {
                gate.damage.push(format!("the break-glass codes cannot be used: {}", chain(&error)))
            }
        }
        let kept = gate.read_state();
        if !had_key && gate.enrollment.is_some() {
            gate.damage.push("the gate's key was lost: enroll the machine again".to_owned());
        }
        gate.damage.iter().for_each(|damage| log!("{damage}"));
        gate.converge(kept)?;
        gate.spend_lifted();
        Ok(gate)
    }

    /// Makes the machine what the state on disk says, or restricts it when the state does not say.
    fn converge(&mut self, kept: Result<Option<Order>>) -> Result<()> {
        let mut failed =
            self.state.failed_closed().unwrap_or_else(|error| Some(FailedClosed::new(chain(&error), now())));
        let order = match kept {
            Ok(order) => {
                // An order that came after the failure has ended it.
                failed = failed
                    .filter(|failed| order.as_ref().is_none_or(|order| order.issued_at <= failed.since()));
                order
            }
            Err(error) => {
                let reason = format!("the gate's state cannot be used: {error:#}");
                failed.get_or_insert_with(|| FailedClosed::new(reason, now()));
                None
            }
        };
        if let Some(failed) = &failed {
            log!("failed closed: {}", failed.reason);
            if failed.lift.as_ref().is_some_and(|lift| self.proved(lift).is_some()) {
                log!(
                    "which was lifted by a break-glass code at {}",
                    failed.lift.as_ref().map_or(now(), Lift::at)
                );
            } else if self.set.is_none() {
                let survival = self.kept_survival();
                self.set = Some(PredefinedSet {
                    digest: None,
                    revision: None,
                    policy: CompiledPolicy::os_only(),
                    settings: PolicySettings::default(),
                    survival,
                });
            }
        }
        self.failed_closed = failed;
        self.keep_failed_closed();
        if let Some(order) = &order {
            self.await_end(order);
        }
        let in_force = if self.set.is_none() { Desired::Released } else { Desired::Restricted };
        if in_force == Desired::Restricted {
            if let Some(reason) = &self.unsupported {
                // The control plane hears of it only from a gate that runs.
                log!("the machine is to be restricted, and cannot be: {reason}");
                return Ok(());
            }
            self.restrict().context("the machine is to be restricted, and cannot be")?;
        } else {
            // An earlier gate may have left a restriction in the kernel: it died between keeping an order to release, or
            // an end, and obeying it.
            self.enforcer.release();
        }
        // A crash after the fence and before the receipt must not leave the control plane without an answer.
        if let Some(order) = order.filter(|order| order.desired == in_force)
            && self.accepted.receipt.is_none()
        {
            let outcome = self.prove(in_force);
            self.keep_receipt(&order, outcome);
        }
        Ok(())
    }

    /// Loads enrollment and order, and the set to restrict to when the order says so. What can be read is kept even
    /// when the rest cannot.
    fn read_state(&mut self) -> Result<Option<Order>> {
        let accepted = self.state.accepted();
        if let Ok(Some(accepted)) = &accepted {
            self.accepted = accepted.clone();
        }
        let Some(enrollment) = self.state.enrollment()? else {
            // A fence without an order is a half-made enrollment.
            anyhow::ensure!(
                accepted?.is_none_or(|accepted| accepted.order.is_empty()),
                "the enrollment is gone"
            );
            return Ok(None);
        };
        self.enrollment = Some(enrollment.clone());
        if !matches!(accepted, Ok(Some(_))) {
            self.accepted = Accepted::none(enrollment.incarnation);
        }
        let accepted = accepted?.context("the fence is gone")?;
        if accepted.order.is_empty() {
            return Ok(None);
        }
        let order =
            VerifiedOrder::verify_kept(accepted.order.as_bytes(), &enrollment.keys, enrollment.machine)?;
        let order = order.order().clone();
        anyhow::ensure!(order.fence == accepted.fence(), "the order is not that of the fence");
        if order.desired == Desired::Restricted && !accepted.is_restricted() {
            let receipt = accepted.receipt.as_deref();
            let may_be_over = receipt
                .is_some_and(|receipt| order.ends_at.is_some() || self.says_that_it_failed(receipt, &order));
            let is_lifted = accepted.lift.as_ref().is_some_and(|lift| self.proved(lift).is_some());
            anyhow::ensure!(may_be_over || is_lifted, "a restriction without an end is said to have ended");
        } else if order.desired == Desired::Restricted {
            let is_its_end = order.ends_at.is_some() == accepted.end.is_some();
            anyhow::ensure!(is_its_end, "the end is not that of the order");
            let policy = accepted.policy.as_deref().context("the policy is gone")?;
            let policy = VerifiedPolicy::verify(policy.as_bytes(), &enrollment.keys)?;
            anyhow::ensure!(Some(policy.digest()) == order.policy, "the policy is not that of the order");
            self.set = Some(PredefinedSet {
                digest: Some(policy.digest()),
                revision: Some(PolicyRevision::of(&policy)),
                policy: self.with_kept_manifests(policy.policy())?,
                settings: policy.policy().settings.clone(),
                survival: self.kept_survival(),
            });
        }
        Ok(Some(order))
    }

    /// A policy with the manifests that counted when it came into force. Those that cannot be read list nothing.
    fn with_kept_manifests(&mut self, policy: &AllowPolicy) -> Result<CompiledPolicy> {
        let compiled = CompiledPolicy::compile(policy)?;
        if policy.settings.manifest_keys.is_empty() {
            return Ok(compiled);
        }
        let kept = self.state.load(State::MANIFESTS).map_err(anyhow::Error::from);
        let keys = TrustedKeys::of_manifests(&policy.settings.manifest_keys);
        let read = match kept.and_then(|kept| kept.context("they are gone")) {
            Ok(envelopes) => ReadManifests::kept(envelopes, &keys),
            Err(error) => {
                self.damage.push(format!("the signed manifests cannot be used: {error:#}"));
                ReadManifests::default()
            }
        };
        self.damage.extend(read.problems.iter().cloned());
        Ok(compiled.with_manifests(Arc::new(read.list())))
    }

    /// A policy with the manifests that lie on the machine now.
    fn with_manifests(&self, policy: &AllowPolicy) -> Result<(CompiledPolicy, ReadManifests), PolicyError> {
        let compiled = CompiledPolicy::compile(policy)?;
        let keys = TrustedKeys::of_manifests(&policy.settings.manifest_keys);
        let read = ReadManifests::read(&self.manifests, &keys, now());
        Ok((compiled.with_manifests(Arc::new(read.list())), read))
    }

    /// The survival set of the last restriction, as far as it is known, with the gate that is running.
    fn kept_survival(&mut self) -> Survivors {
        let kept = Survivors::of_lines(&self.accepted.survival);
        if kept.is_empty() { self.survival.look() } else { kept.with(&self.survival.fixed()) }
    }

    fn keep_failed_closed(&self) {
        // Without it the next start finds the same damage again, and takes its own time for that of the failure.
        if let Err(error) = self.state.save_failed_closed(self.failed_closed.as_ref()) {
            log!("{}", chain(&error));
        }
    }

    fn read_baseline(&self) -> Result<Option<HeldBaseline>> {
        let path = self.state.baseline();
        let Some(expected) = self.state.load::<String>("baseline-digest")? else {
            anyhow::ensure!(!path.exists(), "its digest is gone");
            return Ok(None);
        };
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let digest = enforcement::hash(&file.try_clone()?.into(), policy::baseline::BYTES_MAX)?;
        anyhow::ensure!(digest.to_string() == expected, "{} is damaged", path.display());
        Ok(Some(HeldBaseline { baseline: Arc::new(Baseline::open(file)?), digest }))
    }

    /// Obeys a signed order. `reply` gets the answers as they come.
    pub fn apply(&mut self, envelope: &str, reply: &mut dyn FnMut(Reply)) {
        // What is over is not to be obeyed again.
        self.end_if_due();
        let order = match self.verified(envelope) {
            Ok(order) => order,
            Err(reason) => return reply(Reply::Refused { reason }),
        };
        if self.accepted.order == envelope {
            // The same order again: its answer got lost, or was never given.
            return match self.accepted.receipt.clone() {
                Some(envelope) => reply(Reply::Receipt { envelope }),
                None => self.carry_out(&order, reply),
            };
        }
        match self.admit(&order) {
            Ok(admitted) => self.accept(&order, envelope, admitted, reply),
            Err(reason) => reply(self.receipt(&order, Outcome::Rejected(reason), None)),
        }
    }

    fn verified(&self, envelope: &str) -> Result<Order, String> {
        let enrollment = self.enrollment.as_ref().ok_or("this machine is not enrolled")?;
        VerifiedOrder::verify_kept(envelope.as_bytes(), &enrollment.keys, enrollment.machine)
            .map(|order| order.order().clone())
            .map_err(|error| error.to_string())
    }

    /// Whether the order may be obeyed, and what it needs.
    fn admit(&self, order: &Order) -> Result<Admitted, String> {
        self.accepted.fence().admit(&order.fence).map_err(|error| error.to_string())?;
        if let Some(failed) = &self.failed_closed
            && order.issued_at <= failed.since()
        {
            return Err(format!(
                "the gate failed closed, and only orders signed after {} s since 1970 count: {}",
                failed.since().unix_seconds(),
                failed.reason
            ));
        }
        if now() > order.not_after {
            return Err(VerifyError::Expired.to_string());
        }
        if order.desired == Desired::Released {
            return Ok(Admitted { policy: None, end: None });
        }
        let end = match Term::of(order).map(|term| (term, term.look(None, &clock::clocks(&self.boot_id)))) {
            None => None,
            Some((_, Standing::Lasts(anchor))) => Some(anchor),
            Some((term, Standing::Over)) => {
                return Err(format!(
                    "the restriction was to end at {}, and by this machine's clock it is {}",
                    term.ends_at(),
                    now()
                ));
            }
        };
        if let Some(reason) = &self.unsupported {
            return Err(reason.clone());
        }
        let digest = order.policy.ok_or("a restriction without a policy")?;
        let bytes = self.state.policy(digest).map_err(|error| chain(&error))?;
        let bytes = bytes.ok_or_else(|| format!("the policy {digest} is not held"))?;
        let policy =
            VerifiedPolicy::verify(bytes.as_bytes(), &self.keys()).map_err(|error| error.to_string())?;
        let settings = &policy.policy().settings;
        if !self.is_restricted()
            && settings.survival_check != SurvivalCheck::Force
            && let Some((manager, process)) = transaction::under_way()
        {
            return Err(format!(
                "{manager} is at work (process {process}): its scripts would be refused halfway. Order again when it \
                 is done, or with a policy whose survivalCheck is force"
            ));
        }
        let needs_packages = policy.policy().profile != Profile::SurvivalOnly;
        if needs_packages && self.baseline.as_ref().is_none_or(|held| held.baseline.files() == 0) {
            return Err("no package baseline is held: not even a login shell would run".to_owned());
        }
        Ok(Admitted { policy: Some((policy, bytes)), end })
    }

    fn keys(&self) -> TrustedKeys {
        self.enrollment.as_ref().map_or_else(|| TrustedKeys::new([]), |enrollment| enrollment.keys.clone())
    }

    /// Makes the order durable, and carries it out.
    fn accept(&mut self, order: &Order, envelope: &str, admitted: Admitted, reply: &mut dyn FnMut(Reply)) {
        let mut accepted = Accepted::new(order.fence, order.desired, envelope.to_owned());
        accepted.end = admitted.end;
        let mut set = None;
        if let Some((policy, bytes)) = admitted.policy {
            let compiled = match self.with_manifests(policy.policy()) {
                Ok((compiled, read)) => {
                    read.problems.iter().for_each(|problem| log!("a manifest does not count: {problem}"));
                    let has_keys = !policy.policy().settings.manifest_keys.is_empty();
                    if has_keys && let Err(error) = self.state.save(State::MANIFESTS, &read.envelopes) {
                        let reason = format!("the signed manifests cannot be kept: {}", chain(&error));
                        return reply(self.receipt(order, Outcome::ApplyFailed(reason), None));
                    }
                    compiled
                }
                Err(error) => {
                    return reply(self.receipt(order, Outcome::Rejected(error.to_string()), None));
                }
            };
            let settings = policy.policy().settings.clone();
            // While restricted, what was found before counts.
            let survival = match &self.set {
                Some(before) if self.is_restricted() => Ok(before.survival.clone()),
                Some(_) | None => self.survivors(&compiled, settings.survival_check),
            };
            let survival = match survival {
                Ok(survival) => survival,
                Err(reason) => return reply(self.receipt(order, Outcome::Rejected(reason), None)),
            };
            accepted.policy = Some(bytes);
            accepted.survival = survival.to_lines();
            set = Some(PredefinedSet {
                digest: Some(policy.digest()),
                revision: Some(PolicyRevision::of(&policy)),
                policy: compiled,
                settings,
                survival,
            });
        }
        // The fence is durable before anything is switched, so that no crash can make an older order new.
        if let Err(error) = self.state.save_accepted(&accepted) {
            let reason = format!("the order cannot be made durable: {}", chain(&error));
            return reply(self.receipt(order, Outcome::ApplyFailed(reason), None));
        }
        self.accepted = accepted;
        self.set = set;
        self.carry_out(order, reply);
    }

    fn carry_out(&mut self, order: &Order, reply: &mut dyn FnMut(Reply)) {
        reply(Reply::Accepted { generation: order.fence.generation });
        let before = self.vitals_before(order.desired);
        let outcome = match self.switch(order.desired) {
            Ok(()) => {
                if self.failed_closed.take().is_some() {
                    self.keep_failed_closed();
                }
                self.prove(order.desired)
            }
            Err(error) => (Outcome::ApplyFailed(format!("{error:#}")), None),
        };
        let outcome = self.after_switch(order, before, outcome);
        reply(self.keep_receipt(order, outcome));
        self.await_end(order);
    }

    fn switch(&mut self, desired: Desired) -> Result<()> {
        match desired {
            Desired::Restricted => self.restrict(),
            Desired::Released => {
                self.enforcer.release();
                self.set = None;
                self.lifted();
                self.prepare();
                Ok(())
            }
        }
    }

    /// Sees to the end of the restriction that this order began. A gate that failed closed does not know what the
    /// machine should be: that ends with another order only.
    fn await_end(&mut self, order: &Order) {
        let ends = order.ends_at.is_some() && self.accepted.is_restricted() && self.failed_closed.is_none();
        self.ending = ends.then(|| order.clone());
        self.end_if_due();
    }

    /// Releases the machine when its restriction is over by itself, and sets the alarm for that otherwise.
    pub fn end_if_due(&mut self) {
        let standing = self.ending.as_ref().and_then(Term::of).map(|term| {
            let clocks = clock::clocks(&self.boot_id);
            (term.look(self.accepted.end.as_ref(), &clocks), clocks.since_boot)
        });
        let alarm = match standing {
            None => self.alarm.unset(),
            Some((Standing::Lasts(anchor), _)) => {
                let ends_at = anchor.ends_at();
                if self.accepted.end.as_ref() != Some(&anchor) {
                    self.accepted.end = Some(anchor);
                    // Without it the next start asks the wall clock again.
                    if let Err(error) = self.state.save_accepted(&self.accepted) {
                        log!("the end of the restriction cannot be kept: {}", chain(&error));
                    }
                }
                self.alarm.set(ends_at)
            }
            Some((Standing::Over, since_boot)) => match self.end() {
                Ok(()) => self.alarm.unset(),
                Err(error) => {
                    log!("the restriction is over, and stays until that can be kept: {error:#}");
                    self.alarm.set(since_boot.saturating_add(END_RETRY))
                }
            },
        };
        if let Err(error) = alarm {
            log!("the alarm for the end of the restriction cannot be set: {error}");
        }
    }

    /// Releases the machine without another order. The fence stays what it is.
    fn end(&mut self) -> Result<()> {
        let Some(order) = self.ending.clone() else { return Ok(()) };
        let mut over = self.accepted.clone();
        over.end();
        self.answer_for(&order, &mut over);
        // Durable before anything is switched, so that no crash and no clock can bring it back.
        self.state.save_accepted(&over)?;
        self.accepted = over;
        self.ending = None;
        let proof = self.release()?;
        let ends_at = order.ends_at.unwrap_or_default();
        let generation = order.fence.generation;
        log!("the restriction of generation {generation} ended by itself, as ordered for {ends_at}: {proof}");
        Ok(())
    }

    /// Keeps an answer to the order of a restriction that is over, when there was none: the control plane still waits
    /// for it, and there will be no proof any more.
    fn answer_for(&self, order: &Order, over: &mut Accepted) {
        if over.receipt.is_some() {
            return;
        }
        let outcome = Outcome::ApplyFailed("the restriction ended before it was proved".to_owned());
        if let Reply::Receipt { envelope } = self.receipt(order, outcome, None) {
            over.receipt = Some(envelope);
        }
    }

    /// Releases the machine, once it is durable that it is to be; what proves it.
    fn release(&mut self) -> Result<String> {
        self.switch(Desired::Released)?;
        Ok(match self.prove(Desired::Released) {
            (Outcome::Enforced, _) => "released, and proved".to_owned(),
            (Outcome::ProbeFailed(reason) | Outcome::ApplyFailed(reason) | Outcome::Rejected(reason), _) => {
                format!("released, but {reason}")
            }
        })
    }

    /// Lifts the restriction by a break-glass code, whatever it comes from: an order, or a gate that failed closed. It
    /// stays lifted until a new order. What proves it.
    ///
    /// # Errors
    /// Why not, in one sentence.
    pub fn break_glass(&mut self, typed: &str) -> Result<String> {
        self.end_if_due();
        anyhow::ensure!(self.set.is_some(), "the machine is not restricted: there is nothing to lift");
        let code: BreakGlassCode = typed.parse()?;
        let enrollment =
            self.enrollment.as_ref().context("the enrollment is gone, and with it whose codes count")?;
        let held = self.break_glass.held(&enrollment.keys, enrollment.machine);
        let held = held.context("this machine holds no break-glass codes")?;
        let clocks = clock::clocks(&self.boot_id);
        let wait = self.break_glass.wait(&clocks);
        anyhow::ensure!(
            wait.is_zero(),
            "a wrong code was given before: the next is looked at in {} s",
            whole(wait)
        );
        self.break_glass.count_attempt(&clocks);
        self.state
            .save_break_glass(&mut self.break_glass)
            .context("the attempt cannot be kept on the disk, so the code is not looked at")?;
        let Some(number) = self.break_glass.number_of(&code, &held) else {
            log!("a wrong break-glass code was given");
            anyhow::bail!(
                "this code lifts nothing here: it is of another machine, or was used, or another was used after it was \
                 shown; the next is looked at in {} s",
                whole(self.break_glass.wait(&clocks))
            );
        };
        let at = now();
        self.keep_lift(&self.break_glass.lift(&code, at)).context("the lift cannot be kept on the disk")?;
        self.ending = None;
        self.end_if_due();
        let proof = self.release()?;
        self.spend(number, at);
        log!("break-glass: code {} lifted the restriction: {proof}", number.serial);
        Ok(proof)
    }

    /// Makes it durable that the restriction is lifted: of whatever it would come from at the next start.
    fn keep_lift(&mut self, lift: &Lift) -> Result<()> {
        if self.accepted.is_restricted() {
            let mut over = self.accepted.clone();
            over.end();
            over.lift = Some(lift.clone());
            if let Ok(order) = self.verified(&over.order) {
                self.answer_for(&order, &mut over);
            }
            self.state.save_accepted(&over)?;
            self.accepted = over;
        }
        if let Some(failed) = &self.failed_closed {
            let mut failed = failed.clone();
            failed.lift = Some(lift.clone());
            self.state.save_failed_closed(Some(&failed))?;
            self.failed_closed = Some(failed);
        }
        Ok(())
    }

    /// Which code a lift was made by; none when it is not proved.
    fn proved(&self, lift: &Lift) -> Option<CodeNumber> {
        let enrollment = self.enrollment.as_ref()?;
        lift.proved(&enrollment.keys, enrollment.machine)
    }

    /// The lift that keeps the machine released, while that lasts.
    fn lift(&self) -> Option<&Lift> {
        let failed = self.failed_closed.as_ref().and_then(|failed| failed.lift.as_ref());
        failed.or(self.accepted.lift.as_ref()).filter(|_| self.set.is_none())
    }

    /// A crash after the lift and before its code was spent must not leave the code to be used again.
    fn spend_lifted(&mut self) {
        let spent = self.lift().and_then(|lift| Some((self.proved(lift)?, lift.at())));
        if let Some((number, at)) = spent {
            self.spend(number, at);
        }
    }

    fn spend(&mut self, number: CodeNumber, at: Timestamp) {
        if !self.break_glass.spend(number, self.accepted.fence().generation, at) {
            return;
        }
        // Without it the next start finds the code in the lift.
        if let Err(error) = self.state.save_break_glass(&mut self.break_glass) {
            log!("that a break-glass code was used cannot be kept: {}", chain(&error));
        }
    }

    /// Keeps a signed statement of break-glass codes ahead of time.
    ///
    /// # Errors
    /// When it does not count here, or cannot be kept.
    pub fn store_break_glass(&mut self, envelope: &str) -> Result<()> {
        let enrollment = self.enrollment.as_ref().context("this machine is not enrolled")?;
        let mut taken = self.break_glass.clone();
        taken.take_up(envelope, &enrollment.keys, enrollment.machine, enrollment.incarnation)?;
        self.state.save_break_glass(&mut taken)?;
        self.break_glass = taken;
        Ok(())
    }

    fn break_glass_status(&self) -> Option<BreakGlassStatus> {
        let enrollment = self.enrollment.as_ref()?;
        let held = self.break_glass.held(&enrollment.keys, enrollment.machine);
        let first = held.as_ref().map(|held| held.statement().first);
        let log = self.break_glass.log(enrollment.machine);
        Some(BreakGlassStatus {
            store_epoch: first.map_or(0, |first| first.store_epoch),
            incarnation: first.map_or(0, |first| first.incarnation),
            first: first.map_or(0, |first| first.serial),
            codes_left: held.as_ref().map_or(0, |held| self.break_glass.codes_left(held)),
            lifted_at: self.lift().map(|lift| lift.at().ticks()),
            log: log.map(|log| String::from_utf8_lossy(&log.sign(&self.key).to_bytes()).into_owned()),
        })
    }

    /// Goes off when [`Gate::end_if_due`] is to be called.
    pub fn alarm(&self) -> Arc<Alarm> {
        Arc::clone(&self.alarm)
    }

    /// Restricts to the set that is to apply.
    fn restrict(&mut self) -> Result<()> {
        let set = self.set.as_ref().context("no policy")?;
        let judge = self.judge(set.digest, set.policy.clone(), set.survival.clone());
        let settings = set.settings.clone();
        let revision = set.revision.clone();
        if revision != self.denying {
            // What was refused until now, the policy before refused.
            let (denied, _) = self.take_denials_of(DENIED_BEFORE_MAX);
            self.denied_before = denied;
            self.denying = revision;
        }
        self.enforcer.configure(&settings);
        Ok(self.enforcer.restrict(Arc::new(judge))?)
    }

    fn judge(
        &self,
        digest: Option<Sha256Digest>,
        policy: CompiledPolicy,
        survival: Survivors,
    ) -> MachineJudge {
        let baseline = self.baseline.as_ref().map(|held| Arc::clone(&held.baseline));
        let mut survival_places = self.survival.places();
        survival_places.extend(survival.places());
        // One that cannot be written fails when it is run.
        survival_places.extend(self.canaries.prepare().ok());
        let mut id = sha2::Sha256::new();
        // Without a policy it is always the same set.
        for part in [digest, self.baseline_digest()] {
            id.update(part.unwrap_or(Sha256Digest([0; 32])).as_bytes());
        }
        survival.iter().for_each(|digest| id.update(digest.as_bytes()));
        let id = Sha256Digest(id.finalize().into());
        MachineJudge { policy, survival, baseline, survival_places, id }
    }

    /// Lets the enforcer learn ahead what the policy stored last allows.
    fn prepare(&mut self) {
        if self.is_restricted() || self.unsupported.is_some() {
            return;
        }
        let files = self.baseline.as_ref().map_or(0, |held| held.baseline.files());
        self.enforcer.make_room(usize::try_from(files).unwrap_or(usize::MAX));
        if let Ok((_, judge)) = self.judge_of(None) {
            self.enforcer.prepare(Arc::new(judge));
        }
    }

    /// A restriction whose canaries do not prove it stays: in doubt it is better than none, and the receipt says so.
    fn prove(&self, desired: Desired) -> (Outcome, Option<Probe>) {
        let mut nonce = [0; 16];
        if let Err(error) = getrandom::fill(&mut nonce) {
            return (Outcome::ProbeFailed(format!("no random numbers for the canary: {error}")), None);
        }
        let tier = self.enforcer.tier();
        let probe = self.canaries.run(nonce, tier);
        let outcome = if probe.proves(desired, tier) {
            Outcome::Enforced
        } else {
            Outcome::ProbeFailed(format!(
                "the canaries in {} do not prove it: {probe:?}",
                self.state.canaries().display(),
            ))
        };
        (outcome, Some(probe))
    }

    fn keep_receipt(&mut self, order: &Order, (outcome, probe): (Outcome, Option<Probe>)) -> Reply {
        let reply = self.receipt(order, outcome, probe);
        if let Reply::Receipt { envelope } = &reply {
            self.accepted.receipt = Some(envelope.clone());
            // Without it a restart proves again.
            if let Err(error) = self.state.save_accepted(&self.accepted) {
                log!("the receipt cannot be kept: {}", chain(&error));
            }
        }
        reply
    }

    fn receipt(&self, order: &Order, outcome: Outcome, probe: Option<Probe>) -> Reply {
        let receipt = Receipt {
            machine: order.machine,
            fence: order.fence,
            action: order.action,
            desired: order.desired,
            outcome,
            probe,
            tier: self.enforcer.tier(),
            policy: self.set.as_ref().and_then(|set| set.digest),
            baseline: self.baseline.as_ref().map(|held| held.digest),
            boot_id: self.boot_id.clone(),
            issued_at: now(),
        };
        Reply::Receipt { envelope: String::from_utf8_lossy(&receipt.sign(&self.key).to_bytes()).into_owned() }
    }

    /// Hashes what a switch will need, so that the switch need not.
    pub fn warm_up(&mut self) {
        if !self.is_restricted() {
            let always = self.survival.look();
            let judge = self.judge(None, CompiledPolicy::os_only(), always);
            self.survival.warm_up(judge);
        }
        self.prepare();
    }

    /// Whether the restriction is in force.
    pub fn is_restricted(&self) -> bool {
        self.enforcer.status().restricted
    }

    /// Binds the gate to a machine and to the control plane's keys. Releases nothing.
    ///
    /// # Errors
    /// Why not, in one sentence.
    pub fn enroll(&mut self, machine: &str, incarnation: u64, order_keys: &[String]) -> Result<()> {
        anyhow::ensure!(
            !self.is_restricted() || self.enrollment.is_none(),
            "the machine is restricted: lift the restriction before enrolling again"
        );
        let keys: Result<Vec<_>, _> = order_keys.iter().map(|key| key.parse()).collect();
        let enrollment = Enrollment { machine: machine.parse()?, incarnation, keys: TrustedKeys::new(keys?) };
        anyhow::ensure!(enrollment.keys.iter().next().is_some(), "no order keys");
        // Orders of the enrollment before still verify, unless all of its keys are gone.
        let continues = self.enrollment.as_ref().is_none_or(|own| {
            own.machine == enrollment.machine
                && own.keys.iter().any(|key| enrollment.keys.iter().any(|k| k == key))
        });
        let own = self.accepted.fence();
        anyhow::ensure!(
            !continues || incarnation >= own.incarnation,
            "incarnation {incarnation} is older than this machine's, {}",
            own.incarnation
        );
        // Its fence must not go back: only another incarnation starts anew.
        let fence = if continues && incarnation == own.incarnation {
            own
        } else {
            Fence { store_epoch: 0, incarnation, generation: 0 }
        };
        let accepted = Accepted::new(fence, Desired::Released, String::new());
        self.state.save_enrollment(&enrollment, &accepted)?;
        if !continues {
            // What another control plane's codes did counts for nothing.
            self.break_glass.forget();
            self.state.save_break_glass(&mut self.break_glass)?;
            if self.failed_closed.as_ref().is_some_and(|failed| failed.lift.is_some()) {
                self.failed_closed = None;
                self.keep_failed_closed();
            }
        }
        self.accepted = accepted;
        self.enrollment = Some(enrollment);
        self.ending = None;
        Ok(())
    }

    /// Keeps a signed policy ahead of time.
    ///
    /// # Errors
    /// When it is not signed, or cannot be kept.
    pub fn store_policy(&mut self, envelope: &str) -> Result<()> {
        let policy = VerifiedPolicy::verify(envelope.as_bytes(), &self.keys())?;
        self.state.save_policy(policy.digest(), envelope)?;
        self.prepare();
        Ok(())
    }

    /// Holds that a baseline may be replaced.
    ///
    /// # Errors
    /// While restricted.
    pub fn baseline_may_change(&self) -> Result<()> {
        anyhow::ensure!(
            !self.is_restricted(),
            "the package baseline is frozen while the machine is restricted"
        );
        Ok(())
    }

    /// Puts a received baseline in place.
    ///
    /// # Errors
    /// While restricted, or when it cannot be kept.
    pub fn store_baseline(&mut self, received: ReceivedBaseline) -> Result<()> {
        self.baseline_may_change()?;
        put_in_place(&received.path, &self.state.baseline())?;
        self.state.save("baseline-digest", &received.digest.to_string())?;
        self.baseline = Some(HeldBaseline { baseline: Arc::new(received.baseline), digest: received.digest });
        self.prepare();
        Ok(())
    }

    /// What the gate keeps on disk.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The signed answer to the last order.
    pub fn last_receipt(&self) -> Option<String> {
        self.accepted.receipt.clone()
    }

    /// Takes the denials that were not yet taken, and how many were lost.
    pub fn take_denials(&mut self) -> (Vec<Denied>, u64) {
        self.take_denials_of(gate_protocol::DENIALS_MAX)
    }

    fn take_denials_of(&mut self, max: usize) -> (Vec<Denied>, u64) {
        let before = self.denied_before.len().min(max);
        let mut taken: Vec<_> = self.denied_before.drain(..before).collect();
        let mut denials = self.enforcer.take_denials(max - before);
        let room = (max - before).saturating_sub(denials.len());
        denials.extend(self.around.sweeper.take(room));
        // The canaries that must be refused are no news.
        denials.retain(|denial| !self.canaries.is_own(&denial.path));
        taken.extend(denials.into_iter().map(|denial| Denied(denial, self.denying.clone())));
        (taken, self.denials_dropped())
    }

    /// Denials that were taken and did not arrive.
    pub fn count_lost(&mut self, denials: &[Denied]) {
        self.denials_lost += denials.iter().map(|Denied(denial, _)| denial.count).sum::<u64>();
    }

    fn denials_dropped(&self) -> u64 {
        self.enforcer.status().denials_dropped + self.denials_lost
    }

    /// The gate's state for people and for the agent.
    pub fn status(&self) -> Status {
        let enforcer = self.enforcer.status();
        let fence = self.accepted.fence();
        let mut tier_note = self.unsupported.clone().unwrap_or_else(|| self.tier_note.clone());
        if enforcer.unmarked > 0 {
            tier_note
                .push_str(&format!("; programs of {} mounts run, which take no mark", enforcer.unmarked));
        }
        let damage = self.damage.iter().filter(|_| enforcer.restricted);
        let failed: Vec<_> = self
            .failed_closed
            .iter()
            .filter(|failed| failed.lift.is_none())
            .map(|failed| &failed.reason)
            .chain(damage)
            .map(String::as_str)
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            public_key: self.key.public_key().to_string(),
            machine: self.enrollment.as_ref().map(|enrollment| enrollment.machine.to_string()),
            incarnation: fence.incarnation,
            store_epoch: fence.store_epoch,
            generation: fence.generation,
            restricted: enforcer.restricted,
            ends_at: self
                .ending
                .as_ref()
                .filter(|_| enforcer.restricted)
                .and_then(|order| order.ends_at)
                .map(Timestamp::ticks),
            failed_closed: (!failed.is_empty()).then(|| failed.join("; ")),
            tier: self.unsupported.is_none().then(|| self.enforcer.tier().name().to_owned()),
            tier_note,
            policies: self.state.policies().iter().map(ToString::to_string).collect(),
            policy: self
                .set
                .as_ref()
                .filter(|_| enforcer.restricted)
                .and_then(|set| set.digest)
                .map(|digest| digest.to_string()),
            baseline: self.baseline.as_ref().map(|held| held.digest.to_string()),
            baseline_files: self.baseline.as_ref().map_or(0, |held| held.baseline.files()),
            break_glass: self.break_glass_status(),
            marks: enforcer.marks,
            labels: enforcer.labels,
            asked: enforcer.asked,
            denied: enforcer.denied,
            denials_dropped: self.denials_dropped(),
        }
    }

    /// What answers [`explain`] and previews: the policy asked for, or the set in force, or that of the policy stored
    /// last. With the policy's digest.
    ///
    /// # Errors
    /// When the gate does not hold the policy.
    pub fn judge_of(&mut self, policy: Option<Sha256Digest>) -> Result<(Option<Sha256Digest>, MachineJudge)> {
        let in_force = self.set.as_ref().filter(|_| self.is_restricted());
        if let Some(set) = in_force
            && (policy.is_none() || policy == set.digest)
        {
            return Ok((set.digest, self.judge(set.digest, set.policy.clone(), set.survival.clone())));
        }
        let survival_in_force = in_force.map(|set| set.survival.clone());
        let held = |digest: Sha256Digest| -> Result<CompiledPolicy> {
            let envelope = self.state.policy(digest)?.context("the gate does not hold this policy")?;
            let policy = VerifiedPolicy::verify(envelope.as_bytes(), &self.keys())?;
            Ok(self.with_manifests(policy.policy())?.0)
        };
        let (digest, policy) = match policy {
            Some(digest) => (Some(digest), held(digest)?),
            None => {
                let newest = self.state.policies().first().copied();
                let newest = newest.and_then(|digest| Some((Some(digest), held(digest).ok()?)));
                newest.unwrap_or_else(|| (None, CompiledPolicy::os_only()))
            }
        };
        let survival = match survival_in_force {
            Some(survival) => survival,
            None if self.survival.is_warm() => self.survey(&policy)?.survivors,
            None => self.survival.look(),
        };
        Ok((digest, self.judge(digest, policy, survival)))
    }

    /// The policy that is meant by a digest or by a name: of a name, the newest revision that the gate holds.
    ///
    /// # Errors
    /// When the gate holds no policy of the name.
    pub fn policy_meant(&self, digest_or_name: &str) -> Result<Sha256Digest> {
        if let Ok(digest) = digest_or_name.parse() {
            return Ok(digest);
        }
        let keys = self.keys();
        let held = self.state.policies().into_iter().filter_map(|digest| {
            let envelope = self.state.policy(digest).ok()??;
            let policy = VerifiedPolicy::verify(envelope.as_bytes(), &keys).ok()?;
            (policy.policy().name == digest_or_name).then(|| (policy.policy().revision, digest))
        });
        let newest = held.max_by_key(|(revision, _)| *revision);
        newest.map(|(_, digest)| digest).context("the gate holds no policy of this name")
    }

    /// Digest of the package baseline that [`Gate::judge_of`] asks.
    pub fn baseline_digest(&self) -> Option<Sha256Digest> {
        self.baseline.as_ref().map(|held| held.digest)
    }
}

/// What a judge says about a file: what the kernel would be answered. Reads the whole file, so never under the gate's
/// lock, and in a thread of its own.
pub fn explain(judge: &MachineJudge, path: &str) -> Explanation {
    let failed = |message: String| Explanation {
        allowed: false,
        cause: DecisionCause::Unreadable.code().to_owned(),
        rule: None,
        sha256: None,
        message,
    };
    let look = || {
        let path = std::fs::canonicalize(path)?;
        enforcement::Examiner::new(KnownDigests::default())?.path(&path, judge)
    };
    let examined = match look() {
        Ok(examined) => examined,
        Err(error) => return failed(format!("{path} cannot be read: {error}")),
    };
    let decision = &examined.decision;
    let (rule, message) = match &decision.cause {
        DecisionCause::Rule(id) => (Some(id.clone()), format!("the policy's rule {id:?} says so")),
        DecisionCause::SurvivalSet => {
            (None, "it belongs to what keeps the machine alive and reachable".to_owned())
        }
        DecisionCause::Manifest(name) => (None, format!("the signed manifest {name:?} lists it")),
        DecisionCause::PackageDatabase => {
            (None, "an installed package shipped exactly this file at this place".to_owned())
        }
        DecisionCause::DualUse => (
            None,
            "an installed package shipped it, but the policy takes programs with which one can do nearly everything \
             out of what packages vouch for: to allow it, add its SHA-256 to the policy"
                .to_owned(),
        ),
        DecisionCause::Interpreter => (
            None,
            "it is an interpreter, which the policy lets start only by the #! line of a listed script, or below a \
             system unit"
                .to_owned(),
        ),
        DecisionCause::Unlisted => (
            None,
            "no package shipped this content at this place, and no rule allows it: to allow it, add its SHA-256 to \
             the policy"
                .to_owned(),
        ),
        DecisionCause::Unreadable => (None, "it cannot be read, or changed while it was read".to_owned()),
        DecisionCause::BeingWritten => {
            (None, "someone has it open for writing, so its content is not settled".to_owned())
        }
        DecisionCause::Unverifiable => (
            None,
            "another machine or process serves its filesystem, or the filesystem cannot tell of changes: what is read \
             of it need not be what runs"
                .to_owned(),
        ),
        DecisionCause::TooLarge => (None, "it is larger than the gate is willing to hash".to_owned()),
        DecisionCause::Late | DecisionCause::Overload => (None, "the gate had no time to decide".to_owned()),
        // Causes of what happened, not of what is asked about a file.
        DecisionCause::Changed
        | DecisionCause::AnonymousCode
        | DecisionCause::Guard(_)
        | DecisionCause::Running => (None, "it was not judged".to_owned()),
    };
    Explanation {
        allowed: decision.verdict == Verdict::Allow,
        cause: decision.cause.code().to_owned(),
        rule,
        sha256: examined.digest.map(|digest| digest.to_string()),
        message,
    }
}

impl PolicyRevision {
    fn of(policy: &VerifiedPolicy) -> Self {
        Self(policy.policy().name.clone(), policy.policy().revision)
    }
}

/// In whole seconds, upwards.
fn whole(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// An error with its sources, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
