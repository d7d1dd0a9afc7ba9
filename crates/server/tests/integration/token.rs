//! Tokens as existing clients fetch them, and as anybody can check them.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use domain::time::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{ClientBuilder, Method};
use serde_json::{Value, json};
use sha2::Digest as _;
use uuid::Uuid;

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
        ("/v2.0", "grant_type=everything&client_id=x".to_owned(), 400, "unsupported_grant_type"),
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

/// An app that signs its assertions.
struct Signer {
    server: TestServer,
    app: String,
    key: KeyPair,
}

impl Signer {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let body = json!({"name": "signer", "permissions": ["Machine.Read.All"]});
        let app = server.admin().post("/api/cordon/v1/apps", &body).await.expect_status(201);
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let signer = Self { server, app: app["id"].as_str().unwrap().to_owned(), key };
        signer.add_key(&signer.key.public_key_pem()).await;
        signer
    }

    async fn add_key(&self, pem: &str) -> Value {
        let path = format!("/api/cordon/v1/apps/{}/keys", self.app);
        let reply = self.server.admin().post(&path, &json!({"pem": pem, "comment": "test"})).await;
        assert!(matches!(reply.status, 200 | 201), "{}", reply.text);
        reply.body
    }

    /// The claims of a good assertion.
    fn claims(&self) -> Value {
        let now = Timestamp::from(std::time::SystemTime::now()).unix_seconds();
        json!({
            "aud": self.server.token_url("/v2.0"), "iss": self.app, "sub": self.app, "jti": Uuid::new_v4(),
            "iat": now, "nbf": now, "exp": now + 600,
        })
    }

    fn sign(header: &Header, claims: &Value, key: &KeyPair) -> String {
        let pem = key.serialize_pem();
        let is_on_a_curve = matches!(header.alg, Algorithm::ES256 | Algorithm::ES384);
        let read = if is_on_a_curve { EncodingKey::from_ec_pem } else { EncodingKey::from_rsa_pem };
        let key = read(pem.as_bytes());
        jsonwebtoken::encode(header, claims, &key.unwrap()).unwrap()
    }

    async fn send_with(&self, assertion: &str, more: &[(&str, &str)]) -> Reply {
        let scope = format!("{VENDOR}/.default");
        let mut form = vec![
            ("grant_type", "client_credentials"),
            ("scope", &scope),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
            ("client_assertion", assertion),
        ];
        form.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        form.extend(more);
        Reply::of(self.server.http.post(self.server.token_url("/v2.0")).form(&form)).await
    }

    async fn send(&self, assertion: &str) -> Reply {
        self.send_with(assertion, &[("client_id", &self.app)]).await
    }

    #[track_caller]
    fn refused(&self, reply: Reply, why: &str) {
        let body = reply.expect_status(401);
        assert_eq!(body["error"], "invalid_client", "{body}");
        assert_eq!(body["error_codes"], json!([700_027]), "{body}");
        assert!(body["error_description"].as_str().unwrap().contains(why), "{why}: {body}");
    }
}

#[tokio::test]
async fn an_app_proves_itself_by_an_assertion_of_each_algorithm() {
    let signer = Signer::start().await;
    let (rs, ps) = (
        [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512],
        [Algorithm::PS256, Algorithm::PS384, Algorithm::PS512],
    );
    for algorithm in rs.into_iter().chain(ps) {
        let assertion = Signer::sign(&Header::new(algorithm), &signer.claims(), &signer.key);
        let body = signer.send(&assertion).await.expect_status(200);
        use_token(&signer.server, &body["access_token"]).await;
    }
    // Without client_id, for each audience, once as a list.
    let tenant = format!("{}/{}", signer.server.url(), signer.server.initialized.tenant);
    for audience in [
        json!(signer.server.token_url("")),
        json!(format!("{tenant}/v2.0")),
        json!([format!("{tenant}/"), "https://other.example"]),
    ] {
        let mut claims = signer.claims();
        claims["aud"] = audience;
        let assertion = Signer::sign(&Header::new(Algorithm::RS256), &claims, &signer.key);
        signer.send_with(&assertion, &[]).await.expect_status(200);
    }
    // Times with fractions, as the vendor's library for Python writes them.
    let mut claims = signer.claims();
    for claim in ["exp", "nbf", "iat"] {
        claims[claim] = json!(claims[claim].as_f64().unwrap() + 0.25);
    }
    let assertion = Signer::sign(&Header::new(Algorithm::RS256), &claims, &signer.key);
    signer.send(&assertion).await.expect_status(200);
    // Further keys: found by what the assertion names.
    for (algorithm, kind) in
        [(Algorithm::ES256, &PKCS_ECDSA_P256_SHA256), (Algorithm::ES384, &PKCS_ECDSA_P384_SHA384)]
    {
        let key = KeyPair::generate_for(kind).unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let added = signer.add_key(&certificate.pem()).await;
        let mut by_kid = Header::new(algorithm);
        by_kid.kid = Some(added["thumbprint"].as_str().unwrap().to_uppercase());
        let mut by_x5t = Header::new(algorithm);
        // Some libraries pad it.
        by_x5t.x5t = Some(format!("{}=", added["x5t"].as_str().unwrap()));
        let mut by_sha256 = Header::new(algorithm);
        by_sha256.x5t_s256 = Some(URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(certificate.der())));
        for header in [by_kid, by_x5t, by_sha256] {
            let assertion = Signer::sign(&header, &signer.claims(), &key);
            signer.send(&assertion).await.expect_status(200);
        }
        let unnamed = Signer::sign(&Header::new(algorithm), &signer.claims(), &key);
        signer.refused(signer.send(&unnamed).await, "not signed with a key");
    }
}

