//! Enrollment tokens: counted, expiring secrets with which machines enroll.

use uuid::Uuid;

use crate::time::Timestamp;

/// A counted, expiring secret. The store keeps its digest only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrollmentToken {
    /// Names it; not a secret.
    pub id: Uuid,
    /// What it is for.
    pub comment: String,
    /// How many machines may enroll with it.
    pub uses_max: u32,
    /// How many have.
    pub uses: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl EnrollmentToken {
    /// Whether one more machine may enroll with it at the time `now`.
    pub fn is_usable(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && now < self.expires_at && self.uses < self.uses_max
    }
}
