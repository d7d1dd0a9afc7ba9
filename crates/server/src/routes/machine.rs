//! Machines: listed, fetched, restricted and unrestricted.

use api_types::machine::{Machine, SET};
use api_types::machine_action::{self, ActionRequest, MachineAction};
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use control_plane::{Caller, Request};
use domain::machine_action::RequestSource;
use store::list::MACHINES;

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query::{self, Base};
use crate::state::{AppState, now};

impl RequestBody for ActionRequest {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &["Comment"];
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query = query::parse(&uri, &MACHINES)?;
    let page = state.control.machine_list(&caller, query.clone()).await?;
    let now = now();
    Ok(base.page(SET, &uri, &query, page, |machine| Machine::at(machine, now)))
}

pub(crate) async fn count(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<impl IntoResponse, ApiError> {
    let query = query::parse_count(&uri, &MACHINES)?;
    query::count(&state.control.machine_list(&caller, query).await?)
}

pub(crate) async fn fetch(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    Path(target): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let machine = state.control.machine_fetch(&caller, &target).await?;
    Ok(base.entity(SET, Machine::at(machine, now())))
}

pub(crate) async fn restrict(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    Path(target): Path<String>,
    Body(body): Body<ActionRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let action = state.control.machine_restrict(&caller, &target, request(body)).await?;
    Ok((StatusCode::CREATED, base.entity(machine_action::SET, MachineAction::from(action))))
}

pub(crate) async fn unrestrict(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    Path(target): Path<String>,
    Body(body): Body<ActionRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let action = state.control.machine_unrestrict(&caller, &target, request(body)).await?;
    Ok((StatusCode::CREATED, base.entity(machine_action::SET, MachineAction::from(action))))
}

fn request(body: ActionRequest) -> Request {
    Request { comment: body.comment.unwrap_or_default(), source: RequestSource::PublicApi }
}
