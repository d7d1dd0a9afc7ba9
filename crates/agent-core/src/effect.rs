//! What the agent is to do.

use std::time::Duration;

use agent_protocol::FromAgent;
use gate_protocol::Request;

/// One thing to do. Effects are carried out in their order; none waits for another to succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Connect to the gate's socket.
    ConnectGate,
    /// Drop the connection to the gate.
    DropGate,
    /// Send this to the gate. Only one request is ever unanswered.
    AskGate(Request),
    /// Open the WebSocket to the server.
    ConnectLink,
    /// Drop the WebSocket.
    DropLink,
    /// Send this to the server.
    Send(Box<FromAgent>),
    /// Ask the server for a sign of life.
    Ping,
    /// Let this timer fire after this time, and not before, whatever was armed earlier.
    Arm(Timer, Duration),
    /// Scan the packages and send the baseline to the gate.
    StartInventory,
    /// Stop the running scan.
    StopInventory,
    /// Have the server sign a fresh certificate.
    Renew,
    /// Tell the people who are logged in.
    TellPeople(Notice),
    /// Say this in the log.
    Log(Level, String),
}

/// What people on the machine are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notice {
    /// Only the predefined set runs.
    Restricted,
    /// Any program runs again.
    Released,
}

/// How urgent a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// The course of things.
    Info,
    /// Somebody should look.
    Warn,
}

/// The timers. Each is armed at most once at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Connect to the gate again.
    GateConnect,
    /// The gate did not answer in time.
    GateReply,
    /// The gate was away for so long that the server should not believe the machine to be reachable.
    GateAway,
    /// Connect to the server again.
    LinkConnect,
    /// The connection did not come about in time.
    LinkSetup,
    /// Report the restriction, and see whether the server is still there.
    Heartbeat,
    /// The order does not wait any longer for what it needs.
    OrderWait,
    /// Fetch refused executions from the gate.
    Denials,
    /// Ask the gate how far an impact preview is.
    Preview,
    /// The next batch of executions may be sent.
    Batch,
    /// The next scan may start.
    Inventory,
    /// See whether the certificate is to be renewed.
    Renewal,
}
