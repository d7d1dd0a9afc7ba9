//! Applications: made, listed, changed, revoked; their secrets and keys.

use api_types::app::{App, AppCreate, AppCreated, AppKey, AppKeyCreate, AppSecret};
use api_types::odata::Collection;
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use control_plane::{AppDraft, Caller};
use domain::permission::Permission;
use store::app::AppKey as StoredKey;
use uuid::Uuid;

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::issuer::read_key;
use crate::query;
use crate::state::AppState;

impl RequestBody for AppCreate {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &["name", "permissions"];
}

impl RequestBody for AppKeyCreate {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &["pem"];
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
    let (app, secret) = state.control.app_create(&caller, draft(body)?).await?;
    Ok((StatusCode::CREATED, Json(AppCreated { app: app.into(), secret })))
}

pub(crate) async fn fetch(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<App>, ApiError> {
    Ok(Json(state.control.app_fetch(&caller, app_id(&id)?).await?.into()))
}

pub(crate) async fn update(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Body(body): Body<AppCreate>,
) -> Result<Json<App>, ApiError> {
    Ok(Json(state.control.app_update(&caller, app_id(&id)?, draft(body)?).await?.into()))
}

pub(crate) async fn revoke(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.control.app_revoke(&caller, app_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn renew_secret(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let secret = state.control.app_secret_renew(&caller, app_id(&id)?).await?;
    Ok((StatusCode::CREATED, Json(AppSecret { secret })))
}

pub(crate) async fn list_keys(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Collection<AppKey>>, ApiError> {
    let keys = state.control.app_key_list(&caller, app_id(&id)?).await?;
    Ok(query::whole(keys.into_iter().map(key).collect()))
}

pub(crate) async fn add_key(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Body(body): Body<AppKeyCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let id = app_id(&id)?;
    let draft = read_key(&body.pem, body.comment).map_err(ApiError::invalid_input)?;
    let added = state.control.app_key_add(&caller, id, draft).await?;
    Ok((StatusCode::CREATED, Json(key(added))))
}

pub(crate) async fn remove_key(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, thumbprint)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    state.control.app_key_remove(&caller, app_id(&id)?, &thumbprint).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is not even a GUID is not the id of an app.
fn app_id(id: &str) -> Result<Uuid, ApiError> {
    id.parse().map_err(|_not_a_guid| ApiError::not_found("App", id))
}

fn draft(body: AppCreate) -> Result<AppDraft, ApiError> {
    Ok(AppDraft {
        permissions: body.permissions.iter().map(|name| permission(name)).collect::<Result<_, _>>()?,
        name: body.name,
        is_public: body.public,
        redirect_uris: body.redirect_uris,
        machine_groups: body.machine_groups,
        bulk_machines_max: body.bulk_machines_max,
    })
}

fn key(key: StoredKey) -> AppKey {
    AppKey {
        thumbprint: key.thumbprint,
        x5t: key.x5t,
        comment: key.comment,
        creation_date_time_utc: key.created_at.into(),
        expiry_date_time_utc: key.expires_at.map(Into::into),
    }
}

fn permission(name: &str) -> Result<Permission, ApiError> {
    Permission::from_name(name).ok_or_else(|| {
        let known = Permission::ALL.map(Permission::name).join(", ");
        let name: String = name.chars().take(80).collect();
        ApiError::invalid_input(format!("the permission {name:?} is not one of {known}"))
    })
}
