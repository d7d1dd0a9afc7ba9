//! The real agent with a real gate, on the real kernel, against a server that speaks the real protocol.
//!
//! Each test has a mount namespace of its own, whose mounts are all that its gate ever marks. To be run as root.
#![cfg(test)]
#![expect(clippy::string_slice, reason = "digests and ids are ASCII")]

mod commands;
mod enroll;
mod machine;
mod people;
mod run;
mod server;

use std::time::{Duration, Instant};

/// Waits for a state, for a minute at most.
fn wait_until(state: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited a minute in vain until {state}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
