//! Enrollment tokens: made, listed, revoked, and ready to use.

use agent_protocol::ENROLL_PATH;
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use crate::harness::client::Reply;
use crate::harness::server::TestServer;

const TOKENS: &str = "/api/cordon/v1/enrollmentTokens";

async fn enroll(server: &TestServer, secret: &str) -> Reply {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let gate = orders::SigningKey::generate().unwrap().public_key().to_string();
    let body = json!({
        "token": secret, "certificate_request": request, "gate_public_key": gate, "computer_dns_name": "lab-042",
    });
    Reply::of(server.http.post(format!("{}{ENROLL_PATH}", server.url())).json(&body)).await
}

#[tokio::test]
async fn a_token_comes_with_the_command_to_run() {
    let server = TestServer::start().await;
    let body = json!({"usesMax": 2, "expiresInSeconds": 3600, "comment": "rack 7"});
    let made = server.admin().post(TOKENS, &body).await.expect_status(201);
    let secret = made["secret"].as_str().unwrap();
    let command = format!(
        "cordon-agent enroll --server {} --token {secret} --ca-pin {}",
        server.url(),
        server.initialized.ca_pin
    );
    assert_eq!(made["command"], command);
    assert_eq!((&made["comment"], &made["usesMax"], &made["uses"]), (&json!("rack 7"), &json!(2), &json!(0)));
    assert_eq!(enroll(&server, secret).await.status, 200);

    let list = server.admin().get(TOKENS).await;
    assert!(!list.text.contains(secret));
    let listed =
        list.body["value"].as_array().unwrap().iter().find(|token| token["id"] == made["id"]).unwrap();
    assert_eq!(listed["uses"], 1);
}

#[tokio::test]
async fn a_token_admits_as_many_machines_as_it_says() {
    let server = TestServer::start().await;
    let body = json!({"usesMax": 1, "expiresInSeconds": 3600});
    let made = server.admin().post(TOKENS, &body).await.expect_status(201);
    let secret = made["secret"].as_str().unwrap();
    assert_eq!(enroll(&server, secret).await.status, 200);
    enroll(&server, secret).await.expect_error(401, "Unauthorized");
}

#[tokio::test]
async fn a_revoked_token_admits_nobody() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let made = admin.post(TOKENS, &json!({"usesMax": 1, "expiresInSeconds": 3600})).await.expect_status(201);
    let path = format!("{TOKENS}/{}", made["id"].as_str().unwrap());
    assert_eq!(admin.delete(&path).await.status, 204);
    admin.delete(&path).await.expect_error(404, "ResourceNotFound");
    enroll(&server, made["secret"].as_str().unwrap()).await.expect_error(401, "Unauthorized");
    let list = admin.get(TOKENS).await.expect_status(200);
    let listed = list["value"].as_array().unwrap().iter().find(|token| token["id"] == made["id"]).unwrap();
    assert!(listed["revokedDateTimeUtc"].is_string());
}

#[tokio::test]
async fn a_token_that_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    for (body, code) in [
        (json!({"expiresInSeconds": 60}), "MissingRequiredParameter"),
        (json!({"usesMax": 1}), "MissingRequiredParameter"),
        (json!({"usesMax": 0, "expiresInSeconds": 60}), "InvalidInput"),
        (json!({"usesMax": 100_001, "expiresInSeconds": 60}), "InvalidInput"),
        (json!({"usesMax": 1, "expiresInSeconds": 59}), "InvalidInput"),
        (json!({"usesMax": 1, "expiresInSeconds": 31_536_001}), "InvalidInput"),
        (json!({"usesMax": 1, "expiresInSeconds": u64::MAX}), "InvalidInput"),
        (json!({"usesMax": -1, "expiresInSeconds": 60}), "InvalidRequestBody"),
        (json!({"usesMax": 1.5, "expiresInSeconds": 60}), "InvalidRequestBody"),
        (json!({"usesMax": 1, "expiresInSeconds": 60, "comment": "x".repeat(257)}), "InvalidInput"),
        (json!({"usesmax": 1, "expiresInSeconds": 60}), "InvalidRequestBody"),
    ] {
        let message = server.admin().post(TOKENS, &body).await.expect_error(400, code);
        assert!(!message.is_empty(), "{body}");
    }
}
