//! Roles on the wire.

use serde_json::json;

use crate::harness::server::TestServer;

const ROLES: &str = "/api/cordon/v1/roles";

#[tokio::test]
async fn a_role_is_what_was_put() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{ROLES}/Tier%201");
    let role = json!({
        "name": "Tier 1", "description": "at night", "rights": ["View data", "Active remediation actions"],
        "userGroups": ["soc"], "bulkMachinesMax": 5,
    });
    assert_eq!(admin.put(&path, &role).await.expect_status(200), role);
    assert_eq!(admin.get(&path).await.expect_status(200), role);
    let list = admin.get(ROLES).await.expect_status(200);
    assert_eq!((&list["value"][0]["name"], &list["value"][1]), (&json!("Administrator"), &role));
    assert_eq!(list["value"][0]["rights"].as_array().map(Vec::len), Some(7));
    // What is left out of a document is empty.
    let plain = admin.put(&path, &json!({"name": "Tier 1"})).await.expect_status(200);
    let expected =
        json!({"name": "Tier 1", "description": "", "rights": [], "userGroups": [], "bulkMachinesMax": null});
    assert_eq!(plain, expected);
    assert_eq!(admin.delete(&path).await.status, 204);
    for reply in [admin.get(&path).await, admin.delete(&path).await] {
        assert_eq!(reply.expect_error(404, "ResourceNotFound"), "Role Tier 1 was not found");
    }
}

#[tokio::test]
async fn a_role_that_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{ROLES}/lab");
    for (body, code) in [
        (json!({}), "MissingRequiredParameter"),
        (json!({"name": "other"}), "InvalidInput"),
        (json!({"name": "lab", "rights": ["Everything"]}), "InvalidInput"),
        (json!({"name": "lab", "userGroups": [" "]}), "InvalidInput"),
        (json!({"name": "lab", "Rights": []}), "InvalidRequestBody"),
        (json!({"name": "lab", "right": []}), "InvalidRequestBody"),
        (json!({"name": "lab", "bulkMachinesMax": -1}), "InvalidRequestBody"),
    ] {
        admin.put(&path, &body).await.expect_error(400, code);
    }
    let built_in = format!("{ROLES}/Administrator");
    admin.delete(&built_in).await.expect_error(403, "DisallowedOperation");
    let fewer = json!({"name": "Administrator", "rights": ["View data"]});
    let message = admin.put(&built_in, &fewer).await.expect_error(403, "DisallowedOperation");
    assert_eq!(message, "The role Administrator holds every right");
    assert_eq!(admin.get(ROLES).await.expect_status(200)["value"].as_array().map(Vec::len), Some(1));
}
