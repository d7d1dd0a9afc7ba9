//! Execution events: what machines refused to run.

use domain::execution_event::ExecutionEvent;
use domain::machine::MachineId;
use domain::permission::Requirement;
use store::execution_event::{
    EventFilter, StoredExecutionEvent, execution_event_create, execution_event_list,
};

use crate::{Caller, ControlPlane, Result, machine};

impl ControlPlane {
    /// Events that a filter takes, newest first, of one machine (id or name) or of all that the caller sees. The
    /// filter's own machine is not used.
    ///
    /// # Errors
    /// [`crate::Error::Forbidden`], [`crate::Error::NotFound`], [`crate::Error::InvalidInput`]; from the store.
    pub async fn execution_event_list(
        &self,
        caller: &Caller,
        machine: Option<&str>,
        mut filter: EventFilter,
    ) -> Result<Vec<StoredExecutionEvent>> {
        caller.require(Requirement::READ)?;
        let (target, access) = (machine.map(str::to_owned), caller.machines.clone());
        self.0
            .store
            .read_list(move |tx| {
                filter.machine = match &target {
                    Some(target) => Some(machine::resolve(tx, target, &access)?.id),
                    None => None,
                };
                Ok(execution_event_list(tx, &filter, &access)?)
            })
            .await
    }

    /// Keeps what a machine reports, and how much more it has lost.
    ///
    /// # Errors
    /// From the store.
    pub async fn execution_events_store(
        &self,
        machine: MachineId,
        events: Vec<ExecutionEvent>,
        dropped: u64,
    ) -> Result<()> {
        self.0.store.write(move |tx| Ok(execution_event_create(tx, machine, &events, dropped)?)).await
    }
}
