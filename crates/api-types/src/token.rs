//! Replies of the token endpoints, v1 and v2 forms.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Reply of `/{tenant}/oauth2/v2.0/token`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenV2 {
    /// `Bearer`.
    pub token_type: String,
    /// Seconds.
    pub expires_in: u64,
    /// Seconds.
    pub ext_expires_in: u64,
    /// The JWT.
    pub access_token: String,
}

/// Reply of `/{tenant}/oauth2/token`: numbers are strings.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenV1 {
    /// `Bearer`.
    pub token_type: String,
    /// Seconds.
    pub expires_in: String,
    /// Seconds.
    pub ext_expires_in: String,
    /// Unix time.
    pub expires_on: String,
    /// Unix time.
    pub not_before: String,
    /// The audience asked for.
    pub resource: String,
    /// The JWT.
    pub access_token: String,
}

/// An error in the OAuth form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenError {
    /// Such as `invalid_client`.
    pub error: String,
    /// For people.
    pub error_description: String,
    /// The vendor's numbers, such as 7000215 for a wrong secret.
    pub error_codes: Vec<u32>,
    /// `2026-03-02 08:14:55Z`.
    pub timestamp: String,
    /// GUID.
    pub trace_id: Uuid,
    /// GUID.
    pub correlation_id: Uuid,
}
