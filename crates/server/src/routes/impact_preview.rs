//! Impact previews of machines.

use std::time::Duration;

use api_types::impact_preview::{ImpactPreview, Preview};
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::Uri;
use control_plane::{Caller, PreviewStanding};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::error::ApiError;
use crate::query;
use crate::state::AppState;

/// How old a preview may be, in seconds: less would have machines make them without end.
const AGE_MAX: std::ops::RangeInclusive<u64> = 10..=604_800;

/// Which preview.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PreviewQuery {
    /// The allow policy, by name; without it, the one that a restriction of the machine would have.
    #[param(nullable = false, example = "default")]
    policy: Option<String>,
    /// A preview that came within so many seconds is good enough; for an older one the machine is asked.
    #[serde(default = "max_age_default")]
    #[param(required = false, minimum = 10, maximum = 604_800, example = 300)]
    max_age: u64,
}

fn max_age_default() -> u64 {
    300
}

pub(crate) async fn fetch(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(target): Path<String>,
    uri: Uri,
) -> Result<Json<ImpactPreview>, ApiError> {
    let PreviewQuery { policy, max_age } = query::parameters(&uri)?;
    if !AGE_MAX.contains(&max_age) {
        let (least, most) = (AGE_MAX.start(), AGE_MAX.end());
        return Err(ApiError::invalid_input(format!("maxAge is not between {least} and {most}")));
    }
    let age_max = Duration::from_secs(max_age);
    let found = state.control.impact_preview_fetch(&caller, &target, policy.as_deref(), age_max).await?;
    let (mut reason, mut progress) = (None, None);
    let standing = match found.standing {
        None => "Ready",
        Some(PreviewStanding::Underway { files_done, files_total }) => {
            progress = Some((files_done, files_total));
            "Underway"
        }
        Some(PreviewStanding::NotConnected) => {
            reason = Some("the machine is not connected".to_owned());
            "Unavailable"
        }
        Some(PreviewStanding::NotSupported) => {
            reason = Some("the machine's agent is too old: upgrade it".to_owned());
            "Unavailable"
        }
        Some(PreviewStanding::Failed(why)) => {
            reason = Some(why);
            "Unavailable"
        }
    };
    Ok(Json(ImpactPreview {
        machine_id: found.machine.id.to_string(),
        computer_dns_name: found.machine.system.computer_dns_name,
        policy: found.policy,
        policy_revision: found.revision,
        state: standing.to_owned(),
        unavailable_reason: reason,
        files_done: progress.map(|(done, _)| done),
        files_total: progress.map(|(_, total)| total),
        preview: found.kept.map(|kept| Preview::received(kept.preview, kept.received_at)),
    }))
}
