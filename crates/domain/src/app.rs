//! Applications: clients of the API with a secret and permissions.

use uuid::Uuid;

use crate::permission::Permission;
use crate::time::Timestamp;

/// A client of the API. Its secret is known to it alone; the store keeps a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// The `client_id`.
    pub id: Uuid,
    /// For people, unique among the apps that are not revoked.
    pub name: String,
    /// What it may do.
    pub permissions: Vec<Permission>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked; it gets no tokens from then on.
    pub revoked_at: Option<Timestamp>,
}
