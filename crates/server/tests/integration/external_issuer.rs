//! Tokens of other issuers: of a real provider of identities, and of issuers that fail. What attackers do to tokens is in
//! `token_attack`.

pub(crate) mod issuer;
mod provider;

use reqwest::redirect;
use serde_json::{Value, json};

use crate::harness::client::{Client, Reply};
use crate::harness::server::{TestServer, token_parts};
use crate::harness::wait_until;
use issuer::{CLIENT, TestIssuer, settings};
use provider::Provider;

const MACHINES: &str = "/api/machines";

/// What a person's browser does, and a client that is not ours.
fn browser() -> reqwest::Client {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let builder = reqwest::Client::builder().redirect(redirect::Policy::none()).no_proxy();
    builder.tls_certs_only([]).build().unwrap()
}

async fn server_with(issuers: Vec<cordon_server::config::IssuerSettings>) -> TestServer {
    TestServer::start_with(|config| config.issuers = issuers).await
}

async fn call(server: &TestServer, token: &str) -> Reply {
    server.admin().with_token(token).get(MACHINES).await
}

#[tokio::test]
async fn an_application_of_a_real_provider_calls_the_api() {
    for (algorithm, other) in [("RS256", "ES256"), ("ES256", "RS256")] {
        let provider = Provider::start(algorithm, browser());
        let with_algorithm =
            |name: &str| settings(&provider.url, &format!("applications = true\nalgorithms = [\"{name}\"]"));
        let server = server_with(vec![with_algorithm(algorithm)]).await;
        let token = provider.app_token().await;
        let (header, claims) = token_parts(&token);
        assert_eq!((&header["alg"], &header["typ"]), (&json!(algorithm), &json!("at+jwt")));
        assert_eq!((&claims["aud"], &claims["client_id"]), (&json!("api://cordon"), &json!(CLIENT)));
        call(&server, &token).await.expect_status(200);
        // It holds no more than its roles say.
        let client: Client = server.admin().with_token(token.as_str());
        client.get("/api/cordon/v1/apps").await.expect_error(403, "Forbidden");
        // Its key is there, and its algorithm is not pinned.
        let server = server_with(vec![with_algorithm(other)]).await;
        let message = call(&server, &token).await.expect_error(401, "Unauthorized");
        assert!(message.contains(&format!("not signed with {other}")), "{message}");
    }
}

#[tokio::test]
async fn a_person_signs_in_at_a_real_provider() {
    let provider = Provider::start("RS256", browser());
    let server = server_with(vec![settings(&provider.url, "applications = true")]).await;
    let token = provider.user_token("ann", "Machine.Read Machine.RestrictExecution").await;
    let (_, claims) = token_parts(&token);
    assert_eq!(claims["scope"], "Machine.Read Machine.RestrictExecution");
    assert_eq!(claims["groups"], json!(["responders", "tier 2"]));
    assert_eq!((&claims["sub"], &claims["client_id"]), (&json!("ann"), &json!("console")));
    // Nobody is allowed anything by a token alone: a role must be held by a group of the person's.
    call(&server, &token).await.expect_error(403, "Forbidden");
    let role = json!({"name": "Reader", "rights": ["View data"], "userGroups": ["responders"]});
    server.admin().put("/api/cordon/v1/roles/Reader", &role).await.expect_status(200);
    call(&server, &token).await.expect_status(200);
    // Neither by the role alone: the scope is needed too, and the roles of another group are not.
    let narrow = provider.user_token("ann", "Machine.RestrictExecution").await;
    let message = call(&server, &narrow).await.expect_error(403, "Forbidden");
    assert!(message.contains("Missing application scopes"), "{message}");
    let bob = provider.user_token("bob", "Machine.Read").await;
    call(&server, &bob).await.expect_error(403, "Forbidden");
    // Another server may refuse the people of this issuer.
    let server = server_with(vec![settings(&provider.url, "applications = true\nusers = false")]).await;
    let message = call(&server, &token).await.expect_error(401, "Unauthorized");
    assert!(message.contains("people of its issuer cannot act here"), "{message}");
}

#[tokio::test]
async fn applications_of_another_issuer_act_only_where_it_is_said() {
    let issuer = TestIssuer::start().await;
    let server = server_with(vec![settings(&issuer.url, "")]).await;
    let message = call(&server, &issuer.forger.token()).await.expect_error(401, "Unauthorized");
    assert!(message.contains("applications of its issuer cannot act for themselves"), "{message}");
    let server = server_with(vec![issuer.settings()]).await;
    call(&server, &issuer.forger.token()).await.expect_status(200);
    // Neither roles nor scopes: nothing is granted.
    let nothing = issuer.forger.with_claim("roles", Value::Null);
    call(&server, &nothing).await.expect_error(403, "Forbidden");
    // An issuer that is not configured.
    let stranger = TestIssuer::start().await;
    let message = call(&server, &stranger.forger.token()).await.expect_error(401, "Unauthorized");
    assert!(message.contains("key is unknown"), "{message}");
}

#[tokio::test]
async fn an_issuer_that_is_down_is_503_until_it_is_back() {
    let issuer = TestIssuer::start().await;
    issuer.set_down();
    let server = server_with(vec![issuer.settings()]).await;
    let token = issuer.forger.token();
    let reply = call(&server, &token).await;
    let retry_after: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&retry_after), "{retry_after}");
    let message = reply.expect_error(503, "ServiceUnavailable");
    assert!(message.contains("keys of the token's issuer"), "{message}");
    // Tokens of the embedded issuer count all the while.
    server.admin().get(MACHINES).await.expect_status(200);
    issuer.publish(&[&issuer.forger.key.jwk]);
    wait_until("the issuer is asked again", async || call(&server, &token).await.status == 200).await;
    // Known keys outlive the next outage.
    issuer.set_down();
    call(&server, &token).await.expect_status(200);
}

#[tokio::test]
async fn an_issuer_is_reached_over_tls_by_its_own_authority() {
    // Another server of ours is an issuer as any other.
    let issuer = TestServer::start().await;
    let url = format!("{}/{}/v2.0", issuer.url(), issuer.initialized.tenant);
    let audience = issuer.url().to_owned();
    let with_authority = |file: Option<&std::path::Path>| {
        let mut settings = settings(&url, "applications = true");
        settings.audiences = Some(vec![audience.clone()]);
        settings.ca_file = file.map(Into::into);
        vec![settings]
    };
    let token = issuer.admin().token;
    let server = server_with(with_authority(Some(&issuer.initialized.ca_certificate))).await;
    call(&server, &token).await.expect_status(200);
    // An authority that did not certify it.
    let server = server_with(with_authority(Some(&server.initialized.ca_certificate))).await;
    call(&server, &token).await.expect_error(503, "ServiceUnavailable");
    // A file without any: the server does not start.
    let empty = tempfile::NamedTempFile::new().unwrap();
    let stopped = TestServer::stopped(|config| config.issuers = with_authority(Some(empty.path()))).await;
    let error = cordon_server::server::Server::start(stopped.config.clone()).await.err().unwrap();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("ca_file") && cause.contains("there is none"), "{cause}");
}
