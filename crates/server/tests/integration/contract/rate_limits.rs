//! Section 6: rate limits.

use serde_json::json;

use super::{NOWHERE, Place, settings_set};
use crate::harness::client::{Client, Reply};

/// Calls that count, and find nothing.
async fn spend(client: &Client, calls: usize) {
    for _ in 0..calls {
        client.restrict(NOWHERE).await.expect_error(404, "ResourceNotFound");
    }
}

/// The seconds to wait, of a refusal by this limit.
#[track_caller]
fn refused(reply: Reply, limit: &str) -> u64 {
    let wait: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
    let message = reply.expect_error(429, "TooManyRequests");
    assert!(message.contains(limit) && message.contains(&format!("{wait} seconds")), "{message}");
    wait
}

#[tokio::test]
async fn s6_limits() {
    let place = Place::start_with(|config| {
        (config.rate_limit_per_minute, config.rate_limit_per_hour) = (2, 3);
    })
    .await;
    spend(&place.client, 2).await;
    assert!((1..=60).contains(&refused(place.client.restrict(NOWHERE).await, "2 calls in 60 seconds")));
    // Another operation and another application have their own.
    place.client.unrestrict(NOWHERE).await.expect_error(404, "ResourceNotFound");
    spend(&place.server.client(&domain::permission::Permission::ALL).await, 1).await;
    // Both windows must pass.
    settings_set(&place.client, &json!({"rateLimitPerMinute": 100})).await;
    spend(&place.client, 1).await;
    assert!(refused(place.client.restrict(NOWHERE).await, "3 calls in 3600 seconds") > 60);
}

#[tokio::test]
async fn s6_429() {
    let place = Place::start_with(|config| config.rate_limit_per_minute = 1).await;
    spend(&place.client, 1).await;
    // That a client which waits so long succeeds is tested in `rate_limit`.
    assert!(
        (1..=60).contains(&refused(place.client.restrict(NOWHERE).await, "At most 1 calls in 60 seconds"))
    );
    place.client.get("/api/machines").await.expect_status(200);
}

#[tokio::test]
async fn s6_a_refused_call_spends_nothing() {
    let place = Place::start_with(|config| config.rate_limit_per_hour = 1).await;
    spend(&place.client, 1).await;
    let mut waits = Vec::new();
    for _ in 0..5 {
        waits.push(refused(place.client.restrict(NOWHERE).await, "1 calls in 3600 seconds"));
    }
    assert!(waits.is_sorted_by(|a, b| a >= b), "waiting got longer: {waits:?}");
    settings_set(&place.client, &json!({"rateLimitPerHour": 2})).await;
    spend(&place.client, 1).await;
}

#[tokio::test]
async fn s6_settings() {
    let place = Place::start().await;
    let settings = place.client.get("/api/cordon/v1/settings").await.expect_status(200);
    for (name, value) in [("rateLimitPerMinute", 100), ("rateLimitPerHour", 1500)] {
        let setting = json!({"name": name, "value": value, "default": value, "isSet": false});
        assert!(settings["value"].as_array().unwrap().contains(&setting), "{settings}");
    }
    settings_set(&place.client, &json!({"rateLimitPerMinute": 1})).await;
    spend(&place.client, 1).await;
    refused(place.client.restrict(NOWHERE).await, "1 calls in 60 seconds");
    settings_set(&place.client, &json!({"rateLimitPerMinute": null})).await;
    spend(&place.client, 1).await;
}

#[tokio::test]
async fn s6_restart() {
    let mut place = Place::start_with(|config| config.rate_limit_per_hour = 2).await;
    spend(&place.client, 2).await;
    place.server.stop().await;
    place.server.run().await;
    refused(place.client.restrict(NOWHERE).await, "2 calls in 3600 seconds");
}
