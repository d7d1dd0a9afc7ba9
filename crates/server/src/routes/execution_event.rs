//! Execution events: what machines refused to run.

use api_types::execution_event::ExecutionEvent;
use api_types::odata::Collection;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::Uri;
use control_plane::Caller;
use serde::Deserialize;
use store::execution_event::EventFilter;
use utoipa::IntoParams;

use crate::error::ApiError;
use crate::query::{self, Base};
use crate::state::AppState;

/// Which part of the list.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EventQuery {
    /// How many at most.
    #[serde(default = "query::top_default")]
    #[param(minimum = 1, maximum = 1000, example = 100)]
    top: u32,
    /// Only those with a lower number.
    #[param(nullable = false, example = 4711)]
    before: Option<i64>,
    /// Only those of this machine, by id or name.
    #[param(nullable = false, example = "lab-042")]
    machine_id: Option<String>,
    /// Only those of a file with this content.
    #[param(
        nullable = false,
        pattern = "^[0-9a-fA-F]{64}$",
        example = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )]
    sha256: Option<String>,
    /// Only those at this time or later.
    #[param(nullable = false, format = "date-time", example = "2026-01-31T08:00:00Z")]
    since: Option<String>,
    /// Only those before this time.
    #[param(nullable = false, format = "date-time", example = "2026-01-31T09:00:00Z")]
    until: Option<String>,
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    uri: Uri,
) -> Result<Json<Collection<ExecutionEvent>>, ApiError> {
    let part: EventQuery = query::parameters(&uri)?;
    let (since, until) = query::between(part.since.as_ref(), part.until.as_ref())?;
    let top = query::checked_top(part.top)?;
    let sha256 = part.sha256.map(|digest| digest.to_ascii_lowercase());
    if sha256
        .as_ref()
        .is_some_and(|digest| digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(ApiError::invalid_input("sha256 is not 64 hexadecimal digits"));
    }
    let filter = EventFilter { before: part.before, machine: None, sha256, since, until, top };
    let events = state.control.execution_event_list(&caller, part.machine_id.as_deref(), filter).await?;
    let events = events
        .into_iter()
        .map(|stored| {
            ExecutionEvent::numbered(stored.id, stored.machine, stored.computer_dns_name, stored.event)
        })
        .collect();
    Ok(base.page_before(&uri, top, events, |event| event.id))
}
