//! Break-glass codes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A code that lifts the restriction on the machine itself, shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BreakGlassCode {
    /// The machine that takes it, and no other.
    #[schema(examples("0f3c9a7be1d2445566778899aabbccddeeff0011"))]
    pub machine_id: String,
    /// The machine's name.
    #[schema(examples("lab-042"))]
    pub computer_dns_name: String,
    /// 28 letters and digits in groups of four, to be typed at `cordon-gate break-glass`.
    #[schema(examples("7K3M-9QXT-0B5R-EVW2-H8CN-4YZA-JD6P"))]
    pub code: String,
    /// Counts the machine's codes; the audit log names it.
    #[schema(examples(1))]
    pub number: u64,
}

impl std::fmt::Debug for BreakGlassCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BreakGlassCode")
            .field("machine_id", &self.machine_id)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
