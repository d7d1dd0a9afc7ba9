//! What a server tells an agent.

use orders::{BreakGlassStatement, Order, VerifiedPolicy};
use serde::{Deserialize, Serialize};

use crate::limits::{FrameError, HEX_BYTES_MAX, Limited, REASON_BYTES_MAX, at_most};

/// A frame from the server. Unknown fields are ignored, so that an agent understands a newer server's frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromServer {
    /// The answer to `Hello`.
    Welcome(Welcome),
    /// A signed policy to keep ahead of time.
    Policy {
        /// The signed envelope's JSON text.
        envelope: String,
    },
    /// The machine's current order.
    Order {
        /// The signed envelope's JSON text.
        envelope: String,
    },
    /// A signed statement of break-glass codes to keep ahead of time.
    BreakGlass {
        /// The signed envelope's JSON text.
        envelope: String,
    },
    /// The batch of executions is stored.
    ExecutionsStored {
        /// The batch's number.
        batch: u64,
    },
    /// The receipt is stored, or will never be wanted: the agent need not send it again.
    ReceiptStored {
        /// Its generation.
        generation: u64,
    },
    /// An impact preview is wanted. Sent to agents of version 4 and later.
    Preview {
        /// Digest of a policy that the machine holds, or is sent before this.
        policy: String,
        /// A preview that is not older than this, in seconds, is good enough.
        age_seconds_max: u64,
    },
    /// The server closes the connection, for this reason; the agent tries again by its back-off.
    Goodbye {
        /// Why.
        reason: String,
    },
}

/// The answer to `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The server's [`crate::PROTOCOL_VERSION`].
    pub protocol: u32,
    /// The server's clock, in ticks of 100 ns since 1970.
    pub now: i64,
    /// Mean time between heartbeats, in seconds; the agent spreads them by half to either side.
    pub heartbeat_seconds: u32,
    /// The longest back-off between attempts to connect, in seconds.
    pub reconnect_seconds_max: u32,
}

impl Limited for FromServer {
    fn check(&self) -> Result<(), FrameError> {
        match self {
            Self::Policy { envelope } => at_most("envelope", envelope.len(), VerifiedPolicy::BYTES_MAX),
            Self::Order { envelope } => at_most("envelope", envelope.len(), Order::BYTES_MAX),
            Self::BreakGlass { envelope } => {
                at_most("envelope", envelope.len(), BreakGlassStatement::BYTES_MAX)
            }
            Self::Goodbye { reason } => at_most("reason", reason.len(), REASON_BYTES_MAX),
            Self::Preview { policy, age_seconds_max: _ } => at_most("policy", policy.len(), HEX_BYTES_MAX),
            Self::Welcome(_)
            | Self::ExecutionsStored { batch: _ }
            | Self::ReceiptStored { generation: _ } => Ok(()),
        }
    }
}
