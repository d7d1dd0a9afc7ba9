//! Refused executions, as machines report them.

use domain::execution_event;
use domain::machine::MachineId;
use serde::{Deserialize, Serialize};

use crate::date_time::DateTimeUtc;

/// One refused execution, or several alike within a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionEvent {
    /// Rises with the order of arrival.
    pub id: i64,
    /// The machine.
    pub machine_id: String,
    /// Its name.
    pub computer_dns_name: String,
    /// When it happened, by the machine's clock.
    pub event_date_time_utc: DateTimeUtc,
    /// The file's path, escaped.
    pub path: String,
    /// SHA-256 of its content, when known.
    pub sha256: Option<String>,
    /// Stable reason code.
    pub cause: String,
    /// The rule that decided, when one did.
    pub rule: Option<String>,
    /// The process that tried.
    pub process_id: i32,
    /// Its parent.
    pub parent_process_id: i32,
    /// Its user.
    pub user_id: Option<u32>,
    /// The program that it ran, escaped.
    pub parent_program: String,
    /// How many alike this stands for.
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
            path: event.path,
            sha256: event.sha256,
            cause: event.cause,
            rule: event.rule,
            process_id: event.pid,
            parent_process_id: event.ppid,
            user_id: event.uid,
            parent_program: event.parent_program,
            count: event.count,
        }
    }
}
