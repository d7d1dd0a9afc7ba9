//! Section 4: tokens.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use domain::app::CLI_APP_ID;
use domain::permission::Permission;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use reqwest::header::AUTHORIZATION;
use reqwest::redirect::Policy;
use serde_json::{Value, json};

use super::{PASSWORD, Place, VENDOR, app_form, ids, token};
use crate::external_issuer::issuer::TestIssuer;
use crate::harness::client::{Client, Reply};
use crate::harness::server::{TestServer, http_client, token_parts};

/// Gets a token for the administrator app, with these fields more.
async fn app_token(server: &TestServer, version: &str, more: &[(&str, &str)]) -> Value {
    let id = server.initialized.client_id.to_string();
    token(server, version, &app_form(server, &id, more)).await.expect_status(200)
}

/// Whether the API takes a token.
async fn call(client: &Client, token: impl Into<String>) -> Reply {
    client.with_token(token).get("/api/machines").await
}

#[tokio::test]
async fn s4_claims_of_applications() {
    let server = TestServer::start().await;
    let id = server.initialized.client_id.to_string();
    let scope = format!("{VENDOR}/.default");
    for (version, field, app_claim) in
        [("", ("resource", VENDOR), "appid"), ("/v2.0", ("scope", &scope), "azp")]
    {
        let reply = app_token(&server, version, &[field]).await;
        let (header, claims) = token_parts(reply["access_token"].as_str().unwrap());
        assert_eq!((&header["typ"], &header["alg"]), (&json!("JWT"), &json!("RS256")));
        assert!(
            claims["roles"].as_array().unwrap().contains(&json!("Machine.RestrictExecution")),
            "{claims}"
        );
        assert!(claims.get("scp").is_none(), "{claims}");
        assert_eq!((&claims["aud"], &claims[app_claim]), (&json!(VENDOR), &json!(id)));
        assert_eq!(claims["tid"], server.initialized.tenant.to_string());
        assert!(claims["iss"].is_string() && claims["exp"].is_i64() && claims["nbf"].is_i64(), "{claims}");
    }
}

#[tokio::test]
async fn s4_claims_of_people() {
    let place = Place::with_people().await;
    place.account("ann@lab.example", &["soc", "staff"]).await;
    let ann = place.sign_in("ann@lab.example", &["Machine.Read", "Machine.RestrictExecution"]).await;
    let (_, claims) = token_parts(&ann.token);
    assert_eq!(claims["scp"], "Machine.Read Machine.RestrictExecution");
    assert!(claims.get("roles").is_none(), "{claims}");
    let expected = json!({
        "aud": VENDOR, "azp": CLI_APP_ID, "upn": "ann@lab.example", "preferred_username": "ann@lab.example",
        "groups": ["soc", "staff"], "tid": place.server.initialized.tenant,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&claims[name], value, "{name}");
    }
    assert!(claims["oid"].as_str().unwrap().parse::<uuid::Uuid>().is_ok(), "{claims}");
}

#[tokio::test]
async fn s4_audiences() {
    let server =
        TestServer::start_with(|config| config.audiences = vec!["https://soar.example".to_owned()]).await;
    for audience in [
        "https://api.securitycenter.windows.com",
        "https://api.securitycenter.microsoft.com",
        "https://api.security.microsoft.com",
        "https://securitycenter.onmicrosoft.com/windowsatpservice",
        "https://soar.example",
        server.url(),
    ] {
        for audience in [audience.to_owned(), format!("{audience}/")] {
            let reply = app_token(&server, "", &[("resource", &audience)]).await;
            let token = reply["access_token"].as_str().unwrap();
            assert_eq!(token_parts(token).1["aud"], audience);
            call(&server.admin(), token).await.expect_status(200);
        }
    }
}

#[tokio::test]
async fn s4_issuers() {
    let (first, second) = (TestIssuer::start().await, TestIssuer::start().await);
    let stranger = TestIssuer::start().await;
    let server =
        TestServer::start_with(|config| config.issuers = vec![first.settings(), second.settings()]).await;
    for issuer in [&first, &second] {
        call(&server.admin(), issuer.forger.token()).await.expect_status(200);
    }
    call(&server.admin(), stranger.forger.token()).await.expect_error(401, "Unauthorized");
    server.admin().get("/api/machines").await.expect_status(200);
}

#[tokio::test]
async fn s4_algorithms() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (header, claims) = token_parts(&client.token);
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = json!({"alg": "none", "typ": "JWT", "kid": header["kid"]});
    call(&client, format!("{}.{}.", encoded(&none), encoded(&claims)))
        .await
        .expect_error(401, "Unauthorized");
    let mut hmac = Header::new(Algorithm::HS256);
    hmac.kid = header["kid"].as_str().map(str::to_owned);
    let secret = EncodingKey::from_secret(server.initialized.client_secret.as_bytes());
    let forged = jsonwebtoken::encode(&hmac, &claims, &secret).unwrap();
    let message = call(&client, forged).await.expect_error(401, "Unauthorized");
    assert!(message.contains("RS256"), "{message}");
}

