//! Requests and replies over HTTPS: time and size limits, and waiting when the server asks for it.
//!
//! Knows neither tokens nor the API: those are `oauth`'s and `client`'s.

use std::io::Write as _;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use reqwest::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::de::DeserializeOwned;

use crate::connection::Trust;
use crate::error::ClientError;
use crate::progress::Progress;
use crate::tls;

/// How long making a connection, and a whole call, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a download may take, and how long it may pause.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest reply: a page of 10,000 machines is a quarter of it.
const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often and how long at a time a call waits because of the rate limit.
const RATE_LIMIT_WAITS_MAX: u32 = 5;
const RATE_LIMIT_WAIT_MAX: Duration = Duration::from_secs(120);

/// Talks to whoever one [`Trust`] vouches for.
pub(crate) struct Http {
    client: reqwest::Client,
    progress: Rc<Progress>,
}

/// A reply.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    /// The body as it came.
    pub(crate) body: String,
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// What a caller without a token is told about where to get one.
    pub(crate) challenge: Option<String>,
    url: String,
}

impl Http {
    /// A client that has not called yet.
    pub(crate) fn new(trust: &Trust, progress: Rc<Progress>) -> Result<Self> {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("cordon/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            // A redirect would carry the token to where nobody sent it.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        Ok(Self { client: tls::trusting(builder, trust)?.build()?, progress })
    }

    /// A request, to be completed and sent by the others.
    pub(crate) fn request(&self, method: Method, url: &Url) -> RequestBuilder {
        self.client.request(method, url.clone())
    }

    /// Sends a request, and again when the server asks to wait for the rate limit.
    pub(crate) async fn exchange(&self, url: &Url, request: RequestBuilder) -> Result<Reply, ClientError> {
        let response = self.send(url, request).await?;
        whole(url, response).await
    }

    /// The same, for a body of any size: it goes to standard output as it comes. The reply has a body only when the
    /// status is not a success.
    pub(crate) async fn download(&self, url: &Url, request: RequestBuilder) -> Result<Reply> {
        let mut response = self.send(url, request.timeout(DOWNLOAD_TIMEOUT)).await?;
        if !response.status().is_success() {
            return Ok(whole(url, response).await?);
        }
        let reply = head(&response);
        let mut out = std::io::stdout().lock();
        while let Some(chunk) = response.chunk().await.map_err(|error| ClientError::transport(url, &error))? {
            out.write_all(&chunk)?;
        }
        out.flush()?;
        Ok(reply)
    }

    async fn send(&self, url: &Url, request: RequestBuilder) -> Result<Response, ClientError> {
        let mut request = Some(request);
        let mut waits = 0;
        loop {
            // A body in memory can always be sent again.
            let again = request.as_ref().and_then(RequestBuilder::try_clone);
            let Some(current) = std::mem::replace(&mut request, again) else {
                return Err(Reply::default().unexpected("the request cannot be repeated"));
            };
            let response = current.send().await.map_err(|error| ClientError::transport(url, &error))?;
            let retry_after = header(&response, &RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
            let wait = Duration::from_secs(retry_after.unwrap_or(1));
            let limited = response.status() == StatusCode::TOO_MANY_REQUESTS;
            if !limited || waits >= RATE_LIMIT_WAITS_MAX || wait > RATE_LIMIT_WAIT_MAX {
                return Ok(response);
            }
            waits += 1;
            self.progress.note(&format!("rate limit: waiting {} s, as the server asks", wait.as_secs()));
            tokio::time::sleep(wait).await;
        }
    }
}

impl Reply {
    /// The body as an entity.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_str(&self.body).map_err(|error| self.unexpected(&error.to_string()))
    }

    /// The error of a reply that is not one of the contract.
    pub(crate) fn unexpected(&self, fault: &str) -> ClientError {
        ClientError::Unexpected { url: self.url.clone(), status: self.status, fault: fault.to_owned() }
    }
}

async fn whole(url: &Url, mut response: Response) -> Result<Reply, ClientError> {
    let mut reply = head(&response);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| ClientError::transport(url, &error))? {
        body.extend_from_slice(&chunk);
        if body.len() > REPLY_BYTES_MAX {
            return Err(reply.unexpected("the reply is too large"));
        }
    }
    reply.body = String::from_utf8(body).map_err(|error| reply.unexpected(&error.to_string()))?;
    Ok(reply)
}

fn head(response: &Response) -> Reply {
    Reply {
        body: String::new(),
        status: response.status(),
        challenge: header(response, &WWW_AUTHENTICATE),
        url: response.url().to_string(),
    }
}

fn header(response: &Response, name: &reqwest::header::HeaderName) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}
