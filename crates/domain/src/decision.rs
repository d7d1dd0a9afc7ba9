//! What was decided about one execution, and why.

use crate::digest::Sha256Digest;
use crate::program_class::ProgramClasses;

/// The answer to "may this run?": nothing but yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The execution goes ahead.
    Allow,
    /// The kernel answers the caller with `EPERM`.
    Deny,
}

/// What is known about the file that is about to run.
///
/// Collected by whoever has the file open; `policy::CompiledPolicy::evaluate` turns it into a [`Decision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutionFacts<'a> {
    /// Content of the exact inode version that will run.
    pub digest: Sha256Digest,
    /// The file's fs-verity digest, when the kernel checks its content against one of SHA-256.
    pub fs_verity: Option<Sha256Digest>,
    /// The path by which the kernel opened it, as bytes: a path need not be UTF-8.
    pub path: &'a [u8],
    /// Whether an installed package shipped this content at a path where this very inode is.
    pub in_package_database: bool,
    /// What the program can do with other code than its own.
    pub classes: ProgramClasses,
    /// Whether the file belongs to the set that keeps the machine alive and reachable.
    pub in_survival_set: bool,
}

/// Why a verdict is what it is. One stable code per reason ([`DecisionCause::code`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DecisionCause {
    /// The file is part of the survival set.
    SurvivalSet,
    /// The rule with this id, explicit deny or admin allow.
    Rule(String),
    /// The signed manifest of this name lists the content.
    Manifest(String),
    /// An installed package shipped this content at this place.
    PackageDatabase,
    /// A package shipped it, but the policy takes programs of the class *dual-use* out of what packages vouch for.
    DualUse,
    /// The file may run, but it is an interpreter, and it was not started in a way that the policy's level admits.
    Interpreter,
    /// Nothing vouches for the file.
    Unlisted,
    /// The file could not be read, or changed while it was read.
    Unreadable,
    /// Someone has the file open for writing, so its content is not settled.
    BeingWritten,
    /// What was read of the file need not be what runs: another machine or process serves its filesystem, or the
    /// filesystem cannot tell of changes.
    Unverifiable,
    /// The file is larger than the gate is willing to hash on demand.
    TooLarge,
    /// The decision could not be made in time.
    Late,
    /// More undecided executions were waiting than the gate holds.
    Overload,
    /// The file may run, but was changed since it was read, or had not been read. It was read after it was refused, and
    /// runs from then on.
    Changed,
    /// Code that no file holds: made in memory by a program that is not known to compile while it runs.
    AnonymousCode,
    /// The guard of this name: no execution, but something that undermines the restriction.
    Guard(String),
    /// Not an execution: it ran already when the restriction began, and is not listed.
    Running,
}

impl DecisionCause {
    /// The stable reason code, as events and `explain` show it. Stored and sent; never rename.
    pub fn code(&self) -> &'static str {
        match self {
            Self::SurvivalSet => "survival-set",
            Self::Rule(_) => "rule",
            Self::Manifest(_) => "manifest",
            Self::PackageDatabase => "package-database",
            Self::DualUse => "dual-use",
            Self::Interpreter => "interpreter",
            Self::Unlisted => "unlisted",
            Self::Unreadable => "unreadable",
            Self::BeingWritten => "being-written",
            Self::Unverifiable => "unverifiable",
            Self::TooLarge => "too-large",
            Self::Late => "late",
            Self::Overload => "overload",
            Self::Changed => "changed",
            Self::AnonymousCode => "anonymous-code",
            Self::Guard(_) => "guard",
            Self::Running => "running",
        }
    }
}

/// Whether a cache may repeat a verdict for the same inode version. Allowed and cacheable are different properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reuse {
    /// The verdict holds as long as the inode version does.
    SameInodeVersion,
    /// Ask again: the verdict came from a passing condition, or hangs on the name by which the file was opened.
    Never,
}

/// A verdict with its cause.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decision {
    /// May it run.
    pub verdict: Verdict,
    /// Which rule, trust source or failure said so.
    pub cause: DecisionCause,
    /// Whether a cache may repeat it.
    pub reuse: Reuse,
}

impl Decision {
    /// A decision drawn from the file's content and the policy, which a cache may repeat.
    pub fn settled(verdict: Verdict, cause: DecisionCause) -> Self {
        Self { verdict, cause, reuse: Reuse::SameInodeVersion }
    }

    /// A refusal because no decision could be made: in doubt, nothing runs.
    pub fn failure(cause: DecisionCause) -> Self {
        Self { verdict: Verdict::Deny, cause, reuse: Reuse::Never }
    }
}
