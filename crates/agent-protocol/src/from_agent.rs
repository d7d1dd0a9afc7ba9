//! What an agent tells its server.

use std::net::IpAddr;

use orders::{BreakGlassLog, Receipt};
use serde::{Deserialize, Serialize};

use crate::PreviewReport;
use crate::limits::{
    FrameError, HEX_BYTES_MAX, Limited, NAME_BYTES_MAX, PATH_BYTES_MAX, REASON_BYTES_MAX, at_most,
};

/// The most interfaces that a machine reports.
const INTERFACES_MAX: usize = 64;
/// The most policies that a machine holds.
const POLICIES_MAX: usize = 64;
/// The most executions in one frame.
const EXECUTIONS_MAX: usize = 256;

/// A frame from an agent. Unknown fields are ignored, so that a server understands a newer agent's frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    /// The first frame of a connection.
    Hello(Box<Hello>),
    /// Every so often, and after each change.
    Heartbeat(Heartbeat),
    /// The order is durable on the machine.
    Accepted {
        /// Its generation.
        generation: u64,
    },
    /// The gate's signed answer to an order.
    Receipt {
        /// The signed envelope's JSON text.
        envelope: String,
    },
    /// Refused executions, oldest first.
    Executions {
        /// Number of this batch, rising from 1 within a connection; the server acknowledges it.
        batch: u64,
        /// The refused executions.
        events: Vec<ExecutionEvent>,
        /// How many were lost on the machine since the last batch.
        dropped: u64,
    },
    /// How far the inventory is, or what it found.
    Inventory(InventorySummary),
    /// How far an impact preview is, or what it found. Only sent when it was asked for.
    Preview(Box<PreviewReport>),
}

/// Who connects, and what it is and can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's [`crate::PROTOCOL_VERSION`].
    pub protocol: u32,
    /// Version of the agent.
    pub agent_version: String,
    /// Fully qualified name where the machine has one, else its host name.
    pub computer_dns_name: String,
    /// `Linux`.
    pub os_platform: String,
    /// Distribution and version.
    pub os_version: String,
    /// Kernel release.
    pub os_build: String,
    /// Processor architecture.
    pub os_architecture: String,
    /// The network interfaces' addresses.
    pub interfaces: Vec<Interface>,
    /// The tier that enforces or would; none when there is no usable one.
    pub tier: Option<String>,
    /// Why there is none, or what the tier does not see.
    pub tier_note: String,
    /// The restriction as the gate reports it.
    pub restriction: RestrictionReport,
    /// Digests of the signed policies that the gate holds.
    pub policies: Vec<String>,
}

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The address.
    pub address: IpAddr,
    /// 12 upper-case hexadecimal digits, when there is a hardware address.
    pub mac: Option<String>,
    /// Whether the interface is up.
    pub up: bool,
}

/// The restriction as the gate reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestrictionReport {
    /// The incarnation that the gate is bound to.
    pub incarnation: u64,
    /// The last accepted store epoch.
    pub store_epoch: u64,
    /// The last accepted generation.
    pub generation: u64,
    /// Whether the restriction is in force.
    pub restricted: bool,
    /// The policy in force.
    pub policy: Option<String>,
    /// What the gate holds of break-glass; none of an agent or a gate from before version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub break_glass: Option<BreakGlassReport>,
}

/// What the gate holds of break-glass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakGlassReport {
    /// The store epoch of the codes held.
    pub store_epoch: u64,
    /// The enrollment that they are of.
    pub incarnation: u64,
    /// The serial of the first code of the statement held; 0 when none is held.
    pub first: u64,
    /// The gate's signed log of the codes that were used: the envelope's JSON text; none before the first.
    pub log: Option<String>,
}

/// A sign of life with the state in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The restriction as the gate reports it.
    pub restriction: RestrictionReport,
}

/// One refused execution, or several alike within a second. Agents before version 4 leave out the hook, which is
/// `execute`, and what is optional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecutionEvent {
    /// When, in ticks of 100 ns since 1970, by the machine's clock.
    pub at: i64,
    /// Which of the kernel's questions it was, see `domain::execution_event::Hook::name`.
    #[serde(default = "execute")]
    pub hook: String,
    /// The file's path, escaped.
    pub path: String,
    /// SHA-256 of its content, when known.
    pub sha256: Option<String>,
    /// Stable reason code.
    pub cause: String,
    /// The rule that decided, when one did.
    pub rule: Option<String>,
    /// The process that tried.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its user.
    pub uid: Option<u32>,
    /// The program that it ran, escaped.
    pub parent_program: String,
    /// Its control group, escaped, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The id of the container that it ran in, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The interpreter, escaped, when the execution was about a script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    /// The script, escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Name of the policy that decided, when one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Its revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_revision: Option<u64>,
    /// Whether it was only noted, and ran.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audited: bool,
    /// How many alike this stands for.
    pub count: u64,
}

