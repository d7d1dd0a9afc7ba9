//! Machines: listed, fetched, tagged, restricted and unrestricted.

use api_types::machine::{AvailableAction, Machine, SET, TagRequest};
use api_types::machine_action::{self, ActionRequest, MachineAction};
use api_types::odata::Collection;
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use control_plane::{Caller, TagChange};
use domain::machine_action::Kind;
use odata::Query;
use store::list::{MACHINES, Page};

use super::body::{Body, RequestBody};
use super::request::Wishes;
use crate::error::ApiError;
use crate::query::{self, Base};
use crate::state::{AppState, now};

impl RequestBody for TagRequest {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &Self::KEYS;
}

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

pub(crate) async fn list_by_ip(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    Path((ip, timestamp)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let shown: String = ip.chars().take(80).collect();
    let message = format!("ip: {shown:?} is no IP address");
    let ip = ip.parse().map_err(|_not_an_address| ApiError::invalid_input(message))?;
    let at = query::date_time("timestamp", &timestamp)?;
    let machines = state.control.machine_list_by_ip(&caller, ip, at).await?;
    let page = Page { rows: machines, count: None, next: None };
    let now = now();
    Ok(base.page(SET, &Uri::default(), &Query::default(), page, |machine| Machine::at(machine, now)))
}

pub(crate) async fn available_actions(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(target): Path<String>,
) -> Result<Json<Collection<AvailableAction>>, ApiError> {
    let machine = state.control.machine_fetch(&caller, &target).await?;
    let action = |kind| {
        let why_not = control_plane::why_not(&machine, kind);
        AvailableAction {
            action: machine_action::type_name(kind).to_owned(),
            is_available: why_not.is_none(),
            not_supported_reason: why_not,
        }
    };
    Ok(query::whole([Kind::Restrict, Kind::Unrestrict].map(action).into()))
}

pub(crate) async fn tag(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    Path(target): Path<String>,
    Body(body): Body<TagRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let change = match body.action.as_str() {
        "Add" => TagChange::Add,
        "Remove" => TagChange::Remove,
        _ => return Err(ApiError::invalid_input("Action is Add or Remove")),
    };
    let machine = state.control.machine_tag(&caller, &target, &body.value, change).await?;
    Ok(base.entity(SET, Machine::at(machine, now())))
}

pub(crate) async fn restrict(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    Path(target): Path<String>,
    wishes: Wishes,
    Body(body): Body<ActionRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let action = state.control.machine_restrict(&caller, &target, wishes.request(body)?).await?;
    made(&state, &base, &wishes, action).await
}

pub(crate) async fn unrestrict(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    Path(target): Path<String>,
    wishes: Wishes,
    Body(body): Body<ActionRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let action = state.control.machine_unrestrict(&caller, &target, wishes.request(body)?).await?;
    made(&state, &base, &wishes, action).await
}

/// The reply with an action that was just made, or with what became of it when the caller wants to wait.
async fn made(
    state: &AppState,
    base: &Base,
    wishes: &Wishes,
    action: domain::machine_action::MachineAction,
) -> Result<impl IntoResponse + use<>, ApiError> {
    let action = match wishes.wait {
        Some(wait) => state.control.machine_action_wait(action, wait).await?,
        None => action,
    };
    let entity = base.entity(machine_action::SET, MachineAction::from(action));
    Ok((StatusCode::CREATED, wishes.applied(), entity))
}
