//! What is true of every route, read from the router's own list: a route that is added is tested at once, or fails here.

use cordon_server::router::{ROUTES, Route};
use domain::permission::Permission;
use reqwest::Method;
use reqwest::header::AUTHORIZATION;
use serde_json::{Value, json};

use crate::harness::client::{Client, Reply};
use crate::harness::machine::{Behavior, Machine};
use crate::harness::server::TestServer;
use crate::harness::wait_until;

const ZERO_ID: &str = "00000000-0000-0000-0000-000000000000";

/// The route's path with values for its parameters, and its fixed segments changed.
fn filled(route: &Route, value: impl Fn(&str) -> String, change: fn(&str) -> String) -> String {
    let part = |part: &str| match part.split_once(['{', '(']) {
        None => change(part),
        Some(("", _)) => value(part),
        // A function's parameters are in its one segment.
        Some((function, _)) => change(function) + &value(part),
    };
    route.path.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// The route's path with values that name nothing.
pub(crate) fn path(route: &Route) -> String {
    let call = format!("(ip='{ZERO_ID}',timestamp={ZERO_ID})");
    filled(route, |part| if part.starts_with('{') { ZERO_ID.to_owned() } else { call.clone() }, str::to_owned)
}

/// Calls a route without a body, which would be refused: who may not call is told so first.
pub(crate) async fn call(client: &Client, route: &Route) -> Reply {
    Reply::of(client.request(route.method.clone(), &path(route))).await
}

#[tokio::test]
async fn every_route_refuses_what_is_no_good_token() {
    let server = TestServer::start().await;
    let client = server.client(&Permission::ALL).await;
    let revoked = server.client(&Permission::ALL).await;
    let gone = server.admin().delete(&format!("/api/cordon/v1/apps/{}", revoked.app)).await;
    assert_eq!(gone.status, 204);
    let good = &client.token;
    let now = server.forge(good, |_| {});
    assert_eq!(
        client.with_token(now).get("/api/machines").await.status,
        200,
        "a forged token that is not changed"
    );
    let (body, signature) = good.rsplit_once('.').unwrap();
    let mut changed = signature.to_owned();
    changed.replace_range(..1, if signature.starts_with('A') { "B" } else { "A" });
    let table = [
        (String::new(), "this is no token of this server"),
        ("abc".to_owned(), "this is no token of this server"),
        ("a.b.c".to_owned(), "this is no token of this server"),
        (format!("{body}."), "the token's signature is wrong"),
        (format!("{body}.{changed}"), "the token's signature is wrong"),
        (server.forge(good, |claims| claims["exp"] = json!(1_700_000_000)), "the token has expired"),
        (server.forge(good, |claims| claims["nbf"] = json!(4_000_000_000_i64)), "the token is not valid yet"),
        (
            server.forge(good, |claims| claims["iss"] = json!("https://evil.example/")),
            "the token is from another issuer",
        ),
        (server.forge(good, |claims| claims["tid"] = json!(ZERO_ID)), "the token is for another tenant"),
        (revoked.token, "the application was revoked"),
    ];
    for route in ROUTES.iter() {
        for (token, why) in &table {
            let reply = call(&client.with_token(token), route).await;
            let challenge = reply.headers["www-authenticate"].to_str().unwrap().to_owned();
            let said = format!("error=\"invalid_token\", error_description=\"{why}\"");
            assert!(challenge.starts_with("Bearer ") && challenge.ends_with(&said), "{challenge}");
            let message = reply.expect_error(401, "Unauthorized");
            assert_eq!(message, format!("The token is refused: {why}"), "{route:?}");
        }
    }
}

#[tokio::test]
async fn every_route_refuses_requests_without_a_token() {
    let server = TestServer::start().await;
    let basic = format!("Basic {}", "YTpi");
    for route in ROUTES.iter() {
        let url = format!("{}{}", server.url(), path(route));
        for header in [None, Some(&basic)] {
            let mut request = server.http.request(route.method.clone(), &url);
            if let Some(header) = header {
                request = request.header(AUTHORIZATION, header);
            }
            let reply = Reply::of(request).await;
            let challenge = reply.headers["www-authenticate"].to_str().unwrap().to_owned();
            assert!(challenge.starts_with("Bearer ") && !challenge.contains("error"), "{challenge}");
            let message = reply.expect_error(401, "Unauthorized");
            assert_eq!(message, "There is no bearer token in the request", "{route:?}");
        }
        let twice = server.http.request(route.method.clone(), &url);
        let twice = twice.header(AUTHORIZATION, "Bearer a").header(AUTHORIZATION, "Bearer b");
        Reply::of(twice).await.expect_error(401, "Unauthorized");
    }
}

#[tokio::test]
async fn every_route_refuses_tokens_for_another_audience() {
    let server = TestServer::start().await;
    let client = server.client(&Permission::ALL).await;
    let other = server.forge(&client.token, |claims| claims["aud"] = json!("https://graph.microsoft.com"));
    for route in ROUTES.iter() {
        let message = call(&client.with_token(&other), route).await.expect_error(403, "Forbidden");
        for accepted in ["https://api.securitycenter.microsoft.com", server.url()] {
            assert!(message.contains(accepted), "{message}");
        }
    }
}

#[tokio::test]
async fn every_route_refuses_callers_that_lack_its_permission() {
    let server = TestServer::start().await;
    for route in ROUTES.iter() {
        let others: Vec<_> = Permission::ALL
            .into_iter()
            .filter(|permission| !route.required.permissions.contains(permission))
            .collect();
        for held in others.iter().map(std::slice::from_ref).chain([others.as_slice()]) {
            let client = server.client(held).await;
            let message = call(&client, route).await.expect_error(403, "Forbidden");
            let names = |permissions: &[Permission]| {
                permissions.iter().map(|permission| permission.name()).collect::<Vec<_>>().join(",")
            };
            let sentence = format!(
                "Missing application roles. API required roles: {}, application roles: {}.",
                names(route.required.permissions),
                names(held)
            );
            assert!(message.starts_with(&sentence), "{route:?}: {message}");
        }
    }
}

#[tokio::test]
async fn who_may_only_restrict_is_told_that_reading_is_apart() {
    let server = TestServer::start().await;
    let client = server.client(&[Permission::MachineRestrictExecution]).await;
    let (machine, _connection) = Machine::online(&server, "lab-1").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    let path = format!("/api/machineactions/{}", action["id"].as_str().unwrap());
    assert_eq!(
        client.get(&path).await.expect_error(403, "Forbidden"),
        "Missing application roles. API required roles: Machine.Read.All,Machine.ReadWrite.All, application roles: \
         Machine.RestrictExecution. Machine.RestrictExecution starts and cancels actions, and does not include \
         reading them."
    );
}

/// Routes that change nothing although they do not read only: they tell what a change would do.
const CHANGES_NOTHING: [&str; 1] = ["/api/cordon/v1/machineGroups/{machineGroup}/preview"];

#[tokio::test]
async fn every_route_that_changes_something_is_audited() {
    let server = TestServer::start().await;
    let client = server.client(&Permission::ALL).await;
    for route in ROUTES.iter().filter(|route| route.method != Method::GET) {
        if CHANGES_NOTHING.contains(&route.path) {
            continue;
        }
        let (reply, operation, subject) = change(&server, &client, route).await;
        assert!((200..300).contains(&reply.status), "{route:?}: {}", reply.text);
        let entries = client.get("/api/cordon/v1/auditEntries?top=50").await.expect_status(200);
        let entries = entries["value"].as_array().unwrap();
        let found = entries.iter().filter(|entry| {
            entry["operation"] == operation
                && entry["subject"] == subject.as_str()
                && entry["actor"] == client.app.as_str()
        });
        assert_eq!(found.count(), 1, "{route:?}: {operation} {subject} in {entries:#?}");
    }
}

/// Calls a route that changes something; the reply, and the operation and subject of the audit entry that is due.
async fn change(server: &TestServer, client: &Client, route: &Route) -> (Reply, &'static str, String) {
    const ADMIN: &str = "/api/cordon/v1";
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
    let bulk = async |name: &str| {
        let machine = Machine::enroll(server, name).await;
        let body = json!({"MachineIds": [machine.id], "Comment": "test"});
        (client.post(route.path, &body).await, machine.id)
    };
    match (route.method.as_str(), route.path) {
        ("POST", "/api/machines/{machine}/restrictCodeExecution") => {
            let machine = Machine::enroll(server, "lab-restrict").await;
            (client.restrict(&machine.id).await, "machine_restrict", machine.id)
        }
        ("POST", "/api/machines/{machine}/unrestrictCodeExecution") => {
            let machine = Machine::enroll(server, "lab-unrestrict").await;
            (client.unrestrict(&machine.id).await, "machine_unrestrict", machine.id)
        }
        ("POST", "/api/machines/{machine}/breakGlassCode") => {
            let (machine, _connection) = Machine::online(server, "lab-break-glass").await;
            let path = format!("/api/machines/{}/breakGlassCode", machine.id);
            let mut reply = None;
            wait_until("the server knows that the machine holds codes", async || {
                let shown = client.post_raw(&path, None, "").await;
                let is_shown = shown.status == 201;
                reply = Some(shown);
                is_shown
            })
            .await;
            (reply.unwrap(), "break_glass_code_show", machine.id)
        }
        ("POST", "/api/machines/{machine}/tags") => {
            let machine = Machine::enroll(server, "lab-tag").await;
            let path = format!("/api/machines/{}/tags", machine.id);
            let reply = client.post(&path, &json!({"Value": "t", "Action": "Add"})).await;
            (reply, "machine_tag_add", machine.id)
        }
        ("POST", "/api/machineactions/{action}/cancel") => {
            let machine = Machine::enroll(server, "lab-cancel").await;
            let action = id(&client.restrict(&machine.id).await.expect_status(201));
            let path = format!("/api/machineactions/{action}/cancel");
            (client.post(&path, &json!({"Comment": "never mind"})).await, "machine_action_cancel", machine.id)
        }
        ("POST", "/api/cordon/v1/machines/restrictCodeExecution") => {
            let (reply, machine) = bulk("bulk-restrict").await;
            (reply, "machine_restrict", machine)
        }
        ("POST", "/api/cordon/v1/machines/unrestrictCodeExecution") => {
            let (reply, machine) = bulk("bulk-unrestrict").await;
            (reply, "machine_unrestrict", machine)
        }
        ("POST", "/api/cordon/v1/apps") => {
            let body = json!({"name": "made", "permissions": ["Machine.Read.All"]});
            let reply = client.post(route.path, &body).await;
            let subject = id(&reply.body);
            (reply, "app_create", subject)
        }
        ("PUT", "/api/cordon/v1/apps/{app}") => {
            let app = server.client(&[Permission::MachineReadAll]).await.app;
            let body = json!({"name": "changed", "permissions": ["Machine.Read.All"]});
            (client.put(&format!("{ADMIN}/apps/{app}"), &body).await, "app_update", app)
        }
        ("DELETE", "/api/cordon/v1/apps/{app}") => {
            let app = server.client(&[Permission::MachineReadAll]).await.app;
            (client.delete(&format!("{ADMIN}/apps/{app}")).await, "app_revoke", app)
        }
        ("POST", "/api/cordon/v1/apps/{app}/secret") => {
            let app = server.client(&[Permission::MachineReadAll]).await.app;
            (client.post(&format!("{ADMIN}/apps/{app}/secret"), &json!({})).await, "app_secret_renew", app)
        }
        ("POST", "/api/cordon/v1/apps/{app}/keys") => {
            let app = server.client(&[Permission::MachineReadAll]).await.app;
            let body = json!({"pem": public_key()});
            (client.post(&format!("{ADMIN}/apps/{app}/keys"), &body).await, "app_key_add", app)
        }
        ("DELETE", "/api/cordon/v1/apps/{app}/keys/{thumbprint}") => {
            let app = server.client(&[Permission::MachineReadAll]).await.app;
            let path = format!("{ADMIN}/apps/{app}/keys");
            let key = client.post(&path, &json!({"pem": public_key()})).await.expect_status(201);
            let path = format!("{path}/{}", key["thumbprint"].as_str().unwrap());
            (client.delete(&path).await, "app_key_remove", app)
        }
        ("POST", "/api/cordon/v1/users") => {
            (client.post(route.path, &json!({"name": "made"})).await, "user_create", "made".to_owned())
        }
        ("PATCH", "/api/cordon/v1/users/{user}") => {
            server.account("changed", &[]).await;
            let reply = client.patch(&format!("{ADMIN}/users/changed"), &json!({"enabled": false})).await;
            (reply, "user_update", "changed".to_owned())
        }
        ("DELETE", "/api/cordon/v1/users/{user}") => {
            server.account("deleted", &[]).await;
            (client.delete(&format!("{ADMIN}/users/deleted")).await, "user_delete", "deleted".to_owned())
        }
        ("PUT", "/api/cordon/v1/roles/{role}") => {
            let reply = client.put(&format!("{ADMIN}/roles/made"), &json!({"name": "made"})).await;
            (reply, "role_save", "made".to_owned())
        }
        ("DELETE", "/api/cordon/v1/roles/{role}") => {
            server.role("deleted", &[], &[]).await;
            (client.delete(&format!("{ADMIN}/roles/deleted")).await, "role_delete", "deleted".to_owned())
        }
        ("PUT", "/api/cordon/v1/machineGroups/{machineGroup}") => {
            let reply = client.put(&format!("{ADMIN}/machineGroups/made"), &json!({"name": "made"})).await;
            (reply, "machine_group_save", "made".to_owned())
        }
        ("DELETE", "/api/cordon/v1/machineGroups/{machineGroup}") => {
            server.machine_group("deleted", "x", &[]).await;
            let reply = client.delete(&format!("{ADMIN}/machineGroups/deleted")).await;
            (reply, "machine_group_delete", "deleted".to_owned())
        }
        ("POST", "/api/cordon/v1/enrollmentTokens") => {
            let reply = client.post(route.path, &json!({"usesMax": 1, "expiresInSeconds": 60})).await;
            let subject = id(&reply.body);
            (reply, "enrollment_token_create", subject)
        }
        ("DELETE", "/api/cordon/v1/enrollmentTokens/{token}") => {
            let body = json!({"usesMax": 1, "expiresInSeconds": 60});
            let token =
                id(&client.post(&format!("{ADMIN}/enrollmentTokens"), &body).await.expect_status(201));
            let path = format!("{ADMIN}/enrollmentTokens/{token}");
            (client.delete(&path).await, "enrollment_token_revoke", token)
        }
        ("PUT", "/api/cordon/v1/policies/{policy}") => {
            let reply = client.put(&format!("{ADMIN}/policies/lab"), &json!({"name": "lab"})).await;
            (reply, "policy_apply", "lab".to_owned())
        }
        ("PATCH", "/api/cordon/v1/settings") => {
            let reply = client.patch(route.path, &json!({"rateLimitPerHour": 1234})).await;
            (reply, "setting_update", "rateLimitPerHour".to_owned())
        }
        other => panic!("{other:?} changes something: say here how, and what the audit log is to hold of it"),
    }
}

/// A public key that nobody has.
fn public_key() -> String {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().public_key_pem()
}

#[tokio::test]
async fn every_route_answers_under_every_spelling() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let connection = machine.connect(&server, Behavior::Obey).await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    let action = client.wait_for(&action, "Succeeded").await["id"].as_str().unwrap().to_owned();
    server.account("ann", &[]).await;
    server.machine_group("Labs", "lab", &[]).await;
    drop(connection);
    let time = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string();
    for route in ROUTES.iter().filter(|route| route.method == Method::GET) {
        let value = |part: &str| match part {
            "{machine}" => machine.id.clone(),
            "{action}" => action.clone(),
            "{policy}" => "default".to_owned(),
            "{app}" => client.app.clone(),
            "{user}" => "ann".to_owned(),
            "{role}" => "Administrator".to_owned(),
            "{machineGroup}" => "Labs".to_owned(),
            "findbyip(ip='{ip}',timestamp={timestamp})" => format!("(ip='10.0.0.5',timestamp={time})"),
            other => panic!("{other} of {route:?}: say here what is there"),
        };
        let spell = |change: fn(&str) -> String| filled(route, value, change);
        let plain = spell(str::to_owned);
        let expected = client.get(&plain).await;
        assert_eq!(expected.status, 200, "{plain}: {}", expected.text);
        assert_eq!(expected.headers["content-type"], route.media_type.unwrap());
        for spelled in [
            format!("{plain}/"),
            plain.replacen("/api", "/api/v1.0", 1),
            spell(str::to_uppercase),
            spell(str::to_lowercase).replacen("/api", "/API/V1.0", 1) + "/",
        ] {
            let reply = client.get(&spelled).await;
            assert_eq!((reply.status, steady(reply.body)), (200, steady(expected.body.clone())), "{spelled}");
        }
    }
}