#[tokio::test]
async fn s4_token_endpoint_v1() {
    let server = TestServer::start().await;
    let reply = app_token(&server, "", &[("resource", VENDOR)]).await;
    let mut fields: Vec<_> = reply.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    let expected = [
        "access_token",
        "expires_in",
        "expires_on",
        "ext_expires_in",
        "not_before",
        "resource",
        "token_type",
    ];
    assert_eq!(fields, expected);
    assert!(reply.as_object().unwrap().values().all(Value::is_string), "{reply}");
    assert_eq!((&reply["token_type"], &reply["resource"]), (&json!("Bearer"), &json!(VENDOR)));
    let number = |field: &str| reply[field].as_str().unwrap().parse::<i64>().unwrap();
    assert_eq!((number("expires_in"), number("ext_expires_in")), (3600, 3600));
    assert_eq!(number("expires_on") - number("not_before"), 3600);
    call(&server.admin(), reply["access_token"].as_str().unwrap()).await.expect_status(200);
}

#[tokio::test]
async fn s4_token_endpoint_v2() {
    let server = TestServer::start().await;
    let reply = app_token(&server, "/v2.0", &[("scope", &format!("{VENDOR}/.default"))]).await;
    let token = &reply["access_token"];
    let expected =
        json!({"token_type": "Bearer", "expires_in": 3600, "ext_expires_in": 3600, "access_token": token});
    assert_eq!(reply, expected);
    call(&server.admin(), token.as_str().unwrap()).await.expect_status(200);
}

#[tokio::test]
async fn s4_client_authentication() {
    let server = TestServer::start().await;
    let (id, secret) = (server.initialized.client_id.to_string(), &server.initialized.client_secret);
    let scope = format!("{VENDOR}/.default");
    app_token(&server, "/v2.0", &[("scope", &scope)]).await;

    let form = [("grant_type", "client_credentials"), ("scope", &scope)];
    let basic = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
    let request = server.http.post(server.token_url("/v2.0")).header(AUTHORIZATION, basic).form(&form);
    Reply::of(request).await.expect_status(200);

    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let body = json!({"pem": pair.public_key_pem(), "comment": "test"});
    let path = format!("/api/cordon/v1/apps/{id}/keys");
    let key = server.admin().post(&path, &body).await.expect_status(201);
    let mut header = Header::new(Algorithm::ES256);
    header.kid = key["thumbprint"].as_str().map(str::to_owned);
    let ends_at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 300;
    let claims = json!({
        "iss": id, "sub": id, "aud": server.token_url("/v2.0"), "exp": ends_at, "jti": "one",
    });
    let private = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let assertion = jsonwebtoken::encode(&header, &claims, &private).unwrap();
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", &id),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ("client_assertion", &assertion),
        ("scope", &scope),
    ];
    let reply = token(&server, "/v2.0", &form).await.expect_status(200);
    call(&server.admin(), reply["access_token"].as_str().unwrap()).await.expect_status(200);
    // Each counts once.
    assert_eq!(token(&server, "/v2.0", &form).await.expect_status(401)["error"], "invalid_client");
}

#[tokio::test]
async fn s4_token_errors() {
    let server = TestServer::start().await;
    let id = server.initialized.client_id.to_string();
    let wrong = [("grant_type", "client_credentials"), ("client_id", &id), ("client_secret", "x")];
    for (version, form, status, error) in [
        ("/v2.0", &wrong[..], 401, "invalid_client"),
        ("", &wrong, 401, "invalid_client"),
        ("/v2.0", &wrong[1..], 400, "invalid_request"),
        ("", &[("grant_type", "magic")], 400, "unsupported_grant_type"),
    ] {
        let body = token(&server, version, form).await.expect_status(status);
        let mut fields: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        let expected =
            ["correlation_id", "error", "error_codes", "error_description", "timestamp", "trace_id"];
        assert_eq!(fields, expected);
        assert_eq!(body["error"], error, "{body}");
        assert!(body["error_codes"][0].is_u64(), "{body}");
    }
}

#[tokio::test]
async fn s4_discovery_and_keys() {
    let server = TestServer::start().await;
    let base = format!("{}/{}", server.url(), server.initialized.tenant);
    for (part, field) in
        [("", ("resource", VENDOR)), ("/v2.0", ("scope", "https://api.security.microsoft.com/.default"))]
    {
        let url = format!("{base}{part}/.well-known/openid-configuration");
        let discovery = Reply::of(server.http.get(url)).await.expect_status(200);
        let reply = app_token(&server, part, &[field]).await;
        let (header, claims) = token_parts(reply["access_token"].as_str().unwrap());
        assert_eq!(claims["iss"], discovery["issuer"]);
        assert_eq!(discovery["token_endpoint"], server.token_url(part));
        let keys =
            Reply::of(server.http.get(discovery["jwks_uri"].as_str().unwrap())).await.expect_status(200);
        let keys = keys["keys"].as_array().unwrap();
        assert!(keys.iter().any(|key| key["kid"] == header["kid"] && key["kty"] == "RSA"), "{keys:?}");
    }
    let other = format!("{}/common/.well-known/openid-configuration", server.url());
    Reply::of(server.http.get(other)).await.expect_status(400);
}

