//! Applications: made, listed, revoked.

use domain::permission::Permission;
use serde_json::{Value, json};

use crate::harness::client::Reply;
use crate::harness::server::TestServer;

const APPS: &str = "/api/cordon/v1/apps";

#[tokio::test]
async fn an_app_can_do_what_it_was_made_for() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let body = json!({"name": "connector", "permissions": ["Machine.Read.All", "Machine.RestrictExecution"]});
    let made = admin.post(APPS, &body).await.expect_status(201);
    let keys: Vec<_> = made.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys,
        [
            "bulkMachinesMax",
            "creationDateTimeUtc",
            "id",
            "machineGroupIds",
            "name",
            "permissions",
            "public",
            "redirectUris",
            "revokedDateTimeUtc",
            "secret"
        ]
    );
    assert_eq!((&made["name"], &made["permissions"]), (&body["name"], &body["permissions"]));
    let client = server.login(made["id"].as_str().unwrap(), made["secret"].as_str().unwrap()).await;
    client.get("/api/machines").await.expect_status(200);
    client.get(APPS).await.expect_error(403, "Forbidden");
}

#[tokio::test]
async fn a_secret_is_shown_once() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let body = json!({"name": "connector", "permissions": ["Machine.Read.All"]});
    let made = admin.post(APPS, &body).await.expect_status(201);
    let list = admin.get(APPS).await;
    assert!(!list.text.contains(made["secret"].as_str().unwrap()) && !list.text.contains("secret"));
    let names: Vec<_> =
        list.body["value"].as_array().unwrap().iter().map(|app| app["name"].clone()).collect();
    assert_eq!(names, ["administrator", "connector"]);
}

#[tokio::test]
async fn a_revoked_app_is_out_at_once_and_for_good() {
    let mut server = TestServer::start().await;
    let client = server.client(&[Permission::MachineReadAll]).await;
    client.get("/api/machines").await.expect_status(200);
    let path = format!("{APPS}/{}", client.app);
    let reply = server.admin().delete(&path).await;
    assert_eq!((reply.status, reply.text.as_str()), (204, ""));
    client.get("/api/machines").await.expect_error(401, "Unauthorized");
    server.admin().delete(&path).await.expect_error(404, "ResourceNotFound");
    server.stop().await;
    server.run().await;
    client.get("/api/machines").await.expect_error(401, "Unauthorized");
    let list = server.admin().get(APPS).await.expect_status(200);
    let revoked =
        list["value"].as_array().unwrap().iter().find(|app| app["id"] == client.app.as_str()).unwrap();
    assert!(revoked["revokedDateTimeUtc"].is_string());
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let server = TestServer::start().await;
    let path = format!("{APPS}/{}", server.initialized.client_id);
    server.admin().delete(&path).await.expect_error(400, "BadRequest");
    let other = server.client(&[Permission::CordonAdminister]).await;
    assert_eq!(other.delete(&path).await.status, 204);
}

#[tokio::test]
async fn an_app_that_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let all = ["Machine.Read.All"];
    for (body, code) in [
        (json!({"permissions": all}), "MissingRequiredParameter"),
        (json!({"name": "x"}), "MissingRequiredParameter"),
        (json!({"name": null, "permissions": all}), "MissingRequiredParameter"),
        (json!({"name": " ", "permissions": all}), "InvalidInput"),
        (json!({"name": "x".repeat(129), "permissions": all}), "InvalidInput"),
        (json!({"name": "a\nb", "permissions": all}), "InvalidInput"),
        (json!({"name": "x", "permissions": []}), "InvalidInput"),
        (json!({"name": "x", "permissions": ["Everything"]}), "InvalidInput"),
        (json!({"name": "x", "permissions": "Machine.Read.All"}), "InvalidRequestBody"),
        (json!({"Name": "x", "permissions": all}), "InvalidRequestBody"),
        (json!({"name": "administrator", "permissions": all}), "InvalidInput"),
    ] {
        let message = admin.post(APPS, &body).await.expect_error(400, code);
        assert!(!message.is_empty(), "{body}");
    }
    assert_eq!(admin.get(APPS).await.expect_status(200)["value"].as_array().unwrap().len(), 1);
    for id in ["00000000-0000-0000-0000-000000000000", "nonsense"] {
        admin.delete(&format!("{APPS}/{id}")).await.expect_error(404, "ResourceNotFound");
    }
}

#[tokio::test]
async fn a_wrong_secret_gets_no_token() {
    let server = TestServer::start().await;
    let client = server.client(&[Permission::MachineReadAll]).await;
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", client.app.as_str()),
        ("client_secret", "cordon-secret-wrong"),
        ("scope", "https://api.securitycenter.microsoft.com/.default"),
    ];
    let reply = Reply::of(server.http.post(server.token_url("/v2.0")).form(&form)).await;
    assert_eq!(reply.expect_status(401)["error"], Value::from("invalid_client"));
}

