//! Break-glass: a code is shown once, works without the server, and what it did is known when the link returns.

use domain::permission::Permission;
use orders::BREAK_GLASS_CODES;
use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::machine::{Behavior, Machine};
use crate::harness::server::TestServer;
use crate::harness::wait_until;

async fn show(client: &Client, machine: &str) -> Value {
    let path = format!("/api/machines/{machine}/breakGlassCode");
    client.post_raw(&path, None, "").await.expect_status(201)
}

/// A machine that is online, and of which the server knows that it holds codes.
async fn holding(server: &TestServer, name: &str) -> (Machine, crate::harness::machine::Connection) {
    let (machine, connection) = Machine::online(server, name).await;
    wait_until("the machine holds codes", async || machine.first_code().is_some()).await;
    let path = format!("/api/machines/{}/breakGlassCode", machine.id);
    // Of the heartbeat that says so nothing else can be seen.
    wait_until("the server knows it", async || server.admin().post_raw(&path, None, "").await.status == 201)
        .await;
    (machine, connection)
}

/// The operations and details of the audit log about a machine, latest first.
async fn told(client: &Client, machine: &str) -> Vec<(String, String)> {
    let entries = client.get("/api/cordon/v1/auditEntries").await.expect_status(200);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = entries["value"].as_array().unwrap().clone();
    let about = entries.iter().filter(|entry| entry["subject"] == machine);
    about.map(|entry| (text(&entry["operation"]), text(&entry["detail"]))).collect()
}

#[tokio::test]
async fn a_restriction_is_lifted_without_the_server_and_told_when_the_link_returns() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, connection) = holding(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&action, "Succeeded").await;
    drop(connection);

    let shown = show(&client, "lab-042").await;
    assert_eq!((&shown["machineId"], &shown["computerDnsName"]), (&json!(machine.id), &json!("lab-042")));
    let again = show(&client, &machine.id).await;
    assert_ne!(shown["code"], again["code"], "no code is shown twice");
    assert_eq!(again["number"].as_u64(), shown["number"].as_u64().map(|number| number + 1));
    // Ordered before the code is used, and never delivered.
    let pending = client.restrict(&machine.id).await.expect_status(201);

    assert!(machine.break_glass(again["code"].as_str().unwrap()));
    assert!(!machine.break_glass(again["code"].as_str().unwrap()), "once");
    assert!(!machine.break_glass(shown["code"].as_str().unwrap()), "nor one that was shown before it");

    let connection = machine.connect(&server, Behavior::Obey).await;
    let cancelled = client.wait_for(&pending, "Cancelled").await;
    let why = cancelled["cancellationComment"].as_str().unwrap();
    assert!(why.contains("lifted by break-glass on the machine"), "{why}");
    let restriction = client.machine(&machine.id).await["executionRestriction"].clone();
    assert_eq!(restriction["desired"], "Released", "{restriction}");
    assert_eq!((&restriction["reported"], &restriction["drift"]), (&json!("Released"), &json!(false)));
    assert!(restriction["brokenGlassAt"].is_string(), "{restriction}");
    let told = told(&client, &machine.id).await;
    let used: Vec<_> = told.iter().filter(|(operation, _)| operation == "break_glass_use").collect();
    assert_eq!(used.len(), 1, "{told:?}");
    assert!(used[0].1.contains(&format!("code {} lifted", again["number"])), "{used:?}");
    assert!(told.iter().any(|(operation, _)| operation == "break_glass_code_show"));
    for (_, detail) in &told {
        assert!(!detail.contains(again["code"].as_str().unwrap()), "no code is in the log");
    }

    // The machine gets other codes, and nothing restricts it again but a new order.
    let next = again["number"].as_u64().unwrap() + 1;
    wait_until("other codes are held", async || machine.first_code() == Some(next)).await;
    drop(connection);
    let connection = machine.connect(&server, Behavior::Obey).await;
    assert!(!machine.is_restricted() && connection.ordered().is_empty());
    let action = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&action, "Succeeded").await;
    assert!(machine.is_restricted());
    let restriction = client.machine(&machine.id).await["executionRestriction"].clone();
    assert_eq!(
        (&restriction["desired"], &restriction["brokenGlassAt"]),
        (&json!("Restricted"), &Value::Null)
    );
}

#[tokio::test]
async fn a_restriction_that_is_ordered_after_the_use_stands() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, connection) = holding(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&action, "Succeeded").await;
    drop(connection);
    let shown = show(&client, &machine.id).await;
    assert!(machine.break_glass(shown["code"].as_str().unwrap()));
    let later = client.restrict(&machine.id).await.expect_status(201);
    let _connection = machine.connect(&server, Behavior::Obey).await;
    client.wait_for(&later, "Succeeded").await;
    assert!(machine.is_restricted());
    let told = told(&client, &machine.id).await;
    assert!(told.iter().any(|(_, detail)| detail.contains("a restriction that was ordered later stands")));
}

#[tokio::test]
async fn codes_are_for_those_who_may_and_for_machines_that_hold_them() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let path = format!("/api/machines/{}/breakGlassCode", machine.id);
    let reason = server.admin().post_raw(&path, None, "").await.expect_error(403, "DisallowedOperation");
    assert!(reason.contains("not known to hold break-glass codes"), "{reason}");
    let permissions: Vec<_> =
        Permission::ALL.into_iter().filter(|held| *held != Permission::CordonBreakGlass).collect();
    let other = server.client(&permissions).await;
    other.post_raw(&path, None, "").await.expect_error(403, "Forbidden");
    let (machine, _connection) = holding(&server, "lab-043").await;
    let client = server.client(&[Permission::CordonBreakGlass]).await;
    // One was shown to see that the server knows of them.
    let mut codes = Vec::new();
    for _ in 1..BREAK_GLASS_CODES {
        codes.push(show(&client, &machine.id).await["code"].as_str().unwrap().to_owned());
    }
    codes.dedup();
    assert_eq!(codes.len(), BREAK_GLASS_CODES - 1);
    let path = format!("/api/machines/{}/breakGlassCode", machine.id);
    let reason = client.post_raw(&path, None, "").await.expect_error(403, "DisallowedOperation");
    assert!(reason.contains("was shown or used"), "{reason}");
}
