//! Impact previews: asked of the machine, kept, and shown to whom it may concern.

use domain::permission::Permission;
use serde_json::{Value, json};

use crate::harness::machine::{Behavior, Machine};
use crate::harness::server::TestServer;
use crate::harness::wait_until;

async fn fetch(server: &TestServer, path: &str) -> Value {
    server.admin().get(path).await.expect_status(200)
}

#[tokio::test]
async fn a_preview_is_made_by_the_machine_and_kept_for_its_policys_revision() {
    let server = TestServer::start().await;
    let (machine, connection) = Machine::online(&server, "lab-042").await;
    let path = "/api/machines/lab-042/impactPreview";
    let mut found = Value::Null;
    wait_until("the preview is there", async || {
        found = fetch(&server, path).await;
        found["state"] == "Ready"
    })
    .await;
    assert_eq!((&found["machineId"], &found["policy"]), (&machine.id.clone().into(), &"default".into()));
    assert_eq!((&found["policyRevision"], &found["unavailableReason"]), (&1.into(), &Value::Null));
    let preview = &found["preview"];
    assert_eq!((&preview["processes"], &preview["files"]), (&12.into(), &34.into()));
    assert_eq!((&preview["historyDays"], &preview["refusedFiles"]), (&Value::Null, &i64::MAX.into()));
    let expected = json!([{
        "path": "/home/ann/\\u{1b}tool", "sha256": "ab".repeat(32), "cause": "unlisted", "rule": null,
        "mappedOnly": false, "lastSeen": "2027-01-15T08:00:00.0000000Z", "executions": 0, "processes": 2,
        "processIds": [41, 42],
    }]);
    assert_eq!(preview["refused"], expected);
    // It outlives the connection.
    drop(connection);
    assert_eq!(fetch(&server, path).await["preview"]["refused"], expected);
}

#[tokio::test]
async fn a_policy_that_is_not_in_force_is_sent_before_its_preview_is_wanted() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let document = json!({"name": "night", "profile": "os-only", "rules": []});
    let put = server.admin().put("/api/cordon/v1/policies/night", &document).await;
    assert_eq!(put.status, 200);
    let _connection = machine.connect(&server, Behavior::Obey).await;
    let path = format!("/api/machines/{}/impactPreview?policy=night", machine.id);
    // The machine of the harness asserts the order of the frames.
    wait_until("the preview is there", async || fetch(&server, &path).await["state"] == "Ready").await;
}

#[tokio::test]
async fn what_cannot_be_previewed_is_said() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let path = format!("/api/machines/{}/impactPreview", machine.id);
    let offline = fetch(&server, &path).await;
    assert_eq!((&offline["state"], &offline["preview"]), (&"Unavailable".into(), &Value::Null));
    let admin = server.admin();
    for (query, message) in [
        ("?maxAge=9", "maxAge is not between 10 and 604800"),
        ("?maxAge=604801", "maxAge is not between 10 and 604800"),
        ("?maxage=60", "unknown field"),
    ] {
        let said = admin.get(&format!("{path}{query}")).await.expect_error(400, "InvalidInput");
        assert!(said.contains(message), "{said}");
    }
    let said = admin.get(&format!("{path}?policy=none")).await.expect_error(404, "ResourceNotFound");
    assert!(said.contains("Policy none"), "{said}");
    admin.get("/api/machines/nobody/impactPreview").await.expect_error(404, "ResourceNotFound");
    let restricting = server.client(&[Permission::MachineRestrictExecution]).await;
    restricting.get(&path).await.expect_error(403, "Forbidden");
}
