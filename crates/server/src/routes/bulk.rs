//! Many machines restricted or unrestricted by one call.

use api_types::bulk::{BulkError, BulkPlan, BulkReply, BulkRequest, BulkResult};
use api_types::machine_action::ActionRequest;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use control_plane::{BulkTargets, Caller};
use domain::machine::MachineId;
use domain::machine_action::Kind;
use store::list::MACHINES;

use super::body::{Body, RequestBody};
use super::request::Wishes;
use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

impl RequestBody for BulkRequest {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &["Comment"];
    // Room for the ids of a hundred thousand machines.
    const BYTES_MAX: usize = 5 * 1024 * 1024;
}

pub(crate) async fn restrict(
    state: State<AppState>,
    caller: Extension<Caller>,
    wishes: Wishes,
    body: Body<BulkRequest>,
) -> Result<impl IntoResponse, ApiError> {
    change(state, caller, wishes, body, Kind::Restrict).await
}

pub(crate) async fn unrestrict(
    state: State<AppState>,
    caller: Extension<Caller>,
    wishes: Wishes,
    body: Body<BulkRequest>,
) -> Result<impl IntoResponse, ApiError> {
    change(state, caller, wishes, body, Kind::Unrestrict).await
}

async fn change(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    wishes: Wishes,
    Body(body): Body<BulkRequest>,
    kind: Kind,
) -> Result<(StatusCode, Json<BulkReply>), ApiError> {
    let targets = targets(body.machine_ids, body.filter)?;
    let request = wishes.request(ActionRequest {
        comment: body.comment,
        external_id: body.external_id,
        expires_in: body.expires_in,
        policy: body.policy,
    })?;
    let bulk = control_plane::BulkRequest { kind, targets, request };
    if body.dry_run {
        let plan = state.control.machine_bulk_plan(&caller, bulk).await?;
        let plan = BulkPlan {
            total: plan.total,
            unknown: plan.unknown,
            online: plan.online,
            offline: plan.offline,
            unsupported: plan.unsupported,
            already_restricted: plan.already_restricted,
            already_active: plan.already_active,
            actions: plan.actions,
            refusal: plan.refusal,
            impact: None,
        };
        let reply = BulkReply { id: None, dry_run: true, plan: Some(plan), results: Vec::new() };
        return Ok((StatusCode::OK, Json(reply)));
    }
    let outcome = state.control.machine_bulk(&caller, bulk).await?;
    let results = outcome.results.into_iter().map(result).collect();
    let reply = BulkReply { id: Some(outcome.id), dry_run: false, plan: None, results };
    Ok((StatusCode::CREATED, Json(reply)))
}

fn targets(machine_ids: Option<Vec<String>>, filter: Option<String>) -> Result<BulkTargets, ApiError> {
    match (machine_ids, filter) {
        (Some(ids), None) => {
            let id = |text: &String| {
                let shown: String = text.chars().take(80).collect();
                let message = || format!("MachineIds: {shown:?} is not an id of 40 hexadecimal digits");
                text.parse::<MachineId>().map_err(|_not_an_id| ApiError::invalid_input(message()))
            };
            Ok(BulkTargets::Ids(ids.iter().map(id).collect::<Result<_, _>>()?))
        }
        (None, Some(filter)) => Ok(BulkTargets::Query(query::filter(&filter, &MACHINES)?)),
        (Some(_), Some(_)) | (None, None) => {
            Err(ApiError::invalid_input("the machines are named by either MachineIds or Filter"))
        }
    }
}

fn result(result: control_plane::BulkResult) -> BulkResult {
    let (action_id, error) = match result.outcome {
        Ok(action) => (Some(action.0), None),
        Err(error) => {
            let error = ApiError::from(error);
            if let Some(cause) = error.internal_cause() {
                tracing::error!(machine = %result.machine, cause, "a part of a bulk call failed");
            }
            (None, Some(BulkError { code: error.code().to_owned(), message: error.message().to_owned() }))
        }
    };
    BulkResult {
        machine_id: result.machine.to_string(),
        computer_dns_name: result.computer_dns_name,
        action_id,
        error,
    }
}