fn execute() -> String {
    "execute".to_owned()
}

/// How far the inventory is, or what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventorySummary {
    /// Whether the scan is over.
    pub complete: bool,
    /// Files looked at.
    pub files_done: u64,
    /// Files to look at.
    pub files_total: u64,
    /// Files whose content is what their package shipped.
    pub vouched: u64,
    /// Files whose content is not.
    pub modified: u64,
    /// Files that could not be read, or are missing.
    pub unreadable: u64,
    /// SHA-256 of the baseline that the gate holds, once complete.
    pub baseline: Option<String>,
}

impl Limited for FromAgent {
    fn check(&self) -> Result<(), FrameError> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Heartbeat(heartbeat) => heartbeat.restriction.check(),
            Self::Accepted { generation: _ } => Ok(()),
            Self::Receipt { envelope } => at_most("envelope", envelope.len(), Receipt::BYTES_MAX),
            Self::Executions { batch: _, events, dropped: _ } => {
                at_most("events", events.len(), EXECUTIONS_MAX)?;
                events.iter().try_for_each(Limited::check)
            }
            Self::Preview(report) => report.check(),
            Self::Inventory(summary) => {
                at_most("baseline", summary.baseline.as_deref().unwrap_or("").len(), HEX_BYTES_MAX)
            }
        }
    }
}

impl Limited for Hello {
    fn check(&self) -> Result<(), FrameError> {
        for (field, text) in [
            ("agent_version", &self.agent_version),
            ("computer_dns_name", &self.computer_dns_name),
            ("os_platform", &self.os_platform),
            ("os_version", &self.os_version),
            ("os_build", &self.os_build),
            ("os_architecture", &self.os_architecture),
        ] {
            at_most(field, text.len(), NAME_BYTES_MAX)?;
        }
        at_most("interfaces", self.interfaces.len(), INTERFACES_MAX)?;
        for interface in &self.interfaces {
            at_most("mac", interface.mac.as_deref().unwrap_or("").len(), 12)?;
        }
        at_most("tier", self.tier.as_deref().unwrap_or("").len(), NAME_BYTES_MAX)?;
        at_most("tier_note", self.tier_note.len(), REASON_BYTES_MAX)?;
        at_most("policies", self.policies.len(), POLICIES_MAX)?;
        for digest in &self.policies {
            at_most("policies", digest.len(), HEX_BYTES_MAX)?;
        }
        self.restriction.check()
    }
}

impl Limited for RestrictionReport {
    fn check(&self) -> Result<(), FrameError> {
        let log = self.break_glass.as_ref().and_then(|glass| glass.log.as_deref());
        at_most("log", log.unwrap_or("").len(), BreakGlassLog::BYTES_MAX)?;
        at_most("policy", self.policy.as_deref().unwrap_or("").len(), HEX_BYTES_MAX)
    }
}

impl Limited for ExecutionEvent {
    fn check(&self) -> Result<(), FrameError> {
        at_most("path", self.path.len(), PATH_BYTES_MAX)?;
        at_most("parent_program", self.parent_program.len(), PATH_BYTES_MAX)?;
        for (field, text) in
            [("cgroup", &self.cgroup), ("interpreter", &self.interpreter), ("script", &self.script)]
        {
            at_most(field, text.as_deref().unwrap_or("").len(), PATH_BYTES_MAX)?;
        }
        at_most("hook", self.hook.len(), NAME_BYTES_MAX)?;
        at_most("policy", self.policy.as_deref().unwrap_or("").len(), NAME_BYTES_MAX)?;
        at_most("container", self.container.as_deref().unwrap_or("").len(), HEX_BYTES_MAX)?;
        at_most("sha256", self.sha256.as_deref().unwrap_or("").len(), HEX_BYTES_MAX)?;
        at_most("cause", self.cause.len(), NAME_BYTES_MAX)?;
        at_most("rule", self.rule.as_deref().unwrap_or("").len(), NAME_BYTES_MAX)
    }
}
