//! A client of the API for benches: one kept-alive HTTP/1.1 connection, as a script with a decent library has.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use serde_json::Value;

use crate::lab::{Lab, text};

/// The header with which a Defender client says what it sends.
const JSON: (&str, &str) = ("Content-Type", "application/json");

/// A client with a token.
#[derive(Clone)]
pub(super) struct Api {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Api {
    /// Gets a token as the lab's administrator.
    pub(super) async fn connect(lab: &Lab) -> Result<Self> {
        let client = client(lab)?;
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &lab.client_id),
            ("client_secret", &lab.client_secret),
            ("scope", &format!("{}/.default", lab.url)),
        ];
        let reply =
            client.post(format!("{}/{}/oauth2/v2.0/token", lab.url, lab.tenant)).form(&form).send().await?;
        let reply: Value = reply.error_for_status()?.json().await?;
        Ok(Self { client, url: lab.url.clone(), token: text(&reply, "access_token")? })
    }

    /// The same caller over another connection.
    pub(super) fn beside(&self, lab: &Lab) -> Result<Self> {
        Ok(Self { client: client(lab)?, ..self.clone() })
    }

    /// Calls restrict or unrestrict, and returns the action of the 201.
    pub(super) async fn act(&self, machine: &str, call: Call) -> Result<Value> {
        let route = match call {
            Call::Restrict => format!("/api/machines/{machine}/restrictCodeExecution"),
            Call::Unrestrict => format!("/api/machines/{machine}/unrestrictCodeExecution"),
        };
        self.post(&route, r#"{"Comment": "bench"}"#).await
    }

    /// Makes an enrollment token for as many machines; its secret.
    pub(super) async fn enrollment_token(&self, machines: u32) -> Result<String> {
        let body = format!(r#"{{"usesMax": {machines}, "expiresInSeconds": 3600, "comment": "bench"}}"#);
        text(&self.post("/api/cordon/v1/enrollmentTokens", &body).await?, "secret")
    }

    /// What it calls through.
    pub(super) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    async fn post(&self, route: &str, body: &str) -> Result<Value> {
        let request =
            self.client.post(format!("{}{route}", self.url)).header(JSON.0, JSON.1).body(body.to_owned());
        let reply = request.bearer_auth(&self.token).send().await?;
        let (status, body) = (reply.status(), reply.text().await?);
        ensure!(status == 201, "{route} answered {status}: {body}");
        serde_json::from_str(&body).with_context(|| format!("reply of {route}: {body}"))
    }

    async fn get(&self, route: &str) -> Result<Value> {
        let body = self.get_body(route).await?;
        serde_json::from_slice(&body).with_context(|| format!("reply of {route}"))
    }

    /// The body of a 200, as it came.
    pub(super) async fn get_body(&self, route: &str) -> Result<Bytes> {
        let reply = self.client.get(format!("{}{route}", self.url)).bearer_auth(&self.token).send().await?;
        let (status, body) = (reply.status(), reply.bytes().await?);
        ensure!(status == 200, "{route} answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// The status of a request without a token.
    pub(super) async fn status_without_token(&self, route: &str) -> Result<u16> {
        let reply = self.client.get(format!("{}{route}", self.url)).send().await?;
        let status = reply.status().as_u16();
        reply.bytes().await?;
        Ok(status)
    }

    /// Posts JSON; the body of a reply that is a success.
    pub(super) async fn post_json(&self, route: &str, body: &Value) -> Result<Bytes> {
        let request = self.client.post(format!("{}{route}", self.url)).header(JSON.0, JSON.1);
        let reply = request.bearer_auth(&self.token).body(body.to_string()).send().await?;
        let (status, body) = (reply.status(), reply.bytes().await?);
        ensure!(status.is_success(), "{route} answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// Whether an action succeeded; an error once it can no more.
    pub(super) async fn succeeded(&self, action: &str) -> Result<bool> {
        let action = self.get(&format!("/api/machineactions/{action}")).await?;
        match text(&action, "status")?.as_str() {
            "Succeeded" => Ok(true),
            "Pending" | "InProgress" => Ok(false),
            _ => bail!("not Succeeded: {action}"),
        }
    }
}

/// One of the two calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// `restrictCodeExecution`.
    Restrict,
    /// `unrestrictCodeExecution`.
    Unrestrict,
}

fn client(lab: &Lab) -> Result<reqwest::Client> {
    let authority = reqwest::Certificate::from_pem(&std::fs::read(&lab.ca_file)?)?;
    let client = reqwest::Client::builder().tls_certs_only([authority]).http1_only().tcp_nodelay(true);
    Ok(client.build()?)
}

/// Runs a bench's asynchronous part on this thread.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    // Installed already is fine.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
