//! What the gate does around a switch: what keeps the machine alive is found before, what runs is looked at after, and a
//! machine that is out of reach is released again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use domain::digest::Sha256Digest;
use domain::policy_settings::{RunningPrograms, SurvivalCheck};
use domain::restriction::{Desired, Probe};
use orders::{Order, Outcome, VerifiedReceipt};
use policy::CompiledPolicy;
use sha2::Digest as _;

use super::{Gate, chain};
use crate::config::{Config, Scope};
use crate::deadman::{self, Shell, Vitals};
use crate::motd::Motd;
use crate::survival::{Survey, Survivors};
use crate::sweep::{Reach, Sweeper, Swept};

/// How long between two looks at a machine that seems out of reach.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Whose survival is seen to, and how.
#[derive(Debug)]
pub(super) struct Around {
    root: PathBuf,
    agent_program: PathBuf,
    deadman: Duration,
    pub(super) sweeper: Sweeper,
    motd: Option<Motd>,
    /// The control group of frozen processes.
    group: String,
}

impl Default for Around {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
            agent_program: PathBuf::new(),
            deadman: Duration::ZERO,
            sweeper: Sweeper::default(),
            motd: None,
            group: "cordon-frozen".to_owned(),
        }
    }
}

impl Gate {
    /// Sees to the machine that these settings describe. For right after the start.
    pub fn watch_over(&mut self, config: &Config) {
        // Two gates for trying things out have a group each.
        let id = Sha256Digest(sha2::Sha256::digest(config.state_dir.as_os_str().as_encoded_bytes()).into());
        let id: String = id.to_string().chars().take(8).collect();
        self.survival.look_below(config.system_root.clone());
        self.around = Around {
            root: config.system_root.clone(),
            agent_program: config.agent_program.clone(),
            deadman: Duration::from_secs(config.deadman_seconds),
            sweeper: Sweeper::default(),
            motd: Some(Motd::of(&config.system_root)),
            group: format!("cordon-frozen-{id}"),
        };
        self.around.sweeper.reach(Reach {
            own_mounts_only: config.scope == Scope::Mount,
            agent_program: config.agent_program.clone(),
        });
        if self.is_restricted() {
            self.sweep();
        } else {
            self.lifted();
        }
        self.tell();
    }

    /// The survival set of a policy, by what this machine has now.
    ///
    /// # Errors
    /// When nothing can be examined.
    pub(super) fn survey(&mut self, policy: &CompiledPolicy) -> anyhow::Result<Survey> {
        let always = self.survival.look();
        let judge = self.judge(None, policy.clone(), always);
        let survey = self.survival.survey(judge, self.enforcer.tier().sees_mappings());
        survey.context("the survival set cannot be found")
    }

    /// The survival set of a policy that is about to come into force.
    ///
    /// # Errors
    /// What of it would not run, when the policy asks for all of it.
    pub(super) fn survivors(
        &mut self,
        policy: &CompiledPolicy,
        check: SurvivalCheck,
    ) -> Result<Survivors, String> {
        let survey = self.survey(policy).map_err(|error| format!("{error:#}"))?;
        match (survey.complaint(), check) {
            (Some(complaint), SurvivalCheck::Refuse) => return Err(complaint),
            (Some(complaint), SurvivalCheck::Force) => {
                log!("restricting all the same, as the policy says: {complaint}");
            }
            (None, SurvivalCheck::Refuse | SurvivalCheck::Force) => {}
        }
        Ok(survey.survivors)
    }

    /// By which ways the machine is reached before it is restricted; none when it is not to be, or is already.
    pub(super) fn vitals_before(&self, desired: Desired) -> Option<Vitals> {
        let begins = desired == Desired::Restricted && !self.is_restricted();
        begins.then(|| Vitals::look(&self.around.root, &self.around.agent_program))
    }

