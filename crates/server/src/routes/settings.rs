//! Settings: listed, changed.

use api_types::odata::Collection;
use api_types::settings::{Setting, SettingsUpdate};
use axum::Json;
use axum::extract::{Extension, State};
use control_plane::Caller;

use super::body::{Body, RequestBody};
use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

impl RequestBody for SettingsUpdate {
    const KEYS: &'static [&'static str] = &Self::KEYS;
    const REQUIRED: &'static [&'static str] = &[];
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Collection<Setting>>, ApiError> {
    let settings = state.control.settings_list(&caller).await?.into_iter().map(|setting| Setting {
        name: setting.name.to_owned(),
        value: setting.value,
        default: setting.default,
        is_set: setting.is_set,
    });
    Ok(query::whole(settings.collect()))
}

pub(crate) async fn update(
    state: State<AppState>,
    caller: Extension<Caller>,
    Body(body): Body<SettingsUpdate>,
) -> Result<Json<Collection<Setting>>, ApiError> {
    state.control.settings_update(&caller, body.changes()).await?;
    list(state, caller).await
}
