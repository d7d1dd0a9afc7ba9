//! Machines.

use std::net::IpAddr;

use domain::machine::{self, Health};
use domain::restriction::{Desired, Reported, Restriction};
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::date_time::DateTimeUtc;

/// The name of the entity set.
pub const SET: &str = "Machines";

/// The `Machine` entity. Fields without a value are `null`, never absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// 40 hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{40}$", examples("0f3c9a7be1d2445566778899aabbccddeeff0011"))]
    pub id: String,
    /// The machine's name.
    #[schema(examples("lab-042"))]
    pub computer_dns_name: String,
    /// When it enrolled first.
    pub first_seen: DateTimeUtc,
    /// When it was last heard.
    pub last_seen: DateTimeUtc,
    /// `Linux`.
    #[schema(examples("Linux"))]
    pub os_platform: String,
    /// The processor architecture, as the vendor's field of this name has it.
    #[schema(examples("x86_64"))]
    pub os_processor: String,
    /// The same.
    #[schema(examples("x86_64"))]
    pub os_architecture: String,
    /// Distribution and version.
    #[schema(examples("Debian GNU/Linux 12"))]
    pub version: String,
    /// Kernel release. The vendor's field is a number; a Linux kernel release is not.
    #[schema(examples("6.1.0-18-amd64"))]
    pub os_build: String,
    /// `Active` or `Inactive`.
    pub health_status: String,
    /// `onboarded`: a machine is known because it enrolled.
    pub onboarding_status: String,
    /// The machine group's id; 0 for the group of the machines that no rule takes.
    pub rbac_group_id: i64,
    /// The machine group's name.
    #[schema(examples("Finance"))]
    pub rbac_group_name: Option<String>,
    /// `None`: Cordon computes no such score.
    pub risk_score: String,
    /// `None`: Cordon computes no such score.
    pub exposure_level: String,
    /// `Normal`.
    pub device_value: String,
    /// Always null: machines have no directory identity.
    pub aad_device_id: Option<String>,
    /// Free words; never null.
    #[schema(examples("finance"))]
    pub machine_tags: Vec<String>,
    /// The first address of an interface that is up.
    #[schema(value_type = Option<String>, examples("10.0.0.5"))]
    pub last_ip_address: Option<IpAddr>,
    /// The address that the connection came from.
    #[schema(value_type = Option<String>, examples("203.0.113.7"))]
    pub last_external_ip_address: Option<IpAddr>,
    /// All addresses.
    pub ip_addresses: Vec<IpAddress>,
    /// Version of the agent.
    #[schema(examples("0.1.0"))]
    pub agent_version: String,
    /// The restriction: an extension that the vendor lacks.
    pub execution_restriction: ExecutionRestriction,
}

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpAddress {
    /// The address.
    #[schema(value_type = String, examples("10.0.0.5"))]
    pub ip_address: IpAddr,
    /// 12 upper-case hexadecimal digits.
    #[schema(examples("525400A1B2C3"))]
    pub mac_address: Option<String>,
    /// `Ethernet`, or `SoftwareLoopback`.
    #[schema(examples("Ethernet"))]
    pub r#type: String,
    /// `Up` or `Down`.
    #[schema(examples("Up"))]
    pub operational_status: String,
}

/// What is wanted of the machine, and what it reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionRestriction {
    /// `Restricted` or `Released`.
    pub desired: String,
    /// `Restricted`, `Released` or `Unknown`.
    pub reported: String,
    /// Counts the changes of `desired`.
    pub generation: u64,
    /// When `reported` last changed.
    pub since: Option<DateTimeUtc>,
    /// The allow policy's name.
    #[schema(examples("default"))]
    pub policy: Option<String>,
    /// Whether the machine is not (known to be) what it should be.
    pub drift: bool,
    /// What enforces it, such as `fanotify`.
    #[schema(examples("fanotify"))]
    pub backend: Option<String>,
    /// When the restriction ends by itself.
    pub ends_at: Option<DateTimeUtc>,
    /// How many refused executions were lost on the machine, for want of room, before they were reported.
    #[schema(examples(0))]
    pub events_dropped: u64,
    /// When a break-glass code lifted the restriction on the machine itself; null after the next order.
    pub broken_glass_at: Option<DateTimeUtc>,
}

