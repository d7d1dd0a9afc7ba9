//! An issuer whose private key the tests hold, so that they can sign what no real issuer would.

use std::sync::{Arc, Mutex};

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cordon_server::config::IssuerSettings;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

use crate::harness::server::{TestServer, token_parts};

/// The client id of the application that the issuer knows.
pub(crate) const CLIENT: &str = "6f9d3c1e-0f3b-4c55-9a0b-2d1c8a6f4e77";

/// An RSA key.
pub(crate) struct Key {
    pub(crate) private: EncodingKey,
    pub(crate) pem: String,
    /// Public, with the id `kid`.
    pub(crate) jwk: Value,
}

impl Key {
    pub(crate) fn new(id: &str) -> Self {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        Self::from_pem(&pair.serialize_pem(), id)
    }

    fn from_pem(pem: &str, id: &str) -> Self {
        let private = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
        let jwk = Jwk::from_encoding_key(&private, Algorithm::RS256).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = json!(id);
        jwk["use"] = json!("sig");
        jwk.as_object_mut().unwrap().remove("alg");
        let pem = KeyPair::from_pem(pem).unwrap().public_key_pem();
        Self { private, pem, jwk }
    }
}

/// A right token, and all that is needed to make a wrong one of it.
pub(crate) struct Forger {
    pub(crate) header: Value,
    pub(crate) claims: Value,
    pub(crate) key: Key,
}

impl Forger {
    /// Signs with the issuer's key whatever is given.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    pub(crate) fn sign_text(&self, header: &str, claims: &str) -> String {
        sign(header, claims, &self.key.private, Algorithm::RS256)
    }

    /// The right token.
    pub(crate) fn token(&self) -> String {
        self.sign(&self.header, &self.claims)
    }

    /// The right token but for one member of its header.
    pub(crate) fn with_header(&self, name: &str, value: impl Into<Value>) -> String {
        self.sign(&with(&self.header, name, value), &self.claims)
    }

    /// The right token but for one claim.
    pub(crate) fn with_claim(&self, name: &str, value: impl Into<Value>) -> String {
        self.sign(&self.header, &with(&self.claims, name, value))
    }
}

/// An object with one member changed; null takes it away.
pub(crate) fn with(object: &Value, name: &str, value: impl Into<Value>) -> Value {
    let (mut object, value) = (object.clone(), value.into());
    if value.is_null() {
        object.as_object_mut().unwrap().remove(name);
    } else {
        object[name] = value;
    }
    object
}

pub(crate) fn encode(part: &str) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

pub(crate) fn sign(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), key, algorithm).unwrap();
    format!("{signed}.{signature}")
}

/// The server's own issuer, whose key lies in its folder.
pub(crate) fn embedded(server: &TestServer) -> Forger {
    let (header, claims) = token_parts(&server.admin().token);
    let mut files = std::fs::read_dir(server.config.data_dir.join("issuer")).unwrap();
    let pem = std::fs::read_to_string(files.next().unwrap().unwrap().path()).unwrap();
    let key = Key::from_pem(&pem, header["kid"].as_str().unwrap());
    Forger { header, claims, key }
}

/// An external issuer that runs.
pub(crate) struct TestIssuer {
    pub(crate) forger: Forger,
    pub(crate) url: String,
    /// What it publishes; null while it is down.
    keys: Arc<Mutex<Value>>,
}

impl TestIssuer {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/tenant", listener.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(Value::Null));
        let router = Router::new().fallback(answer).with_state((url.clone(), Arc::clone(&keys)));
        tokio::spawn(async { axum::serve(listener, router).await });
        let now = chrono::Utc::now().timestamp();
        let forger = Forger {
            header: json!({"alg": "RS256", "kid": "one", "typ": "at+jwt"}),
            claims: json!({
                "iss": url, "aud": "api://cordon", "exp": now + 3600, "nbf": now, "iat": now,
                "client_id": CLIENT, "sub": CLIENT, "roles": ["Machine.Read.All"],
            }),
            key: Key::new("one"),
        };
        let issuer = Self { forger, url, keys };
        issuer.publish(&[&issuer.forger.key.jwk]);
        issuer
    }

    pub(crate) fn publish(&self, keys: &[&Value]) {
        *self.keys.lock().unwrap() = json!({ "keys": keys });
    }

    pub(crate) fn set_down(&self) {
        *self.keys.lock().unwrap() = Value::Null;
    }

    pub(crate) fn settings(&self) -> IssuerSettings {
        settings(&self.url, "applications = true")
    }
}

async fn answer(State((url, keys)): State<(String, Arc<Mutex<Value>>)>, request: Request) -> Response {
    let keys = keys.lock().unwrap().clone();
    if keys.is_null() {
        return axum::http::StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match request.uri().path() {
        "/tenant/.well-known/openid-configuration" => {
            Json(json!({"issuer": url, "jwks_uri": format!("{url}/keys?v=1")})).into_response()
        }
        "/tenant/keys" => Json(keys).into_response(),
        _ => axum::http::StatusCode::NOT_FOUND.into_response(),
    }
}

/// Settings of an issuer that makes tokens for `api://cordon`.
pub(crate) fn settings(url: &str, more: &str) -> IssuerSettings {
    toml::from_str(&format!("issuer = \"{url}\"\naudiences = [\"api://cordon\"]\n{more}")).unwrap()
}
