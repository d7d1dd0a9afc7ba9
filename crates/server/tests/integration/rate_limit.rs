//! Rate limits: per operation and app, over a restart, and with a wait that can be trusted.

use std::time::Duration;

use domain::permission::Permission;
use domain::rate_limit::RateLimit;
use domain::time::Timestamp;
use store::StoreError;
use store::rate_limit::rate_limit_spend;

use crate::harness::client::{Client, Reply};
use crate::harness::machine::Machine;
use crate::harness::server::TestServer;

const NOWHERE: &str = "0f3c9a7be1d2445566778899aabbccddeeff0011";

/// A call that counts, whatever comes of it.
async fn spend(client: &Client, calls: usize) {
    for _ in 0..calls {
        client.restrict(NOWHERE).await.expect_error(404, "ResourceNotFound");
    }
}

#[track_caller]
fn expect_refused(reply: Reply, limit: &str) -> u64 {
    let wait: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
    let message = reply.expect_error(429, "TooManyRequests");
    assert_eq!(message, format!("At most {limit} are possible; try again in {wait} seconds"));
    wait
}

#[tokio::test]
async fn a_hundred_calls_a_minute_and_not_one_more_also_after_a_restart() {
    let mut server = TestServer::start().await;
    let client = server.client(&Permission::ALL).await;
    let other = server.client(&Permission::ALL).await;
    let start = std::time::Instant::now();
    spend(&client, 100).await;
    let refused = client.restrict(NOWHERE).await;
    assert!(start.elapsed() < Duration::from_secs(50), "too slow a machine for this test");
    assert!((1..=60).contains(&expect_refused(refused, "100 calls in 60 seconds")));
    // Another operation, another app, and reading are not concerned.
    client.unrestrict(NOWHERE).await.expect_error(404, "ResourceNotFound");
    other.restrict(NOWHERE).await.expect_error(404, "ResourceNotFound");
    client.get("/api/machines").await.expect_status(200);

    server.stop().await;
    server.run().await;
    let refused = client.restrict(NOWHERE).await;
    assert!(start.elapsed() < Duration::from_secs(55), "too slow a machine for this test");
    expect_refused(refused, "100 calls in 60 seconds");
    other.restrict(NOWHERE).await.expect_error(404, "ResourceNotFound");
}

#[tokio::test]
async fn who_waits_as_told_succeeds() {
    let mut server = TestServer::stopped(|config| config.rate_limit_per_minute = 3).await;
    // Three calls were made almost a minute ago.
    let limit = RateLimit::per_minute_and_hour(3, 1500);
    let key = ("machine_restrict".to_owned(), server.initialized.client_id.to_string());
    let at = Timestamp::from(std::time::SystemTime::now()).minus(Duration::from_secs(52));
    let spend =
        move |tx: &store::Tx<'_>| (0..3).try_for_each(|call| rate_limit_spend(tx, &key, &limit, call, at));
    server.store().write::<_, StoreError>(spend).await.unwrap();
    server.run().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let client = server.admin();
    let wait = expect_refused(client.restrict(&machine.id).await, "3 calls in 60 seconds");
    // Not a guess: this is how long the server says that a client has to wait.
    tokio::time::sleep(Duration::from_secs(wait)).await;
    client.restrict(&machine.id).await.expect_status(201);
}

#[tokio::test]
async fn the_hour_counts_too_and_a_refused_call_spends_nothing() {
    let server = TestServer::start_with(|config| config.rate_limit_per_hour = 5).await;
    let client = server.client(&Permission::ALL).await;
    spend(&client, 5).await;
    let mut waits = Vec::new();
    for _ in 0..20 {
        waits.push(expect_refused(client.restrict(NOWHERE).await, "5 calls in 3600 seconds"));
    }
    assert!(waits.iter().all(|wait| (3500..=3600).contains(wait)), "{waits:?}");
    assert!(waits.is_sorted_by(|a, b| a >= b), "waiting got longer: {waits:?}");
}
