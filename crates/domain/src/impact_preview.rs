//! Impact previews: what a restriction would refuse now, as a machine found it out.

use crate::time::Timestamp;

/// The most files that a preview lists.
pub const FILES_MAX: usize = 1000;
/// How many previews are kept of one machine: the policies that are compared, and a revision before.
pub const PER_MACHINE_MAX: u32 = 8;

/// "Restricted now, these would be refused."
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImpactPreview {
    /// When, by the machine's clock.
    pub taken_at: Timestamp,
    /// Running processes that were looked at.
    pub processes: u64,
    /// Files that were judged: programs and executable mappings.
    pub files: u64,
    /// How many days of past executions it covers; none when it is about what runs and nothing else.
    pub history_days: Option<u32>,
    /// Whether there was more to look at than the machine looks at.
    pub is_cut: bool,
    /// How many files would be refused, listed or not.
    pub refused_files: u64,
    /// Those that matter most, at most [`FILES_MAX`].
    pub refused: Vec<RefusedFile>,
}

/// A file that would be refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RefusedFile {
    /// Its path, escaped for display.
    pub path: String,
    /// SHA-256 of its content as text, when known.
    pub sha256: Option<String>,
    /// Stable reason code, see [`crate::decision::DecisionCause::code`].
    pub cause: String,
    /// The rule that decides, when one does.
    pub rule: Option<String>,
    /// Whether it is only mapped by programs, as a library is, and not executed itself.
    pub mapped_only: bool,
    /// When it was seen last, by the machine's clock.
    pub last_seen: Timestamp,
    /// How often it was executed in the days that the preview covers; 0 when that is not known.
    pub executions: u64,
    /// How many processes run it.
    pub processes: u64,
    /// Some of them, at most 16.
    pub pids: Vec<i32>,
}
