//! When the packages are scanned, and what the server hears of it.

use std::time::Duration;

use agent_protocol::{FromAgent, InventorySummary};
use gate_protocol::Status;

use crate::effect::{Effect, Level, Timer};
use crate::input::InventoryEnd;
use crate::random::Random;

/// Between two scans: a run of the package manager changes the database many times.
const PAUSE: Duration = Duration::from_secs(5);
/// Mean time until a scan that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10 * 60);

#[derive(Debug)]
pub(crate) struct Inventory {
    is_wanted: bool,
    run: Run,
    is_paused: bool,
    has_failed: bool,
    summary: Option<InventorySummary>,
    /// The baseline that the gate was last given.
    stored: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Run {
    None,
    Running,
    Stopping,
}

impl Inventory {
    pub(crate) fn new() -> Self {
        let run = Run::None;
        Self { is_wanted: true, run, is_paused: false, has_failed: false, summary: None, stored: None }
    }

    /// What the last scan found, or how far the running one is.
    pub(crate) fn summary(&self) -> Option<&InventorySummary> {
        self.summary.as_ref()
    }

    /// Whether a baseline is on its way to a gate that has none.
    pub(crate) fn is_first_underway(&self, status: &Status) -> bool {
        status.baseline.is_none()
            && !status.restricted
            && (self.run == Run::Running || (self.is_wanted && !self.has_failed))
    }

    pub(crate) fn packages_changed(&mut self) {
        self.is_wanted = true;
    }

    /// A scan may have failed because the gate was away.
    pub(crate) fn gate_connected(&mut self) {
        self.is_paused = false;
        self.has_failed = false;
    }

    /// The gate said which baseline it holds. One that lost it, or holds another, gets it again.
    pub(crate) fn compare(&mut self, status: &Status) {
        let is_as_given = match &self.stored {
            Some(_) => status.baseline == self.stored,
            None => status.baseline.is_some(),
        };
        if self.run == Run::None && !is_as_given {
            self.is_wanted = true;
        }
    }

    /// Starts and stops the scan by the gate's state. While restricted the gate takes no baseline, and what is added to
    /// the packages then must not count.
    pub(crate) fn consider(&mut self, status: &Status, effects: &mut Vec<Effect>) {
        if status.restricted {
            // What failed because of the restriction is tried again when it ends.
            self.is_paused = false;
            if self.run == Run::Running {
                self.run = Run::Stopping;
                self.is_wanted = true;
                effects.push(Effect::StopInventory);
            }
            return;
        }
        if self.is_wanted && self.run == Run::None && !self.is_paused {
            self.is_wanted = false;
            self.run = Run::Running;
            effects.push(Effect::StartInventory);
        }
    }

    pub(crate) fn progressed(
        &mut self,
        summary: InventorySummary,
        is_linked: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.summary = Some(summary);
        if is_linked {
            self.send(effects);
        }
    }

    pub(crate) fn ended(
        &mut self,
        end: InventoryEnd,
        is_linked: bool,
        random: &mut Random,
        effects: &mut Vec<Effect>,
    ) {
        self.run = Run::None;
        self.is_paused = true;
        let mut pause = PAUSE;
        match end {
            InventoryEnd::Stored(summary) => {
                self.has_failed = false;
                self.stored.clone_from(&summary.baseline);
                self.progressed(summary, is_linked, effects);
            }
            InventoryEnd::Stopped => self.is_wanted = true,
            InventoryEnd::Failed(reason) => {
                self.is_wanted = true;
                self.has_failed = true;
                pause = random.around(RETRY_AFTER);
                effects.push(Effect::Log(Level::Warn, format!("the inventory failed: {reason}")));
            }
        }
        effects.push(Effect::Arm(Timer::Inventory, pause));
    }

    pub(crate) fn pause_ended(&mut self) {
        self.is_paused = false;
    }

    pub(crate) fn send(&self, effects: &mut Vec<Effect>) {
        if let Some(summary) = &self.summary {
            effects.push(Effect::Send(Box::new(FromAgent::Inventory(summary.clone()))));
        }
    }
}
