//! Replies of the token endpoints, v1 and v2 forms.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Reply of `/{tenant}/oauth2/v2.0/token`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenV2 {
    /// `Bearer`.
    #[schema(examples("Bearer"))]
    pub token_type: String,
    /// Seconds.
    #[schema(examples(3600))]
    pub expires_in: u64,
    /// Seconds.
    #[schema(examples(3600))]
    pub ext_expires_in: u64,
    /// The JWT.
    #[schema(examples("eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.e30.c2ln"))]
    pub access_token: String,
    /// What a person granted, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        nullable = false,
        examples("https://api.securitycenter.microsoft.com/Machine.Read offline_access")
    )]
    pub scope: Option<String>,
    /// Renews what a person granted, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, examples("cordon-refresh-0a1b.2c3d"))]
    pub refresh_token: Option<String>,
    /// Who signed in: a JWT for the application itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, examples("eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.e30.c2ln"))]
    pub id_token: Option<String>,
    /// The person's id and the tenant's, for the vendor's client libraries: base64url of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, examples("e30"))]
    pub client_info: Option<String>,
}

/// Reply of `/{tenant}/oauth2/token`: numbers are strings.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenV1 {
    /// `Bearer`.
    #[schema(examples("Bearer"))]
    pub token_type: String,
    /// Seconds.
    #[schema(examples("3600"))]
    pub expires_in: String,
    /// Seconds.
    #[schema(examples("3600"))]
    pub ext_expires_in: String,
    /// Unix time.
    #[schema(examples("1772442895"))]
    pub expires_on: String,
    /// Unix time.
    #[schema(examples("1772439295"))]
    pub not_before: String,
    /// The audience asked for.
    #[schema(examples("https://api.securitycenter.microsoft.com"))]
    pub resource: String,
    /// The JWT.
    #[schema(examples("eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.e30.c2ln"))]
    pub access_token: String,
    /// What a person granted, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        nullable = false,
        examples("https://api.securitycenter.microsoft.com/Machine.Read offline_access")
    )]
    pub scope: Option<String>,
    /// Renews what a person granted, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, examples("cordon-refresh-0a1b.2c3d"))]
    pub refresh_token: Option<String>,
    /// Who signed in: a JWT for the application itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, examples("eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.e30.c2ln"))]
    pub id_token: Option<String>,
    /// The person's id and the tenant's, for the vendor's client libraries: base64url of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, examples("e30"))]
    pub client_info: Option<String>,
}

/// An error in the OAuth form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenError {
    /// Such as `invalid_client`.
    #[schema(examples("invalid_client"))]
    pub error: String,
    /// For people.
    #[schema(examples("AADSTS7000215: Unknown application, or invalid client secret provided."))]
    pub error_description: String,
    /// The vendor's numbers, such as 7000215 for a wrong secret.
    #[schema(examples(7000215))]
    pub error_codes: Vec<u32>,
    /// `2026-03-02 08:14:55Z`.
    #[schema(examples("2026-03-02 08:14:55Z"))]
    pub timestamp: String,
    /// GUID.
    pub trace_id: Uuid,
    /// GUID.
    pub correlation_id: Uuid,
}
