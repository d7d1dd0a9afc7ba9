//! Impact previews: asked of a machine when the one that is kept is too old, and kept when they come.

use std::time::Duration;

use domain::digest::Sha256Digest;
use domain::impact_preview::ImpactPreview;
use domain::machine::{Machine, MachineId};
use domain::permission::Requirement;
use store::impact_preview::{StoredImpactPreview, impact_preview_fetch, impact_preview_save};
use store::policy::{policy_fetch, policy_fetch_by_digest};

use crate::caller::shown;
use crate::{Caller, ControlPlane, Error, Result, machine, now};

/// How a machine stands to a preview that is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreviewStanding {
    /// There is no connection to it.
    NotConnected,
    /// Its agent is from before there were previews.
    NotSupported,
    /// It is asked, or at it.
    Underway {
        /// Files looked at.
        files_done: u64,
        /// Files to look at; 0 before that is known.
        files_total: u64,
    },
    /// It has none, for this reason. The next question asks it again.
    Failed(String),
}

/// What there is of a preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewFound {
    /// The machine.
    pub machine: Machine,
    /// The policy's name.
    pub policy: String,
    /// Its newest revision, which the preview is about.
    pub revision: u64,
    /// How the machine stands to a newer one; none when what is kept is young enough.
    pub standing: Option<PreviewStanding>,
    /// The last one that came.
    pub kept: Option<StoredImpactPreview>,
}

impl ControlPlane {
    /// The impact preview of a machine (id or name) for the newest revision of a policy, by default the one that a
    /// restriction would have. When there is none that came within `age_max`, the machine is asked.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::InvalidInput`]; from the store.
    pub async fn impact_preview_fetch(
        &self,
        caller: &Caller,
        target: &str,
        policy: Option<&str>,
        age_max: Duration,
    ) -> Result<PreviewFound> {
        caller.require(Requirement::READ)?;
        let (target, access) = (target.to_owned(), caller.machines.clone());
        let (control, named) = (self.clone(), policy.map(str::to_owned));
        let (machine, policy, kept) = self
            .0
            .store
            .read(move |tx| {
                let machine = machine::resolve(tx, &target, &access)?;
                let name = control.policy_name_for(&machine, named.as_deref());
                let unknown = || Error::NotFound { entity: "Policy", id: shown(&name).into_owned() };
                let policy = policy_fetch(tx, &name)?.ok_or_else(unknown)?;
                let kept = impact_preview_fetch(tx, machine.id, &name, policy.policy.revision)?;
                Ok::<_, Error>((machine, policy, kept))
            })
            .await?;
        let is_young = kept.as_ref().is_some_and(|kept| now().since(kept.received_at) <= age_max);
        let standing = (!is_young).then(|| self.0.links.preview_wanted(machine.id, policy.digest, age_max));
        let (policy, revision) = (policy.policy.name, policy.policy.revision);
        Ok(PreviewFound { machine, policy, revision, standing, kept })
    }

    /// Keeps the preview that a machine made for the policy with this digest. One for a policy that is not there any
    /// more is of no use to anybody.
    ///
    /// # Errors
    /// From the store.
    pub async fn impact_preview_store(
        &self,
        machine: MachineId,
        policy: Sha256Digest,
        preview: ImpactPreview,
    ) -> Result<()> {
        self.0
            .store
            .write(move |tx| {
                let Some(policy) = policy_fetch_by_digest(tx, policy)? else { return Ok(()) };
                let (name, revision) = (policy.policy.name, policy.policy.revision);
                Ok(impact_preview_save(tx, machine, &name, revision, &preview, now())?)
            })
            .await
    }
}
