//! Machine groups: listed, made, changed, deleted, previewed.

use api_types::machine_group::{
    Condition, MachineGroup, MachineGroupDocument, MachineGroupPreview, MachineName,
};
use api_types::odata::Collection;
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use control_plane::{Caller, MachineGroupDraft, SizedMachineGroup};

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

impl RequestBody for MachineGroupDocument {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &["name"];
    // Room for a rule with the most conditions, and for many user groups.
    const BYTES_MAX: usize = 1024 * 1024;
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Collection<MachineGroup>>, ApiError> {
    let groups = state.control.machine_group_list(&caller).await?;
    Ok(query::whole(groups.into_iter().map(group).collect()))
}

pub(crate) async fn fetch(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Json<MachineGroup>, ApiError> {
    Ok(Json(group(state.control.machine_group_fetch(&caller, &name).await?)))
}

pub(crate) async fn save(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(body): Body<MachineGroupDocument>,
) -> Result<Json<MachineGroup>, ApiError> {
    Ok(Json(group(state.control.machine_group_save(&caller, &name, draft(body)?).await?)))
}

pub(crate) async fn delete(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.control.machine_group_delete(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn preview(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(body): Body<MachineGroupDocument>,
) -> Result<Json<MachineGroupPreview>, ApiError> {
    let preview = state.control.machine_group_preview(&caller, &name, draft(body)?).await?;
    let examples = preview.examples.into_iter();
    let examples =
        examples.map(|(id, computer_dns_name)| MachineName { id: id.to_string(), computer_dns_name });
    Ok(Json(MachineGroupPreview {
        machines: preview.machines,
        joining: preview.joining,
        leaving: preview.leaving,
        examples: examples.collect(),
    }))
}

fn draft(body: MachineGroupDocument) -> Result<MachineGroupDraft, ApiError> {
    let rule = body.rule.into_iter().map(Condition::read).collect::<Result<_, _>>();
    Ok(MachineGroupDraft {
        name: body.name,
        description: body.description,
        rank: body.rank,
        rule: rule.map_err(ApiError::invalid_input)?,
        user_groups: body.user_groups,
        policy: body.policy,
    })
}

fn group(sized: SizedMachineGroup) -> MachineGroup {
    MachineGroup::sized(sized.group, sized.machines)
}
