//! Tokens as existing clients fetch them, and as anybody can check them.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{ClientBuilder, Method};
use serde_json::{Value, json};

use crate::harness::client::{Client, Reply};
use crate::harness::server::{TestServer, http_client, token_parts};

const VENDOR: &str = "https://api.securitycenter.microsoft.com";

/// The form of a client, as it goes over the wire.
fn form(server: &TestServer, more: &[(&str, &str)]) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    form.append_pair("client_id", &server.initialized.client_id.to_string());
    form.append_pair("client_secret", &server.initialized.client_secret);
    form.extend_pairs(more);
    form.finish()
}

async fn send(server: &TestServer, method: Method, version: &str, body: String) -> Reply {
    let request = server.http.request(method, server.token_url(version)).body(body);
    Reply::of(request.header(CONTENT_TYPE, "application/x-www-form-urlencoded")).await
}

async fn use_token(server: &TestServer, token: &Value) {
    let client = server.admin().with_token(token.as_str().unwrap());
    client.get("/api/machines").await.expect_status(200);
}

#[tokio::test]
async fn the_v1_form_answers_in_strings() {
    let server = TestServer::start().await;
    let reply = send(&server, Method::POST, "", form(&server, &[("resource", VENDOR)])).await;
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(reply.headers["cache-control"], "no-store");
    let body = reply.expect_status(200);
    let keys: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys,
        [
            "access_token",
            "expires_in",
            "expires_on",
            "ext_expires_in",
            "not_before",
            "resource",
            "token_type"
        ]
    );
    assert!(body.as_object().unwrap().values().all(Value::is_string), "{body}");
    let number = |key: &str| body[key].as_str().unwrap().parse::<i64>().unwrap();
    assert_eq!((number("expires_in"), number("expires_on") - number("not_before")), (3600, 3600));
    assert_eq!((&body["resource"], &body["token_type"]), (&json!(VENDOR), &json!("Bearer")));
    use_token(&server, &body["access_token"]).await;
    let (_, claims) = token_parts(body["access_token"].as_str().unwrap());
    assert_eq!(claims["appid"], server.initialized.client_id.to_string());
    assert_eq!(claims["tid"], server.initialized.tenant.to_string());
    assert!(claims["roles"].as_array().unwrap().contains(&json!("Machine.RestrictExecution")));
}

#[tokio::test]
async fn the_v2_form_answers_in_numbers() {
    let server = TestServer::start().await;
    let scope = format!("{VENDOR}/.default");
    let reply = send(&server, Method::POST, "/v2.0", form(&server, &[("scope", &scope)])).await;
    let body = reply.expect_status(200);
    let token = body["access_token"].clone();
    let expected =
        json!({"token_type": "Bearer", "expires_in": 3600, "ext_expires_in": 3600, "access_token": token});
    assert_eq!(body, expected);
    use_token(&server, &token).await;
    let (_, claims) = token_parts(token.as_str().unwrap());
    assert_eq!(claims["azp"], server.initialized.client_id.to_string());
}

#[tokio::test]
async fn odd_clients_get_their_token() {
    let server = TestServer::start().await;
    let scope = format!("offline_access {VENDOR}/.default");
    let v2 = form(&server, &[("scope", &scope), ("client_info", "1"), ("redirectUri", "https://localhost")]);
    let v1 = form(&server, &[("resource", "https://api.securitycenter.windows.com/"), ("client_info", "1")]);
    for (version, body) in [("/v2.0", v2), ("", v1)] {
        // A form in the body of GET.
        let reply = send(&server, Method::GET, version, body.clone()).await;
        use_token(&server, &reply.expect_status(200)["access_token"]).await;
        // A form without a content type.
        let reply = Reply::of(server.http.post(server.token_url(version)).body(body)).await;
        use_token(&server, &reply.expect_status(200)["access_token"]).await;
    }
    // The secret by HTTP Basic.
    let credentials = format!("{}:{}", server.initialized.client_id, server.initialized.client_secret);
    let body = format!("grant_type=client_credentials&resource={VENDOR}");
    let request = server.http.post(server.token_url("")).body(body);
    let request = request.header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(credentials)));
    use_token(&server, &Reply::of(request).await.expect_status(200)["access_token"]).await;
}

