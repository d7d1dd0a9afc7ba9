//! The gate itself: obeys orders, keeps its word over restarts, proves what it did.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use domain::decision::{DecisionCause, Verdict};
use domain::digest::Sha256Digest;
use domain::restriction::{Desired, Probe};
use domain::time::Timestamp;
use enforcement::canary::Canaries;
use enforcement::{Denial, Enforcer, Judge as _, Settings};
use gate_protocol::{Explanation, Reply, Status};
use orders::{Order, Outcome, Receipt, SigningKey, TrustedKeys, VerifiedOrder, VerifiedPolicy, VerifyError};
use policy::CompiledPolicy;
use policy::baseline::Baseline;
use serde::{Deserialize, Serialize};

use crate::judge::MachineJudge;
use crate::state::{Accepted, Enrollment, State};

/// The gate, behind one lock. The thread that answers the kernel never takes it.
pub struct Gate {
    state: State,
    key: SigningKey,
    boot_id: String,
    enforcer: Box<dyn Enforcer>,
    /// Why the enforcer cannot work here, when it cannot.
    unsupported: Option<String>,
    canaries: Canaries,
    agent_program: std::path::PathBuf,
    agent_digest: Option<(FileIdentity, Sha256Digest)>,
    own_digest: Sha256Digest,
    enrollment: Option<Enrollment>,
    accepted: Accepted,
    baseline: Option<HeldBaseline>,
    policy_in_force: Option<(Sha256Digest, CompiledPolicy)>,
    failed_closed: Option<FailedClosed>,
}

/// The machine is restricted because the gate cannot tell what it should be.
struct FailedClosed {
    reason: String,
    /// Only an order signed later counts: what the lost fence would have refused is refused by its date.
    since: Timestamp,
}

#[derive(Clone)]
struct HeldBaseline {
    baseline: Arc<Baseline<File>>,
    digest: Sha256Digest,
}

/// What changes when a program is replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileIdentity(u64, u64, i64, i64, u64);

/// Digests of the survival set, frozen while restricted.
#[derive(Serialize, Deserialize)]
struct SurvivalFile(Vec<String>);

impl Gate {
    /// Reads the state and is at once what the last accepted order says. Damaged state restricts.
    ///
    /// # Errors
    /// When the state's folder or key cannot be used, or the machine cannot be restricted although it must be.
    pub fn start(
        folder: &Path,
        agent_program: &Path,
        enforcer: Box<dyn Enforcer>,
        unsupported: Option<String>,
    ) -> Result<Self> {
        let state = State::open(folder)?;
        let own_program = File::open("/proc/self/exe").context("cannot open the gate's own program")?;
        let own_digest = enforcement::hash(&own_program.into(), Settings::default().hash_bytes_max)?;
        let mut gate = Self {
            key: state.key()?,
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            enforcer,
            unsupported,
            canaries: Canaries::prepare(&state.canaries()).context("cannot write the canaries")?,
            agent_program: agent_program.to_owned(),
            agent_digest: None,
            own_digest,
            enrollment: None,
            accepted: Accepted::none(0),
            baseline: None,
            policy_in_force: None,
            failed_closed: None,
            state,
        };
        gate.converge()?;
        Ok(gate)
    }

    /// Makes the machine what the state on disk says.
    fn converge(&mut self) -> Result<()> {
        match self.read_baseline() {
            Ok(baseline) => self.baseline = baseline,
            Err(error) => self.fail_closed(format!("the package baseline cannot be used: {error:#}")),
        }
        match self.read_state() {
            Ok(None) => {}
            Ok(Some(policy)) => {
                self.policy_in_force = Some((policy.digest(), CompiledPolicy::compile(policy.policy())?));
            }
            Err(error) => self.fail_closed(format!("the gate's state cannot be used: {error:#}")),
        }
        let order = self.kept_order();
        let wanted = order.as_ref().map_or(Desired::Released, |order| order.desired);
        if wanted == Desired::Released && self.failed_closed.is_none() {
            return Ok(());
        }
        // A damaged baseline alone does not restrict a machine that is to be free.
        if wanted == Desired::Released && order.is_some() && self.state.accepted().is_ok() {
            return Ok(());
        }
        if self.policy_in_force.is_none() {
            self.policy_in_force = Some((Sha256Digest([0; 32]), CompiledPolicy::os_only()));
        }
        self.switch(Desired::Restricted).context("the machine is to be restricted, and cannot be")?;
        if let Some(order) = order
            && self.accepted.receipt.is_none()
        {
            let outcome = self.prove(Desired::Restricted);
            self.keep_receipt(&order, outcome);
        }
        Ok(())
    }

