//! Settings on the wire: a null takes back, what is left out stays.

use serde_json::{Value, json};

use crate::harness::machine::Machine;
use crate::harness::server::TestServer;

const SETTINGS: &str = "/api/cordon/v1/settings";

fn setting<'a>(list: &'a Value, name: &str) -> &'a Value {
    list["value"].as_array().unwrap().iter().find(|setting| setting["name"] == name).unwrap()
}

#[tokio::test]
async fn a_setting_is_set_and_taken_back() {
    let mut server = TestServer::start_with(|config| config.rate_limit_per_hour = 900).await;
    let admin = server.admin();
    let before = admin.get(SETTINGS).await.expect_status(200);
    let hour = json!({"name": "rateLimitPerHour", "value": 900, "default": 900, "isSet": false});
    assert_eq!(setting(&before, "rateLimitPerHour"), &hour);
    assert_eq!(before["value"].as_array().map(Vec::len), Some(5));
    let change = json!({"rateLimitPerHour": 2, "actionDeadlineSeconds": 60});
    let changed = admin.patch(SETTINGS, &change).await.expect_status(200);
    let hour = json!({"name": "rateLimitPerHour", "value": 2, "default": 900, "isSet": true});
    assert_eq!(setting(&changed, "rateLimitPerHour"), &hour);
    // In force at once.
    let machine = Machine::enroll(&server, "lab-042").await;
    admin.restrict(&machine.id).await.expect_status(201);
    admin.restrict(&machine.id).await.expect_error(400, "ActiveRequestAlreadyExists");
    admin.restrict(&machine.id).await.expect_error(429, "TooManyRequests");
    // A null takes one back, and the other stays, also after a restart.
    let back = admin.patch(SETTINGS, &json!({"rateLimitPerHour": null})).await.expect_status(200);
    assert_eq!(setting(&back, "rateLimitPerHour"), setting(&before, "rateLimitPerHour"));
    assert_eq!(setting(&back, "actionDeadlineSeconds")["value"], 60);
    admin.restrict(&machine.id).await.expect_error(400, "ActiveRequestAlreadyExists");
    server.stop().await;
    server.run().await;
    assert_eq!(server.admin().get(SETTINGS).await.expect_status(200), back);
    assert_eq!(server.admin().patch(SETTINGS, &json!({})).await.expect_status(200), back);
}

#[tokio::test]
async fn a_setting_that_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let before = admin.get(SETTINGS).await.expect_status(200);
    for (body, code) in [
        (json!({"bulkMachinesPerHour": 1, "rateLimitPerMinute": 0}), "InvalidInput"),
        (json!({"bulkGroupPercentPerHour": 101}), "InvalidInput"),
        (json!({"rateLimitPerMinute": -1}), "InvalidRequestBody"),
        (json!({"rateLimitPerMinute": "5"}), "InvalidRequestBody"),
        (json!({"RateLimitPerMinute": 5}), "InvalidRequestBody"),
        (json!({"nothing": 5}), "InvalidRequestBody"),
        (json!([]), "InvalidRequestBody"),
    ] {
        admin.patch(SETTINGS, &body).await.expect_error(400, code);
    }
    assert_eq!(admin.get(SETTINGS).await.expect_status(200), before);
}
