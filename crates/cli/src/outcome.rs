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
  5  the action timed out before the machine took it up
  6  of cordon diff: the server and the files differ";

/// The same for what concerns many machines.
pub(crate) const BULK_HELP: &str = "\
Examples:
  cordon machine restrict lab-042 --comment \"IR-20771\" --wait
  cordon machine restrict lab-042 --comment \"IR-20771\" --expires-in 4h --policy forensics
  cordon machine restrict --tag finance --comment \"IR-20771\" --dry-run
  cordon machine restrict --filter \"startswith(computerDnsName,'lab-')\" --comment \"IR-20771\" --yes --wait

More than one machine, and --filter, --tag and --group, are one call for all of them, after a
question that tells how many machines it is about; without a terminal, --yes is needed.

Exit codes:
  0  done; with --wait: enforced and proved by every machine
  1  any other error: network, TLS, profile, a fault of the server
  2  wrong usage, or not confirmed
  3  an action is pending: started without --wait, or still under way
  4  refused by the server, or an action failed or was cancelled, or a machine got none
  5  no action failed, but one timed out before its machine took it up";

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
    /// The server and the files differ.
    Differs,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Pending => 3,
            Outcome::Failed => 4,
            Outcome::TimedOut => 5,
            Outcome::Differs => 6,
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
