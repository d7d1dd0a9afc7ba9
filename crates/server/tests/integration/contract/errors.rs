//! Section 7: errors. [`Reply::expect_error`] checks the envelope of each.

use domain::permission::Permission;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::json;
use store::StoreError;

use super::{NOWHERE, Place, id, settings_set};
use crate::harness::client::Reply;
use crate::harness::machine::{Behavior, Description, Machine};

/// Connects a machine and tries to restrict it.
async fn restrict_described(description: Description) -> Reply {
    let place = Place::start().await;
    let machine = Machine::enroll_described(&place.server, description).await;
    let _connection = machine.connect(&place.server, Behavior::Obey).await;
    place.client.restrict(&machine.id).await
}

#[tokio::test]
async fn s7_envelope() {
    let place = Place::start_with(|config| config.rate_limit_per_minute = 1).await;
    let client = &place.client;
    client.get("/api/nothing").await.expect_error(404, "NotFound");
    client.get("/").await.expect_error(404, "NotFound");
    client.delete("/api/machines").await.expect_error(405, "MethodNotAllowed");
    let path = place.path("/restrictCodeExecution");
    let long = client.post_raw(&path, Some("application/json"), vec![b' '; 200_000]).await;
    long.expect_error(413, "InvalidRequestBody");
    client.get("/api/machines/%ff").await.expect_error(400, "BadRequest");
    client.restrict(NOWHERE).await.expect_error(404, "ResourceNotFound");
    client.restrict(NOWHERE).await.expect_error(429, "TooManyRequests");
    client.with_token("x").get("/api/machines").await.expect_error(401, "Unauthorized");
    let (first, second) = (client.get("/api/nothing").await, client.get("/api/nothing").await);
    assert_ne!(first.headers["x-request-id"], second.headers["x-request-id"]);
    // A reply that is none has the id too.
    assert!(client.get("/api/machines").await.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn s7_bad_request() {
    let place = Place::start().await;
    let action = place.restricted().await;
    place.client.unrestrict(&place.machine.id).await.expect_status(201);
    let path = format!("/api/machineactions/{}/cancel", id(&action));
    let message = place.client.post(&path, &json!({"Comment": "x"})).await.expect_error(400, "BadRequest");
    assert!(message.contains("Cancelled"), "{message}");
}

#[tokio::test]
async fn s7_odata_error() {
    let place = Place::start().await;
    let message = place.client.get("/api/machines?$filter=x").await.expect_error(400, "ODataError");
    assert!(message.contains("$filter"), "{message}");
}

#[tokio::test]
async fn s7_invalid_input() {
    let place = Place::start().await;
    let body = json!({"Comment": "x", "ExpiresIn": "soon"});
    let reply = place.client.post(&place.path("/restrictCodeExecution"), &body).await;
    let message = reply.expect_error(400, "InvalidInput");
    assert!(message.contains("ExpiresIn") && message.contains("soon"), "{message}");
}

#[tokio::test]
async fn s7_invalid_request_body() {
    let place = Place::start().await;
    for body in ["nonsense", "{\"COMMENT\": \"x\"}"] {
        let path = place.path("/restrictCodeExecution");
        let reply = place.client.post_raw(&path, Some("application/json"), body).await;
        reply.expect_error(400, "InvalidRequestBody");
    }
}

#[tokio::test]
async fn s7_missing_required_parameter() {
    let place = Place::start().await;
    let reply = place.client.post(&place.path("/restrictCodeExecution"), &json!({})).await;
    assert_eq!(reply.expect_error(400, "MissingRequiredParameter"), "Parameter Comment is missing");
    let reply = place.client.post(&place.path("/tags"), &json!({"Action": "Add"})).await;
    assert_eq!(reply.expect_error(400, "MissingRequiredParameter"), "Parameter Value is missing");
}

#[tokio::test]
async fn s7_os_platform_not_supported() {
    let windows = Description { os_platform: "Windows11".to_owned(), ..Description::named("win-1") };
    let message = restrict_described(windows).await.expect_error(400, "OsPlatformNotSupported");
    assert!(message.contains("Windows11") && message.contains("Linux"), "{message}");
}

#[tokio::test]
async fn s7_client_version_not_supported() {
    let weak = Description { tier: None, tier_note: "no fanotify".to_owned(), ..Description::named("old-1") };
    let message = restrict_described(weak).await.expect_error(400, "ClientVersionNotSupported");
    assert!(message.contains("no fanotify"), "{message}");
}

#[tokio::test]
async fn s7_active_request_already_exists() {
    let place = Place::start().await;
    let action = place.restricted().await;
    let message =
        place.client.restrict(&place.machine.id).await.expect_error(400, "ActiveRequestAlreadyExists");
    assert_eq!(message, format!("Action is already in progress (id {})", id(&action)));
}

#[tokio::test]
async fn s7_unauthorized() {
    let place = Place::start().await;
    let url = format!("{}/api/machines", place.client.base);
    for header in [None, Some("Bearer x"), Some("Basic eDp5")] {
        let mut request = place.client.http.get(&url);
        if let Some(header) = header {
            request = request.header(AUTHORIZATION, header);
        }
        let reply = Reply::of(request).await;
        assert!(reply.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer "));
        reply.expect_error(401, "Unauthorized");
    }
}

#[tokio::test]
async fn s7_forbidden() {
    let place = Place::start().await;
    let reader = place.server.client(&[Permission::MachineReadAll]).await;
    reader.restrict(&place.machine.id).await.expect_error(403, "Forbidden");
    let other = place.server.forge(&reader.token, |claims| claims["aud"] = json!("https://graph.example"));
    reader.with_token(other).get("/api/machines").await.expect_error(403, "Forbidden");
}

#[tokio::test]
async fn s7_disabled_feature() {
    let place = Place::start().await;
    settings_set(&place.client, &json!({"bulkMachinesPerHour": 0})).await;
    let client = place.server.client(&[Permission::MachineRestrictExecution]).await;
    let body = json!({"Comment": "x", "MachineIds": [place.machine.id]});
    let path = "/api/cordon/v1/machines/restrictCodeExecution";
    let message = client.post(path, &body).await.expect_error(403, "DisabledFeature");
    assert!(message.contains("switched off"), "{message}");
    settings_set(&place.client, &json!({"bulkMachinesPerHour": null})).await;
    client.post(path, &body).await.expect_status(201);
}

#[tokio::test]
async fn s7_disallowed_operation() {
    let place = Place::start().await;
    let other = Machine::enroll(&place.server, "lab-043").await;
    settings_set(&place.client, &json!({"bulkMachinesPerHour": 1})).await;
    let client = place.server.client(&[Permission::MachineRestrictExecution]).await;
    let body = json!({"Comment": "x", "MachineIds": [place.machine.id, other.id]});
    let reply = client.post("/api/cordon/v1/machines/restrictCodeExecution", &body).await;
    let message = reply.expect_error(403, "DisallowedOperation");
    assert!(message.contains("2 machines") && message.contains("Bulk remediation"), "{message}");
    assert_eq!(place.client.get("/api/machineactions/$count").await.text, "0");
}

#[tokio::test]
async fn s7_not_found() {
    let place = Place::start().await;
    for path in ["/", "/api", "/api/machine", "/api/v2.0/machines", "/api/machines/x/isolate"] {
        place.client.get(path).await.expect_error(404, "NotFound");
    }
}

#[tokio::test]
async fn s7_resource_not_found() {
    let place = Place::start().await;
    let expected = format!("Machine {NOWHERE} was not found");
    assert_eq!(place.client.restrict(NOWHERE).await.expect_error(404, "ResourceNotFound"), expected);
}

#[tokio::test]
async fn s7_too_many_requests() {
    let place = Place::start_with(|config| config.rate_limit_per_minute = 1).await;
    place.restricted().await;
    let reply = place.client.restrict(&place.machine.id).await;
    assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u64>().is_ok());
    reply.expect_error(429, "TooManyRequests");
}

#[tokio::test]
async fn s7_internal_server_error() {
    let place = Place::start().await;
    // What no setting can be, as a damaged database would have it.
    let damage =
        |tx: &store::Tx<'_>| store::setting::setting_set(tx, "rateLimitPerMinute", Some("a-secret-detail"));
    place.server.store().write::<_, StoreError>(damage).await.unwrap();
    let reply = place.client.get("/api/cordon/v1/settings").await;
    assert!(!reply.text.contains("secret") && !reply.text.contains("setting"), "{}", reply.text);
    reply.expect_error(500, "InternalServerError");
    let request = place.client.request(Method::GET, "/api/machines").header(CONTENT_TYPE, "text/plain");
    Reply::of(request).await.expect_status(200);
}
