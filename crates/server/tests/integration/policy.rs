//! Allow policies: applied, fetched, and sent to machines ahead of time.

use serde_json::json;

use crate::harness::machine::Machine;
use crate::harness::server::TestServer;

const POLICIES: &str = "/api/cordon/v1/policies";

#[tokio::test]
async fn every_server_has_the_default_policy() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let list = admin.get(POLICIES).await.expect_status(200);
    let policy = admin.get(&format!("{POLICIES}/default")).await.expect_status(200);
    assert_eq!(list["value"], json!([policy]));
    assert_eq!((&policy["name"], &policy["profile"]), (&json!("default"), &json!("os+approved")));
    assert_eq!((&policy["rules"], &policy["revision"]), (&json!([]), &json!(1)));
    assert_eq!(policy["digest"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn what_is_applied_is_fetched() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let rules = json!([
        {"id": "a-tool", "effect": "allow", "sha256": "ab".repeat(32), "comment": "why"},
        {"id": "b-bad", "effect": "deny", "sha256": "cd".repeat(32), "path": "/opt/bad"},
    ]);
    let document = json!({"name": "default", "profile": "os-only", "rules": rules});
    let path = format!("{POLICIES}/default");
    let applied = admin.put(&path, &document).await.expect_status(200);
    assert_eq!((&applied["revision"], &applied["rules"]), (&json!(2), &rules));
    assert_eq!(applied["lastUpdateBy"], admin.app.as_str());
    assert_eq!(admin.get(&path).await.expect_status(200), applied);
    // Saying the same again changes nothing.
    assert_eq!(admin.put(&path, &document).await.expect_status(200), applied);
}

#[tokio::test]
async fn a_machine_holds_the_policy_before_the_order_that_names_it() {
    let server = TestServer::start().await;
    let admin = server.admin();
    // The machine of these tests insists on it.
    let (machine, _connection) = Machine::online(&server, "lab-042").await;
    for revision in 2..5 {
        let rules = json!([{"id": format!("r{revision}"), "effect": "allow", "sha256": "ab".repeat(32)}]);
        let document = json!({"name": "default", "rules": rules});
        let applied = admin.put(&format!("{POLICIES}/default"), &document).await.expect_status(200);
        let action = admin.restrict(&machine.id).await.expect_status(201);
        admin.wait_for(&action, "Succeeded").await;
        let path = format!("/api/cordon/v1/machineactions/{}/receipt", action["id"].as_str().unwrap());
        let receipt = admin.get(&path).await.expect_status(200);
        assert_eq!(receipt["payload"]["policy"], applied["digest"]);
    }
}

#[tokio::test]
async fn a_policy_that_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let rule = |rule: serde_json::Value| json!({"name": "lab", "rules": [rule]});
    let sha256 = "ab".repeat(32);
    for (body, code) in [
        (json!({}), "MissingRequiredParameter"),
        (json!({"name": "other"}), "InvalidInput"),
        (json!({"name": "lab", "profile": "everything"}), "InvalidInput"),
        (json!({"name": "lab", "rules": {}}), "InvalidRequestBody"),
        (json!({"name": "lab", "Rules": []}), "InvalidRequestBody"),
        (json!({"name": "lab", "rule": []}), "InvalidRequestBody"),
        (rule(json!({"id": "a", "effect": "allow"})), "InvalidRequestBody"),
        (
            rule(json!({"id": "a", "effect": "allow", "sha256": sha256, "when": "always"})),
            "InvalidRequestBody",
        ),
        (rule(json!({"id": "a", "effect": "allow", "sha256": "ab"})), "InvalidInput"),
        (rule(json!({"id": "a", "effect": "maybe", "sha256": sha256})), "InvalidInput"),
        (rule(json!({"id": "a", "effect": "allow", "sha256": sha256, "path": "bin/a"})), "InvalidInput"),
        (rule(json!({"id": "", "effect": "allow", "sha256": sha256})), "InvalidInput"),
    ] {
        let message = admin.put(&format!("{POLICIES}/lab"), &body).await.expect_error(400, code);
        assert!(!message.is_empty(), "{body}");
    }
    admin.get(&format!("{POLICIES}/lab")).await.expect_error(404, "ResourceNotFound");
    let upper = admin.put(&format!("{POLICIES}/LAB"), &json!({"name": "LAB"})).await;
    upper.expect_error(400, "InvalidInput");
}

#[tokio::test]
async fn a_large_policy_is_taken_and_a_larger_one_is_not() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let document = |rules: u32| {
        let rules: Vec<_> = (0..rules)
            .map(|n| json!({"id": format!("rule-{n}"), "effect": "allow", "sha256": format!("{n:064x}")}))
            .collect();
        json!({"name": "large", "rules": rules})
    };
    let path = format!("{POLICIES}/large");
    let applied = admin.put(&path, &document(10_000)).await.expect_status(200);
    assert_eq!(applied["rules"].as_array().unwrap().len(), 10_000);
    admin.put(&path, &document(10_001)).await.expect_error(400, "InvalidInput");
}
