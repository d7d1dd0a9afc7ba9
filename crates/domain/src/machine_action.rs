//! Machine actions: one order to one machine, and the record of it.

use std::time::Duration;

use uuid::Uuid;

use crate::machine::MachineId;
use crate::restriction::{Desired, Fence};
use crate::time::Timestamp;

/// The id of a machine action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineActionId(pub Uuid);

/// How long an action may stay pending before it times out: three days, as the vendor retries isolation for three days.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(3 * 24 * 60 * 60);
/// The longest comment, in characters.
pub const COMMENT_CHARS_MAX: usize = 4_000;
/// The longest reference of a caller's own, in characters.
pub const EXTERNAL_ID_CHARS_MAX: usize = 256;
/// How soon and how late a restriction may end by itself.
pub const EXPIRES_IN: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(365 * 24 * 60 * 60);

/// What an action changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Restrict execution to the predefined set.
    Restrict,
    /// Lift the restriction.
    Unrestrict,
}

impl Kind {
    /// The state that the action asks for.
    pub fn desired(self) -> Desired {
        match self {
            Self::Restrict => Desired::Restricted,
            Self::Unrestrict => Desired::Released,
        }
    }
}

/// Where an action stands. Phases only move forward (see [`Phase::may_become`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Recorded; the machine has not been offered the order.
    Queued,
    /// Sent over the machine's connection.
    Offered,
    /// Durable on the machine.
    Accepted,
    /// The machine is switching.
    Applying,
    /// Proved by the machine's signed receipt.
    Enforced,
    /// The machine refused the order.
    Rejected,
    /// The machine could not switch.
    ApplyFailed,
    /// The machine switched, but its canaries do not prove it.
    ProbeFailed,
    /// The deadline passed.
    Expired,
    /// A person or an app withdrew it.
    Cancelled,
    /// A newer action took its place.
    Superseded,
}

/// The status of an action on the API, spelled as the vendor spells it today.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Not yet accepted by the machine.
    Pending,
    /// Accepted by the machine.
    InProgress,
    /// Proved.
    Succeeded,
    /// Refused or failed.
    Failed,
    /// The deadline passed.
    TimeOut,
    /// Withdrawn or superseded.
    Cancelled,
}

impl Status {
    /// The status as it is written on the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::InProgress => "InProgress",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::TimeOut => "TimeOut",
            Self::Cancelled => "Cancelled",
        }
    }
}

impl Phase {
    /// Every phase, in the order of an action's life.
    pub const ALL: [Self; 11] = [
        Self::Queued,
        Self::Offered,
        Self::Accepted,
        Self::Applying,
        Self::Enforced,
        Self::Rejected,
        Self::ApplyFailed,
        Self::ProbeFailed,
        Self::Expired,
        Self::Cancelled,
        Self::Superseded,
    ];

    /// The API's status for this phase.
    pub fn status(self) -> Status {
        match self {
            Self::Queued | Self::Offered => Status::Pending,
            Self::Accepted | Self::Applying => Status::InProgress,
            Self::Enforced => Status::Succeeded,
            Self::Rejected | Self::ApplyFailed | Self::ProbeFailed => Status::Failed,
            Self::Expired => Status::TimeOut,
            Self::Cancelled | Self::Superseded => Status::Cancelled,
        }
    }

    /// Whether the action is over. A final phase never changes.
    pub fn is_final(self) -> bool {
        self.step() == FINAL_STEP
    }

    /// Whether an action in this phase may move to `next`.
    ///
    /// Steps may be skipped (a receipt can arrive before the acceptance was recorded), but never taken back.
    pub fn may_become(self, next: Self) -> bool {
        self.step() < next.step()
    }

    fn step(self) -> u8 {
        match self {
            Self::Queued => 0,
            Self::Offered => 1,
            Self::Accepted => 2,
            Self::Applying => 3,
            Self::Enforced
            | Self::Rejected
            | Self::ApplyFailed
            | Self::ProbeFailed
            | Self::Expired
            | Self::Cancelled
            | Self::Superseded => FINAL_STEP,
        }
    }
}

const FINAL_STEP: u8 = 4;

/// Where a request came from, as the API's `requestSource` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestSource {
    /// The HTTP API.
    PublicApi,
    /// The console.
    Portal,
}

/// Who withdrew an action, why and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancellation {
    /// The application id or user that asked.
    pub requestor: String,
    /// The reason given, or the newer action that took its place.
    pub comment: String,
    /// When.
    pub at: Timestamp,
}

/// One order to one machine, and the record of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineAction {
    /// Its id.
    pub id: MachineActionId,
    /// What it changes.
    pub kind: Kind,
    /// Where it stands.
    pub phase: Phase,
    /// The machine that it is about.
    pub machine: MachineId,
    /// That machine's DNS name when the action was made.
    pub computer_dns_name: String,
    /// The fence of its order.
    pub fence: Fence,
    /// The application id or user that asked.
    pub requestor: String,
    /// The comment given.
    pub comment: String,
    /// Where the request came from.
    pub source: RequestSource,
    /// The caller's own reference.
    pub external_id: Option<String>,
    /// The name of the allow policy of a restriction.
    pub policy: Option<String>,
    /// When the restriction ends by itself.
    pub ends_at: Option<Timestamp>,
    /// What the caller named the request, so that a repetition is known as one.
    pub idempotency_key: Option<String>,
    /// The bulk call that made it.
    pub bulk: Option<Uuid>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its phase last changed.
    pub updated_at: Timestamp,
    /// When it times out, unless final before.
    pub deadline: Timestamp,
    /// Set when it was cancelled or superseded.
    pub cancellation: Option<Cancellation>,
    /// Why it failed, in one sentence that a person can act on.
    pub failure: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_phase() -> impl Strategy<Value = Phase> {
        proptest::sample::select(&Phase::ALL[..])
    }

    proptest! {
        #[test]
        fn final_phases_never_change(from in any_phase(), to in any_phase()) {
            prop_assert!(!(from.is_final() && from.may_become(to)));
        }

        #[test]
        fn phases_only_move_forward(path in proptest::collection::vec(any_phase(), 0..20)) {
            let mut phase = Phase::Queued;
            let mut changes = 0;
            for next in path {
                if phase.may_become(next) {
                    prop_assert!(!next.may_become(phase));
                    phase = next;
                    changes += 1;
                }
            }
            // Queued, Offered, Accepted, Applying, final: no life has more than four changes.
            prop_assert!(changes <= 4);
        }

        #[test]
        fn status_never_goes_back(from in any_phase(), to in any_phase()) {
            if from.may_become(to) {
                prop_assert!(to.status() != Status::Pending || from.status() == Status::Pending);
            }
        }
    }

    #[test]
    fn every_open_phase_may_end_in_every_final_phase() {
        for from in Phase::ALL.into_iter().filter(|phase| !phase.is_final()) {
            for to in Phase::ALL.into_iter().filter(|phase| phase.is_final()) {
                assert!(from.may_become(to), "{from:?} -> {to:?}");
            }
        }
    }

    #[test]
    fn status_table() {
        let statuses: Vec<_> = Phase::ALL.iter().map(|phase| phase.status().name()).collect();
        assert_eq!(
            statuses,
            [
                "Pending",
                "Pending",
                "InProgress",
                "InProgress",
                "Succeeded",
                "Failed",
                "Failed",
                "Failed",
                "TimeOut",
                "Cancelled",
                "Cancelled"
            ]
        );
    }
}