    /// What is to be done once the machine is what it should be: what then is to be said of it.
    pub(super) fn after_switch(
        &mut self,
        order: &Order,
        before: Option<Vitals>,
        outcome: (Outcome, Option<Probe>),
    ) -> (Outcome, Option<Probe>) {
        self.tell();
        if order.desired != Desired::Restricted || !self.is_restricted() {
            return outcome;
        }
        self.sweep();
        let lost = before.and_then(|before| self.lost(before));
        match lost.map(|lost| (self.revert(order, &lost), lost)) {
            None => outcome,
            Some((Ok(outcome), _)) => (outcome, None),
            Some((Err(error), lost)) => {
                log!("{lost}, and the machine cannot be released: {error:#}");
                (Outcome::ProbeFailed(format!("{lost}, and the machine cannot be released: {error:#}")), None)
            }
        }
    }

    /// What of the machine's ways is gone and does not come back in time.
    fn lost(&self, before: Vitals) -> Option<String> {
        let start = Instant::now();
        loop {
            let now = Vitals::look(&self.around.root, &self.around.agent_program);
            let mut lost: Vec<_> = now.lost(&before).into_iter().map(str::to_owned).collect();
            if let Shell::Refused(shell) = deadman::try_shells(&self.around.root)
                && self.is_not_listed(&shell)
            {
                lost.push(format!("root's login shell {} is refused", shell.display()));
            }
            if lost.is_empty() {
                return None;
            }
            if start.elapsed() >= self.around.deadman {
                return Some(lost.join("; "));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Whether a refusal comes from the set, and not from a gate that has too much to do: that passes.
    fn is_not_listed(&self, program: &std::path::Path) -> bool {
        let Some(set) = &self.set else { return false };
        let judge = self.judge(set.digest, set.policy.clone(), set.survival.clone());
        let Some(path) = program.to_str() else { return false };
        std::thread::scope(|scope| {
            scope.spawn(|| !super::explain(&judge, path).allowed).join().unwrap_or(false)
        })
    }

    /// Releases the machine again, and says why. What is kept says both before it happens.
    fn revert(&mut self, order: &Order, lost: &str) -> anyhow::Result<Outcome> {
        let seconds = self.around.deadman.as_secs();
        let reason = format!("released again, because within {seconds} s after the restriction {lost}");
        log!("{reason}");
        let outcome = Outcome::ApplyFailed(reason);
        let mut over = self.accepted.clone();
        over.end();
        if let gate_protocol::Reply::Receipt { envelope } = self.receipt(order, outcome.clone(), None) {
            over.receipt = Some(envelope);
        }
        self.state.save_accepted(&over).map_err(|error| anyhow::anyhow!(chain(&error)))?;
        self.accepted = over;
        self.switch(Desired::Released)?;
        self.tell();
        Ok(outcome)
    }

    /// Whether this gate itself says that it could not carry out the order: then it may have released the machine.
    pub(super) fn says_that_it_failed(&self, receipt: &str, order: &Order) -> bool {
        VerifiedReceipt::verify(receipt.as_bytes(), self.key.public_key(), order.machine).is_ok_and(
            |verified| {
                let receipt = verified.receipt();
                receipt.fence == order.fence && matches!(receipt.outcome, Outcome::ApplyFailed(_))
            },
        )
    }

    /// Looks at what runs, and does with it what the policy says.
    fn sweep(&mut self) {
        let Some(set) = &self.set else { return };
        let judge = self.judge(set.digest, set.policy.clone(), set.survival.clone());
        let action = set.settings.running_programs;
        let group = self.around.group.clone();
        if action == RunningPrograms::Report {
            return self.around.sweeper.report(judge, &group, &self.state);
        }
        match self.around.sweeper.sweep(judge, action, &group, &self.state) {
            Ok(Swept { found, left }) => {
                log!("{found} processes ran that are not listed, and were to be {action}: {left} are left");
            }
            Err(error) => log!("programs that are not listed run on: {error}"),
        }
    }

    /// The machine is released: who was frozen goes on.
    pub(super) fn lifted(&mut self) {
        let group = self.around.group.clone();
        if let Err(error) = self.around.sweeper.lift(&group, &self.state) {
            log!("programs stay frozen: {error}");
        }
    }

    /// Tells whoever logs in what the machine is.
    fn tell(&self) {
        let notice = self.set.as_ref().filter(|_| self.is_restricted()).map(|set| &set.settings.notice);
        if let Some(motd) = &self.around.motd {
            motd.show(notice);
        }
    }
}
