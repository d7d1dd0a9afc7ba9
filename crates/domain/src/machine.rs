//! A machine: one computer with an enrolled agent.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::digest::{fmt_hex, parse_hex};
use crate::restriction::{Restriction, Tier};
use crate::time::Timestamp;

/// A machine's id: the first 20 bytes of the SHA-256 of the agent's public key (`SubjectPublicKeyInfo`, DER).
///
/// Written as 40 lower-case hexadecimal digits, the form of the vendor's machine ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineId(pub [u8; 20]);

/// The text is not 40 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a machine id is 40 hexadecimal digits")]
pub struct ParseMachineIdError;

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_hex(&self.0, f)
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_hex(&self.0, f)
    }
}

impl FromStr for MachineId {
    type Err = ParseMachineIdError;

    /// Reads 40 hexadecimal digits of either case.
    fn from_str(text: &str) -> Result<Self, ParseMachineIdError> {
        parse_hex(text).map(Self).ok_or(ParseMachineIdError)
    }
}

/// How long without a word from the machine until it counts as [`Health::Inactive`]: seven days, the vendor's rule.
pub const INACTIVE_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Whether a machine's agent reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Seen within [`INACTIVE_AFTER`].
    Active,
    /// Not seen for longer.
    Inactive,
}

/// What the machine said of its system when it last connected. Every text is capped by `agent-protocol`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct System {
    /// Fully qualified name where it has one, else the host name.
    pub computer_dns_name: String,
    /// Operating system in the vendor's words: `Linux`.
    pub os_platform: String,
    /// Distribution and its version, such as `Debian 12`.
    pub os_version: String,
    /// Kernel release.
    pub os_build: String,
    /// Processor architecture, such as `x86_64`.
    pub os_architecture: String,
    /// Version of the agent.
    pub agent_version: String,
    /// The addresses of its interfaces.
    pub ip_addresses: Vec<IpAddress>,
}

/// One address of one network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpAddress {
    /// The address.
    pub address: IpAddr,
    /// The interface's hardware address, 12 upper-case hexadecimal digits, when it has one.
    pub mac: Option<String>,
    /// Whether the interface is up.
    pub up: bool,
}

/// What a machine can do, as it last reported; decided upon before an order is made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// The mechanism that would enforce a restriction; none when the kernel has no usable one.
    pub tier: Option<Tier>,
    /// Why there is no tier, in one sentence.
    pub missing: Option<String>,
}

/// One computer with an enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its id.
    pub id: MachineId,
    /// Counts the enrollments of this machine, from 1.
    pub incarnation: u64,
    /// What it said of its system.
    pub system: System,
    /// What it can do; none until it has connected.
    pub capabilities: Option<Capabilities>,
    /// Free words that people gave it, sorted.
    pub tags: Vec<String>,
    /// The id of the machine group that it belongs to.
    pub group: i64,
    /// That group's name.
    pub group_name: String,
    /// When it enrolled first.
    pub first_seen: Timestamp,
    /// When it was last heard.
    pub last_seen: Timestamp,
    /// The address that its connection came from.
    pub last_external_ip: Option<IpAddr>,
    /// Its restriction.
    pub restriction: Restriction,
}

impl Machine {
    /// Whether the machine reports, at the time `now`.
    pub fn health(&self, now: Timestamp) -> Health {
        if now.since(self.last_seen) < INACTIVE_AFTER { Health::Active } else { Health::Inactive }
    }
}
