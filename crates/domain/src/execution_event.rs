//! Execution events: what machines refused to run.

use crate::time::Timestamp;

/// One refused execution, or several alike within a second, as the machine reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionEvent {
    /// When, by the machine's clock.
    pub at: Timestamp,
    /// The file's path, escaped for display.
    pub path: String,
    /// SHA-256 of its content as text, when known.
    pub sha256: Option<String>,
    /// Stable reason code, see [`crate::decision::DecisionCause::code`].
    pub cause: String,
    /// The rule that decided, when one did.
    pub rule: Option<String>,
    /// The process that tried.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its user.
    pub uid: Option<u32>,
    /// The program that it ran, escaped for display.
    pub parent_program: String,
    /// How many alike this stands for.
    pub count: u64,
}