/// Gives a machine a tag, or takes it. Key names are case sensitive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct TagRequest {
    /// The tag.
    #[schema(
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        examples("finance")
    )]
    pub value: String,
    /// `Add` or `Remove`.
    #[schema(pattern = "^(Add|Remove)$", examples("Add"))]
    pub action: String,
}

impl TagRequest {
    /// The keys that the body may have, as they must be spelled.
    pub const KEYS: [&str; 2] = ["Value", "Action"];
}

/// Whether an action of a kind can be started on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AvailableAction {
    /// The action's type.
    #[schema(examples("RestrictCodeExecution"))]
    pub action: String,
    /// Whether it can be started.
    pub is_available: bool,
    /// Why not; null when it can.
    #[schema(examples("machine lab-042 cannot be restricted: its kernel has no fanotify"))]
    pub not_supported_reason: Option<String>,
}

/// The vendor's exposure score, which Cordon does not compute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExposureScore {
    /// Now.
    pub time: DateTimeUtc,
    /// Always null.
    pub score: Option<f64>,
}

impl Machine {
    /// The entity as it is at the time `now`.
    pub fn at(machine: machine::Machine, now: Timestamp) -> Self {
        let health = match machine.health(now) {
            Health::Active => "Active",
            Health::Inactive => "Inactive",
        };
        let system = machine.system;
        let first_up = system.ip_addresses.iter().find(|ip| ip.up && !ip.address.is_loopback());
        Self {
            id: machine.id.to_string(),
            computer_dns_name: system.computer_dns_name,
            first_seen: machine.first_seen.into(),
            last_seen: machine.last_seen.into(),
            os_platform: system.os_platform,
            os_processor: system.os_architecture.clone(),
            os_architecture: system.os_architecture,
            version: system.os_version,
            os_build: system.os_build,
            health_status: health.to_owned(),
            onboarding_status: "onboarded".to_owned(),
            rbac_group_id: machine.group,
            rbac_group_name: Some(machine.group_name),
            risk_score: "None".to_owned(),
            exposure_level: "None".to_owned(),
            device_value: "Normal".to_owned(),
            aad_device_id: None,
            machine_tags: machine.tags,
            last_ip_address: first_up.map(|ip| ip.address),
            last_external_ip_address: machine.last_external_ip,
            ip_addresses: system.ip_addresses.into_iter().map(IpAddress::from).collect(),
            agent_version: system.agent_version,
            execution_restriction: machine.restriction.into(),
        }
    }
}

impl From<machine::IpAddress> for IpAddress {
    fn from(ip: machine::IpAddress) -> Self {
        let kind = if ip.address.is_loopback() { "SoftwareLoopback" } else { "Ethernet" };
        Self {
            ip_address: ip.address,
            mac_address: ip.mac,
            r#type: kind.to_owned(),
            operational_status: if ip.up { "Up" } else { "Down" }.to_owned(),
        }
    }
}

impl From<Restriction> for ExecutionRestriction {
    fn from(restriction: Restriction) -> Self {
        let drift = restriction.drifts();
        Self {
            desired: match restriction.desired {
                Desired::Restricted => "Restricted",
                Desired::Released => "Released",
            }
            .to_owned(),
            reported: match restriction.reported {
                Reported::Restricted => "Restricted",
                Reported::Released => "Released",
                Reported::Unknown => "Unknown",
            }
            .to_owned(),
            generation: restriction.desired_generation,
            since: restriction.since.map(DateTimeUtc::from),
            policy: restriction.policy_name,
            drift,
            backend: restriction.tier.map(|tier| tier.name().to_owned()),
            ends_at: restriction.ends_at.map(DateTimeUtc::from),
            events_dropped: restriction.events_dropped,
            broken_glass_at: restriction.broken_glass_at.map(DateTimeUtc::from),
        }
    }
}