#[tokio::test]
async fn an_app_is_changed_and_the_token_that_is_out_follows() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let client = server.client(&[Permission::MachineReadAll]).await;
    let path = format!("{APPS}/{}", client.app);
    server.machine_group("Labs", "lab", &[]).await;
    let before = admin.get(&path).await.expect_status(200);
    assert_eq!((&before["machineGroupIds"], &before["bulkMachinesMax"]), (&Value::Null, &Value::Null));
    let document = json!({
        "name": "other", "permissions": ["Cordon.Administer"], "redirectUris": ["https://soar.example/callback"],
        "machineGroups": ["Labs"], "bulkMachinesMax": 7,
    });
    let changed = admin.put(&path, &document).await.expect_status(200);
    let group = admin.get("/api/cordon/v1/machineGroups/Labs").await.expect_status(200)["id"].clone();
    let mut expected = before;
    for (name, value) in [
        ("name", json!("other")),
        ("permissions", json!(["Cordon.Administer"])),
        ("redirectUris", json!(["https://soar.example/callback"])),
        ("machineGroupIds", json!([group])),
        ("bulkMachinesMax", json!(7)),
    ] {
        expected[name] = value;
    }
    assert_eq!(changed, expected);
    assert_eq!(admin.get(&path).await.expect_status(200), expected);
    // The token names a permission that the app lost, and not the one that it got.
    client.get("/api/machines").await.expect_error(403, "Forbidden");
    client.get(APPS).await.expect_error(403, "Forbidden");
    for (body, code) in [
        (json!({"name": "other", "permissions": ["Cordon.Administer"], "public": true}), "InvalidInput"),
        (json!({"name": "administrator", "permissions": ["Cordon.Administer"]}), "InvalidInput"),
        (json!({"name": "x", "permissions": ["Cordon.Administer"], "machineGroups": ["x"]}), "InvalidInput"),
        (
            json!({"name": "x", "permissions": ["Cordon.Administer"], "redirectUris": ["http://x/"]}),
            "InvalidInput",
        ),
    ] {
        admin.put(&path, &body).await.expect_error(400, code);
    }
    for reply in [
        admin.get(&format!("{APPS}/nonsense")).await,
        admin.put(&format!("{APPS}/nonsense"), &document).await,
    ] {
        reply.expect_error(404, "ResourceNotFound");
    }
    assert_eq!(admin.delete(&path).await.status, 204);
    admin.put(&path, &document).await.expect_error(400, "BadRequest");
}

#[tokio::test]
async fn a_renewed_secret_is_the_only_one() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let body = json!({"name": "connector", "permissions": ["Machine.Read.All"]});
    let made = admin.post(APPS, &body).await.expect_status(201);
    let (id, old) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    let path = format!("{APPS}/{id}/secret");
    let renewed = admin.post(&path, &json!({})).await.expect_status(201);
    server.login(id, renewed["secret"].as_str().unwrap()).await;
    let form = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", old)];
    let reply = Reply::of(server.http.post(server.token_url("/v2.0")).form(&form)).await;
    assert_eq!(reply.status, 401, "{}", reply.text);
    let public = json!({"name": "cli", "permissions": ["Machine.Read.All"], "public": true});
    let public = admin.post(APPS, &public).await.expect_status(201);
    assert_eq!((&public["public"], &public["secret"]), (&json!(true), &Value::Null));
    let path = format!("{APPS}/{}/secret", public["id"].as_str().unwrap());
    admin.post(&path, &json!({})).await.expect_error(400, "BadRequest");
}

#[tokio::test]
async fn keys_are_added_listed_and_removed() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let app = server.client(&[Permission::MachineReadAll]).await.app;
    let path = format!("{APPS}/{app}/keys");
    let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().public_key_pem();
    let added = admin.post(&path, &json!({"pem": pem, "comment": "laptop"})).await.expect_status(201);
    assert_eq!((&added["comment"], &added["x5t"]), (&json!("laptop"), &Value::Null));
    assert_eq!(
        (added["thumbprint"].as_str().map(str::len), &added["expiryDateTimeUtc"]),
        (Some(64), &Value::Null)
    );
    assert_eq!(admin.get(&path).await.expect_status(200), json!({"value": [added]}));
    admin.post(&path, &json!({"pem": pem})).await.expect_error(400, "InvalidInput");
    admin.post(&path, &json!({"pem": "nonsense"})).await.expect_error(400, "InvalidInput");
    admin.post(&path, &json!({})).await.expect_error(400, "MissingRequiredParameter");
    let key = format!("{path}/{}", added["thumbprint"].as_str().unwrap());
    assert_eq!(admin.delete(&key).await.status, 204);
    admin.delete(&key).await.expect_error(404, "ResourceNotFound");
    admin.get(&format!("{APPS}/nonsense/keys")).await.expect_error(404, "ResourceNotFound");
}