/// A body without what moves by itself.
fn steady(mut body: Value) -> Value {
    if let Some(rows) = body.get_mut("value").and_then(Value::as_array_mut) {
        for row in rows.iter_mut().filter_map(Value::as_object_mut) {
            row.remove("lastSeen");
        }
    }
    if let Some(entity) = body.as_object_mut() {
        entity.remove("lastSeen");
        entity.remove("time");
    }
    body
}

#[tokio::test]
async fn what_is_no_route_says_so_in_the_envelope() {
    let server = TestServer::start().await;
    let client = server.admin();
    for path in
        ["/", "/api", "/api/", "/api/nothing", "/api/machines/a/b", "/machines", "/api/v2.0/machines", "/%ff"]
    {
        let message = client.get(path).await.expect_error(404, "NotFound");
        assert_eq!(message, "There is no such route", "{path}");
    }
    for route in ROUTES.iter() {
        let reply = client.with_token("").request(Method::TRACE, &path(route));
        let reply = Reply::of(reply).await;
        let allowed = reply.headers["allow"].to_str().unwrap().to_owned();
        assert!(allowed.split(',').any(|method| method == route.method.as_str()), "{allowed}");
        reply.expect_error(405, "MethodNotAllowed");
    }
}

#[tokio::test]
async fn every_reply_has_its_headers() {
    let server = TestServer::start().await;
    let client = server.admin();
    for path in ["/api/machines", "/api/nothing"] {
        let (first, second) = (client.get(path).await, client.get(path).await);
        for reply in [&first, &second] {
            assert_eq!(reply.headers["cache-control"], "no-store");
            assert_eq!(reply.headers["x-content-type-options"], "nosniff");
            assert!(!reply.headers.contains_key("server"));
        }
        assert_ne!(first.headers["x-request-id"], second.headers["x-request-id"]);
    }
}
