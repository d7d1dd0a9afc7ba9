//! Enrollment tokens: made, listed, revoked.

use std::time::Duration;

use api_types::enrollment_token::{EnrollmentToken, EnrollmentTokenCreate, EnrollmentTokenCreated};
use api_types::odata::Collection;
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use control_plane::Caller;

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

impl RequestBody for EnrollmentTokenCreate {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &["usesMax", "expiresInSeconds"];
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Collection<EnrollmentToken>>, ApiError> {
    let tokens = state.control.enrollment_token_list(&caller).await?;
    Ok(query::whole(tokens.into_iter().map(EnrollmentToken::from).collect()))
}

pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<EnrollmentTokenCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let expires_in = Duration::from_secs(body.expires_in_seconds);
    let (token, secret) =
        state.control.enrollment_token_create(&caller, body.uses_max, expires_in, body.comment).await?;
    let command = state.enrollment.command(&secret);
    Ok((StatusCode::CREATED, Json(EnrollmentTokenCreated { token: token.into(), secret, command })))
}

pub(crate) async fn revoke(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = id.parse().map_err(|_not_a_guid| ApiError::not_found("EnrollmentToken", &id))?;
    state.control.enrollment_token_revoke(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
