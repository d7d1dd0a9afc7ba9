//! Allow policies: applied, listed, and signed for the machines, which hold them ahead of time.

use std::sync::{Arc, PoisonError, RwLock};

use domain::allow_policy::{AllowPolicy, Profile};
use domain::audit_entry::AuditEntry;
use domain::digest::Sha256Digest;
use domain::permission::Requirement;
use orders::{SigningKey, VerifiedPolicy, sign_policy};
use store::StoreError;
use store::policy::{StoredPolicy, policy_create, policy_fetch, policy_fetch_by_digest, policy_names};

use crate::{Caller, ControlPlane, Error, Result, audit, now};

/// Policies with the digest of each.
type Envelopes = Arc<[(Sha256Digest, Arc<str>)]>;

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
        self.0
            .store
            .read(move |tx| policy_fetch(tx, &name)?.ok_or(Error::NotFound { entity: "Policy", id: name }))
            .await
    }

    /// Saves a policy as the next revision of its name, and sends it to the machines. What is restricted already stays
    /// under the revision that its order names; a further restrict takes up this one. A policy that says nothing else
    /// than the newest revision is not saved again.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`]; from the store.
    pub async fn policy_apply(&self, caller: &Caller, policy: AllowPolicy) -> Result<StoredPolicy> {
        caller.require(Requirement::ADMINISTER)?;
        policy.validate().map_err(|error| Error::InvalidInput(error.to_string()))?;
        let actor = caller.name();
        let control = self.clone();
        let (saved, changed) = self.0.store.write(move |tx| control.policy_save(tx, policy, &actor)).await?;
        if changed {
            self.policies_sign().await?;
            self.0.links.policies_changed();
        }
        Ok(saved)
    }

    fn policy_save(
        &self,
        tx: &store::Tx<'_>,
        mut policy: AllowPolicy,
        actor: &str,
    ) -> Result<(StoredPolicy, bool)> {
        policy.rules.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(newest) = policy_fetch(tx, &policy.name)? {
            policy.revision = newest.policy.revision;
            if policy == newest.policy {
                return Ok((newest, false));
            }
        }
        policy.revision += 1;
        let (digest, _) = signed(&policy, &self.0.order_key)?;
        let saved = StoredPolicy { policy, digest, updated_at: now(), updated_by: actor.to_owned() };
        policy_create(tx, &saved)?;
        let detail = format!("revision {}, {} rules", saved.policy.revision, saved.policy.rules.len());
        audit::record(tx, saved.updated_at, actor, "policy_apply", &saved.policy.name, detail)?;
        Ok((saved, true))
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
                        rules: Vec::new(),
                    };
                    control.policy_save(tx, policy, AuditEntry::SYSTEM)?;
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
