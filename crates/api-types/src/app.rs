//! Applications: clients of the API with a secret and permissions.

use domain::app;
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

impl AppCreate {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 2] = ["name", "permissions"];
}

impl From<app::App> for App {
    fn from(app: app::App) -> Self {
        Self {
            id: app.id,
            name: app.name,
            permissions: app.permissions.iter().map(|permission| permission.name().to_owned()).collect(),
            creation_date_time_utc: app.created_at.into(),
            revoked_date_time_utc: app.revoked_at.map(DateTimeUtc::from),
        }
    }
}
