//! Enrollment tokens: counted, expiring secrets with which machines enroll.

use domain::enrollment_token;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::date_time::DateTimeUtc;

/// Makes an enrollment token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnrollmentTokenCreate {
    /// How many machines may enroll with it, from 1 to 100,000.
    #[schema(minimum = 1, maximum = 100_000, examples(10))]
    pub uses_max: u32,
    /// How long it is valid, in seconds, from 60 to 31,536,000 (a year).
    #[schema(minimum = 60, maximum = 31_536_000, examples(86400))]
    pub expires_in_seconds: u64,
    /// What it is for.
    #[serde(default)]
    #[schema(max_length = 256, examples("rack 7"))]
    pub comment: String,
}

/// An enrollment token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnrollmentToken {
    /// Names it; not a secret.
    pub id: Uuid,
    /// What it is for.
    #[schema(examples("rack 7"))]
    pub comment: String,
    /// How many machines may enroll with it.
    #[schema(examples(10))]
    pub uses_max: u32,
    /// How many have.
    #[schema(examples(3))]
    pub uses: u32,
    /// When it was made.
    pub creation_date_time_utc: DateTimeUtc,
    /// When it ends.
    pub expiry_date_time_utc: DateTimeUtc,
    /// When it was revoked.
    pub revoked_date_time_utc: Option<DateTimeUtc>,
}

/// An enrollment token that was just made. The secret is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnrollmentTokenCreated {
    /// The token.
    #[serde(flatten)]
    pub token: EnrollmentToken,
    /// The secret.
    #[schema(examples("the secret"))]
    pub secret: String,
    /// The command to run, as root, on the machine that is to enroll.
    #[schema(examples("cordon-agent enroll --server https://cordon.example --token SECRET --ca-pin PIN"))]
    pub command: String,
}

impl EnrollmentTokenCreate {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 3] = ["usesMax", "expiresInSeconds", "comment"];
}

impl From<enrollment_token::EnrollmentToken> for EnrollmentToken {
    fn from(token: enrollment_token::EnrollmentToken) -> Self {
        Self {
            id: token.id,
            comment: token.comment,
            uses_max: token.uses_max,
            uses: token.uses,
            creation_date_time_utc: token.created_at.into(),
            expiry_date_time_utc: token.expires_at.into(),
            revoked_date_time_utc: token.revoked_at.map(DateTimeUtc::from),
        }
    }
}
