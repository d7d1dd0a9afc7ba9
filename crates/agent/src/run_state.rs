//! What the running agent leaves for `status` and `doctor` to read.

use std::io::Write as _;
use std::time::SystemTime;

use agent_core::{LinkState, Snapshot};
use anyhow::Result;
use domain::time::{TICKS_PER_SECOND, Timestamp};
use serde::{Deserialize, Serialize};

use crate::https::printable;
use crate::state_dir::StateDir;

const FILE: &str = "run.json";

/// How the running agent stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// The agent's process.
    pub(crate) process: u32,
    /// Since when the link is as it is, in seconds since 1970.
    pub(crate) since: i64,
    /// Whether the server knows the machine to be connected.
    pub(crate) connected: bool,
    /// How far the link is, in words.
    pub(crate) link: String,
    /// What last went wrong.
    pub(crate) last_problem: Option<String>,
    /// How far this machine's clock is ahead of the server's, in seconds.
    pub(crate) clock_ahead_seconds: Option<i64>,
    pub(crate) receipts_waiting: usize,
    pub(crate) executions_waiting: usize,
    pub(crate) executions_dropped: u64,
    pub(crate) inventory: Option<Inventory>,
}

/// How far the inventory is, or what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inventory {
    pub(crate) complete: bool,
    pub(crate) files_done: u64,
    pub(crate) files_total: u64,
    pub(crate) vouched: u64,
    pub(crate) modified: u64,
    pub(crate) unreadable: u64,
}

impl RunState {
    /// What the snapshot says, as of now where it differs from `before`.
    pub(crate) fn new(snapshot: Snapshot, last_problem: Option<String>, before: Option<&Self>) -> Self {
        let link = match (snapshot.link, snapshot.is_gate_answering) {
            (LinkState::Up, _) => "connected",
            (LinkState::AwaitingGate, _) | (_, false) => "waiting for the gate",
            (LinkState::BackingOff, true) => "waiting before the next attempt",
            (LinkState::Connecting | LinkState::Greeting, true) => "connecting",
        };
        let since = before.filter(|before| before.link == link).map(|before| before.since);
        Self {
            process: std::process::id(),
            since: since.unwrap_or_else(|| Timestamp::from(SystemTime::now()).unix_seconds()),
            connected: snapshot.link == LinkState::Up,
            link: link.to_owned(),
            last_problem,
            clock_ahead_seconds: snapshot.clock_ahead_ticks.map(|ticks| ticks / TICKS_PER_SECOND),
            receipts_waiting: snapshot.receipts_waiting,
            executions_waiting: snapshot.executions_waiting,
            executions_dropped: snapshot.executions_dropped,
            inventory: snapshot.inventory.map(|summary| Inventory {
                complete: summary.complete,
                files_done: summary.files_done,
                files_total: summary.files_total,
                vouched: summary.vouched,
                modified: summary.modified,
                unreadable: summary.unreadable,
            }),
        }
    }

    /// Leaves it in the folder. Not durably: it says nothing after a crash.
    pub(crate) fn save(&self, state: &StateDir) -> std::io::Result<()> {
        let beside = "run.json.new";
        state.create(beside)?.write_all(&serde_json::to_vec(self)?)?;
        std::fs::rename(state.path(beside), state.path(FILE))
    }

    /// Removes it: the agent ends.
    pub(crate) fn remove(state: &StateDir) {
        // Whoever finds it looks for the process, too.
        drop(std::fs::remove_file(state.path(FILE)));
    }

    /// What the running agent left; none when no agent runs.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn load(state: &StateDir) -> Result<Option<Self>> {
        let Some(text) = state.read(FILE)? else { return Ok(None) };
        let Ok(mut run_state) = serde_json::from_str::<Self>(&text) else { return Ok(None) };
        // Some of it is what the server said.
        run_state.link = printable(&run_state.link);
        run_state.last_problem = run_state.last_problem.map(|problem| printable(&problem));
        let name = std::fs::read_to_string(format!("/proc/{}/comm", run_state.process)).unwrap_or_default();
        Ok(Some(run_state).filter(|_| name.trim_end() == "cordon-agent"))
    }
}
