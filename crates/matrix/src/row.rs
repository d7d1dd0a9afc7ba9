//! What a row of the matrix is: its name, where it runs, what is expected of it, and what came of it.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::lab::Lab;

/// One row.
pub struct Row {
    /// Which one.
    pub id: Id,
    /// What is tried, in a few words.
    pub name: &'static str,
    /// Where it runs.
    pub stage: Stage,
    /// Tries it, and records what came of it in the lab. An error fails the row.
    pub run: fn(&mut Lab) -> Result<()>,
}

/// A row's line in `cordon-matrix list`.
#[derive(Serialize)]
pub struct Listed {
    row: Id,
    name: &'static str,
    stage: Stage,
}

impl Row {
    /// A row of the matrix in the fast stage.
    pub const fn fast(number: u8, name: &'static str, run: fn(&mut Lab) -> Result<()>) -> Self {
        Self { id: Id::Vector(number), name, stage: Stage::Fast, run }
    }

    /// A row of the matrix in the debian stage.
    pub const fn debian(number: u8, name: &'static str, run: fn(&mut Lab) -> Result<()>) -> Self {
        Self { id: Id::Vector(number), name, stage: Stage::Debian, run }
    }

    /// Something that must stay possible, by its word.
    pub const fn possible(
        word: &'static str,
        name: &'static str,
        stage: Stage,
        run: fn(&mut Lab) -> Result<()>,
    ) -> Self {
        Self { id: Id::Possible(word), name, stage, run }
    }

    /// Its line in `cordon-matrix list`.
    pub fn listed(&self) -> Listed {
        Listed { row: self.id, name: self.name, stage: self.stage }
    }
}

/// A row of the bypass matrix, or something that must stay possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Id {
    /// 1 to 90.
    Vector(u8),
    /// A word.
    Possible(&'static str),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vector(number) => write!(f, "{number}"),
            Self::Possible(word) => f.write_str(word),
        }
    }
}

/// Which guest a row needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// A kernel, some of Debian's packages on ext4, and this program as the first process.
    Fast,
    /// A Debian with systemd, which can be booted again.
    Debian,
}

/// What holds the restriction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// BPF LSM.
    T1,
    /// `fmod_ret`.
    T2,
    /// fanotify.
    T3,
    /// No tier of ours: the same rows against fapolicyd, Debian's package with upstream's rules, to compare with.
    Fapolicyd,
}

impl Tier {
    /// As the gate spells it in its settings and its status.
    pub fn name(self) -> &'static str {
        match self {
            Self::T1 => "bpf-lsm",
            Self::T2 => "fmod-ret",
            Self::T3 => "fanotify",
            Self::Fapolicyd => "fapolicyd",
        }
    }
}

/// Who tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// An ordinary user.
    User,
    /// Root.
    Root,
}

/// Both, in the order in which they try.
pub const BOTH: [Who; 2] = [Who::User, Who::Root];

impl Who {
    /// The copy of a program that is this user's.
    pub fn own(self, path: &Path) -> PathBuf {
        let mut path = path.as_os_str().to_owned();
        path.push(match self {
            Self::User => "-user",
            Self::Root => "-root",
        });
        path.into()
    }

    /// The number of the user and of its group.
    pub fn id(self) -> u32 {
        match self {
            Self::User => 1000,
            Self::Root => 0,
        }
    }
}

/// What a try is to come to. Each but the last proves first that the payload runs while nothing restricts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It does not run while restricted, and there is an event that says so.
    Denied,
    /// It does not run while restricted, but no event says so.
    DeniedUnseen,
    /// It runs while restricted, as it should, without an event.
    Allowed,
    /// It runs while restricted, and there is an event that says so.
    Detected,
    /// It runs while restricted, and should not.
    NotStopped(Gap),
    /// It never runs, restricted or not: the kernel keeps it from this user, or has no such thing.
    OutOfReach,
}

/// What came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// It ran before, not while restricted, and an event says so.
    Denied,
    /// The same, but no event says so.
    DeniedUnseen,
    /// It ran, before and while restricted.
    Ran,
    /// The same, and an event says so.
    Detected,
    /// It did not even run before.
    OutOfReach,
}

