//! Single requests to the server, with limits on time and size.

use std::time::Duration;

use agent_protocol::{Limited, decode, encode};
use anyhow::{Context as _, Result, bail};
use reqwest::{Client, Response, Url};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest reply, in bytes: a few certificates.
const REPLY_BYTES_MAX: usize = 128 * 1024;
const TIME_MAX: Duration = Duration::from_secs(30);

/// The error body of every reply that is not a success.
#[derive(Deserialize)]
struct ErrorEnvelope {
    error: ErrorBody,
}

#[derive(Deserialize)]
struct ErrorBody {
    message: String,
}

/// A client that uses these TLS settings, no proxy, and follows nowhere.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn client(tls: ClientConfig) -> Result<Client> {
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIME_MAX)
        .pool_max_idle_per_host(0)
        .build();
    client.context("cannot set up HTTPS")
}

/// `https://host:port` as a URL.
///
/// # Errors
/// When it is not one.
pub(crate) fn base_url(text: &str) -> Result<Url> {
    let url: Url = text.parse().with_context(|| format!("{text:?} is not a URL"))?;
    if url.scheme() != "https" || url.host_str().is_none() {
        bail!("{text:?} is not of the form https://host:port");
    }
    Ok(url)
}

/// Posts JSON and reads JSON.
///
/// # Errors
/// What the server said when it refused; else what went wrong on the way.
pub(crate) async fn post<T: DeserializeOwned + Limited>(
    client: &Client,
    base: &Url,
    path: &str,
    request: &impl Serialize,
) -> Result<T> {
    let url = base.join(path)?;
    let send = client.post(url).header("content-type", "application/json").body(encode(request)).send();
    let response = send.await.with_context(|| format!("no answer from {base}"))?;
    let status = response.status();
    let body = read(response).await.with_context(|| format!("no whole answer from {base}"))?;
    if !status.is_success() {
        let said = serde_json::from_slice::<ErrorEnvelope>(&body).map(|envelope| envelope.error.message);
        let said = said.unwrap_or_else(|_| "it does not say why".to_owned());
        bail!("the server answered {}: {}", status.as_u16(), printable(&said));
    }
    decode(&body, REPLY_BYTES_MAX).with_context(|| format!("{base} does not answer as a Cordon server"))
}

async fn read(mut response: Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > REPLY_BYTES_MAX {
            bail!("an answer of more than {REPLY_BYTES_MAX} bytes");
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What a stranger said, fit for a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
