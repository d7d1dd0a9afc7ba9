//! The error envelope.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Every reply that is not a success: `{"error": {...}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEnvelope {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One of the contract's codes, such as `ResourceNotFound`.
    pub code: String,
    /// For people; clients parse some of them.
    pub message: String,
    /// The correlation id, also in the `x-request-id` header and the server's log.
    pub target: Uuid,
}
