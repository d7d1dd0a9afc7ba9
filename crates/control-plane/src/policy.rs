//! Allow policies: applied, listed, and signed for the machines, which hold them ahead of time.

use std::sync::{Arc, PoisonError, RwLock};

use domain::allow_policy::{AllowPolicy, PolicyDiff, Profile};
use domain::audit_entry::AuditEntry;
use domain::digest::Sha256Digest;
use domain::machine_group::{MachineAccess, MachineGroup};
use domain::permission::Requirement;
use domain::policy_settings::PolicySettings;
use orders::{SigningKey, VerifiedPolicy, sign_policy};
use store::machine_group::machine_group_list;
use store::policy::{
    StoredPolicy, policy_create, policy_fetch, policy_fetch_by_digest, policy_fetch_revision, policy_names,
    policy_revisions,
};
use store::{StoreError, Tx};

use crate::{Caller, ControlPlane, Error, Result, audit, now};

/// The most policies: every machine holds all of them ahead of time, and has room for twice as many revisions.
const POLICIES_MAX: usize = 32;

/// Policies with the digest of each.
type Envelopes = Arc<[(Sha256Digest, Arc<str>)]>;

/// What differs between two revisions of a policy, and whom it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyChange {
    /// The revision that it comes to.
    pub policy: StoredPolicy,
    /// The revision that it comes from; none when there was none.
    pub from: Option<u64>,
    /// What differs.
    pub diff: PolicyDiff,
    /// The machine groups whose policy it is, by name.
    pub machine_groups: Vec<String>,
}

/// The newest revision of every policy, signed.
#[derive(Default)]
pub(crate) struct SignedPolicies(RwLock<Envelopes>);

