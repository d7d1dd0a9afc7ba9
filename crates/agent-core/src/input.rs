//! What happens to the agent.

use agent_protocol::{FromServer, Interface, InventorySummary};
use gate_protocol::Reply;

use crate::certificate::Validity;
use crate::effect::Timer;

/// One thing that happened.
///
/// A connection that an effect ended, or that was reported lost, reports nothing more: what it still holds is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The gate's socket is connected.
    GateConnected,
    /// It could not be connected, or no longer is, for this reason.
    GateLost(String),
    /// The gate answered.
    GateReplied(Box<Reply>),
    /// The WebSocket is open.
    LinkConnected(Box<SystemFacts>),
    /// It could not be opened, or is no longer open, for this reason.
    LinkLost(String),
    /// A frame that passed its limits.
    FrameReceived(Box<FromServer>),
    /// A sign of life from the server that is not a frame.
    ServerHeard,
    /// The time of an armed timer has come.
    TimerFired(Timer),
    /// The package database is another than at the last scan.
    PackagesChanged,
    /// How far the running scan is.
    InventoryProgressed(InventorySummary),
    /// The running scan is over.
    InventoryEnded(InventoryEnd),
    /// This certificate is in use from here on.
    CertificateInUse(Validity),
    /// No fresh certificate could be had, for this reason.
    RenewalFailed(String),
}

/// How a scan ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InventoryEnd {
    /// The gate holds its baseline.
    Stored(InventorySummary),
    /// It was told to stop.
    Stopped,
    /// It failed, for this reason.
    Failed(String),
}

/// What a machine says of its system. Texts of any length: they are cut to what a frame bears.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SystemFacts {
    /// Version of the agent.
    pub agent_version: String,
    /// Fully qualified name where the machine has one, else its host name.
    pub computer_dns_name: String,
    /// Distribution and version.
    pub os_version: String,
    /// Kernel release.
    pub os_build: String,
    /// Processor architecture.
    pub os_architecture: String,
    /// The network interfaces' addresses.
    pub interfaces: Vec<Interface>,
}
