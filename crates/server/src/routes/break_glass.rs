//! Break-glass codes: shown once.

use api_types::break_glass::BreakGlassCode;
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use control_plane::{Caller, ShownCode};

use crate::error::ApiError;
use crate::state::AppState;

pub(crate) async fn show(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(target): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let shown = state.control.break_glass_code_show(&caller, &target).await?;
    Ok((StatusCode::CREATED, Json(wire(shown))))
}

/// The code as it is shown.
pub(crate) fn wire(shown: ShownCode) -> BreakGlassCode {
    BreakGlassCode {
        machine_id: shown.machine.to_string(),
        computer_dns_name: shown.computer_dns_name,
        code: shown.code.to_string(),
        number: shown.serial,
    }
}
