//! What the server does by itself, again and again, until it stops.

mod actions;
mod addresses;
mod certificates;
mod last_seen;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::state::AppState;
use crate::tls::ServerCertificate;

/// Starts everything that goes on in the background.
pub(crate) fn start(
    tasks: &mut JoinSet<()>,
    state: &AppState,
    certificate: Arc<ServerCertificate>,
    stop: &watch::Receiver<bool>,
) {
    tasks.spawn(actions::run(state.control.clone(), stop.clone()));
    tasks.spawn(addresses::run(state.control.clone(), stop.clone()));
    tasks.spawn(last_seen::run(state.clone(), stop.clone()));
    tasks.spawn(certificates::run(state.clone(), certificate, stop.clone()));
}

/// A clock for a repeated task. One that was held up does not make up for lost ticks.
struct Ticks {
    interval: tokio::time::Interval,
    stop: watch::Receiver<bool>,
}

impl Ticks {
    fn new(period: Duration, stop: watch::Receiver<bool>) -> Self {
        let mut interval = tokio::time::interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, stop }
    }

    /// Waits for the next tick; false when the server stops.
    async fn next(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.stop.wait_for(|stopped| *stopped) => false,
            _ = self.interval.tick() => true,
        }
    }
}
