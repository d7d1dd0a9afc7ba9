//! Section 8: what existing clients rely on.

use reqwest::header::CONTENT_TYPE;
use reqwest::{ClientBuilder, Method};
use serde_json::{Value, json};

use super::{NOWHERE, Place, VENDOR, app_form, id, ids, token};
use crate::harness::client::{Client, Reply};
use crate::harness::machine::{Description, Machine};
use crate::harness::server::{TestServer, http_client};

const FORM: &str = "application/x-www-form-urlencoded";

/// The administrator app's form as it goes over the wire; none of the fields more have values to encode.
async fn send(server: &TestServer, method: Method, content_type: Option<&str>, scope: &str) -> Reply {
    let id = server.initialized.client_id.to_string();
    let form = app_form(server, &id, &[("scope", scope)]);
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let mut request = server.http.request(method, server.token_url("/v2.0")).body(body);
    if let Some(content_type) = content_type {
        request = request.header(CONTENT_TYPE, content_type);
    }
    Reply::of(request).await
}

async fn use_token(server: &TestServer, reply: &Value) {
    let client = server.admin().with_token(reply["access_token"].as_str().unwrap());
    client.get("/api/machines").await.expect_status(200);
}

fn default_scope() -> String {
    format!("{VENDOR}/.default")
}

#[tokio::test]
async fn s8_201_and_final_within_seconds() {
    let place = Place::start().await;
    let _connection = place.online().await;
    for kind in ["restrictCodeExecution", "unrestrictCodeExecution"] {
        let reply = place.client.post(&place.path(&format!("/{kind}")), &json!({"Comment": "x"})).await;
        let action = reply.expect_status(201);
        assert_eq!(place.client.action(id(&action)).await["id"], action["id"]);
        // The harness waits no longer than a connector does.
        place.client.wait_for(&action, "Succeeded").await;
    }
}

#[tokio::test]
async fn s8_token_endpoint_get_with_form_body() {
    let server = TestServer::start().await;
    let reply = send(&server, Method::GET, Some(FORM), &default_scope()).await;
    use_token(&server, &reply.expect_status(200)).await;
}

#[tokio::test]
async fn s8_token_endpoint_without_content_type() {
    let server = TestServer::start().await;
    for content_type in [None, Some("text/plain")] {
        let reply = send(&server, Method::POST, content_type, &default_scope()).await;
        use_token(&server, &reply.expect_status(200)).await;
    }
}

#[tokio::test]
async fn s8_token_endpoint_ignores_unknown_fields() {
    let server = TestServer::start().await;
    let (id, scope) = (server.initialized.client_id.to_string(), default_scope());
    let more =
        [("scope", scope.as_str()), ("client_info", "1"), ("redirectUri", "https://localhost"), ("x", "y")];
    let reply = token(&server, "/v2.0", &app_form(&server, &id, &more)).await;
    use_token(&server, &reply.expect_status(200)).await;
}

#[tokio::test]
async fn s8_token_endpoint_offline_access() {
    let server = TestServer::start().await;
    let reply = send(&server, Method::POST, Some(FORM), &format!("offline_access {}", default_scope())).await;
    use_token(&server, &reply.expect_status(200)).await;
}

#[tokio::test]
async fn s8_token_endpoint_expires_in_is_a_number() {
    let server = TestServer::start().await;
    let reply = send(&server, Method::POST, Some(FORM), &default_scope()).await.expect_status(200);
    assert_eq!(reply["expires_in"].as_u64(), Some(3600));
}

#[tokio::test]
async fn s8_openid_configuration() {
    let server = TestServer::start().await;
    let url = format!("{}/{}/v2.0/.well-known/openid-configuration", server.url(), server.initialized.tenant);
    let discovery = Reply::of(server.http.get(url)).await.expect_status(200);
    for field in ["issuer", "authorization_endpoint", "token_endpoint", "jwks_uri"] {
        assert!(discovery[field].as_str().unwrap().starts_with(server.url()), "{discovery}");
    }
}

#[tokio::test]
async fn s8_other_host_names() {
    let server = TestServer::start().await;
    // By HTTP/1.1, which has the header: with HTTP/2 the name is that of the URL.
    let http = http_client(&server.initialized.ca_certificate, |builder| {
        ClientBuilder::http1_only(builder).redirect(reqwest::redirect::Policy::none())
    });
    let client = Client { http, ..server.admin() };
    for host in
        ["api.securitycenter.microsoft.com", "api.security.microsoft.com", "cordon.elsewhere.example:8443"]
    {
        for path in ["/api/machines", "/api/machines/", "/API/v1.0/machines?$top=1"] {
            Reply::of(client.request(Method::GET, path).header("host", host)).await.expect_status(200);
        }
    }
    client.get("/").await.expect_error(404, "NotFound");
}

