//! People and limited apps on the wire: what is not theirs is answered, byte for byte, as what is not there; and what
//! an administrator changes holds for the next request.

use domain::permission::{Permission, Right};
use serde_json::{Value, json};

use crate::harness::client::{Client, Reply};
use crate::harness::machine::{Behavior, Connection, Machine};
use crate::harness::server::TestServer;
use crate::harness::wait_until;

const NO_MACHINE: &str = "0f3c9a7be1d2445566778899aabbccddeeff0011";
const NO_ACTION: &str = "11111111-2222-4333-8444-555555555555";

/// Two machines, of which a person and an app may know the first only.
struct Scene {
    server: TestServer,
    open: Machine,
    closed: Machine,
    _connections: [Connection; 2],
    callers: Vec<Client>,
}

async fn scene() -> Scene {
    let server = TestServer::with_people().await;
    server.machine_group("open", "open", &["soc"]).await;
    server.machine_group("closed", "closed", &["others"]).await;
    let (open, first) = Machine::online(&server, "open-1").await;
    let (closed, second) = Machine::online(&server, "closed-1").await;
    server.role("responder", &Right::ALL, &["soc"]).await;
    server.account("ann", &["soc"]).await;
    let body = json!({
        "name": "limited", "permissions": Permission::ALL.map(Permission::name), "machineGroups": ["open"],
    });
    let app = server.admin().post("/api/cordon/v1/apps", &body).await.expect_status(201);
    let app = server.login(app["id"].as_str().unwrap(), app["secret"].as_str().unwrap()).await;
    let callers = vec![server.sign_in("ann", &Permission::ALL).await, app];
    for connection in [&first, &second] {
        connection.report_execution("/tmp/unlisted");
    }
    let admin = server.admin();
    wait_until("both events are there", async || {
        rows(&admin.get("/api/cordon/v1/executionEvents").await.body) == 2
    })
    .await;
    Scene { server, open, closed, _connections: [first, second], callers }
}

fn rows(list: &Value) -> usize {
    list["value"].as_array().unwrap().len()
}

/// A reply's status, headers and bytes, without what is each reply's own, and with the id that was asked for made plain.
fn bytes(reply: &Reply, asked: &str) -> (u16, Vec<(String, String)>, String) {
    let own = reply.headers["x-request-id"].to_str().unwrap();
    let text = reply.text.replace(own, "TARGET").replace(asked, "ID");
    let headers = reply.headers.iter().filter(|(name, _)| !["x-request-id", "date"].contains(&name.as_str()));
    let header = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    // The ids that are compared have the same length.
    (reply.status, headers.map(header).collect(), text)
}

#[tokio::test]
async fn what_is_invisible_is_answered_byte_for_byte_as_what_is_unknown() {
    let Scene { server, closed, callers, .. } = scene().await;
    let action = server.admin().restrict(&closed.id).await.expect_status(201);
    let action = action["id"].as_str().unwrap();
    let comment = json!({"Comment": "test"});
    let tag = json!({"Value": "t", "Action": "Add"});
    let requests = [
        ("GET", "/api/machines/{}", &Value::Null),
        ("GET", "/api/machines/{}/machineactions", &Value::Null),
        ("GET", "/api/machines/{}/availableMachineActions", &Value::Null),
        ("GET", "/api/machines/{}/impactPreview", &Value::Null),
        ("POST", "/api/machines/{}/restrictCodeExecution", &comment),
        ("POST", "/api/machines/{}/unrestrictCodeExecution", &comment),
        ("POST", "/api/machines/{}/tags", &tag),
        ("GET", "/api/cordon/v1/executionEvents?machineId={}", &Value::Null),
        ("GET", "/api/machineactions/{}", &Value::Null),
        ("GET", "/api/cordon/v1/machineactions/{}/receipt", &Value::Null),
        ("POST", "/api/machineactions/{}/cancel", &comment),
    ];
    for client in &callers {
        for (method, path, body) in requests {
            let about_action = path.contains("machineactions/{}");
            let pairs = if about_action {
                vec![(action, NO_ACTION)]
            } else {
                vec![(closed.id.as_str(), NO_MACHINE), ("closed-1", "closed-2")]
            };
            for (invisible, unknown) in pairs {
                let ask = async |id: &str| {
                    let path = path.replace("{}", id);
                    let reply = if method == "GET" {
                        client.get(&path).await
                    } else {
                        client.post(&path, body).await
                    };
                    bytes(&reply, id)
                };
                let (invisible, unknown) = (ask(invisible).await, ask(unknown).await);
                assert_eq!(invisible, unknown, "{method} {path}");
                assert_eq!(invisible.0, 404, "{method} {path}");
            }
        }
    }
    assert_eq!(server.admin().machine(&closed.id).await["machineTags"], json!([]));
}

