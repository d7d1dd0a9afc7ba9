//! Waiting for a machine action to be final.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use domain::machine_action::{MachineAction, MachineActionId};
use tokio::sync::Notify;

use crate::{ControlPlane, Result};

/// Who waits for which action. Whoever ends one tells [`Watch::ended`] after the commit.
#[derive(Default)]
pub(crate) struct Watch(Mutex<HashMap<MachineActionId, Weak<Notify>>>);

impl Watch {
    fn notify_of(&self, id: MachineActionId) -> Arc<Notify> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = waiting.get(&id).and_then(Weak::upgrade) {
            return notify;
        }
        waiting.retain(|_, notify| notify.strong_count() > 0);
        let notify = Arc::new(Notify::new());
        waiting.insert(id, Arc::downgrade(&notify));
        notify
    }

    /// Wakes those who wait for an action.
    pub(crate) fn ended(&self, id: MachineActionId) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = waiting.get(&id).and_then(Weak::upgrade) {
            notify.notify_waiters();
        }
    }
}

impl ControlPlane {
    /// The action once it is final, or as it is after `wait`.
    ///
    /// # Errors
    /// From the store.
    pub async fn machine_action_wait(&self, action: MachineAction, wait: Duration) -> Result<MachineAction> {
        let notify = self.0.watch.notify_of(action.id);
        let id = action.id;
        let ended = async {
            loop {
                // Listens before it looks, so that what ends in between is heard.
                let mut heard = std::pin::pin!(notify.notified());
                heard.as_mut().enable();
                let now = self.0.store.read(move |tx| crate::machine_action::existing(tx, id)).await?;
                if now.phase.is_final() {
                    return Ok(now);
                }
                heard.await;
            }
        };
        match tokio::time::timeout(wait, ended).await {
            Ok(ended) => ended,
            Err(_elapsed) => self.0.store.read(move |tx| crate::machine_action::existing(tx, id)).await,
        }
    }
}
