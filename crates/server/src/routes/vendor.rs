//! What existing clients call to check the connection, and Cordon has nothing to say to.

use api_types::machine::ExposureScore;
use api_types::odata::Collection;
use axum::Json;
use serde_json::Value;

use crate::query;
use crate::state::now;

/// There are no alerts here.
pub(crate) async fn alerts() -> Json<Collection<Value>> {
    query::whole(Vec::new())
}

/// No score is computed here.
pub(crate) async fn exposure_score() -> Json<ExposureScore> {
    Json(ExposureScore { time: now().into(), score: None })
}