#[tokio::test]
async fn lists_counts_and_bulk_calls_leave_out_what_is_invisible() {
    let Scene { server, open, closed, callers, _connections } = scene().await;
    for machine in [&open, &closed] {
        let action = server.admin().restrict(&machine.id).await.expect_status(201);
        server.admin().wait_for(&action, "Succeeded").await;
    }
    for (before, client) in callers.iter().enumerate() {
        for path in [
            "/api/machines",
            "/api/machines?$filter=computerDnsName ne 'x'",
            "/api/machineactions",
            "/api/machineactions?$orderby=machineId",
            "/api/cordon/v1/executionEvents",
        ] {
            let list = client.get(path).await.expect_status(200);
            // The caller before has made one more action.
            let expected = if path.starts_with("/api/machineactions") { 1 + before } else { 1 };
            assert_eq!(rows(&list), expected, "{path}");
            assert!(!list.to_string().contains(&closed.id), "{path}");
        }
        assert_eq!(client.get("/api/machines/$count").await.text, "1");
        let actions = client.get("/api/machineactions/$count").await.text;
        assert_eq!(actions, (1 + before).to_string());
        let list = client.get("/api/machines?$count=true&$filter=osPlatform eq 'Linux'").await;
        assert_eq!(list.body["@odata.count"], 1);
        let now = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ");
        let path = format!("/api/machines/findbyip(ip='10.0.0.5',timestamp={now})");
        assert_eq!(rows(&client.get(&path).await.expect_status(200)), 1);
        let body = json!({"MachineIds": [open.id, closed.id, NO_MACHINE], "Comment": "c"});
        let reply =
            client.post("/api/cordon/v1/machines/restrictCodeExecution", &body).await.expect_status(201);
        let results = reply["results"].as_array().unwrap();
        let errors: Vec<_> = results.iter().map(|result| result["error"]["code"].clone()).collect();
        assert_eq!(errors, [Value::Null, json!("ResourceNotFound"), json!("ResourceNotFound")]);
        assert_eq!(
            (&results[1]["computerDnsName"], &results[2]["computerDnsName"]),
            (&Value::Null, &Value::Null)
        );
        let action = json!({"id": results[0]["actionId"]});
        client.wait_for(&action, "Succeeded").await;
    }
    assert_eq!(rows(&server.admin().get("/api/machines").await.body), 2);
    assert_eq!(server.admin().machine(&closed.id).await["executionRestriction"]["generation"], 1);
}

#[tokio::test]
async fn what_an_administrator_changes_holds_for_the_next_request() {
    let Scene { server, open, callers, .. } = scene().await;
    let (admin, ann) = (server.admin(), &callers[0]);
    let path = format!("/api/machines/{}", open.id);
    let account = "/api/cordon/v1/users/ann";
    ann.get(&path).await.expect_status(200);

    admin.patch(account, &json!({"enabled": false})).await.expect_status(200);
    let reply = ann.get(&path).await;
    assert!(reply.headers["www-authenticate"].to_str().unwrap().contains("invalid_token"));
    let message = reply.expect_error(401, "Unauthorized");
    assert_eq!(message, "The token is refused: the account is disabled");
    admin.patch(account, &json!({"enabled": true})).await.expect_status(200);
    let message = ann.get(&path).await.expect_error(401, "Unauthorized");
    assert!(message.ends_with("sign in again"), "{message}");
    // As if signed in anew, in a later second.
    let signed_in_at = |seconds: i64| {
        server.forge(&ann.token, |claims| {
            claims["auth_time"] = json!(claims["auth_time"].as_i64().unwrap() + seconds);
        })
    };
    let ann = &ann.with_token(signed_in_at(600));
    ann.get(&path).await.expect_status(200);

    admin.patch(account, &json!({"groups": []})).await.expect_status(200);
    let message = ann.get(&path).await.expect_error(403, "Forbidden");
    assert_eq!(message, "None of your roles holds the right \"View data\"");
    admin.patch(account, &json!({"groups": ["soc"]})).await.expect_status(200);
    ann.get(&path).await.expect_status(200);

    server.role("responder", &[Right::ViewData], &["soc"]).await;
    let message = ann.restrict(&open.id).await.expect_error(403, "Forbidden");
    assert_eq!(message, "None of your roles holds the right \"Active remediation actions\"");
    server.role("responder", &Right::ALL, &["soc"]).await;
    server.machine_group("open", "open", &["others"]).await;
    ann.get(&path).await.expect_error(404, "ResourceNotFound");
    server.machine_group("open", "open", &[]).await;
    ann.get(&path).await.expect_status(200);

    // A token that was signed in before the password was changed.
    let message = ann.with_token(signed_in_at(-3600)).get(&path).await.expect_error(401, "Unauthorized");
    assert!(message.contains("password was changed"), "{message}");
    admin.delete(account).await;
    let message = ann.get(&path).await.expect_error(401, "Unauthorized");
    assert_eq!(message, "The token is refused: the account is unknown");
}

#[tokio::test]
async fn who_did_it_is_the_person() {
    let Scene { server, open, callers, .. } = scene().await;
    let action = callers[0].restrict(&open.id).await.expect_status(201);
    assert_eq!(action["requestor"], "ann");
    let path = "/api/cordon/v1/auditEntries?actor=ann&operation=machine_restrict";
    let entries = server.admin().get(path).await.expect_status(200);
    assert_eq!((rows(&entries), &entries["value"][0]["subject"]), (1, &json!(open.id)));
}

#[tokio::test]
async fn a_scope_and_a_right_are_both_needed() {
    let server = TestServer::with_people().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let _connection = machine.connect(&server, Behavior::Obey).await;
    server.role("reader", &[Right::ViewData], &["soc"]).await;
    server.account("ann", &["soc"]).await;
    let reads = server.sign_in("ann", &[Permission::MachineReadAll]).await;
    reads.machine(&machine.id).await;
    let message = reads.restrict(&machine.id).await.expect_error(403, "Forbidden");
    assert_eq!(
        message,
        "Missing application scopes. API required scopes: Machine.RestrictExecution, application scopes: Machine.Read."
    );
    let both = [Permission::MachineReadAll, Permission::MachineRestrictExecution];
    let restricts = server.sign_in("ann", &both).await;
    restricts.restrict(&machine.id).await.expect_error(403, "Forbidden");
    server.role("reader", &[Right::ViewData, Right::ActiveRemediationActions], &["soc"]).await;
    restricts.restrict(&machine.id).await.expect_status(201);
    reads.restrict(&machine.id).await.expect_error(403, "Forbidden");
}
