//! Execution events: what machines refused to run, or would have.

use crate::time::Timestamp;

/// Which of the kernel's questions was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// May this file be executed?
    Execute,
    /// May this file be opened?
    Open,
    /// May this file be mapped as code?
    Map,
    /// May this mapping become code?
    Protect,
    /// May this file be moved, removed, or its attributes be changed?
    Change,
    /// May the kernel load this file: a module, another kernel?
    ReadKernelFile,
    /// May the kernel load this from memory?
    LoadKernelData,
    /// May this process be traced, or its memory be accessed?
    Trace,
    /// May this process be sent a signal?
    Signal,
    /// May this filesystem be unmounted?
    Unmount,
    /// May the BPF programs and maps be changed, or others be loaded?
    Bpf,
}

impl Hook {
    /// The stable name, as events show it. Stored and sent; never rename.
    pub fn name(self) -> &'static str {
        match self {
            Self::Execute => "execute",
            Self::Open => "open",
            Self::Map => "map",
            Self::Protect => "protect",
            Self::Change => "change",
            Self::ReadKernelFile => "read-kernel-file",
            Self::LoadKernelData => "load-kernel-data",
            Self::Trace => "trace",
            Self::Signal => "signal",
            Self::Unmount => "unmount",
            Self::Bpf => "bpf",
        }
    }
}

/// The container that a control group belongs to: the id of 64 hexadecimal digits that Docker, Podman, containerd and
/// CRI-O write into its path; none outside of containers.
pub fn container_of(cgroup: &str) -> Option<&str> {
    let is_id =
        |part: &&str| part.len() == 64 && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    cgroup.rsplit(|c: char| !c.is_ascii_alphanumeric()).find(is_id)
}

/// One refused execution, or several alike within a second, as the machine reported it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecutionEvent {
    /// When, by the machine's clock.
    pub at: Timestamp,
    /// Which of the kernel's questions it was, see [`Hook::name`].
    pub hook: String,
    /// The file's path, escaped for display.
    pub path: String,
    /// SHA-256 of its content as text, when known.
    pub sha256: Option<String>,
    /// Stable reason code, see [`crate::decision::DecisionCause::code`].
    pub cause: String,
    /// The rule that decided, when one did.
    pub rule: Option<String>,
    /// The process that tried.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its user.
    pub uid: Option<u32>,
    /// The program that it ran, escaped for display.
    pub parent_program: String,
    /// The control group of the process, when known.
    pub cgroup: Option<String>,
    /// The container that the process ran in, when it did: see [`container_of`].
    pub container: Option<String>,
    /// The interpreter, when the execution was about a script.
    pub interpreter: Option<String>,
    /// The script that it was to run.
    pub script: Option<String>,
    /// Name of the policy that decided, when one did.
    pub policy: Option<String>,
    /// Its revision.
    pub policy_revision: Option<u64>,
    /// Whether it was only noted, and ran.
    pub audited: bool,
    /// How many alike this stands for.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_found_in_the_paths_of_every_runtime() {
        let id = "3f".repeat(32);
        for path in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/kubepods.slice/kubepods-besteffort-pod1.slice/cri-containerd-{id}.scope"),
            format!("/kubepods/burstable/pod0/crio-{id}"),
        ] {
            assert_eq!(container_of(&path), Some(id.as_str()), "{path}");
        }
        let others = ["/", "", "/user.slice/user-1000.slice", "/docker/3f", "/docker/\u{fc}"];
        for path in others
            .map(str::to_owned)
            .into_iter()
            .chain([format!("/x/{id}0"), format!("/x/{}", id.to_uppercase())])
        {
            assert_eq!(container_of(&path), None, "{path}");
        }
    }
}
