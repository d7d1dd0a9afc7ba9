//! Accounts on the wire: made, listed, changed, deleted.

use serde_json::{Value, json};

use crate::harness::client::Reply;
use crate::harness::server::TestServer;

const USERS: &str = "/api/cordon/v1/users";

#[tokio::test]
async fn an_account_has_every_field() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let body = json!({
        "name": "Ann@example.org", "displayName": "Ann", "groups": ["soc", "admins"],
        "password": "correct horse battery staple",
    });
    let made = admin.post(USERS, &body).await.expect_status(201);
    let (id, created) = (made["id"].clone(), made["creationDateTimeUtc"].clone());
    assert!(id.as_str().unwrap().parse::<uuid::Uuid>().is_ok() && created.is_string());
    let mut expected = json!({
        "id": id, "name": "ann@example.org", "displayName": "Ann", "groups": ["admins", "soc"], "enabled": true,
        "creationDateTimeUtc": created, "passwordDateTimeUtc": created, "lockedUntilDateTimeUtc": null,
        "password": null,
    });
    assert_eq!(made, expected);
    expected.as_object_mut().unwrap().remove("password");
    for name in ["ann@example.org", "ANN@Example.org", "ann%40example.org"] {
        assert_eq!(admin.get(&format!("{USERS}/{name}")).await.expect_status(200), expected);
    }
    assert_eq!(admin.get(USERS).await.expect_status(200), json!({"value": [expected]}));
}

#[tokio::test]
async fn a_password_that_is_made_is_shown_once_and_signs_in() {
    let server = TestServer::with_people().await;
    let admin = server.admin();
    let made = admin.post(USERS, &json!({"name": "ann"})).await.expect_status(201);
    let password = made["password"].as_str().unwrap();
    assert!(!admin.get(&format!("{USERS}/ann")).await.text.contains(password));
    assert!(!admin.get("/api/cordon/v1/auditEntries").await.text.contains(password));
    let app = domain::app::CLI_APP_ID.to_string();
    let scope = format!("{}/Machine.Read", server.url());
    let form = [
        ("grant_type", "password"),
        ("client_id", app.as_str()),
        ("username", "ann"),
        ("password", password),
        ("scope", &scope),
    ];
    Reply::of(server.http.post(server.token_url("/v2.0")).form(&form)).await.expect_status(200);
}

#[tokio::test]
async fn what_a_patch_leaves_out_stays() {
    let server = TestServer::start().await;
    let admin = server.admin();
    server.account("ann", &["soc"]).await;
    let path = format!("{USERS}/ann");
    let before = admin.get(&path).await.expect_status(200);
    // A null is no value either.
    for nothing in
        [json!({}), json!({"displayName": null, "groups": null, "enabled": null, "password": null})]
    {
        assert_eq!(admin.patch(&path, &nothing).await.expect_status(200), before);
    }
    for (change, field) in [
        (json!({"displayName": "Ann"}), "displayName"),
        (json!({"groups": []}), "groups"),
        (json!({"enabled": false}), "enabled"),
    ] {
        let before = admin.get(&path).await.expect_status(200);
        let changed = admin.patch(&path, &change).await.expect_status(200);
        assert_eq!(changed[field], change[field]);
        let mut expected = before;
        expected[field] = change[field].clone();
        if field == "enabled" {
            // What was granted before is not to come back.
            expected["passwordDateTimeUtc"] = changed["passwordDateTimeUtc"].clone();
        }
        assert_eq!(changed, expected);
    }
    let changed = admin.patch(&path, &json!({"password": "a quite new password"})).await.expect_status(200);
    assert!(changed["passwordDateTimeUtc"].as_str() > before["passwordDateTimeUtc"].as_str());
    assert_eq!(admin.delete(&path).await.status, 204);
    for reply in [admin.get(&path).await, admin.patch(&path, &json!({})).await, admin.delete(&path).await] {
        assert_eq!(reply.expect_error(404, "ResourceNotFound"), "User ann was not found");
    }
}

#[tokio::test]
async fn an_account_that_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    server.account("ann", &[]).await;
    for (body, code) in [
        (json!({}), "MissingRequiredParameter"),
        (json!({"name": null}), "MissingRequiredParameter"),
        (json!({"name": " "}), "InvalidInput"),
        (json!({"name": "a b"}), "InvalidInput"),
        (json!({"name": "ANN"}), "InvalidInput"),
        (json!({"name": "bob", "password": "too short"}), "InvalidInput"),
        (json!({"name": "bob", "groups": [""]}), "InvalidInput"),
        (json!({"name": "bob", "groups": "soc"}), "InvalidRequestBody"),
        (json!({"Name": "bob"}), "InvalidRequestBody"),
    ] {
        let message = admin.post(USERS, &body).await.expect_error(400, code);
        assert!(!message.is_empty() && !message.contains("too short"), "{body}: {message}");
    }
    for (body, code) in [
        (json!({"password": "too short"}), "InvalidInput"),
        (json!({"displayName": ""}), "InvalidInput"),
        (json!({"enabled": "no"}), "InvalidRequestBody"),
        (json!({"Enabled": false}), "InvalidRequestBody"),
    ] {
        admin.patch(&format!("{USERS}/ann"), &body).await.expect_error(400, code);
    }
    let list = admin.get(USERS).await.expect_status(200);
    assert_eq!(list["value"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["value"][0]["lockedUntilDateTimeUtc"], Value::Null);
}
