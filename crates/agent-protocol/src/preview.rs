//! Impact previews: what a machine says that a restriction would refuse.

use serde::{Deserialize, Serialize};

use crate::limits::{
    FrameError, HEX_BYTES_MAX, Limited, NAME_BYTES_MAX, PATH_BYTES_MAX, REASON_BYTES_MAX, at_most,
};

/// The most files in one preview.
pub const PREVIEW_FILES_MAX: usize = 1000;
/// The most processes that are named for one file.
pub const PREVIEW_PIDS_MAX: usize = 16;

/// How far the preview of a policy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewReport {
    /// Digest of the policy, as it was asked for.
    pub policy: String,
    /// What has come of it.
    pub state: PreviewState,
}

/// What has come of a preview.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreviewState {
    /// The gate is at it.
    Underway {
        /// Files looked at.
        files_done: u64,
        /// Files to look at; 0 before that is known.
        files_total: u64,
    },
    /// There it is.
    Made(ImpactPreview),
    /// There is none.
    Failed {
        /// Why, in one sentence.
        reason: String,
    },
}

/// "Restricted now, these would be refused."
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImpactPreview {
    /// When it was found out, in ticks of 100 ns since 1970, by the machine's clock.
    pub at: i64,
    /// Running processes that were looked at.
    pub processes: u64,
    /// Files that were judged.
    pub files: u64,
    /// How many days of past executions it covers; none when it is about what runs and nothing else.
    pub history_days: Option<u32>,
    /// Whether there was more than the gate looks at.
    pub is_cut: bool,
    /// How many files would be refused, listed or not.
    pub refused_files: u64,
    /// Those that matter most, at most [`PREVIEW_FILES_MAX`].
    pub refused: Vec<RefusedFile>,
}

/// A file that would be refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RefusedFile {
    /// Its path, escaped.
    pub path: String,
    /// SHA-256 of its content, when known.
    pub sha256: Option<String>,
    /// Stable reason code.
    pub cause: String,
    /// The rule that decides, when one does.
    pub rule: Option<String>,
    /// Whether it is only mapped by programs, as a library is.
    pub mapped_only: bool,
    /// When it was seen last, in ticks of 100 ns since 1970, by the machine's clock.
    pub last_seen: i64,
    /// How often it was executed in the days that the preview covers; 0 when that is not known.
    pub executions: u64,
    /// How many processes run it.
    pub processes: u64,
    /// Some of them, at most [`PREVIEW_PIDS_MAX`].
    pub pids: Vec<i32>,
}

impl Limited for PreviewReport {
    fn check(&self) -> Result<(), FrameError> {
        at_most("policy", self.policy.len(), HEX_BYTES_MAX)?;
        match &self.state {
            PreviewState::Underway { files_done: _, files_total: _ } => Ok(()),
            PreviewState::Failed { reason } => at_most("reason", reason.len(), REASON_BYTES_MAX),
            PreviewState::Made(preview) => {
                at_most("refused", preview.refused.len(), PREVIEW_FILES_MAX)?;
                preview.refused.iter().try_for_each(Limited::check)
            }
        }
    }
}

impl Limited for RefusedFile {
    fn check(&self) -> Result<(), FrameError> {
        at_most("path", self.path.len(), PATH_BYTES_MAX)?;
        at_most("sha256", self.sha256.as_deref().unwrap_or("").len(), HEX_BYTES_MAX)?;
        at_most("cause", self.cause.len(), NAME_BYTES_MAX)?;
        at_most("rule", self.rule.as_deref().unwrap_or("").len(), NAME_BYTES_MAX)?;
        at_most("pids", self.pids.len(), PREVIEW_PIDS_MAX)
    }
}
