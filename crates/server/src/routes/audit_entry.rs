//! The audit log.

use api_types::audit_entry::AuditEntry;
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
) -> Result<Json<Collection<AuditEntry>>, ApiError> {
    let part = Before::read(&uri)?;
    if part.machine_id.is_some() {
        return Err(ApiError::invalid_input("audit entries are not listed by machineId"));
    }
    let entries = state.control.audit_entry_list(&caller, part.before, part.top).await?;
    let entries = entries.into_iter().map(|(id, entry)| AuditEntry::numbered(id, entry)).collect();
    Ok(base.page_before(&uri, &part, entries, |entry| entry.id))
}
