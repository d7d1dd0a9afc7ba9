//! Machine groups on the wire, and which machines show in them.

use serde_json::{Value, json};

use crate::harness::machine::{Behavior, Machine};
use crate::harness::server::TestServer;

const GROUPS: &str = "/api/cordon/v1/machineGroups";
const UNGROUPED: &str = "Ungrouped machines (default)";

fn names(list: &Value) -> Vec<&str> {
    list["value"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_group_is_what_was_put_and_takes_its_machines() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let machine = Machine::enroll(&server, "lab-1.example").await;
    let path = format!("{GROUPS}/Labs");
    let rule = json!([
        {"property": "name", "operator": "startsWith", "value": "lab"},
        {"property": "domain", "operator": "equals", "value": "example"},
    ]);
    let document = json!({
        "name": "Labs", "description": "all labs", "rule": rule, "userGroups": ["soc"], "policy": "default",
    });
    let preview = admin.post(&format!("{path}/preview"), &document).await.expect_status(200);
    let expected = json!({
        "machines": 1, "joining": 1, "leaving": 0,
        "examples": [{"id": machine.id, "computerDnsName": "lab-1.example"}],
    });
    assert_eq!(preview, expected);
    admin.get(&path).await.expect_error(404, "ResourceNotFound");
    let group = admin.put(&path, &document).await.expect_status(200);
    let mut expected = document.clone();
    (expected["id"], expected["rank"], expected["machines"]) = (group["id"].clone(), json!(1), json!(1));
    assert_eq!(group, expected);
    assert_eq!(admin.get(&path).await.expect_status(200), expected);
    let seen = admin.machine(&machine.id).await;
    assert_eq!((&seen["rbacGroupId"], &seen["rbacGroupName"]), (&group["id"], &json!("Labs")));
    // A connection under another name, and back.
    let _connection = machine.connect(&server, Behavior::Obey).await;
    let renamed = json!({"name": "Laboratories", "rule": rule, "rank": 1});
    let group = admin.put(&path, &renamed).await.expect_status(200);
    assert_eq!((&group["id"], &group["policy"]), (&expected["id"], &Value::Null));
    admin.get(&path).await.expect_error(404, "ResourceNotFound");
    assert_eq!(admin.machine(&machine.id).await["rbacGroupName"], "Laboratories");
    assert_eq!(admin.delete(&format!("{GROUPS}/Laboratories")).await.status, 204);
    let seen = admin.machine(&machine.id).await;
    assert_eq!((&seen["rbacGroupId"], &seen["rbacGroupName"]), (&json!(0), &json!(UNGROUPED)));
}

#[tokio::test]
async fn groups_are_listed_by_rank_and_tags_move_machines() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let machine = Machine::enroll(&server, "lab-1").await;
    server.machine_group("labs", "lab", &[]).await;
    let rule = json!([{"property": "tag", "operator": "equals", "value": "finance"}]);
    let finance = json!({"name": "finance", "rank": 1, "rule": rule});
    admin.put(&format!("{GROUPS}/finance"), &finance).await.expect_status(200);
    assert_eq!(names(&admin.get(GROUPS).await.expect_status(200)), ["finance", "labs", UNGROUPED]);
    let tags = format!("/api/machines/{}/tags", machine.id);
    for (action, group) in [("Add", "finance"), ("Remove", "labs")] {
        let body = json!({"Value": "Finance", "Action": action});
        let seen = admin.post(&tags, &body).await.expect_status(200);
        assert_eq!(seen["rbacGroupName"], group);
        let filter = format!("/api/machines?$filter=rbacGroupName eq '{group}'");
        assert_eq!(admin.get(&filter).await.expect_status(200)["value"][0]["id"], machine.id);
    }
    // A group that is not the last leaves its rank to the next.
    assert_eq!(admin.delete(&format!("{GROUPS}/finance")).await.status, 204);
    let list = admin.get(GROUPS).await.expect_status(200);
    assert_eq!((&list["value"][0]["name"], &list["value"][0]["rank"]), (&json!("labs"), &json!(1)));
}

#[tokio::test]
async fn a_group_that_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{GROUPS}/lab");
    let rule = |property: &str, operator: &str, value: &str| json!({"name": "lab", "rule": [{"property": property, "operator": operator, "value": value}]});
    server.machine_group("taken", "x", &[]).await;
    for (body, code) in [
        (json!({}), "MissingRequiredParameter"),
        (json!({"name": ""}), "InvalidInput"),
        (json!({"name": "lab", "rank": 0}), "InvalidInput"),
        (json!({"name": "lab", "policy": "nowhere"}), "InvalidInput"),
        (json!({"name": "taken"}), "InvalidInput"),
        (rule("color", "equals", "x"), "InvalidInput"),
        (rule("name", "matches", "x"), "InvalidInput"),
        (rule("name", "equals", ""), "InvalidInput"),
        (json!({"name": "lab", "rank": -1}), "InvalidRequestBody"),
        (json!({"name": "lab", "rule": [{"property": "name"}]}), "InvalidRequestBody"),
        (json!({"name": "lab", "Rank": 1}), "InvalidRequestBody"),
    ] {
        admin.put(&path, &body).await.expect_error(400, code);
        admin.post(&format!("{path}/preview"), &body).await.expect_error(400, code);
    }
    admin.get(&path).await.expect_error(404, "ResourceNotFound");
    let built_in = format!("{GROUPS}/Ungrouped%20machines%20(default)");
    admin.delete(&built_in).await.expect_error(403, "DisallowedOperation");
    admin.put(&built_in, &json!({"name": "other"})).await.expect_error(403, "DisallowedOperation");
    admin
        .put(&built_in, &json!({"name": UNGROUPED, "rank": 1}))
        .await
        .expect_error(403, "DisallowedOperation");
    let changed =
        admin.put(&built_in, &json!({"name": UNGROUPED, "userGroups": ["soc"]})).await.expect_status(200);
    assert_eq!(
        (&changed["id"], &changed["rank"], &changed["userGroups"]),
        (&json!(0), &Value::Null, &json!(["soc"]))
    );
}