#[tokio::test]
async fn s4_people_sign_in() {
    let place = Place::start().await;
    place.role("reader", &["View data"], &["staff"]).await;
    place.account("ann", &["staff"]).await;
    let server = &place.server;
    let (callback, verifier) = ("http://127.0.0.1/callback", "a".repeat(43));
    let app = json!({
        "name": "console", "permissions": ["Machine.Read.All"], "public": true, "redirectUris": [callback],
    });
    let app = place.client.post("/api/cordon/v1/apps", &app).await.expect_status(201);
    let app = app["id"].as_str().unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes());
    let challenge = URL_SAFE_NO_PAD.encode(digest);
    let scope = format!("{VENDOR}/Machine.Read");
    let base = format!("{}/{}/oauth2/v2.0", server.url(), server.initialized.tenant);
    let query = [
        ("client_id", app),
        ("response_type", "code"),
        ("redirect_uri", callback),
        ("scope", &scope),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ];
    let url = reqwest::Url::parse_with_params(&format!("{base}/authorize"), query).unwrap();
    let browser = http_client(&server.initialized.ca_certificate, |builder| builder.redirect(Policy::none()));
    let person = [("username", "ann"), ("password", PASSWORD), ("decision", "sign_in")];
    let reply = Reply::of(browser.post(url).form(&person)).await;
    let location = reqwest::Url::parse(reply.headers["location"].to_str().unwrap()).unwrap();
    let code = location.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", app),
        ("code", &code),
        ("redirect_uri", callback),
        ("code_verifier", &verifier),
    ];
    let reply = token(server, "/v2.0", &form).await.expect_status(200);
    let client = place.client.with_token(reply["access_token"].as_str().unwrap());
    assert_eq!(ids(&client, "/api/machines").await.len(), 1);

    let cli = CLI_APP_ID.to_string();
    let form = [("client_id", cli.as_str()), ("scope", &scope)];
    let device =
        Reply::of(server.http.post(format!("{base}/devicecode")).form(&form)).await.expect_status(200);
    assert!(device["user_code"].is_string() && device["verification_uri"].is_string(), "{device}");
    let grant = "urn:ietf:params:oauth:grant-type:device_code";
    let form = [
        ("grant_type", grant),
        ("client_id", &cli),
        ("device_code", device["device_code"].as_str().unwrap()),
    ];
    // That a person approves it is tested in `sign_in`.
    assert_eq!(token(server, "/v2.0", &form).await.expect_status(400)["error"], "authorization_pending");
}

#[tokio::test]
async fn s4_password_grant() {
    let (app, scope) = (CLI_APP_ID.to_string(), format!("{VENDOR}/Machine.Read"));
    let form = [
        ("grant_type", "password"),
        ("client_id", app.as_str()),
        ("username", "ann"),
        ("password", PASSWORD),
        ("scope", &scope),
    ];
    let place = Place::start().await;
    place.account("ann", &[]).await;
    let refused = token(&place.server, "/v2.0", &form).await.expect_status(400);
    assert_eq!(refused["error"], "unsupported_grant_type");
    let place = Place::with_people().await;
    place.account("ann", &[]).await;
    token(&place.server, "/v2.0", &form).await.expect_status(200);
}

#[tokio::test]
async fn s4_unauthorized() {
    let server = TestServer::start().await;
    let client = server.client(&[Permission::MachineReadAll]).await;
    let (body, _) = client.token.rsplit_once('.').unwrap();
    let forge = |claim: &str, value: Value| server.forge(&client.token, |claims| claims[claim] = value);
    let missing = Reply::of(server.http.get(format!("{}/api/machines", server.url()))).await;
    let mut replies = vec![missing];
    for token in [
        "malformed".to_owned(),
        forge("exp", json!(1_700_000_000)),
        forge("nbf", json!(4_000_000_000_i64)),
        forge("iss", json!("https://evil.example/")),
        format!("{body}.AAAA"),
    ] {
        replies.push(call(&client, token).await);
    }
    for reply in replies {
        let challenge = reply.headers["www-authenticate"].to_str().unwrap();
        assert!(challenge.starts_with("Bearer realm="), "{challenge}");
        reply.expect_error(401, "Unauthorized");
    }
}

#[tokio::test]
async fn s4_wrong_audience() {
    let server = TestServer::start().await;
    let client = server.admin();
    let other = server.forge(&client.token, |claims| claims["aud"] = json!("https://graph.microsoft.com"));
    let message = call(&client, other).await.expect_error(403, "Forbidden");
    assert!(message.contains(VENDOR) && message.contains(server.url()), "{message}");
}
