//! The use cases: who may do what, and what then happens, whole or not at all.
//!
//! Each use case checks the caller's permission, does its work in one transaction of the `store`, and writes its audit
//! entry in the same transaction. What connected machines must hear of is told to [`Links`] after the commit.
//! Deliberately knows no HTTP, no sockets and no SQL.
#![forbid(unsafe_code)]

mod access;
mod caller;

mod break_glass;
mod bulk;
mod machine;
mod machine_action;
mod order;
mod receipt;
mod watch;

mod app;
mod audit;
mod enrollment_token;
mod error;
mod event;
mod impact_preview;
mod machine_group;
mod policy;
mod rate_limit;
mod role;
mod secret;
mod session;
mod settings;
mod text;
mod user;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::settings::Settings;
use domain::time::Timestamp;
use orders::{PublicKey, SigningKey};
use store::Store;

pub use app::{AppDraft, KeyDraft};
pub use break_glass::{ReportedBreakGlass, ShownCode};
pub use bulk::{BulkOutcome, BulkPlan, BulkRequest, BulkResult, BulkTargets};
pub use caller::{Bearer, Caller, Groups};
pub use error::{Error, Result};
pub use impact_preview::{PreviewFound, PreviewStanding};
pub use machine::{ReportedState, TagChange};
pub use machine_action::{Request, StoredReceipt, why_not};
pub use machine_group::{MachineGroupDraft, MachineGroupPreview, SizedMachineGroup};
pub use order::CurrentOrder;
pub use policy::PolicyChange;
pub use session::{CodeBinding, DeviceBegun, Granted, Poll};
pub use settings::Setting;
pub use user::{UserChange, UserDraft};

use access::Access;
use policy::SignedPolicies;
use rate_limit::RateLimiter;
use watch::Watch;

/// The connections to machines, told after each commit that concerns them. Must not block.
pub trait Links: Send + Sync {
    /// The machine's current order changed.
    fn order_changed(&self, machine: MachineId);
    /// A policy changed, which every machine is to hold ahead of time.
    fn policies_changed(&self);
    /// Whether the machine is connected at this moment.
    fn is_connected(&self, machine: MachineId) -> bool;
    /// An impact preview for the policy with this digest is wanted of a machine, of at most this age. Asks the machine
    /// unless it is at it already.
    fn preview_wanted(&self, machine: MachineId, policy: Sha256Digest, age_max: Duration) -> PreviewStanding;
}

/// The use cases over one store. Cloning is cheap; all clones are the same.
#[derive(Clone)]
pub struct ControlPlane(Arc<Inner>);

struct Inner {
    store: Store,
    order_key: SigningKey,
    settings_default: Settings,
    links: Arc<dyn Links>,
    limiter: RateLimiter,
    policies: SignedPolicies,
    access: Access,
    watch: Watch,
    /// Held by the one bulk call that is under way.
    bulk_turn: tokio::sync::Mutex<()>,
}

impl ControlPlane {
    /// Starts from what the store holds: calls that still count against their limits, policies, who may do what. Makes
    /// the default policy when there is none. `settings` are those that nobody changed by [`Self::settings_update`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Internal`] from the store.
    pub async fn open(
        store: Store,
        order_key: SigningKey,
        settings: Settings,
        links: Arc<dyn Links>,
    ) -> Result<Self> {
        let set = store.read(move |tx| settings::settings_of(tx, settings)).await?;
        let limiter = RateLimiter::restore(&store, set.rate_limit, now()).await?;
        let control = Self(Arc::new(Inner {
            store,
            order_key,
            settings_default: settings,
            links,
            limiter,
            policies: SignedPolicies::default(),
            access: Access::default(),
            watch: Watch::default(),
            bulk_turn: tokio::sync::Mutex::default(),
        }));
        control.policy_default_create().await?;
        control.policies_sign().await?;
        control.access_refresh().await?;
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
