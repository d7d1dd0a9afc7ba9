//! The machines' side of the server: they enroll, renew their certificates, and keep one connection each.
//!
//! Enrollment is on the public listener, because a machine has no certificate yet; everything else is on the agents'
//! listener, where the machine is whoever TLS says it is. Deliberately decides nothing: what a machine is to be, and
//! whether what it says is believed, is up to `control-plane`.

mod enrollment;
mod hub;
mod link;

use agent_protocol::{ENROLL_PATH, LINK_PATH, RENEW_PATH};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn;
use axum::routing::{get, post};

pub(crate) use enrollment::{Enrollment, enrollment_command};
pub(crate) use hub::Hub;

use crate::router::answer::answer;
use crate::state::AppState;

/// The longest request to enroll or to renew, in bytes: both fields of a request have limits of their own.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Enrollment, to merge into the public router.
pub(crate) fn public_routes() -> Router<AppState> {
    Router::new().route(ENROLL_PATH, post(enrollment::enroll)).layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
}

/// Everything on the agents' listener.
pub(crate) fn router(state: AppState) -> Router {
    Router::new()
        .route(LINK_PATH, get(link::open))
        .route(RENEW_PATH, post(enrollment::renew))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .layer(from_fn(answer))
        .with_state(state)
}
