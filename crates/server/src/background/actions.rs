//! Times out machine actions whose deadline has passed.

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
        match control.machine_actions_expire().await {
            Ok(0) => failing = false,
            Ok(count) => {
                failing = false;
                tracing::info!(count, "machine actions timed out");
            }
            Err(error) if !failing => {
                failing = true;
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "overdue machine actions stay open"
                );
            }
            Err(_) => {}
        }
    }
}
