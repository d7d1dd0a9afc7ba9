//! Impact previews of machines.

use domain::impact_preview;
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::date_time::DateTimeUtc;

/// What a restriction of a machine would refuse now, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImpactPreview {
    /// The machine.
    #[schema(examples("0f3c9a7be1d2445566778899aabbccddeeff0011"))]
    pub machine_id: String,
    /// Its name.
    #[schema(examples("lab-042"))]
    pub computer_dns_name: String,
    /// The allow policy's name.
    #[schema(examples("default"))]
    pub policy: String,
    /// Its newest revision, which the preview is about.
    #[schema(examples(3))]
    pub policy_revision: u64,
    /// `Ready`: `preview` is as young as was asked for. `Underway`: the machine is making it, ask again. `Unavailable`:
    /// it cannot be had, `unavailableReason` says why. In the last two `preview` is the last one that came, if any.
    #[schema(examples("Ready"))]
    pub state: String,
    /// Why it cannot be had.
    #[schema(examples("the machine is not connected"))]
    pub unavailable_reason: Option<String>,
    /// While it is under way: files that the machine has looked at.
    #[schema(examples(120))]
    pub files_done: Option<u64>,
    /// While it is under way: files that it is to look at; 0 before that is known.
    #[schema(examples(431))]
    pub files_total: Option<u64>,
    /// The preview.
    pub preview: Option<Preview>,
}

/// "Restricted now, these would be refused."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// When it was made, by the machine's clock.
    pub taken_date_time_utc: DateTimeUtc,
    /// When it came, by the server's.
    pub received_date_time_utc: DateTimeUtc,
    /// Running processes that were looked at.
    #[schema(examples(212))]
    pub processes: u64,
    /// Files that were judged: programs and executable mappings.
    #[schema(examples(431))]
    pub files: u64,
    /// How many days of past executions it covers; null when it is about what runs and nothing else.
    pub history_days: Option<u32>,
    /// Whether there was more to look at than the machine looks at.
    pub is_cut: bool,
    /// How many files would be refused, listed here or not.
    #[schema(examples(1))]
    pub refused_files: u64,
    /// Those that matter most, at most 1,000: programs that run, then mappings that run, then what ran last.
    pub refused: Vec<RefusedFile>,
}

/// A file that would be refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefusedFile {
    /// Its path, escaped.
    #[schema(examples("/home/ann/tool"))]
    pub path: String,
    /// SHA-256 of its content, when known.
    #[schema(examples("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"))]
    pub sha256: Option<String>,
    /// Stable reason code.
    #[schema(examples("unlisted"))]
    pub cause: String,
    /// The rule that decides, when one does.
    pub rule: Option<String>,
    /// Whether it is only mapped by programs, as a library is, and not executed itself.
    pub mapped_only: bool,
    /// When it was seen last, by the machine's clock.
    pub last_seen: DateTimeUtc,
    /// How often it was executed in the days that the preview covers; 0 when that is not known.
    #[schema(examples(0))]
    pub executions: u64,
    /// How many processes run it.
    #[schema(examples(1))]
    pub processes: u64,
    /// Some of them, at most 16.
    pub process_ids: Vec<i32>,
}

impl Preview {
    /// The preview that came at `received_at`.
    pub fn received(preview: impact_preview::ImpactPreview, received_at: Timestamp) -> Self {
        Self {
            taken_date_time_utc: preview.taken_at.into(),
            received_date_time_utc: received_at.into(),
            processes: preview.processes,
            files: preview.files,
            history_days: preview.history_days,
            is_cut: preview.is_cut,
            refused_files: preview.refused_files,
            refused: preview.refused.into_iter().map(RefusedFile::from).collect(),
        }
    }
}

impl From<impact_preview::RefusedFile> for RefusedFile {
    fn from(file: impact_preview::RefusedFile) -> Self {
        Self {
            path: file.path,
            sha256: file.sha256,
            cause: file.cause,
            rule: file.rule,
            mapped_only: file.mapped_only,
            last_seen: file.last_seen.into(),
            executions: file.executions,
            processes: file.processes,
            process_ids: file.pids,
        }
    }
}
