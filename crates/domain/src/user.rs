//! Users: people with an account of this deployment. People of other issuers have none here.

use uuid::Uuid;

use crate::time::Timestamp;

/// The shortest password, in characters (NIST SP 800-63B-4 asks for 15 where it is the only factor).
pub const PASSWORD_CHARS_MIN: usize = 15;
/// The longest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// A person with an account of this deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// A number that never changes, the `oid` of the person's tokens.
    pub id: Uuid,
    /// What the person signs in with, in lower case: letters, digits, and `. _ - + @`.
    pub name: String,
    /// How the person is called.
    pub display_name: String,
    /// The user groups that the person belongs to, sorted.
    pub groups: Vec<String>,
    /// When the account was made.
    pub created_at: Timestamp,
    /// When the password was set, or the account disabled, rounded up to a second. What was granted to the person
    /// before counts no more.
    pub password_changed_at: Timestamp,
    /// When the account was disabled.
    pub disabled_at: Option<Timestamp>,
    /// Until when sign-ins are refused, after too many wrong passwords.
    pub locked_until: Option<Timestamp>,
}

impl User {
    /// Whether the person may act at all.
    pub fn is_enabled(&self) -> bool {
        self.disabled_at.is_none()
    }
}
