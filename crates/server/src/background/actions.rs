//! Times out machine actions whose deadline has passed, and lifts restrictions whose end has come.

use std::time::Duration;

use control_plane::ControlPlane;
use tokio::sync::watch;

use super::Ticks;

const EVERY: Duration = Duration::from_secs(1);

pub(super) async fn run(control: ControlPlane, stop: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(EVERY, stop);
    // A store that fails does so every second: one line at the start of the trouble is enough.
    let mut failing = false;
    while ticks.next().await {
        match pass(&control).await {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "overdue machine actions stay open, and restrictions do not end"
                );
            }
            Err(_) => {}
        }
    }
}

async fn pass(control: &ControlPlane) -> control_plane::Result<()> {
    control.access_refresh_if_stale().await?;
    let expired = control.machine_actions_expire().await?;
    if expired > 0 {
        tracing::info!(count = expired, "machine actions timed out");
    }
    let ended = control.machine_restrictions_end().await?;
    if ended > 0 {
        tracing::info!(count = ended, "restrictions have come to their end");
    }
    Ok(())
}