impl ControlPlane {
    /// The newest revision of every policy, by name.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn policy_list(&self, caller: &Caller) -> Result<Vec<StoredPolicy>> {
        caller.require(Requirement::READ_OR_ADMINISTER)?;
        self.policies_newest().await
    }

    /// The newest revision of one policy.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn policy_fetch(&self, caller: &Caller, name: &str) -> Result<StoredPolicy> {
        caller.require(Requirement::READ_OR_ADMINISTER)?;
        let name = name.to_owned();
        self.0.store.read(move |tx| policy_fetch(tx, &name)?.ok_or_else(|| unknown(&name))).await
    }

    /// The revisions of one policy, newest first.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn policy_revisions(&self, caller: &Caller, name: &str) -> Result<Vec<StoredPolicy>> {
        caller.require(Requirement::READ_OR_ADMINISTER)?;
        let name = name.to_owned();
        self.0
            .store
            .read_list(move |tx| {
                let revisions = policy_revisions(tx, &name)?;
                if revisions.is_empty() { Err(unknown(&name)) } else { Ok(revisions) }
            })
            .await
    }

    /// What the revision `to` of a policy says otherwise than `from`; without a number, the newest, and the one before.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn policy_diff(
        &self,
        caller: &Caller,
        name: &str,
        from: Option<u64>,
        to: Option<u64>,
    ) -> Result<PolicyChange> {
        caller.require(Requirement::READ_OR_ADMINISTER)?;
        let (name, access) = (name.to_owned(), caller.machines.clone());
        self.0
            .store
            .read(move |tx| {
                let newest = policy_fetch(tx, &name)?.ok_or_else(|| unknown(&name))?;
                let revision = |number: u64| {
                    let id = || format!("{} revision {number}", crate::caller::shown(&name));
                    policy_fetch_revision(tx, &name, number)?
                        .ok_or_else(|| Error::NotFound { entity: "Policy", id: id() })
                };
                let to = to.map_or(Ok(newest), revision)?;
                let from = match from.unwrap_or_else(|| to.policy.revision.saturating_sub(1)) {
                    0 => None,
                    number => Some(revision(number)?),
                };
                change(tx, from, to, &access)
            })
            .await
    }

    /// Saves a policy as the next revision of its name, and sends it to the machines; with `dry_run`, only tells what
    /// would change. What is restricted already stays under the revision that its order names; a further restrict takes
    /// up this one. A policy that says nothing else than the newest revision is not saved again.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`]; from the store.
    pub async fn policy_apply(
        &self,
        caller: &Caller,
        policy: AllowPolicy,
        dry_run: bool,
    ) -> Result<PolicyChange> {
        caller.require(Requirement::ADMINISTER_SECURITY)?;
        policy.validate().map_err(|error| Error::InvalidInput(error.to_string()))?;
        let (actor, access) = (caller.name().to_owned(), caller.machines.clone());
        let control = self.clone();
        if dry_run {
            return self
                .0
                .store
                .read(move |tx| Ok(control.policy_planned(tx, policy, &actor, &access)?.0))
                .await;
        }
        let (changed, is_new) = self
            .0
            .store
            .write(move |tx| {
                let planned = control.policy_planned(tx, policy, &actor, &access)?;
                if planned.1 {
                    policy_record(tx, &planned.0.policy)?;
                }
                Ok::<_, Error>(planned)
            })
            .await?;
        if is_new {
            self.policies_sign().await?;
            self.0.links.policies_changed();
        }
        Ok(changed)
    }

    /// What saving a policy changes, and whether that is anything.
    fn policy_planned(
        &self,
        tx: &Tx<'_>,
        mut policy: AllowPolicy,
        actor: &str,
        access: &MachineAccess,
    ) -> Result<(PolicyChange, bool)> {
        policy.rules.sort_by(|a, b| a.id.cmp(&b.id));
        if users_of(tx, &policy.name)?.iter().any(|group| !access.admits(group.id)) {
            let message = "the policy is that of machine groups that you have no access to";
            return Err(Error::Disallowed(message.to_owned()));
        }
        let newest = policy_fetch(tx, &policy.name)?;
        policy.revision = newest.as_ref().map_or(0, |newest| newest.policy.revision);
        if let Some(newest) = &newest
            && policy == newest.policy
        {
            return Ok((change(tx, Some(newest.clone()), newest.clone(), access)?, false));
        }
        if newest.is_none() && policy_names(tx)?.len() >= POLICIES_MAX {
            return Err(Error::InvalidInput(format!("at most {POLICIES_MAX} policies are possible")));
        }
        policy.revision += 1;
        let (digest, _) = signed(&policy, &self.0.order_key)?;
        let planned = StoredPolicy { policy, digest, updated_at: now(), updated_by: actor.to_owned() };
        Ok((change(tx, newest, planned, access)?, true))
    }

    /// Makes the policy that applies when none is named.
    pub(crate) async fn policy_default_create(&self) -> Result<()> {
        let control = self.clone();
        self.0
            .store
            .write(move |tx| {
                if policy_fetch(tx, AllowPolicy::DEFAULT_NAME)?.is_none() {
                    let policy = AllowPolicy {
                        name: AllowPolicy::DEFAULT_NAME.to_owned(),
                        revision: 0,
                        profile: Profile::OsAndApproved,
                        settings: PolicySettings::default(),
                        rules: Vec::new(),
                    };
                    policy_record(
                        tx,
                        &control
                            .policy_planned(tx, policy, AuditEntry::SYSTEM, &MachineAccess::All)?
                            .0
                            .policy,
                    )?;
                }
                Ok(())
            })
            .await
    }

    /// Signs the newest revision of every policy, for machines that ask.
    pub(crate) async fn policies_sign(&self) -> Result<()> {
        let newest = self.policies_newest().await?;
        let all: Result<Vec<_>> =
            newest.iter().map(|stored| signed(&stored.policy, &self.0.order_key)).collect();
        *self.0.policies.0.write().unwrap_or_else(PoisonError::into_inner) = all?.into();
        Ok(())
    }

    async fn policies_newest(&self) -> Result<Vec<StoredPolicy>> {
        self.0
            .store
            .read(|tx| {
                let names = policy_names(tx)?;
                let newest: std::result::Result<Vec<_>, StoreError> =
                    names.iter().map(|name| policy_fetch(tx, name)).collect();
                Ok(newest?.into_iter().flatten().collect())
            })
            .await
    }

    /// Every policy's newest revision, signed, with its digest.
    pub fn policy_envelopes(&self) -> Arc<[(Sha256Digest, Arc<str>)]> {
        Arc::clone(&self.0.policies.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The signed revision with this digest; none when there is none.
    ///
    /// # Errors
    /// From the store.
    pub async fn policy_envelope(&self, digest: Sha256Digest) -> Result<Option<Arc<str>>> {
        if let Some((_, envelope)) = self.policy_envelopes().iter().find(|(newest, _)| *newest == digest) {
            return Ok(Some(Arc::clone(envelope)));
        }
        let found = self.0.store.read(move |tx| Ok::<_, Error>(policy_fetch_by_digest(tx, digest)?)).await?;
        found.map(|stored| Ok(signed(&stored.policy, &self.0.order_key)?.1)).transpose()
    }
}

/// Saves a planned revision.
fn policy_record(tx: &Tx<'_>, planned: &StoredPolicy) -> Result<()> {
    policy_create(tx, planned)?;
    let AllowPolicy { revision, rules, settings, .. } = &planned.policy;
    let mut detail = format!("revision {revision}, {} rules", rules.len());
    let set: Vec<_> = settings.entries_set().into_iter().map(|(setting, _)| setting).collect();
    if !set.is_empty() {
        detail = format!("{detail}, not at their defaults: {}", set.join(", "));
    }
    Ok(audit::record(
        tx,
        planned.updated_at,
        &planned.updated_by,
        "policy_apply",
        &planned.policy.name,
        detail,
    )?)
}

/// What differs, and the machine groups whose policy it is, as far as the caller may know of them.
fn change(
    tx: &Tx<'_>,
    from: Option<StoredPolicy>,
    to: StoredPolicy,
    access: &MachineAccess,
) -> Result<PolicyChange> {
    let groups = users_of(tx, &to.policy.name)?.into_iter().filter(|group| access.admits(group.id));
    let machine_groups = groups.map(|group| group.name).collect();
    let diff = PolicyDiff::between(from.as_ref().map(|from| &from.policy), &to.policy);
    Ok(PolicyChange { from: from.map(|from| from.policy.revision), diff, machine_groups, policy: to })
}

/// The machine groups whose policy it is.
fn users_of(tx: &Tx<'_>, name: &str) -> Result<Vec<MachineGroup>> {
    let is_default = name == AllowPolicy::DEFAULT_NAME;
    let uses = |group: &MachineGroup| group.policy.as_deref().map_or(is_default, |policy| policy == name);
    Ok(machine_group_list(tx)?.into_iter().filter(uses).collect())
}

fn unknown(name: &str) -> Error {
    Error::NotFound { entity: "Policy", id: crate::caller::shown(name).into_owned() }
}

/// The signed bytes of a policy, small enough that every machine takes them.
fn signed(policy: &AllowPolicy, key: &SigningKey) -> Result<(Sha256Digest, Arc<str>)> {
    let envelope = sign_policy(policy, key);
    let digest = envelope.payload_digest().map_err(|error| Error::InvalidInput(error.to_string()))?;
    let bytes = envelope.to_bytes();
    if bytes.len() > VerifiedPolicy::BYTES_MAX {
        return Err(Error::InvalidInput(format!(
            "the policy has {} bytes when signed, at most {} are possible: use fewer or shorter paths",
            bytes.len(),
            VerifiedPolicy::BYTES_MAX
        )));
    }
    Ok((digest, String::from_utf8_lossy(&bytes).into()))
}
