//! Machine actions: listed, fetched, cancelled, and proved by their receipts.

use api_types::machine_action::{CancelRequest, MachineAction, Receipt, SET};
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use control_plane::Caller;
use domain::machine::MachineId;
use domain::machine_action::MachineActionId;
use odata::{Comparison, Filter, Query, Subject, Test, Value};
use store::list::MACHINE_ACTIONS;

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query::{self, Base};
use crate::state::AppState;

impl RequestBody for CancelRequest {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &Self::KEYS;
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query = query::parse(&uri, &MACHINE_ACTIONS)?;
    let page = state.control.machine_action_list(&caller, query.clone()).await?;
    Ok(base.page(SET, &uri, &query, page, MachineAction::from))
}

pub(crate) async fn list_of_machine(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    uri: Uri,
    Path(target): Path<String>,
) -> Result<Response, ApiError> {
    let query = query::parse(&uri, &MACHINE_ACTIONS)?;
    let machine = state.control.machine_fetch(&caller, &target).await?;
    let page = state.control.machine_action_list(&caller, of_machine(machine.id, query.clone())?).await?;
    Ok(base.page(SET, &uri, &query, page, MachineAction::from))
}

/// The query, for the actions of one machine only.
fn of_machine(machine: MachineId, query: Query) -> Result<Query, ApiError> {
    let property = MACHINE_ACTIONS.properties.iter().find(|property| property.name == "machineId");
    let property = property.ok_or_else(|| ApiError::fault("actions have no machineId"))?;
    let wanted = Test::Compare(Comparison::Equal, Value::String(machine.to_string()));
    let of_machine = Filter::Test(Subject::Property(property), wanted);
    let filter = match query.filter {
        None => of_machine,
        Some(filter) => Filter::And(vec![of_machine, filter]),
    };
    Ok(Query { filter: Some(filter), ..query })
}

pub(crate) async fn count(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<impl IntoResponse, ApiError> {
    let query = query::parse_count(&uri, &MACHINE_ACTIONS)?;
    query::count(&state.control.machine_action_list(&caller, query).await?)
}

pub(crate) async fn fetch(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let action = state.control.machine_action_fetch(&caller, action_id(&id)?).await?;
    Ok(base.entity(SET, MachineAction::from(action)))
}

pub(crate) async fn cancel(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    Path(id): Path<String>,
    Body(body): Body<CancelRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let comment = body.comment.unwrap_or_default();
    let action = state.control.machine_action_cancel(&caller, action_id(&id)?, comment).await?;
    Ok(base.entity(SET, MachineAction::from(action)))
}

pub(crate) async fn receipt(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Receipt>, ApiError> {
    let stored = state.control.machine_action_receipt(&caller, action_id(&id)?).await?;
    let damaged = || ApiError::fault("a stored receipt is not an envelope with a JSON payload");
    let envelope: serde_json::Value =
        serde_json::from_str(&stored.envelope).map_err(|_not_json| damaged())?;
    let payload = envelope.get("payload").and_then(|payload| STANDARD.decode(payload.as_str()?).ok());
    let payload = payload.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(damaged)?;
    Ok(Json(Receipt { envelope, payload, public_key: stored.public_key }))
}

/// What is not even a GUID is not the id of an action.
fn action_id(id: &str) -> Result<MachineActionId, ApiError> {
    id.parse().map(MachineActionId).map_err(|_not_a_guid| ApiError::not_found("MachineAction", id))
}
