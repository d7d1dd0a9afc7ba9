//! The use cases: who may do what, and what then happens, whole or not at all.
//!
//! Each use case checks the caller's permission, does its work in one transaction of the `store`, and writes its audit
//! entry in the same transaction. What connected machines must hear of is told to [`Links`] after the commit.
//! Deliberately knows no HTTP, no sockets and no SQL.
#![forbid(unsafe_code)]

mod app;
mod audit;
mod caller;
mod enrollment_token;
mod error;
mod event;
mod machine;
mod machine_action;
mod order;
mod policy;
mod rate_limit;
mod receipt;
mod secret;

use std::collections::HashSet;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use domain::machine::MachineId;
use domain::rate_limit::RateLimit;
use domain::time::Timestamp;
use orders::{PublicKey, SigningKey};
use store::Store;
use uuid::Uuid;

pub use caller::Caller;
pub use error::{Error, Result};
pub use machine::ReportedState;
pub use machine_action::{Request, StoredReceipt};
pub use order::CurrentOrder;

use policy::SignedPolicies;
use rate_limit::RateLimiter;

/// What an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many calls of one operation one app may make.
    pub rate_limit: RateLimit,
    /// How long an action may stay open before it times out.
    pub action_deadline: Duration,
}

impl Default for Settings {
    /// The vendor's numbers.
    fn default() -> Self {
        Self { rate_limit: RateLimit::VENDOR, action_deadline: domain::machine_action::DEADLINE_DEFAULT }
    }
}

/// The connections to machines, told after each commit that concerns them. Must not block.
pub trait Links: Send + Sync {
    /// The machine's current order changed.
    fn order_changed(&self, machine: MachineId);
    /// A policy changed, which every machine is to hold ahead of time.
    fn policies_changed(&self);
}

/// The use cases over one store. Cloning is cheap; all clones are the same.
#[derive(Clone)]
pub struct ControlPlane(Arc<Inner>);

struct Inner {
    store: Store,
    order_key: SigningKey,
    settings: Settings,
    links: Arc<dyn Links>,
    limiter: RateLimiter,
    policies: SignedPolicies,
    revoked_apps: RwLock<HashSet<Uuid>>,
}

impl ControlPlane {
    /// Starts from what the store holds: calls that still count against their limits, policies, revoked apps. Makes the
    /// default policy when there is none.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Internal`] from the store.
    pub async fn open(
        store: Store,
        order_key: SigningKey,
        settings: Settings,
        links: Arc<dyn Links>,
    ) -> Result<Self> {
        let limiter = RateLimiter::restore(&store, settings.rate_limit, now()).await?;
        let apps = store.read(store::app::app_list).await?;
        let revoked = apps.iter().filter(|app| app.revoked_at.is_some()).map(|app| app.id).collect();
        let control = Self(Arc::new(Inner {
            store,
            order_key,
            settings,
            links,
            limiter,
            policies: SignedPolicies::default(),
            revoked_apps: RwLock::new(revoked),
        }));
        control.policy_default_create().await?;
        control.policies_sign().await?;
        Ok(control)
    }

    /// The keys whose orders and policies machines are to believe.
    pub fn order_keys(&self) -> Vec<PublicKey> {
        vec![self.0.order_key.public_key()]
    }
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
