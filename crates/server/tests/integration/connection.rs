//! Connections that misbehave: too slow, too large, not HTTP.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::machine::Machine;
use crate::harness::server::TestServer;

/// A bare TLS connection to the API.
async fn connect(server: &TestServer) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&server.initialized.ca_certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(server.config.listen).await.unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), tcp)
        .await
        .unwrap()
}

/// Everything that the server says until it closes, or an envelope has come.
async fn reply(connection: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = connection.read(&mut buffer).await {
            bytes.extend_from_slice(&buffer[..length]);
            if bytes.ends_with(b"}}") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

fn head(server: &TestServer, path: &str, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n{more}\r\n",
        server.admin().token
    )
}

#[tokio::test]
async fn a_slow_client_holds_up_nobody() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let path = format!("/api/machines/{}/restrictCodeExecution", machine.id);
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut connection = connect(&server).await;
        let start = head(&server, &path, "Content-Length: 20\r\n") + "{";
        connection.write_all(start.as_bytes()).await.unwrap();
        connection.flush().await.unwrap();
        slow.push(connection);
    }
    let client = server.admin();
    let answered = tokio::time::timeout(Duration::from_secs(5), client.restrict(&machine.id)).await;
    answered.expect("the server is held up").expect_status(201);
    // A client that was slow and goes on is served all the same.
    let mut last = slow.pop().unwrap();
    last.write_all(b"\"Comment\": \"finally\"").await.unwrap();
    assert!(reply(&mut last).await.contains("InvalidRequestBody"), "the body was cut off at its length");
}

#[tokio::test]
async fn an_oversized_body_is_cut_off() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let path = format!("/api/machines/{}/restrictCodeExecution", machine.id);
    let body = format!("{{\"Comment\": \"{}\"}}", "x".repeat(1024 * 1024));
    let client = server.admin();
    let message = client.post_raw(&path, Some("application/json"), body.clone()).await;
    let message = message.expect_error(413, "InvalidRequestBody");
    assert!(message.contains("131072"), "{message}");

    // A length that is claimed, and no length at all.
    let chunk = format!("{:x}\r\n{}\r\n", 200_000, "x".repeat(200_000));
    for request in [
        head(&server, &path, "Content-Length: 99999999999\r\n") + "{",
        head(&server, &path, "Transfer-Encoding: chunked\r\n") + &chunk,
    ] {
        let mut connection = connect(&server).await;
        connection.write_all(request.as_bytes()).await.unwrap();
        let answer = reply(&mut connection).await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"error\""), "{answer}");
    }
    assert_eq!(client.get("/api/machineactions/$count").await.text, "0");
}

#[tokio::test]
async fn a_client_that_sends_everything_first_gets_its_answer() {
    let server = TestServer::start().await;
    let path = "/api/machines/nowhere/restrictCodeExecution";
    let body = "x".repeat(3_000_000);
    let length = format!("Content-Length: {}\r\n", body.len());
    let good = head(&server, path, &length);
    let bad = good.replacen("Bearer ", "Bearer x", 1);
    for (head, status) in [(good, "413"), (bad, "401")] {
        let mut connection = connect(&server).await;
        connection.write_all((head + &body).as_bytes()).await.unwrap();
        let answer = reply(&mut connection).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains("\"error\""),
            "{answer}"
        );
    }
    // HTTP/2 likewise.
    let client = server.admin().with_token("bad");
    client.post_raw(path, Some("application/json"), body).await.expect_error(401, "Unauthorized");
}

#[tokio::test]
async fn an_oversized_head_is_refused() {
    let server = TestServer::start().await;
    let mut connection = connect(&server).await;
    let request = head(&server, "/api/machines", &format!("X-Long: {}\r\n", "x".repeat(100_000)));
    // The server may close before everything is written.
    drop(connection.write_all(request.as_bytes()).await);
    let answer = reply(&mut connection).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    server.admin().get("/api/machines").await.expect_status(200);
}

#[tokio::test]
async fn what_is_not_http_hurts_nobody() {
    let server = TestServer::start().await;
    for garbage in
        [&b"\x00\x01\x02\x03\r\n\r\n"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\xff\xff\xff\xff"]
    {
        let mut connection = connect(&server).await;
        drop(connection.write_all(garbage).await);
        drop(connection.shutdown().await);
        let answer = reply(&mut connection).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    // Without TLS.
    let mut plain = TcpStream::connect(server.config.listen).await.unwrap();
    drop(plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await);
    drop(plain.read(&mut [0; 64]).await);
    server.admin().get("/api/machines").await.expect_status(200);
}
