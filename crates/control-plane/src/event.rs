//! Execution events: what machines refused to run.

use domain::execution_event::ExecutionEvent;
use domain::machine::MachineId;
use domain::permission::Requirement;
use store::execution_event::{StoredExecutionEvent, execution_event_create, execution_event_list};

use crate::{Caller, ControlPlane, Result, machine};

impl ControlPlane {
    /// Events with an id below `before`, newest first, of one machine (id or name) or of all.
    ///
    /// # Errors
    /// [`crate::Error::Forbidden`], [`crate::Error::NotFound`], [`crate::Error::InvalidInput`]; from the store.
    pub async fn execution_event_list(
        &self,
        caller: &Caller,
        machine: Option<&str>,
        before: Option<i64>,
        top: u32,
    ) -> Result<Vec<StoredExecutionEvent>> {
        caller.require(Requirement::READ)?;
        let target = machine.map(str::to_owned);
        let before = before.unwrap_or(i64::MAX);
        self.0
            .store
            .read(move |tx| {
                let machine = match &target {
                    Some(target) => Some(machine::resolve(tx, target)?.id),
                    None => None,
                };
                Ok(execution_event_list(tx, machine, before, top)?)
            })
            .await
    }

    /// Keeps what a machine reports.
    ///
    /// # Errors
    /// From the store.
    pub async fn execution_events_store(
        &self,
        machine: MachineId,
        events: Vec<ExecutionEvent>,
    ) -> Result<()> {
        self.0.store.write(move |tx| Ok(execution_event_create(tx, machine, &events)?)).await
    }
}