    /// Loads enrollment and order; the policy to restrict with when the order says so.
    fn read_state(&mut self) -> Result<Option<VerifiedPolicy>> {
        let accepted = self.state.accepted()?;
        self.enrollment = self.state.enrollment()?;
        let Some(enrollment) = &self.enrollment else {
            // A fence without an enrollment is a half-made enrollment, before any order could come.
            anyhow::ensure!(
                accepted.is_none_or(|accepted| accepted.order.is_empty()),
                "the enrollment is gone"
            );
            return Ok(None);
        };
        self.accepted = accepted.context("the fence is gone")?;
        if self.accepted.order.is_empty() {
            return Ok(None);
        }
        let order =
            VerifiedOrder::verify_kept(self.accepted.order.as_bytes(), &enrollment.keys, enrollment.machine)?;
        anyhow::ensure!(order.order().fence == self.accepted.fence(), "the order is not that of the fence");
        if order.order().desired == Desired::Released {
            return Ok(None);
        }
        let policy = self.accepted.policy.as_deref().context("the policy is gone")?;
        let policy = VerifiedPolicy::verify(policy.as_bytes(), &enrollment.keys)?;
        anyhow::ensure!(Some(policy.digest()) == order.order().policy, "the policy is not that of the order");
        Ok(Some(policy))
    }

    fn kept_order(&self) -> Option<Order> {
        let enrollment = self.enrollment.as_ref()?;
        let bytes = self.accepted.order.as_bytes();
        VerifiedOrder::verify_kept(bytes, &enrollment.keys, enrollment.machine)
            .ok()
            .map(|order| order.order().clone())
    }

    fn fail_closed(&mut self, reason: String) {
        eprintln!("cordon-gate: {reason}; failing closed");
        self.failed_closed.get_or_insert(FailedClosed { reason, since: now() });
    }

    fn read_baseline(&self) -> Result<Option<HeldBaseline>> {
        let Some(expected) = self.state.load::<String>("baseline-digest")? else { return Ok(None) };
        let path = self.state.baseline();
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let digest = enforcement::hash(&file.try_clone()?.into(), policy::baseline::BYTES_MAX)?;
        anyhow::ensure!(digest.to_string() == expected, "{} is damaged", path.display());
        Ok(Some(HeldBaseline { baseline: Arc::new(Baseline::open(file)?), digest }))
    }

