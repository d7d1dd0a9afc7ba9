//! Roles: listed, made, changed, deleted.

use api_types::odata::Collection;
use api_types::role::Role;
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use control_plane::Caller;

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

impl RequestBody for Role {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &["name"];
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Collection<Role>>, ApiError> {
    let roles = state.control.role_list(&caller).await?;
    Ok(query::whole(roles.into_iter().map(Role::from).collect()))
}

pub(crate) async fn fetch(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Json<Role>, ApiError> {
    Ok(Json(state.control.role_fetch(&caller, &name).await?.into()))
}

pub(crate) async fn save(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(body): Body<Role>,
) -> Result<Json<Role>, ApiError> {
    if body.name != name {
        return Err(ApiError::invalid_input("the role's name in the body is not the one in the path"));
    }
    let role = body.read().map_err(ApiError::invalid_input)?;
    Ok(Json(state.control.role_save(&caller, role).await?.into()))
}

pub(crate) async fn delete(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.control.role_delete(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
