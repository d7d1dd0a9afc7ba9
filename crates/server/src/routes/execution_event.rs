//! Execution events: what machines refused to run.

use api_types::execution_event::ExecutionEvent;
use api_types::odata::Collection;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::Uri;
use control_plane::Caller;

use crate::error::ApiError;
use crate::query::{Base, Before};
use crate::state::AppState;

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    uri: Uri,
) -> Result<Json<Collection<ExecutionEvent>>, ApiError> {
    let part = Before::read(&uri)?;
    let machine = part.machine_id.as_deref();
    let events = state.control.execution_event_list(&caller, machine, part.before, part.top).await?;
    let events = events
        .into_iter()
        .map(|stored| {
            ExecutionEvent::numbered(stored.id, stored.machine, stored.computer_dns_name, stored.event)
        })
        .collect();
    Ok(base.page_before(&uri, &part, events, |event| event.id))
}
