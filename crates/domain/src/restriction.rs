//! The restriction of one machine: what is desired, what the machine reports, and the fence that orders changes.

use crate::digest::Sha256Digest;

/// What the control plane wants a machine to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Desired {
    /// Any program may run.
    Released,
    /// Only the predefined set may run.
    Restricted,
}

/// What a machine last reported that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reported {
    /// The machine has not reported since its enrollment.
    Unknown,
    /// Any program may run.
    Released,
    /// Only the predefined set may run, and the gate enforces it.
    Restricted,
}

/// Orders the changes of one machine's restriction: a gate obeys only a higher fence than the last it accepted.
///
/// `store_epoch` counts restores of the control plane's database, `generation` the changes to this machine.
/// `incarnation` counts enrollments of the same machine: it must be equal, never just higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Rises by one each time the control plane's store is restored from a backup.
    pub store_epoch: u64,
    /// Rises by one each time this machine enrolls.
    pub incarnation: u64,
    /// Rises by one with each change to this machine's desired restriction.
    pub generation: u64,
}

/// Why a fence does not admit an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FenceError {
    /// The order is for another enrollment of this machine.
    #[error("the order is for incarnation {order}, this machine is incarnation {own}")]
    OtherIncarnation {
        /// The order's incarnation.
        order: u64,
        /// The machine's own.
        own: u64,
    },
    /// The order is not newer than the last accepted one.
    #[error(
        "the order's generation {order_generation} (store epoch {order_epoch}) is not above {own_generation} (store epoch {own_epoch})"
    )]
    NotNewer {
        /// The order's generation.
        order_generation: u64,
        /// The order's store epoch.
        order_epoch: u64,
        /// The last accepted generation.
        own_generation: u64,
        /// The last accepted store epoch.
        own_epoch: u64,
    },
}

impl Fence {
    /// Whether an order with the fence `order` may be obeyed after this one.
    ///
    /// # Errors
    /// [`FenceError`] when it is for another incarnation, or not newer.
    pub fn admit(&self, order: &Self) -> Result<(), FenceError> {
        if order.incarnation != self.incarnation {
            return Err(FenceError::OtherIncarnation { order: order.incarnation, own: self.incarnation });
        }
        if (order.store_epoch, order.generation) <= (self.store_epoch, self.generation) {
            return Err(FenceError::NotNewer {
                order_generation: order.generation,
                order_epoch: order.store_epoch,
                own_generation: self.generation,
                own_epoch: self.store_epoch,
            });
        }
        Ok(())
    }
}

/// Which mechanism of the kernel holds a restriction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// T1: BPF programs in the kernel's security hooks. The verdict is a lookup in the kernel, whoever is dead.
    BpfLsm,
    /// T2: the same programs where the kernel was booted without `bpf` among its security modules: they change what
    /// the security hooks return (`fmod_ret`).
    FmodRet,
    /// T3: fanotify permission events. "Reduced": sees neither memfd nor mappings of files already open.
    Fanotify,
}

impl Tier {
    /// The tier's stable name on every wire. Never rename.
    pub fn name(self) -> &'static str {
        match self {
            Self::BpfLsm => "bpf-lsm",
            Self::FmodRet => "fmod-ret",
            Self::Fanotify => "fanotify",
        }
    }

    /// The tier with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::BpfLsm, Self::FmodRet, Self::Fanotify].into_iter().find(|tier| tier.name() == name)
    }

    /// Whether it sees code that is not executed as a file: mappings, and files that exist in memory only.
    pub fn sees_mappings(self) -> bool {
        match self {
            Self::BpfLsm | Self::FmodRet => true,
            Self::Fanotify => false,
        }
    }
}

/// One canary that the gate ran after a switch: an execution whose outcome is known ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Canary {
    /// A program that nothing lists, made for this one run.
    Unlisted,
    /// A program of the predefined set.
    Listed,
    /// A file that nothing lists, mapped as code.
    Mapping,
    /// A mapping of a file that nothing lists, made code afterwards.
    Protection,
    /// A program in a file that exists in memory only (`memfd_create`).
    MemoryFile,
}

/// What happened to a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CanaryOutcome {
    /// It ran to its expected exit status.
    Ran,
    /// The kernel refused it with `EPERM`.
    Refused,
    /// Neither: it could not be tried, or ended in another way.
    Failed,
}

/// The results of the canaries after one switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Probe {
    /// What happened to [`Canary::Unlisted`].
    pub unlisted: CanaryOutcome,
    /// What happened to [`Canary::Listed`].
    pub listed: CanaryOutcome,
    /// What happened to the others; none where the tier does not see mappings.
    pub mappings: Option<MappingProbe>,
}

/// The results of the canaries that map code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MappingProbe {
    /// What happened to [`Canary::Mapping`].
    pub mapping: CanaryOutcome,
    /// What happened to [`Canary::Protection`].
    pub protection: CanaryOutcome,
    /// What happened to [`Canary::MemoryFile`].
    pub memory_file: CanaryOutcome,
}

impl Probe {
    /// Whether the canaries prove that a machine of this tier is in the state `desired`.
    pub fn proves(&self, desired: Desired, tier: Tier) -> bool {
        let unlisted = match desired {
            Desired::Restricted => CanaryOutcome::Refused,
            Desired::Released => CanaryOutcome::Ran,
        };
        let mappings = MappingProbe { mapping: unlisted, protection: unlisted, memory_file: unlisted };
        self.unlisted == unlisted
            && self.listed == CanaryOutcome::Ran
            && match self.mappings {
                Some(found) => found == mappings,
                None => !tier.sees_mappings(),
            }
    }
}

/// The state of a machine's restriction as the control plane knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restriction {
    /// What is wanted.
    pub desired: Desired,
    /// The generation of the last order that was made; 0 before the first. Never goes back.
    pub desired_generation: u64,
    /// The generation that the machine is to report: that of the last order, or, when that was withdrawn before the
    /// machine took it up, the one that it reported last.
    pub wanted_generation: u64,
    /// The policy that applies when restricted.
    pub policy_name: Option<String>,
    /// Digest of the signed policy's bytes.
    pub policy_digest: Option<Sha256Digest>,
    /// When the restriction ends by itself.
    pub ends_at: Option<crate::time::Timestamp>,
    /// When a break-glass code lifted the restriction on the machine itself, until the next order.
    pub broken_glass_at: Option<crate::time::Timestamp>,
    /// What the machine last reported.
    pub reported: Reported,
    /// The generation that the machine last reported as in force.
    pub reported_generation: u64,
    /// The mechanism that enforces it, as the machine reported it.
    pub tier: Option<Tier>,
    /// When the reported state last changed.
    pub since: Option<crate::time::Timestamp>,
    /// How many refused executions were lost on the machine before they were reported, since it enrolled first.
    pub events_dropped: u64,
}

impl Restriction {
    /// Whether the machine is not (known to be) what it should be.
    pub fn drifts(&self) -> bool {
        let reported_as_desired = match self.desired {
            Desired::Restricted => self.reported == Reported::Restricted,
            Desired::Released => matches!(self.reported, Reported::Released | Reported::Unknown),
        };
        // A lower generation is to come; a higher one was withdrawn, or never ordered by this store.
        !reported_as_desired || self.reported_generation != self.wanted_generation
    }
}
