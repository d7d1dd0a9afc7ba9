//! People with accounts of this deployment: made, listed, changed, deleted.

use api_types::odata::Collection;
use api_types::user::{User, UserCreate, UserCreated, UserUpdate};
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use control_plane::{Caller, UserChange, UserDraft};

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

impl RequestBody for UserCreate {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &["name"];
}

impl RequestBody for UserUpdate {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &[];
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Collection<User>>, ApiError> {
    let users = state.control.user_list(&caller).await?;
    Ok(query::whole(users.into_iter().map(User::from).collect()))
}

pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<UserCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let draft = UserDraft {
        name: body.name,
        display_name: body.display_name,
        groups: body.groups,
        password: body.password,
    };
    let (user, password) = state.control.user_create(&caller, draft).await?;
    Ok((StatusCode::CREATED, Json(UserCreated { user: user.into(), password })))
}

pub(crate) async fn fetch(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Json<User>, ApiError> {
    Ok(Json(state.control.user_fetch(&caller, &name).await?.into()))
}

pub(crate) async fn update(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(body): Body<UserUpdate>,
) -> Result<Json<User>, ApiError> {
    let change = UserChange {
        display_name: body.display_name,
        groups: body.groups,
        enabled: body.enabled,
        password: body.password,
    };
    Ok(Json(state.control.user_update(&caller, &name, change).await?.into()))
}

pub(crate) async fn delete(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.control.user_delete(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
