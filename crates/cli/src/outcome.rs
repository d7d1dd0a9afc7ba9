//! How a command ended, as the exit code that scripts read.

use std::process::ExitCode;

use crate::error::{ClientError, UsageError};

/// What `--help` says about exit codes.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done; of an action: enforced and proved by the machine
  1  any other error: network, TLS, profile, a fault of the server
  2  wrong usage
  3  the action is pending: started without --wait, or still under way
  4  refused by the server, or the action failed or was cancelled
  5  the action timed out before the machine took it up";

/// How a command ended when nothing went wrong on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done; of an action: enforced.
    Done,
    /// The action goes on.
    Pending,
    /// The action failed or was cancelled.
    Failed,
    /// The action's deadline passed.
    TimedOut,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Pending => 3,
            Outcome::Failed => 4,
            Outcome::TimedOut => 5,
        })
    }
}

/// The exit code of a command that ended with an error.
pub(crate) fn code_of(error: &anyhow::Error) -> ExitCode {
    let refused = error.downcast_ref::<ClientError>().is_some_and(ClientError::is_refusal);
    ExitCode::from(match (error.is::<UsageError>(), refused) {
        (true, _) => 2,
        (false, true) => 4,
        (false, false) => 1,
    })
}
