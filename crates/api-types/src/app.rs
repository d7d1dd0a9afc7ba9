//! Applications: clients of the API with a secret and permissions.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::date_time::DateTimeUtc;

/// Makes an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppCreate {
    /// For people, unique among the apps that are not revoked.
    pub name: String,
    /// Permission names, such as `Machine.RestrictExecution`.
    pub permissions: Vec<String>,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// The `client_id`.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// Permission names.
    pub permissions: Vec<String>,
    /// When it was made.
    pub creation_date_time_utc: DateTimeUtc,
    /// When it was revoked.
    pub revoked_date_time_utc: Option<DateTimeUtc>,
}

/// An application that was just made. The secret is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppCreated {
    /// The application.
    #[serde(flatten)]
    pub app: App,
    /// The `client_secret`.
    pub secret: String,
}
