//! Machine actions: the requests that make them, and the entity.

use domain::machine_action::{self as action, Kind, Phase, Status};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::date_time::DateTimeUtc;

/// The name of the entity set.
pub const SET: &str = "MachineActions";

/// Body of restrict, unrestrict and cancel. Key names are case sensitive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct ActionRequest {
    /// Why; required.
    #[serde(default)]
    #[schema(
        required = true,
        nullable = false,
        max_length = 4000,
        pattern = r"\S",
        examples("IR-20771 contain while triaging")
    )]
    pub comment: Option<String>,
    /// The caller's own reference, echoed as `externalId`. An extension, as the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256, examples("IR-20771"))]
    pub external_id: Option<String>,
    /// After which time the restriction ends by itself: an ISO 8601 duration, a minute
    /// to a year. For restricting only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        max_length = 32,
        pattern = r"^P([0-9]+W|[0-9]+D|([0-9]+D)?T([0-9]+H([0-9]+M)?([0-9]+S)?|[0-9]+M([0-9]+S)?|[0-9]+S))$",
        examples("PT4H")
    )]
    pub expires_in: Option<String>,
    /// The allow policy to apply; that of the machine's group when it is missing. For restricting only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9-]{1,64}$", examples("default"))]
    pub policy: Option<String>,
}

impl ActionRequest {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 4] = ["Comment", "ExternalId", "ExpiresIn", "Policy"];
}

/// Body of cancel. Key names are case sensitive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct CancelRequest {
    /// Why; required.
    #[serde(default)]
    #[schema(required = true, nullable = false, max_length = 4000, pattern = r"\S", examples("False alarm"))]
    pub comment: Option<String>,
}

impl CancelRequest {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 1] = ["Comment"];
}

/// The `MachineAction` entity. Fields without a value are `null`, never absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843", "type": "RestrictCodeExecution", "title": null,
    "requestor": "0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d", "requestorComment": "IR-20771 contain while triaging",
    "status": "Pending", "machineId": "0f3c9a7be1d2445566778899aabbccddeeff0011", "computerDnsName": "lab-042",
    "creationDateTimeUtc": "2026-03-02T08:14:55.1203341Z", "lastUpdateDateTimeUtc": "2026-03-02T08:14:55.1203341Z",
    "cancellationRequestor": null, "cancellationComment": null, "cancellationDateTimeUtc": null, "errorHResult": 0,
    "scope": null, "externalId": null, "requestSource": "PublicApi", "relatedFileInfo": null, "commands": [],
    "troubleshootInfo": null
}))]
pub struct MachineAction {
    /// GUID.
    pub id: Uuid,
    /// `RestrictCodeExecution` or `UnrestrictCodeExecution`.
    pub r#type: String,
    /// Always null.
    pub title: Option<String>,
    /// The application id or user that asked.
    pub requestor: String,
    /// The comment given.
    pub requestor_comment: String,
    /// `Pending`, `InProgress`, `Succeeded`, `Failed`, `TimeOut` or `Cancelled`.
    pub status: String,
    /// 40 hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{40}$")]
    pub machine_id: String,
    /// The machine's name.
    pub computer_dns_name: String,
    /// When it was made.
    pub creation_date_time_utc: DateTimeUtc,
    /// When it last changed.
    pub last_update_date_time_utc: DateTimeUtc,
    /// Who cancelled it.
    pub cancellation_requestor: Option<String>,
    /// Why it was cancelled.
    pub cancellation_comment: Option<String>,
    /// When it was cancelled.
    pub cancellation_date_time_utc: Option<DateTimeUtc>,
    /// 0 when fine; [`E_FAIL`] when it failed.
    pub error_h_result: i32,
    /// Always null for restrict and unrestrict.
    pub scope: Option<String>,
    /// The caller's own reference.
    pub external_id: Option<String>,
    /// `PublicApi` or `Portal`.
    pub request_source: String,
    /// Always null for restrict and unrestrict.
    pub related_file_info: Option<RelatedFileInfo>,
    /// Always empty for restrict and unrestrict.
    pub commands: Vec<serde_json::Value>,
    /// Why it failed, in one sentence that a person can act on.
    pub troubleshoot_info: Option<String>,
}

/// `E_FAIL` (0x80004005) as the signed number that the wire carries.
pub const E_FAIL: i32 = -2_147_467_259;

/// The file of a file action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RelatedFileInfo {
    /// The digest.
    #[schema(examples("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"))]
    pub file_identifier: String,
    /// `Sha1`, `Sha256` or `Md5`.
    #[schema(examples("Sha256"))]
    pub file_identifier_type: String,
}

/// The `type` of an action on the wire.
pub fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Restrict => "RestrictCodeExecution",
        Kind::Unrestrict => "UnrestrictCodeExecution",
    }
}

impl From<action::MachineAction> for MachineAction {
    fn from(action: action::MachineAction) -> Self {
        let cancellation = action.cancellation;
        Self {
            id: action.id.0,
            r#type: type_name(action.kind).to_owned(),
            title: None,
            requestor: action.requestor,
            requestor_comment: action.comment,
            status: action.phase.status().name().to_owned(),
            machine_id: action.machine.to_string(),
            computer_dns_name: action.computer_dns_name,
            creation_date_time_utc: action.created_at.into(),
            last_update_date_time_utc: action.updated_at.into(),
            cancellation_requestor: cancellation.as_ref().map(|c| c.requestor.clone()),
            cancellation_comment: cancellation.as_ref().map(|c| c.comment.clone()),
            cancellation_date_time_utc: cancellation.map(|c| c.at.into()),
            error_h_result: error_h_result(action.phase),
            scope: None,
            external_id: action.external_id,
            request_source: match action.source {
                action::RequestSource::PublicApi => "PublicApi",
                action::RequestSource::Portal => "Portal",
            }
            .to_owned(),
            related_file_info: None,
            commands: Vec::new(),
            troubleshoot_info: action.failure,
        }
    }
}

fn error_h_result(phase: Phase) -> i32 {
    match phase.status() {
        Status::Failed => E_FAIL,
        Status::Pending | Status::InProgress | Status::Succeeded | Status::TimeOut | Status::Cancelled => 0,
    }
}

/// The signed receipt that proves an action: `GET /api/cordon/v1/machineactions/{id}/receipt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The signed envelope (DSSE), exactly as the machine signed it.
    pub envelope: serde_json::Value,
    /// The payload, decoded for people.
    pub payload: serde_json::Value,
    /// The public key of the machine's gate, 64 hexadecimal digits.
    #[schema(
        pattern = "^[0-9a-f]{64}$",
        examples("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    )]
    pub public_key: String,
}