#[tokio::test]
async fn s8_machine_objects() {
    let place = Place::start().await;
    let _connection = place.online().await;
    let never_connected = Machine::enroll_described(&place.server, Description::named("lab-1")).await;
    let list = place.client.get("/api/machines").await.expect_status(200);
    let mut machines = list["value"].as_array().unwrap().clone();
    machines.push(place.client.machine(&never_connected.id).await);
    for machine in machines {
        assert_eq!(machine.get("aadDeviceId"), Some(&Value::Null), "{machine}");
        assert!(machine["machineTags"].is_array() && machine["ipAddresses"].is_array(), "{machine}");
        assert!(machine["rbacGroupId"].is_i64(), "{machine}");
        assert!(machine["executionRestriction"]["generation"].is_u64(), "{machine}");
        assert!(machine["executionRestriction"]["drift"].is_boolean(), "{machine}");
    }
}

#[tokio::test]
async fn s8_findbyip() {
    let place = Place::start().await;
    let _connection = place.online().await;
    let last_seen = place.client.machine(&place.machine.id).await["lastSeen"].as_str().unwrap().to_owned();
    // As clients write it: whole seconds.
    let now = format!("{}Z", last_seen.split_once('.').unwrap().0);
    for path in [
        format!("/api/machines/findbyip(ip='10.0.0.5',timestamp={now})"),
        format!("/api/v1.0/machines/FindByIp(ip=%2710.0.0.5%27,timestamp={now})"),
    ] {
        assert_eq!(ids(&place.client, &path).await, [place.machine.id.as_str()], "{path}");
    }
    let elsewhere = format!("/api/machines/findbyip(ip='10.0.0.6',timestamp={now})");
    assert!(ids(&place.client, &elsewhere).await.is_empty());
    for bad in [
        "ip='x',timestamp=2026-11-23T11:38:59Z",
        "ip='10.0.0.5',timestamp=x",
        "ip='10.0.0.5',timestamp=2001-01-01Z",
    ] {
        let reply = place.client.get(&format!("/api/machines/findbyip({bad})")).await;
        reply.expect_error(400, "InvalidInput");
    }
}

#[tokio::test]
async fn s8_machineactions_of_a_machine() {
    let place = Place::start().await;
    let older = place.restricted().await;
    let newer = place.client.unrestrict(&place.machine.id).await.expect_status(201);
    for path in [place.path("/machineactions"), place.path("/machineActions/")] {
        assert_eq!(ids(&place.client, &path).await, [id(&newer), id(&older)]);
    }
}

#[tokio::test]
async fn s8_available_machine_actions() {
    let place = Place::start().await;
    let _connection = place.online().await;
    let list = place.client.get(&place.path("/availableMachineActions")).await.expect_status(200);
    let available = |action: &str, why_not: Option<&str>| {
        let is_available = why_not.is_none();
        json!({"action": action, "isAvailable": is_available, "notSupportedReason": why_not})
    };
    let both = [available("RestrictCodeExecution", None), available("UnrestrictCodeExecution", None)];
    assert_eq!(list["value"], json!(both));
    let windows = Description { os_platform: "Windows11".to_owned(), ..Description::named("win-1") };
    let windows = Machine::enroll_described(&place.server, windows).await;
    let _connection = windows.connect(&place.server, crate::harness::machine::Behavior::Obey).await;
    let path = format!("/api/machines/{}/availableMachineActions", windows.id);
    let list = place.client.get(&path).await.expect_status(200);
    let why_not = place.client.restrict(&windows.id).await.expect_error(400, "OsPlatformNotSupported");
    assert_eq!(list["value"][0], available("RestrictCodeExecution", Some(&why_not)));
}

#[tokio::test]
async fn s8_connectivity_checks() {
    let server = TestServer::start().await;
    let reader = server.client(&[domain::permission::Permission::MachineReadAll]).await;
    assert_eq!(reader.get("/api/alerts?$top=1").await.expect_status(200), json!({"value": []}));
    let score = reader.get("/api/exposureScore").await.expect_status(200);
    assert_eq!(score.as_object().unwrap().keys().collect::<Vec<_>>(), ["score", "time"]);
    assert!(score["score"].is_null() && super::is_time(&score["time"]), "{score}");
    let restricts = server.client(&[domain::permission::Permission::MachineRestrictExecution]).await;
    restricts.get("/api/alerts").await.expect_error(403, "Forbidden");
    restricts.get("/api/exposureScore").await.expect_error(403, "Forbidden");
}

#[tokio::test]
async fn s8_replies() {
    let place = Place::start().await;
    for path in ["/api/machines", "/api/machineactions", "/api/alerts", "/api/cordon/v1/roles"] {
        let reply = place.client.get(path).await;
        assert_eq!(reply.headers["content-type"], "application/json");
        assert!(
            reply.body["value"].is_array() && reply.body.get("@odata.nextLink").is_none(),
            "{}",
            reply.text
        );
    }
    let reply = place.client.get(&format!("/api/machines/{NOWHERE}")).await;
    assert!(reply.body["error"]["target"].is_string());
    reply.expect_error(404, "ResourceNotFound");
    // Links are absolute: see `s3_paging`.
}

#[tokio::test]
async fn s8_never_throttled_below_the_limits() {
    let place = Place::start().await;
    let calls = (0..100).map(|_| place.client.restrict(&place.machine.id));
    let replies = futures_util::future::join_all(calls).await;
    assert!(replies.iter().all(|reply| [201, 400].contains(&reply.status)));
    let reads = (0..300).map(|_| place.client.get("/api/machineactions"));
    let replies = futures_util::future::join_all(reads).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
}
