//! What the tests stand on: the real server in this process, clients of its API, and machines that speak the real
//! agent protocol with real keys.

pub(crate) mod client;
pub(crate) mod machine;
pub(crate) mod server;

use std::time::Duration;

/// Waits for a state, at most thirty seconds.
pub(crate) async fn wait_until(state: &str, mut reached: impl AsyncFnMut() -> bool) {
    let patience = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), patience).await;
    assert!(waited.is_ok(), "waited in vain until {state}");
}
