//! Allow policies: listed, fetched, applied.

use api_types::odata::Collection;
use api_types::policy::{Policy, PolicyDocument};
use axum::Json;
use axum::extract::{Extension, Path, State};
use control_plane::Caller;
use orders::VerifiedPolicy;
use store::policy::StoredPolicy;

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

impl RequestBody for PolicyDocument {
    const KEYS: &'static [&'static str] = &["name", "profile", "rules"];
    const REQUIRED: &'static [&'static str] = &["name"];
    // What every machine takes when signed, and comments, which are not signed.
    const BYTES_MAX: usize = 2 * VerifiedPolicy::BYTES_MAX;
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Collection<Policy>>, ApiError> {
    let policies = state.control.policy_list(&caller).await?;
    Ok(query::whole(policies.into_iter().map(policy).collect()))
}

pub(crate) async fn fetch(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Json<Policy>, ApiError> {
    Ok(Json(policy(state.control.policy_fetch(&caller, &name).await?)))
}

pub(crate) async fn apply(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(body): Body<PolicyDocument>,
) -> Result<Json<Policy>, ApiError> {
    if body.name != name {
        return Err(ApiError::invalid_input("the policy's name in the body is not the one in the path"));
    }
    let applied = state.control.policy_apply(&caller, body.read().map_err(ApiError::invalid_input)?).await?;
    Ok(Json(policy(applied)))
}

fn policy(stored: StoredPolicy) -> Policy {
    Policy::stored(stored.policy, stored.digest, stored.updated_at, stored.updated_by)
}
