//! Allow policies: listed, fetched, applied.

use api_types::odata::Collection;
use api_types::policy::{Policy, PolicyApplied, PolicyChange, PolicyDocument};
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::Uri;
use control_plane::Caller;
use orders::VerifiedPolicy;
use serde::Deserialize;
use store::policy::StoredPolicy;
use utoipa::IntoParams;

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

impl RequestBody for PolicyDocument {
    const KEYS: &'static [&'static str] = &["name", "profile", "settings", "rules"];
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

/// Whether to save at all.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ApplyQuery {
    /// Whether only to tell what would change.
    #[serde(default)]
    #[param(required = false, example = true)]
    dry_run: bool,
}

/// Which revisions.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DiffQuery {
    /// The older one; the one before `to` when it is missing, and nothing when it is 0.
    #[param(nullable = false, minimum = 0, example = 0)]
    from: Option<u64>,
    /// The newer one; the newest when it is missing.
    #[param(nullable = false, minimum = 1, example = 1)]
    to: Option<u64>,
}

pub(crate) async fn apply(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    uri: Uri,
    Body(body): Body<PolicyDocument>,
) -> Result<Json<PolicyApplied>, ApiError> {
    let ApplyQuery { dry_run } = query::parameters(&uri)?;
    if body.name != name {
        return Err(ApiError::invalid_input("the policy's name in the body is not the one in the path"));
    }
    let wanted = body.read().map_err(ApiError::invalid_input)?;
    let applied = state.control.policy_apply(&caller, wanted, dry_run).await?;
    Ok(Json(PolicyApplied { policy: policy(applied.policy.clone()), change: change(applied) }))
}

pub(crate) async fn revisions(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Json<Collection<Policy>>, ApiError> {
    let revisions = state.control.policy_revisions(&caller, &name).await?;
    Ok(query::whole(revisions.into_iter().map(policy).collect()))
}

pub(crate) async fn diff(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<PolicyChange>, ApiError> {
    let DiffQuery { from, to } = query::parameters(&uri)?;
    Ok(Json(change(state.control.policy_diff(&caller, &name, from, to).await?)))
}

fn policy(stored: StoredPolicy) -> Policy {
    Policy::stored(stored.policy, stored.digest, stored.updated_at, stored.updated_by)
}

fn change(change: control_plane::PolicyChange) -> PolicyChange {
    let to = change.policy.policy;
    PolicyChange::between(to.name, change.from, to.revision, change.diff, change.machine_groups)
}