/// Why something is not stopped: each has its place in docs/limitations.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// fanotify sees no memfd.
    Memfd,
    /// fanotify sees no mappings: libraries, and loaders that map a program.
    Mappings,
    /// Code that a program makes in its own memory.
    AnonymousMemory,
    /// fanotify's marks reach no mount that is attached nowhere.
    DetachedMounts,
    /// fanotify holds no guard.
    Guards,
    /// Shells read what they like.
    Shells,
    /// At the BPF tiers interpreters start as at the level `open`.
    Interpreters,
    /// Tools with a small language of their own.
    SmallLanguages,
    /// Hosts of macros and plug-ins.
    Macros,
    /// Virtual machines.
    Machines,
    /// The disk, or the file, that a filesystem lies on.
    Disks,
    /// fanotify sees no writing into a layer of an overlay.
    Layers,
}

impl Gap {
    /// Every gap.
    #[cfg(test)]
    const ALL: &[Self] = &[
        Self::Memfd,
        Self::Mappings,
        Self::AnonymousMemory,
        Self::DetachedMounts,
        Self::Guards,
        Self::Shells,
        Self::Interpreters,
        Self::SmallLanguages,
        Self::Macros,
        Self::Machines,
        Self::Disks,
        Self::Layers,
    ];

    /// The words of docs/limitations.md that say it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Memfd => "`memfd_create` and `fexecve`",
            Self::Mappings => "libraries (`LD_PRELOAD`, `dlopen`)",
            Self::AnonymousMemory => "anonymous executable memory",
            Self::DetachedMounts => "mounts that are attached nowhere",
            Self::Guards => "**T3 holds no guard.**",
            Self::Shells => "**Shells read what they like.**",
            Self::Interpreters => "**Interpreters are programs at T1 and T2.**",
            Self::SmallLanguages => "**Small languages are no interpreters.**",
            Self::Macros => "**Macros and plug-ins**",
            Self::Machines => "**Virtual machines**",
            Self::Disks => "**Loop devices",
            Self::Layers => "writing directly into a layer below it is not seen",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Memfd => "memfd",
            Self::Mappings => "mappings",
            Self::AnonymousMemory => "anonymous-memory",
            Self::DetachedMounts => "detached-mounts",
            Self::Guards => "guards",
            Self::Shells => "shells",
            Self::Interpreters => "interpreters",
            Self::SmallLanguages => "small-languages",
            Self::Macros => "macros",
            Self::Machines => "machines",
            Self::Disks => "disks",
            Self::Layers => "layers",
        }
    }
}

impl Expected {
    /// Whether this is what came.
    pub fn is(self, got: Got) -> bool {
        match self {
            Self::Denied => got == Got::Denied,
            Self::DeniedUnseen => got == Got::DeniedUnseen,
            Self::Allowed | Self::NotStopped(_) => got == Got::Ran,
            Self::Detected => got == Got::Detected,
            Self::OutOfReach => got == Got::OutOfReach,
        }
    }

    /// Whether an event is to be waited for.
    pub fn has_event(self) -> bool {
        matches!(self, Self::Denied | Self::Detected)
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied => f.write_str("denied"),
            Self::DeniedUnseen => f.write_str("denied without event"),
            Self::Allowed => f.write_str("allowed"),
            Self::Detected => f.write_str("detected"),
            Self::NotStopped(gap) => write!(f, "not stopped ({})", gap.name()),
            Self::OutOfReach => f.write_str("out of reach"),
        }
    }
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denied => "denied",
            Self::DeniedUnseen => "denied without event",
            Self::Ran => "ran",
            Self::Detected => "detected",
            Self::OutOfReach => "out of reach",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gap_is_in_the_limitations() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/limitations.md"));
        let page = page.unwrap();
        for gap in Gap::ALL {
            assert!(page.contains(gap.words()), "docs/limitations.md does not say: {}", gap.words());
        }
    }
}
