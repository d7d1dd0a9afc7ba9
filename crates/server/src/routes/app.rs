//! Applications: made, listed, revoked.

use api_types::app::{App, AppCreate, AppCreated};
use api_types::odata::Collection;
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use control_plane::Caller;
use domain::permission::Permission;

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

impl RequestBody for AppCreate {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &Self::KEYS;
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Collection<App>>, ApiError> {
    let apps = state.control.app_list(&caller).await?;
    Ok(query::whole(apps.into_iter().map(App::from).collect()))
}

pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<AppCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let permissions = body.permissions.iter().map(|name| permission(name)).collect::<Result<_, _>>()?;
    let (app, secret) = state.control.app_create(&caller, body.name, permissions).await?;
    Ok((StatusCode::CREATED, Json(AppCreated { app: app.into(), secret })))
}

pub(crate) async fn revoke(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = id.parse().map_err(|_not_a_guid| ApiError::not_found("App", &id))?;
    state.control.app_revoke(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn permission(name: &str) -> Result<Permission, ApiError> {
    Permission::from_name(name).ok_or_else(|| {
        let known = Permission::ALL.map(Permission::name).join(", ");
        let name: String = name.chars().take(80).collect();
        ApiError::invalid_input(format!("the permission {name:?} is not one of {known}"))
    })
}
