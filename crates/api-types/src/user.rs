//! People with accounts of this deployment.

use domain::user;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::date_time::DateTimeUtc;
use crate::text::Name;

/// Makes an account.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserCreate {
    /// What the person signs in with: letters, digits and `. _ - + @`; case does not matter.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._+@-]+$", examples("ann@example.org"))]
    pub name: String,
    /// How the person is called; the name when it is missing.
    #[serde(default)]
    #[schema(max_length = 128, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$", examples("Ann Example"))]
    pub display_name: String,
    /// The user groups that the person belongs to.
    #[serde(default)]
    #[schema(inline, value_type = Vec<Name>, max_items = 1000)]
    pub groups: Vec<String>,
    /// The password, of at least 15 characters; one is made, and told in the reply, when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 15, max_length = 1024, examples("correct horse battery staple"))]
    pub password: Option<String>,
}

/// Changes an account: what is missing or null stays as it is.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserUpdate {
    /// How the person is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        max_length = 128,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        examples("Ann Example")
    )]
    pub display_name: Option<String>,
    /// The user groups that the person belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(inline, value_type = Option<Vec<Name>>, max_items = 1000)]
    pub groups: Option<Vec<String>>,
    /// Whether the person may act. Disabling refuses the tokens that the person has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Another password. The tokens that the person has are refused from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 15, max_length = 1024, examples("correct horse battery staple"))]
    pub password: Option<String>,
}

/// An account, without its password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Never changes: the `oid` of the person's tokens.
    pub id: Uuid,
    /// What the person signs in with.
    #[schema(examples("ann@example.org"))]
    pub name: String,
    /// How the person is called.
    #[schema(examples("Ann Example"))]
    pub display_name: String,
    /// The user groups that the person belongs to.
    #[schema(examples("responders"))]
    pub groups: Vec<String>,
    /// Whether the person may act.
    pub enabled: bool,
    /// When it was made.
    pub creation_date_time_utc: DateTimeUtc,
    /// When the password was set.
    pub password_date_time_utc: DateTimeUtc,
    /// Until when sign-ins are refused, after too many wrong passwords.
    pub locked_until_date_time_utc: Option<DateTimeUtc>,
}

/// An account that was just made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserCreated {
    /// The account.
    #[serde(flatten)]
    pub user: User,
    /// The password that was made for it, shown this once; null when the request had one.
    #[schema(examples("k3mz-9xwp-7rtd-q2vh-nc8j"))]
    pub password: Option<String>,
}

impl UserCreate {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 4] = ["name", "displayName", "groups", "password"];
}

impl UserUpdate {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 4] = ["displayName", "groups", "enabled", "password"];
}

impl From<user::User> for User {
    fn from(user: user::User) -> Self {
        Self {
            id: user.id,
            enabled: user.is_enabled(),
            name: user.name,
            display_name: user.display_name,
            groups: user.groups,
            creation_date_time_utc: user.created_at.into(),
            password_date_time_utc: user.password_changed_at.into(),
            locked_until_date_time_utc: user.locked_until.map(DateTimeUtc::from),
        }
    }
}
