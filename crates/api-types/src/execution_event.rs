//! Refused executions, as machines report them.

use domain::execution_event;
use domain::machine::MachineId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::date_time::DateTimeUtc;

/// One refused execution, or several alike within a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionEvent {
    /// Rises with the order of arrival.
    pub id: i64,
    /// The machine.
    #[schema(examples("0f3c9a7be1d2445566778899aabbccddeeff0011"))]
    pub machine_id: String,
    /// Its name.
    #[schema(examples("lab-042"))]
    pub computer_dns_name: String,
    /// When it happened, by the machine's clock.
    pub event_date_time_utc: DateTimeUtc,
    /// Which of the kernel's questions was answered: `execute`, `open`, `map` (a file as code), `protect` (a mapping
    /// becomes code), or one of a guard: `change`, `read-kernel-file`, `load-kernel-data`, `trace`, `signal`,
    /// `unmount`, `bpf`.
    #[schema(examples("execute"))]
    pub hook: String,
    /// The file's path, escaped.
    #[schema(examples("/home/ann/tool"))]
    pub path: String,
    /// SHA-256 of its content, when known.
    #[schema(examples("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"))]
    pub sha256: Option<String>,
    /// Stable reason code.
    #[schema(examples("unlisted"))]
    pub cause: String,
    /// The rule that decided, when one did.
    pub rule: Option<String>,
    /// The process that tried.
    #[schema(examples(4711))]
    pub process_id: i32,
    /// Its parent.
    #[schema(examples(4700))]
    pub parent_process_id: i32,
    /// Its user.
    #[schema(examples(1000))]
    pub user_id: Option<u32>,
    /// The program that it ran, escaped.
    #[schema(examples("/usr/bin/bash"))]
    pub parent_program: String,
    /// The control group of the process, escaped, when known.
    #[schema(examples("/user.slice/user-1000.slice/session-3.scope"))]
    pub cgroup: Option<String>,
    /// The id of the container that the process ran in, when it did.
    pub container_id: Option<String>,
    /// The interpreter, escaped, when the execution was about a script.
    #[schema(examples("/bin/bash"))]
    pub interpreter: Option<String>,
    /// The script, escaped.
    pub script: Option<String>,
    /// Name of the allow policy that decided, when one did.
    #[schema(examples("default"))]
    pub policy: Option<String>,
    /// Its revision.
    #[schema(examples(3))]
    pub policy_revision: Option<u64>,
    /// Whether it was only noted, and ran.
    pub audited: bool,
    /// How many alike this stands for.
    #[schema(examples(1))]
    pub count: u64,
}

impl ExecutionEvent {
    /// The event with its number, and the machine that reported it.
    pub fn numbered(
        id: i64,
        machine: MachineId,
        computer_dns_name: String,
        event: execution_event::ExecutionEvent,
    ) -> Self {
        Self {
            id,
            machine_id: machine.to_string(),
            computer_dns_name,
            event_date_time_utc: event.at.into(),
            hook: event.hook,
            path: event.path,
            sha256: event.sha256,
            cause: event.cause,
            rule: event.rule,
            process_id: event.pid,
            parent_process_id: event.ppid,
            user_id: event.uid,
            parent_program: event.parent_program,
            cgroup: event.cgroup,
            container_id: event.container,
            interpreter: event.interpreter,
            script: event.script,
            policy: event.policy,
            policy_revision: event.policy_revision,
            audited: event.audited,
            count: event.count,
        }
    }
}
