//! Tells the database, in batches, when machines were last heard.

use std::time::Duration;

use tokio::sync::watch;

use super::Ticks;
use crate::state::AppState;

const EVERY: Duration = Duration::from_secs(5);

pub(super) async fn run(state: AppState, stop: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(EVERY, stop);
    while ticks.next().await {
        flush(&state);
    }
    flush(&state);
}

fn flush(state: &AppState) {
    let seen = state.hub.take_seen();
    if !seen.is_empty() {
        state.control.machines_seen(seen);
    }
}