#[tokio::test]
async fn an_assertion_counts_once() {
    let signer = Signer::start().await;
    let claims = signer.claims();
    let assertion = Signer::sign(&Header::new(Algorithm::RS256), &claims, &signer.key);
    signer.send(&assertion).await.expect_status(200);
    signer.refused(signer.send(&assertion).await, "used already");
    // The same by another algorithm.
    let again = Signer::sign(&Header::new(Algorithm::PS256), &claims, &signer.key);
    signer.refused(signer.send(&again).await, "used already");
}

#[tokio::test]
async fn assertions_that_prove_nothing_are_refused() {
    let signer = Signer::start().await;
    let now = Timestamp::from(std::time::SystemTime::now()).unix_seconds();
    for (claim, value, why) in [
        ("exp", Value::Null, "never expires"),
        ("exp", json!(now - 1), "expired"),
        ("exp", json!(now + 7200), "more than an hour"),
        ("exp", json!("9999999999"), "whole seconds"),
        ("nbf", json!(now + 600), "not valid yet"),
        ("aud", json!("https://login.microsoftonline.com/common/oauth2/token"), "audience must be"),
        ("aud", json!(VENDOR), "audience must be"),
        ("aud", Value::Null, "no audience"),
        ("iss", json!("https://evil.example"), "must be the client_id"),
        ("iss", Value::Null, "must be the client_id"),
        ("sub", json!(signer.server.initialized.client_id), "subject is not"),
        ("sub", Value::Null, "subject is not"),
        ("jti", Value::Null, "jti"),
        ("jti", json!(""), "jti"),
        ("jti", json!("x".repeat(257)), "jti"),
        ("jti", json!(7), "jti"),
    ] {
        let mut claims = signer.claims();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(claim);
        } else {
            claims[claim] = value.clone();
        }
        let assertion = Signer::sign(&Header::new(Algorithm::RS256), &claims, &signer.key);
        signer.refused(signer.send(&assertion).await, why);
    }
}

#[tokio::test]
async fn assertions_of_others_are_refused() {
    let signer = Signer::start().await;
    let claims = signer.claims();
    let other = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    // Another key, which comes along in the assertion.
    let mut header = Header::new(Algorithm::RS256);
    header.jwk = Some(
        jsonwebtoken::jwk::Jwk::from_encoding_key(
            &EncodingKey::from_rsa_pem(other.serialize_pem().as_bytes()).unwrap(),
            Algorithm::RS256,
        )
        .unwrap(),
    );
    header.jku = Some("https://evil.example/keys".to_owned());
    header.x5c = Some(vec!["AAAA".to_owned()]);
    signer.refused(signer.send(&Signer::sign(&header, &claims, &other)).await, "signature is wrong");
    // The public key as a secret.
    for secret in [signer.key.public_key_pem().replace("\r\n", "\n"), String::new()] {
        let key = EncodingKey::from_secret(secret.as_bytes());
        let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
        signer.refused(signer.send(&forged).await, "algorithm");
    }
    // No signature.
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    for algorithm in ["none", "None", ""] {
        let unsigned = format!("{}.{}.", part(&json!({"alg": algorithm, "typ": "JWT"})), part(&claims));
        signer.refused(signer.send(&unsigned).await, "algorithm");
    }
    // A curve's algorithm with an RSA key.
    let curve = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let wrong = Signer::sign(&Header::new(Algorithm::ES256), &claims, &curve);
    signer.refused(signer.send(&wrong).await, "algorithm");
    for rubbish in ["", "x", "a.b.c", "..", &"x".repeat(20_000)] {
        signer.refused(signer.send(rubbish).await, "refused");
    }
}

#[tokio::test]
async fn an_assertion_is_for_the_app_that_signs() {
    let signer = Signer::start().await;
    let sign = || Signer::sign(&Header::new(Algorithm::RS256), &signer.claims(), &signer.key);
    let other = signer.server.initialized.client_id.to_string();
    let cli = domain::app::CLI_APP_ID.to_string();
    for id in [other.as_str(), cli.as_str(), "x"] {
        signer.refused(signer.send_with(&sign(), &[("client_id", id)]).await, "subject is not");
    }
    for (more, status) in [
        ([("client_assertion_type", "jwt")], 400),
        ([("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")], 400),
        ([("client_secret", "also a secret")], 400),
    ] {
        let body = signer.send_with(&sign(), &more).await.expect_status(status);
        assert_eq!(body["error"], "invalid_request", "{body}");
    }
    // A key that was taken away counts no more.
    let path = format!("/api/cordon/v1/apps/{}/keys", signer.app);
    let keys = signer.server.admin().get(&path).await.expect_status(200);
    let thumbprint = keys["value"][0]["thumbprint"].as_str().unwrap();
    signer.send(&sign()).await.expect_status(200);
    signer.server.admin().delete(&format!("{path}/{thumbprint}")).await.expect_status(204);
    signer.refused(signer.send(&sign()).await, "not signed with a key");
}