#[tokio::test]
async fn errors_have_the_form_of_oauth() {
    let server = TestServer::start().await;
    let known = server.initialized.client_id.to_string();
    let wrong =
        format!("grant_type=client_credentials&client_id={known}&client_secret=x&scope={VENDOR}/.default");
    for (version, body, status, error) in [
        ("/v2.0", wrong, 401, "invalid_client"),
        ("/v2.0", String::new(), 400, "invalid_request"),
        ("/v2.0", form(&server, &[]), 400, "invalid_request"),
        ("", form(&server, &[]), 400, "invalid_request"),
        ("/v2.0", form(&server, &[("scope", VENDOR)]), 400, "invalid_scope"),
        ("", form(&server, &[("resource", "https://graph.microsoft.com")]), 400, "invalid_resource"),
        ("/v2.0", "grant_type=password&client_id=x&username=u".to_owned(), 400, "unsupported_grant_type"),
    ] {
        let body = send(&server, Method::POST, version, body).await.expect_status(status);
        let keys: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
        let expected =
            ["correlation_id", "error", "error_codes", "error_description", "timestamp", "trace_id"];
        assert_eq!(keys, expected);
        assert_eq!(body["error"], error, "{body}");
        assert!(body["error_codes"][0].is_u64() && body["trace_id"].is_string(), "{body}");
    }
}

/// Checks a token as a stranger would: discovery, then its keys, then the signature, with nothing of ours in between.
#[tokio::test]
async fn anybody_can_check_a_token() {
    let server = TestServer::start().await;
    let tenant = server.initialized.tenant;
    let get = async |url: &str| Reply::of(server.http.get(url)).await.expect_status(200);
    for (part, resource) in
        [("/v2.0", ("scope", format!("{VENDOR}/.default"))), ("", ("resource", VENDOR.to_owned()))]
    {
        let discovery =
            get(&format!("{}/{tenant}{part}/.well-known/openid-configuration", server.url())).await;
        for endpoint in ["issuer", "authorization_endpoint", "token_endpoint", "jwks_uri"] {
            assert!(discovery[endpoint].as_str().unwrap().starts_with(server.url()), "{discovery}");
        }
        let token_url = discovery["token_endpoint"].as_str().unwrap();
        let body = form(&server, &[(resource.0, &resource.1)]);
        let token = Reply::of(server.http.post(token_url).body(body)).await.expect_status(200);
        let token = token["access_token"].as_str().unwrap();
        let (header, claims) = token_parts(token);
        assert_eq!((&header["alg"], &header["typ"]), (&json!("RS256"), &json!("JWT")));
        assert_eq!(claims["iss"], discovery["issuer"]);

        let keys = get(discovery["jwks_uri"].as_str().unwrap()).await;
        let keys = keys["keys"].as_array().unwrap();
        let key = keys.iter().find(|key| key["kid"] == header["kid"]).unwrap();
        assert_eq!((&key["kty"], &key["use"]), (&json!("RSA"), &json!("sig")));
        assert!(key.get("d").is_none(), "a private key is published");
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let public = RsaPublicKeyComponents {
            n: bytes(key["n"].as_str().unwrap()),
            e: bytes(key["e"].as_str().unwrap()),
        };
        let (signed, signature) = token.rsplit_once('.').unwrap();
        public.verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &bytes(signature)).unwrap();
        let changed = signed.replacen('.', ".A", 1);
        assert!(public.verify(&RSA_PKCS1_2048_8192_SHA256, changed.as_bytes(), &bytes(signature)).is_err());
    }
}

#[tokio::test]
async fn a_client_may_call_the_server_by_the_vendors_name() {
    let server = TestServer::start().await;
    // By HTTP/1.1, which has the header: with HTTP/2 the name is that of the URL.
    let http = http_client(&server.initialized.ca_certificate, ClientBuilder::http1_only);
    let client = Client { http, ..server.admin() };
    let context = async |host: &str| {
        let request = client.request(Method::GET, "/api/machines").header("host", host);
        Reply::of(request).await.expect_status(200)["@odata.context"].as_str().unwrap().to_owned()
    };
    let known = "api.securitycenter.microsoft.com";
    assert_eq!(context(known).await, format!("https://{known}/api/$metadata#Machines"));
    for unknown in ["evil.example", "10.0.0.1", "api.securitycenter.microsoft.com.evil.example", "\"><b>"] {
        assert_eq!(context(unknown).await, format!("{}/api/$metadata#Machines", server.url()));
    }
}
