//! The error envelope.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Every reply that is not a success: `{"error": {...}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorEnvelope {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// One of the contract's codes, such as `ResourceNotFound`.
    #[schema(examples("ResourceNotFound"))]
    pub code: String,
    /// For people; clients parse some of them.
    #[schema(examples("Machine 0f3c9a7be1d2445566778899aabbccddeeff0011 was not found"))]
    pub message: String,
    /// The correlation id, also in the `x-request-id` header and the server's log.
    pub target: Uuid,
}
