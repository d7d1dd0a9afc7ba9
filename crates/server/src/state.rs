//! What every handler can reach.

use std::sync::Arc;
use std::time::SystemTime;

use control_plane::ControlPlane;
use domain::time::Timestamp;

use crate::agents::{Enrollment, Hub};
use crate::config::Config;
use crate::issuer::Issuer;
use crate::token::Tokens;

/// The parts of a running server. Cloning is cheap; all clones are the same.
#[derive(Clone)]
pub(crate) struct AppState {
    /// The use cases.
    pub(crate) control: ControlPlane,
    /// Makes tokens.
    pub(crate) issuer: Arc<Issuer>,
    /// Checks tokens, of this and of other issuers.
    pub(crate) tokens: Arc<Tokens>,
    /// Gives machines their certificates.
    pub(crate) enrollment: Arc<Enrollment>,
    /// The machines that are connected.
    pub(crate) hub: Arc<Hub>,
    /// The settings in force.
    pub(crate) config: Arc<Config>,
}

/// The time, for what `control-plane` does not take from its own clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
