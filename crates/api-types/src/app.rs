//! Applications: clients of the API with a secret and permissions.

use domain::app;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::date_time::DateTimeUtc;
use crate::text::{Name, PermissionName, RedirectUri};

/// Makes an application, or changes one: then what is missing is as if it were made anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppCreate {
    /// For people, unique among the apps that are not revoked.
    #[schema(
        max_length = 128,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        examples("soar")
    )]
    pub name: String,
    /// Permission names, such as `Machine.RestrictExecution`.
    #[schema(inline, value_type = Vec<PermissionName>, min_items = 1)]
    pub permissions: Vec<String>,
    /// Whether it holds no secret, so that it can act for people only: an app on people's own machines. Cannot be changed.
    #[serde(default)]
    pub public: bool,
    /// Where people may be sent back to after they signed in: `https`, or `http` to the loopback.
    #[serde(default)]
    #[schema(inline, value_type = Vec<RedirectUri>, max_items = 20)]
    pub redirect_uris: Vec<String>,
    /// The machine groups that it is limited to, by name; all machines when it is missing or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(inline, value_type = Option<Vec<Name>>)]
    pub machine_groups: Option<Vec<String>>,
    /// How many machines it may change by bulk calls in an hour; the setting `bulkMachinesPerHour` when missing or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 4_294_967_295_u32, examples(100))]
    pub bulk_machines_max: Option<u32>,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// The `client_id`.
    pub id: Uuid,
    /// For people.
    #[schema(examples("soar"))]
    pub name: String,
    /// Permission names.
    #[schema(examples("Machine.RestrictExecution"))]
    pub permissions: Vec<String>,
    /// Whether it holds no secret.
    pub public: bool,
    /// Where people may be sent back to after they signed in.
    #[schema(examples("https://soar.example/callback"))]
    pub redirect_uris: Vec<String>,
    /// The ids of the machine groups that it is limited to; null for all machines.
    #[schema(examples(1))]
    pub machine_group_ids: Option<Vec<i64>>,
    /// How many machines it may change by bulk calls in an hour; null for the setting `bulkMachinesPerHour`.
    #[schema(examples(100))]
    pub bulk_machines_max: Option<u32>,
    /// When it was made.
    pub creation_date_time_utc: DateTimeUtc,
    /// When it was revoked.
    pub revoked_date_time_utc: Option<DateTimeUtc>,
}

/// An application that was just made. The secret is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppCreated {
    /// The application.
    #[serde(flatten)]
    pub app: App,
    /// The `client_secret`; null for a public app.
    #[schema(examples("the secret"))]
    pub secret: Option<String>,
}

/// Another secret of an application, shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppSecret {
    /// The `client_secret`.
    #[schema(examples("the secret"))]
    pub secret: String,
}

/// Lets an application sign its assertions with a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppKeyCreate {
    /// A certificate or a public key, PEM: RSA of at least 2048 bits, P-256 or P-384.
    #[schema(
        max_length = 16_384,
        pattern = "-----BEGIN (CERTIFICATE|PUBLIC KEY)-----",
        examples("-----BEGIN PUBLIC KEY-----\nMFkw...\n-----END PUBLIC KEY-----\n")
    )]
    pub pem: String,
    /// What people call it.
    #[serde(default)]
    #[schema(max_length = 1024, pattern = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$", examples("soar-2026"))]
    pub comment: String,
}

/// A key with which an application signs its assertions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppKey {
    /// SHA-256 of the public key (SPKI, DER), in hexadecimal digits: what an assertion may name as `kid`.
    #[schema(examples("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"))]
    pub thumbprint: String,
    /// The `x5t` of assertions, when the key came in a certificate.
    #[schema(examples("hOBcHZi846VCbTJEPASjj1DxlHg"))]
    pub x5t: Option<String>,
    /// What people call it.
    #[schema(examples("soar-2026"))]
    pub comment: String,
    /// When it was added.
    pub creation_date_time_utc: DateTimeUtc,
    /// When its certificate ends.
    pub expiry_date_time_utc: Option<DateTimeUtc>,
}

impl AppKeyCreate {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 2] = ["pem", "comment"];
}

impl AppCreate {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 6] =
        ["name", "permissions", "public", "redirectUris", "machineGroups", "bulkMachinesMax"];
}

impl From<app::App> for App {
    fn from(app: app::App) -> Self {
        Self {
            id: app.id,
            name: app.name,
            permissions: app.permissions.iter().map(|permission| permission.name().to_owned()).collect(),
            public: app.is_public,
            redirect_uris: app.redirect_uris,
            machine_group_ids: app.machine_groups,
            bulk_machines_max: app.bulk_machines_max,
            creation_date_time_utc: app.created_at.into(),
            revoked_date_time_utc: app.revoked_at.map(DateTimeUtc::from),
        }
    }
}
