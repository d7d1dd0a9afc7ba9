//! Forgets, a part at a time, which machine had which address long ago.

use std::time::Duration;

use control_plane::ControlPlane;
use tokio::sync::watch;

use super::Ticks;

/// Often enough that a part a time keeps up with a fleet whose addresses change daily.
const EVERY: Duration = Duration::from_secs(10 * 60);

pub(super) async fn run(control: ControlPlane, stop: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(EVERY, stop);
    while ticks.next().await {
        control.machine_addresses_forget();
    }
}
