//! Holds a restriction on this machine by means of the kernel.
//!
//! Owns the backends behind [`Enforcer`], the labels of inode versions and the canaries that prove a switch. Knows no
//! policy: what may run is asked of a [`Judge`]. The only crate with `unsafe` code, all of it in [`sys`].
//!
//! Tiers T1 and T2, [`Kernel`], decide in the kernel by labels; what they need stands there.
//!
//! Tier T3, [`Fanotify`], needs Linux 5.0 (`FAN_OPEN_EXEC_PERM`), `CONFIG_FANOTIFY_ACCESS_PERMISSIONS`,
//! `CAP_SYS_ADMIN`, and `CAP_LEASE` with the sysctl `fs.leases-enable`: it allows nothing that it cannot hold a lease
//! on. It does not see memfd, nor mappings. When the last process that has its group dies, the kernel allows; so the
//! [`keeper`] and the service manager have it too.

#[expect(unsafe_code, reason = "the system calls that no safe library offers")]
mod sys;

pub mod canary;
mod denial;
mod examine;
mod fanotify;
mod foreign;
mod keep;
pub mod keeper;
mod kernel;
mod label;
mod mounts;
mod namespaces;
mod programs;
mod responder;
mod start;
mod turns;
mod verdicts;

use std::ops::ControlFlow;
use std::sync::Arc;

use domain::decision::Decision;
use domain::digest::Sha256Digest;
use domain::policy_settings::PolicySettings;
use domain::program_class::ProgramClasses;
use domain::program_start::ProgramStart;
use domain::restriction::Tier;

pub use denial::Denial;
pub use examine::{Examined, Examiner, KnownDigests, foreign_devices};
pub use fanotify::{Fanotify, MarkScope, Settings, support};
pub use keep::{Keepers, end_former, inherited_group};
pub use kernel::{Kernel, KernelSettings, kernel_obstacle};
pub use label::{fs_verity, hash};

/// What was read of a file that is about to run.
#[derive(Debug, Clone, Copy)]
pub struct FileFacts<'a> {
    /// Content of this very inode version.
    pub digest: Sha256Digest,
    /// Its fs-verity digest ([`fs_verity`]).
    pub fs_verity: Option<Sha256Digest>,
    /// Where the kernel says it lies, as bytes.
    pub path: &'a [u8],
    /// The device that holds it, as `stat` numbers it.
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
}

/// Says what may run. Asked on a thread of its own, never on the one that answers the kernel, so it may read files.
pub trait Judge: Send + Sync {
    /// Decides about one file.
    fn judge(&self, file: &FileFacts<'_>) -> Decision;

    /// What the program can do with other code than its own. The default knows of nothing.
    fn classes(&self, _file: &FileFacts<'_>) -> ProgramClasses {
        ProgramClasses::NONE
    }

    /// Whether every start of a listed program of these classes is to be looked at. The default needs none.
    fn is_looked_at(&self, _classes: ProgramClasses) -> bool {
        false
    }

    /// Whether a listed program of these classes may start in this way. Only asked when it [`Judge::is_looked_at`].
    fn may_start(&self, _classes: ProgramClasses, _start: &ProgramStart) -> bool {
        true
    }

    /// Shows each place where a file may lie that this judge could allow, so that it can be read ahead; stops when
    /// told to. What is allowed by its content alone has no place. The default knows none.
    fn for_each_place(&self, _show: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) {}

    /// Names what this judge allows: two judges with the same id decide alike about every file. None when that is not
    /// known, which is the default.
    fn id(&self) -> Option<Sha256Digest> {
        None
    }
}

/// A mechanism that restricts this machine.
pub trait Enforcer: Send {
    /// Which mechanism it is.
    fn tier(&self) -> Tier;

    /// Learns ahead, in the background, what `judge` allows, so that restricting to it later takes no time. Changes
    /// nothing about what may run. For mechanisms that ask at each execution, which is the default, there is nothing
    /// to learn.
    fn prepare(&mut self, _judge: Arc<dyn Judge>) {}

    /// Sets what else a policy asks for, for the restriction that comes or is in force. A mechanism does what it can:
    /// one that is asked about executions only guards nothing else.
    fn configure(&mut self, _settings: &PolicySettings) {}

    /// Makes room for what is known of this many files, while nothing is restricted. Mechanisms that know nothing ahead
    /// need none.
    fn make_room(&mut self, _files: usize) {}

    /// Restricts: when this returns, nothing starts that `judge` does not allow, except on the mounts that
    /// [`Status::unmarked`] counts. While restricted already, puts the new judge in place of the old one, without a
    /// moment in which neither is asked.
    ///
    /// # Errors
    /// [`Error`]; the machine is then as it was before.
    fn restrict(&mut self, judge: Arc<dyn Judge>) -> Result<(), Error>;

    /// Lifts the restriction; nothing of it is left in the kernel when this returns.
    fn release(&mut self);

    /// What it is doing.
    fn status(&self) -> Status;

    /// Takes at most `max` of the denials that were not yet taken, oldest first.
    fn take_denials(&mut self, max: usize) -> Vec<Denial>;
}

/// What an enforcer is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Whether it restricts.
    pub restricted: bool,
    /// Mounts or filesystems that are marked.
    pub marks: u64,
    /// Mounts that take no mark, so that their programs run: FUSE filesystems that users mount for themselves.
    pub unmarked: u64,
    /// Verdicts kept for inode versions.
    pub labels: u64,
    /// Executions that were asked about since the restriction began.
    pub asked: u64,
    /// Of these, refused.
    pub denied: u64,
    /// Denials that were refused but whose report is lost.
    pub denials_dropped: u64,
}

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call}")]
pub struct Error {
    /// What was tried, on what.
    pub call: String,
    /// How the kernel answered.
    #[source]
    pub source: std::io::Error,
}

impl Error {
    fn new(call: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self { call: call.into(), source: source.into() }
    }
}
