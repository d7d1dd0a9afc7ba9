//! Bodies of requests: the contract's rules for JSON.

use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::machine::Machine;
use crate::harness::server::TestServer;

const JSON: Option<&str> = Some("application/json");

/// A server, and the path of a restrict that would succeed.
async fn fixture() -> (TestServer, Client, String) {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let path = format!("/api/machines/{}/restrictCodeExecution", machine.id);
    let client = server.admin();
    (server, client, path)
}

#[tokio::test]
async fn a_body_that_is_not_the_contracts_is_refused() {
    let (_server, client, path) = fixture().await;
    let deep = format!("{{\"Comment\": \"x\", \"Extra\": {}{}}}", "[".repeat(200), "]".repeat(200));
    for (body, says) in [
        ("", "EOF while parsing"),
        ("Comment", "expected value at line 1 column 1"),
        ("{\"Comment\": \"x\"", "EOF while parsing"),
        ("{\"Comment\": \"x\"} more", "trailing characters"),
        ("[]", "expected a map"),
        ("\"Comment\"", "expected a map"),
        ("null", "expected a map"),
        ("{\"Comment\": 5}", "invalid type: integer `5`, expected a string"),
        ("{\"Comment\": [\"x\"]}", "invalid type: sequence, expected a string"),
        ("{\"Comment\": true}", "invalid type: boolean `true`, expected a string"),
        ("{\"Comment\": \"a\", \"Comment\": \"b\"}", "duplicate field `Comment`"),
        ("{\"comment\": \"x\"}", "The key \"comment\" must be spelled \"Comment\""),
        ("{\"COMMENT\": \"x\"}", "The key \"COMMENT\" must be spelled \"Comment\""),
        ("{\"Comment\": \"x\", \"comment\": \"y\"}", "The key \"comment\" must be spelled \"Comment\""),
        (&deep, "recursion limit exceeded"),
    ] {
        let message = client.post_raw(&path, JSON, body).await.expect_error(400, "InvalidRequestBody");
        assert!(message.contains(says), "{body}: {message}");
    }
    let message = client.post_raw(&path, JSON, b"{\"Comment\": \"\xff\"}").await;
    message.expect_error(400, "InvalidRequestBody");
}

#[tokio::test]
async fn a_comment_is_required() {
    let (_server, client, path) = fixture().await;
    for body in
        [json!({}), json!({"Comment": null}), json!({"Comment": ""}), json!({"Comment": " \t\r\n\u{2003}"})]
    {
        let message = client.post(&path, &body).await.expect_error(400, "MissingRequiredParameter");
        assert_eq!(message, "Parameter Comment is missing", "{body}");
    }
}

#[tokio::test]
async fn a_comment_has_at_most_4000_characters() {
    let (_server, client, path) = fixture().await;
    let message = client.post(&path, &json!({"Comment": "ü".repeat(4001)})).await;
    assert!(message.expect_error(400, "InvalidInput").contains("4000"));
    let longest = "\u{1f980}".repeat(4000);
    // As a client writes it that escapes everything beyond ASCII: the longest body that the rules allow.
    let escaped = format!("{{\"Comment\": \"{}\"}}", "\\ud83e\\udd80".repeat(4000));
    let action = client.post_raw(&path, JSON, escaped).await.expect_status(201);
    assert_eq!(action["requestorComment"], longest);
}

#[tokio::test]
async fn unknown_keys_are_ignored() {
    let (_server, client, path) = fixture().await;
    let body = json!({"Comment": "x", "IsolationType": "Full", "extra": {"a": [1, 2]}});
    assert_eq!(client.post(&path, &body).await.expect_status(201)["requestorComment"], "x");
}

#[tokio::test]
async fn only_json_is_json() {
    let (_server, client, path) = fixture().await;
    let body = "{\"Comment\": \"x\"}";
    let message = client.post_raw(&path, None, body).await.expect_error(400, "InvalidRequestBody");
    assert_eq!(message, "The Content-Type header is missing: it must be application/json");
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ";"] {
        let reply = client.post_raw(&path, Some(content_type), body).await;
        let message = reply.expect_error(400, "InvalidRequestBody");
        assert!(message.ends_with("it must be application/json"), "{message}");
    }
    let reply = client.post_raw(&path, Some("Application/Json; charset=utf-8; odata=verbose"), body).await;
    reply.expect_status(201);
}

#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let (_server, client, path) = fixture().await;
    for body in ["", "{}", "{\"comment\": \"x\"}"] {
        assert_eq!(client.post_raw(&path, JSON, body).await.status, 400);
    }
    assert_eq!(client.get("/api/machineactions").await.expect_status(200)["value"], json!([]));
    assert_eq!(client.get("/api/machineactions/$count").await.expect_status(200), Value::from(0));
}