    /// Obeys a signed order. `reply` gets the answers as they come.
    pub fn apply(&mut self, envelope: &str, reply: &mut dyn FnMut(Reply)) {
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
            Ok(policy) => {
                let mut accepted = Accepted::new(
                    order.fence,
                    order.desired,
                    envelope.to_owned(),
                    policy.as_ref().map(|p| p.1.clone()),
                );
                std::mem::swap(&mut self.accepted, &mut accepted);
                // The fence is durable before anything is switched, so that no crash can make an older order new.
                if let Err(error) = self.state.save_accepted(&self.accepted) {
                    self.accepted = accepted;
                    let reason = format!("the order cannot be made durable: {}", chain(&error));
                    return reply(self.receipt(&order, Outcome::ApplyFailed(reason), None));
                }
                if let Some((policy, _)) = policy
                    && let Ok(compiled) = CompiledPolicy::compile(policy.policy())
                {
                    self.policy_in_force = Some((policy.digest(), compiled));
                }
                self.carry_out(&order, reply);
            }
            Err(reason) => reply(self.receipt(&order, Outcome::Rejected(reason), None)),
        }
    }

    fn verified(&self, envelope: &str) -> Result<Order, String> {
        let enrollment = self.enrollment.as_ref().ok_or("this machine is not enrolled")?;
        VerifiedOrder::verify_kept(envelope.as_bytes(), &enrollment.keys, enrollment.machine)
            .map(|order| order.order().clone())
            .map_err(|error| error.to_string())
    }

    /// Whether the order may be obeyed, and the policy that it needs.
    fn admit(&self, order: &Order) -> Result<Option<(VerifiedPolicy, String)>, String> {
        if let Some(failed) = &self.failed_closed {
            if order.issued_at <= failed.since {
                return Err(format!(
                    "only orders signed after {} count: {}",
                    failed.since.unix_seconds(),
                    failed.reason
                ));
            }
        } else {
            self.accepted.fence().admit(&order.fence).map_err(|error| error.to_string())?;
        }
        if now() > order.not_after {
            return Err(VerifyError::Expired.to_string());
        }
        if let Some(reason) = &self.unsupported
            && order.desired == Desired::Restricted
        {
            return Err(reason.clone());
        }
        let Some(digest) = order.policy.filter(|_| order.desired == Desired::Restricted) else {
            return Ok(None);
        };
        let bytes = self.state.policy(digest).map_err(|error| chain(&error))?;
        let bytes = bytes.ok_or_else(|| format!("the policy {digest} is not held"))?;
        let policy =
            VerifiedPolicy::verify(bytes.as_bytes(), &self.keys()).map_err(|error| error.to_string())?;
        Ok(Some((policy, bytes)))
    }

    fn keys(&self) -> TrustedKeys {
        self.enrollment.as_ref().map_or_else(|| TrustedKeys::new([]), |enrollment| enrollment.keys.clone())
    }

    fn carry_out(&mut self, order: &Order, reply: &mut dyn FnMut(Reply)) {
        reply(Reply::Accepted { generation: order.fence.generation });
        let outcome = match self.switch(order.desired) {
            Ok(()) => {
                self.failed_closed = None;
                self.prove(order.desired)
            }
            Err(error) => (Outcome::ApplyFailed(format!("{error:#}")), None),
        };
        reply(self.keep_receipt(order, outcome));
    }

    fn switch(&mut self, desired: Desired) -> Result<()> {
        match desired {
            Desired::Restricted => {
                let survival = self.survival_set()?;
                let judge = self.judge(survival);
                self.enforcer.restrict(Arc::new(judge))?;
            }
            Desired::Released => self.enforcer.release(),
        }
        Ok(())
    }

    /// A restriction whose canaries do not prove it stays: in doubt it is better than none, and the receipt says so.
    fn prove(&self, desired: Desired) -> (Outcome, Option<Probe>) {
        let mut nonce = [0; 16];
        if let Err(error) = getrandom::fill(&mut nonce) {
            return (Outcome::ProbeFailed(format!("no random numbers for the canary: {error}")), None);
        }
        let probe = self.canaries.run(nonce);
        let outcome = if probe.proves(desired) {
            Outcome::Enforced
        } else {
            Outcome::ProbeFailed(format!(
                "the canaries in {} do not prove it: the unlisted one {:?}, the listed one {:?}",
                self.state.canaries().display(),
                probe.unlisted,
                probe.listed
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
                eprintln!("cordon-gate: the receipt cannot be kept: {}", chain(&error));
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
            policy: self.policy_in_force.as_ref().map(|(digest, _)| *digest),
            baseline: self.baseline.as_ref().map(|held| held.digest),
            boot_id: self.boot_id.clone(),
            issued_at: now(),
        };
        Reply::Receipt { envelope: String::from_utf8_lossy(&receipt.sign(&self.key).to_bytes()).into_owned() }
    }

    fn judge(&self, survival: HashSet<Sha256Digest>) -> MachineJudge {
        let policy = self.policy_in_force.as_ref().map(|(_, policy)| policy.clone());
        MachineJudge {
            policy: policy.unwrap_or_else(CompiledPolicy::os_only),
            survival,
            baseline: self.baseline.as_ref().map(|held| Arc::clone(&held.baseline)),
        }
    }

    /// The gate, the agent and the listed canary. Looked at anew while released; while restricted, what was found then
    /// counts, so that a program put in the agent's place does not.
    fn survival_set(&mut self) -> Result<HashSet<Sha256Digest>> {
        let mut set = HashSet::from([self.own_digest, Canaries::listed_digest()]);
        let restricted = self.enforcer.status().restricted;
        let starting_restricted = self.kept_order().is_some_and(|order| order.desired == Desired::Restricted)
            && self.agent_digest.is_none();
        if (restricted || starting_restricted)
            && let Ok(Some(SurvivalFile(kept))) = self.state.load("survival")
        {
            set.extend(kept.iter().filter_map(|text| text.parse::<Sha256Digest>().ok()));
            return Ok(set);
        }
        if let Some(digest) = self.agent_program_digest() {
            set.insert(digest);
        }
        self.state.save("survival", &SurvivalFile(set.iter().map(ToString::to_string).collect()))?;
        Ok(set)
    }

    fn agent_program_digest(&mut self) -> Option<Sha256Digest> {
        let file = File::open(&self.agent_program).ok()?;
        let metadata = file.metadata().ok()?;
        let identity = FileIdentity(
            metadata.dev(),
            metadata.ino(),
            metadata.ctime(),
            metadata.ctime_nsec(),
            metadata.len(),
        );
        if let Some((known, digest)) = self.agent_digest
            && known == identity
        {
            return Some(digest);
        }
        let digest = enforcement::hash(&file.into(), Settings::default().hash_bytes_max).ok()?;
        self.agent_digest = Some((identity, digest));
        Some(digest)
    }

    /// Hashes what a switch will need, so that the switch need not.
    pub fn warm_up(&mut self) {
        if !self.is_restricted() {
            self.agent_program_digest();
        }
    }

    /// Whether the restriction is in force.
    pub fn is_restricted(&self) -> bool {
        self.enforcer.status().restricted
    }

    /// Binds the gate to a machine and to the control plane's keys.
    ///
    /// # Errors
    /// Why not, in one sentence.
    pub fn enroll(&mut self, machine: &str, incarnation: u64, order_keys: &[String]) -> Result<()> {
        anyhow::ensure!(
            !self.is_restricted(),
            "the machine is restricted: lift the restriction before enrolling again"
        );
        let keys: Result<Vec<_>, _> = order_keys.iter().map(|key| key.parse()).collect();
        let keys = keys?;
        anyhow::ensure!(!keys.is_empty(), "no order keys");
        let enrollment = Enrollment { machine: machine.parse()?, incarnation, keys: TrustedKeys::new(keys) };
        self.state.save_enrollment(&enrollment)?;
        self.accepted = Accepted::none(incarnation);
        self.enrollment = Some(enrollment);
        self.failed_closed = None;
        Ok(())
    }

    /// Keeps a signed policy ahead of time.
    ///
    /// # Errors
    /// When it is not signed, or cannot be kept.
    pub fn store_policy(&mut self, envelope: &str) -> Result<()> {
        let policy = VerifiedPolicy::verify(envelope.as_bytes(), &self.keys())?;
        Ok(self.state.save_policy(policy.digest(), envelope)?)
    }

    /// Puts a gathered baseline in place after reading all of it.
    ///
    /// # Errors
    /// While restricted, or when it is not a sound baseline, or cannot be kept.
    pub fn store_baseline(&mut self, digest: Sha256Digest) -> Result<()> {
        anyhow::ensure!(
            !self.is_restricted(),
            "the package baseline is frozen while the machine is restricted"
        );
        let incoming = self.state.baseline_incoming();
        let file = File::open(&incoming)?;
        file.sync_all()?;
        let length = file.metadata()?.len();
        let baseline = Baseline::open(file)?;
        anyhow::ensure!(baseline.bytes() == length, "the baseline's length does not match its header");
        baseline.verify()?;
        crate::state::put_in_place(&incoming, &self.state.baseline())?;
        self.state.save("baseline-digest", &digest.to_string())?;
        self.baseline = Some(HeldBaseline { baseline: Arc::new(baseline), digest });
        Ok(())
    }

    /// Where a baseline is gathered.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The signed answer to the last order.
    pub fn last_receipt(&self) -> Option<String> {
        self.accepted.receipt.clone()
    }

    /// Takes the denials that were not yet taken, and how many were lost.
    pub fn take_denials(&mut self) -> (Vec<Denial>, u64) {
        let denials = self.enforcer.take_denials(gate_protocol::DENIALS_MAX);
        (denials, self.enforcer.status().denials_dropped)
    }

    /// The gate's state for people and for the agent.
    pub fn status(&self) -> Status {
        let enforcer = self.enforcer.status();
        let fence = self.accepted.fence();
        let tier_note = self.unsupported.clone().unwrap_or_else(|| {
            "reduced: sees neither memfd nor mappings of files that are open already; when the gate dies, the kernel \
             allows until it is back"
                .to_owned()
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            public_key: self.key.public_key().to_string(),
            machine: self.enrollment.as_ref().map(|enrollment| enrollment.machine.to_string()),
            incarnation: fence.incarnation,
            store_epoch: fence.store_epoch,
            generation: fence.generation,
            restricted: enforcer.restricted,
            failed_closed: self.failed_closed.as_ref().map(|failed| failed.reason.clone()),
            tier: self.unsupported.is_none().then(|| self.enforcer.tier().name().to_owned()),
            tier_note,
            policies: self.state.policies().iter().map(|(digest, _)| digest.to_string()).collect(),
            policy: self
                .policy_in_force
                .as_ref()
                .filter(|_| enforcer.restricted)
                .map(|(digest, _)| digest.to_string()),
            baseline: self.baseline.as_ref().map(|held| held.digest.to_string()),
            baseline_files: self.baseline.as_ref().map_or(0, |held| held.baseline.files()),
            marks: enforcer.marks,
            labels: enforcer.labels,
            asked: enforcer.asked,
            denied: enforcer.denied,
        }
    }

    /// What answers [`explain`]: the policy in force, or the one stored last.
    pub fn explaining_judge(&mut self) -> MachineJudge {
        if !self.is_restricted() {
            let newest =
                self.state.policies().last().and_then(|(digest, _)| self.state.policy(*digest).ok()?);
            let newest = newest.and_then(|bytes| VerifiedPolicy::verify(bytes.as_bytes(), &self.keys()).ok());
            self.policy_in_force = newest
                .and_then(|policy| Some((policy.digest(), CompiledPolicy::compile(policy.policy()).ok()?)));
        }
        let mut survival = HashSet::from([self.own_digest, Canaries::listed_digest()]);
        survival.extend(self.agent_program_digest());
        self.judge(survival)
    }
}

/// What a judge says about a file. Reads the whole file, so never under the gate's lock.
pub fn explain(judge: &MachineJudge, path: &str) -> Explanation {
    let failed = |message: String| Explanation {
        allowed: false,
        cause: "unreadable".to_owned(),
        rule: None,
        sha256: None,
        message,
    };
    let look = || -> std::io::Result<(Sha256Digest, std::fs::Metadata, std::path::PathBuf)> {
        let path = std::fs::canonicalize(path)?;
        let metadata = std::fs::metadata(&path)?;
        if !metadata.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        let digest = enforcement::hash(&File::open(&path)?.into(), Settings::default().hash_bytes_max)?;
        Ok((digest, metadata, path))
    };
    let (digest, metadata, path) = match look() {
        Ok(found) => found,
        Err(error) => return failed(format!("{path} cannot be read: {error}")),
    };
    let decision = judge.judge(&enforcement::FileFacts {
        digest,
        path: std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()),
        device: metadata.dev(),
        inode: metadata.ino(),
    });
    let (rule, message) = match &decision.cause {
        DecisionCause::Rule(id) => (Some(id.clone()), format!("the policy's rule {id:?} says so")),
        DecisionCause::SurvivalSet => {
            (None, "it belongs to what keeps the machine alive and reachable".to_owned())
        }
        DecisionCause::PackageDatabase => {
            (None, "an installed package shipped exactly this file at this place".to_owned())
        }
        DecisionCause::Unlisted
        | DecisionCause::Unreadable
        | DecisionCause::BeingWritten
        | DecisionCause::TooLarge
        | DecisionCause::Late
        | DecisionCause::Overload => (
            None,
            "no package shipped this content at this place, and no rule allows it: to allow it, add its SHA-256 to \
             the policy"
                .to_owned(),
        ),
    };
    Explanation {
        allowed: decision.verdict == Verdict::Allow,
        cause: decision.cause.code().to_owned(),
        rule,
        sha256: Some(digest.to_string()),
        message,
    }
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
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
