//! Calls of the HTTP API: the token, paging, and waiting when the server asks for it.
//!
//! Knows the contract's envelopes, not its nouns: those are in `commands`. Nothing is kept between two runs.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use api_types::error::ErrorEnvelope;
use api_types::token::{TokenError, TokenV2};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, StatusCode, Url, redirect};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::connection::Connection;
use crate::error::{ClientError, origin};
use crate::progress::Progress;
use crate::tls;

/// How long making a connection, and a whole call, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest reply: a page of 10,000 machines is a quarter of it.
const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most rows that a list gathers over its pages.
const ROWS_MAX: usize = 1_000_000;
/// How often and how long at a time a call waits because of the rate limit.
const RATE_LIMIT_WAITS_MAX: u32 = 5;
const RATE_LIMIT_WAIT_MAX: Duration = Duration::from_secs(120);
/// A token is not used in its last minute: the server's clock may be ahead.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);
/// The page size of collections that page by `before`.
const HISTORY_PAGE: u32 = 1000;

/// A client of one server, as one app.
pub(crate) struct Client {
    http: reqwest::Client,
    connection: Connection,
    progress: Rc<Progress>,
    token: RefCell<Option<Token>>,
}

/// A bearer token, in memory only.
#[derive(Clone)]
struct Token {
    text: String,
    ends: Instant,
}

/// A reply.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    /// The body as it came.
    pub(crate) body: String,
    url: String,
    status: StatusCode,
    /// What a caller without a token is told about where to get one.
    challenge: Option<String>,
}

/// The rows of a list, over all its pages.
#[derive(Debug, Serialize)]
pub(crate) struct Listing {
    /// The API's context, of the first page.
    #[serde(rename = "@odata.context", skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    /// The rows as they came.
    pub(crate) value: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "@odata.context", default)]
    context: Option<String>,
    value: Vec<Box<RawValue>>,
    #[serde(rename = "@odata.nextLink", default)]
    next_link: Option<String>,
}

/// Query options of a list.
pub(crate) type Query<'a> = [(&'a str, String)];

impl Client {
    /// A client that has not called yet.
    pub(crate) fn new(connection: Connection, progress: Rc<Progress>) -> Result<Self> {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("cordon/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            // A redirect would carry the token to where nobody sent it.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        let http = tls::trusting(builder, &connection.trust)?.build()?;
        Ok(Self { http, connection, progress, token: RefCell::new(None) })
    }

    /// The server, for messages.
    pub(crate) fn server(&self) -> String {
        origin(&self.connection.server)
    }

    /// Gets an entity.
    pub(crate) async fn get(&self, path: &[&str]) -> Result<Reply, ClientError> {
        self.call(Method::GET, self.url(path, &[]), None).await
    }

    /// Posts an entity.
    pub(crate) async fn post(&self, path: &[&str], body: &impl Serialize) -> Result<Reply> {
        let body = serde_json::to_string(body)?;
        Ok(self.call(Method::POST, self.url(path, &[]), Some(body)).await?)
    }

    /// Puts an entity.
    pub(crate) async fn put(&self, path: &[&str], body: &impl Serialize) -> Result<Reply> {
        let body = serde_json::to_string(body)?;
        Ok(self.call(Method::PUT, self.url(path, &[]), Some(body)).await?)
    }

    /// Deletes an entity.
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<Reply, ClientError> {
        self.call(Method::DELETE, self.url(path, &[]), None).await
    }

    /// All rows of a list, page by page as the server links them.
    pub(crate) async fn list(&self, path: &[&str], query: &Query<'_>) -> Result<Listing> {
        let mut url = self.url(path, query);
        let mut listing = Listing { context: None, value: Vec::new() };
        loop {
            let reply = self.call(Method::GET, url.clone(), None).await?;
            let page: Page = reply.decode()?;
            listing.context = listing.context.or(page.context);
            listing.value.extend(page.value);
            anyhow::ensure!(
                listing.value.len() <= ROWS_MAX,
                "more than {ROWS_MAX} rows: narrow the list by --filter or --top"
            );
            let Some(link) = page.next_link else { return Ok(listing) };
            let next = self.on_server(&link, &reply)?;
            if next == url {
                return Err(reply.unexpected("a page that is its own next page").into());
            }
            url = next;
        }
    }

    /// The newest `top` rows of a collection that pages by `before`, the number of the oldest row seen; newest first,
    /// and only those whose number is above `after`.
    pub(crate) async fn newest(
        &self,
        path: &[&str],
        query: &Query<'_>,
        top: u32,
        after: i64,
    ) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Numbered {
            id: i64,
        }
        let mut listing = Listing { context: None, value: Vec::new() };
        let (mut wanted, mut before) = (top, None);
        while wanted > 0 {
            let asked = wanted.min(HISTORY_PAGE);
            let mut query = query.to_vec();
            query.push(("top", asked.to_string()));
            query.extend(before.map(|before: i64| ("before", before.to_string())));
            let page: Page = self.call(Method::GET, self.url(path, &query), None).await?.decode()?;
            listing.context = listing.context.or(page.context);
            let mut fresh = 0;
            for row in page.value.into_iter().take(asked.try_into()?) {
                let number = serde_json::from_str::<Numbered>(row.get())?.id;
                if number <= after || before.is_some_and(|before| number >= before) {
                    break;
                }
                before = Some(number);
                listing.value.push(row);
                fresh += 1;
            }
            if fresh < asked {
                break;
            }
            wanted -= asked;
        }
        Ok(listing)
    }

    /// Gets a token, which proves that the server can be trusted and knows the app.
    pub(crate) async fn sign_in(&self) -> Result<(), ClientError> {
        self.token().await.map(drop)
    }

    async fn call(&self, method: Method, url: Url, body: Option<String>) -> Result<Reply, ClientError> {
        let had_token = self.token.borrow().is_some();
        match self.call_once(&method, &url, body.as_ref()).await {
            // The token may have ended while this machine slept, or the server has other keys.
            Err(ClientError::Api { status: StatusCode::UNAUTHORIZED, .. }) if had_token => {
                self.token.take();
                self.call_once(&method, &url, body.as_ref()).await
            }
            result => result,
        }
    }

    async fn call_once(
        &self,
        method: &Method,
        url: &Url,
        body: Option<&String>,
    ) -> Result<Reply, ClientError> {
        let token = self.token().await?;
        let mut request = self.http.request(method.clone(), url.clone()).bearer_auth(token);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        let reply = self.exchange(request).await?;
        if reply.status.is_success() {
            return Ok(reply);
        }
        let ErrorEnvelope { error } = reply.decode()?;
        Err(ClientError::Api {
            status: reply.status,
            code: error.code,
            message: error.message,
            correlation_id: error.target,
        })
    }

    async fn token(&self) -> Result<String, ClientError> {
        if let Some(token) = self.token.borrow().as_ref().filter(|token| Instant::now() < token.ends) {
            return Ok(token.text.clone());
        }
        let (endpoint, scope) = self.discover().await?;
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.connection.client_id),
            ("client_secret", self.connection.client_secret.reveal()),
            ("scope", &scope),
        ];
        let asked = Instant::now();
        let reply = self.exchange(self.http.post(endpoint).form(&form)).await?;
        if !reply.status.is_success() {
            let error: TokenError = reply.decode()?;
            return Err(ClientError::Token {
                status: reply.status,
                error: error.error,
                description: error.error_description,
                correlation_id: error.correlation_id,
            });
        }
        let token: TokenV2 = reply.decode()?;
        let valid = Duration::from_secs(token.expires_in.min(24 * 60 * 60)).saturating_sub(TOKEN_MARGIN);
        self.token.replace(Some(Token { text: token.access_token.clone(), ends: asked + valid }));
        Ok(token.access_token)
    }

    /// Asks where to get a token: the token endpoint, and the scope of a token for the server itself.
    ///
    /// A call without a token is refused with `authorization_uri="{public URL}/{tenant}/oauth2/authorize"`, by which
    /// the clients of the vendor's API find their tenant too.
    async fn discover(&self) -> Result<(Url, String), ClientError> {
        let reply = self.exchange(self.http.get(self.url(&["api", "machines"], &[]))).await?;
        let uri = reply.challenge.as_deref().and_then(|challenge| {
            let (_, uri) = challenge.split_once("authorization_uri=\"")?;
            uri.split_once('"')?.0.parse::<Url>().ok()
        });
        let tenant =
            uri.as_ref().and_then(|uri| uri.path().strip_suffix("/oauth2/authorize")?.strip_prefix('/'));
        let (Some(uri), Some(tenant)) = (&uri, tenant) else {
            return Err(reply.unexpected("it does not say where to get a token"));
        };
        Ok((self.url(&[tenant, "oauth2", "v2.0", "token"], &[]), format!("{}/.default", origin(uri))))
    }

    /// Sends a request, and again when the server asks to wait for the rate limit.
    async fn exchange(&self, request: RequestBuilder) -> Result<Reply, ClientError> {
        let transport = |error| ClientError::transport(&self.connection.server, &error);
        let mut request = Some(request);
        let mut waits = 0;
        loop {
            // A body in memory can always be sent again.
            let again = request.as_ref().and_then(RequestBuilder::try_clone);
            let Some(current) = std::mem::replace(&mut request, again) else {
                return Err(Reply::default().unexpected("the request cannot be repeated"));
            };
            let mut response = current.send().await.map_err(transport)?;
            let header = |name| response.headers().get(name)?.to_str().ok().map(str::to_owned);
            let retry_after = header(RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
            let mut reply = Reply {
                body: String::new(),
                url: response.url().to_string(),
                status: response.status(),
                challenge: header(WWW_AUTHENTICATE),
            };
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(transport)? {
                body.extend_from_slice(&chunk);
                if body.len() > REPLY_BYTES_MAX {
                    return Err(reply.unexpected("the reply is too large"));
                }
            }
            let wait = Duration::from_secs(retry_after.unwrap_or(1));
            let limited = reply.status == StatusCode::TOO_MANY_REQUESTS;
            if limited && waits < RATE_LIMIT_WAITS_MAX && wait <= RATE_LIMIT_WAIT_MAX {
                waits += 1;
                self.progress.note(&format!("rate limit: waiting {} s, as the server asks", wait.as_secs()));
                tokio::time::sleep(wait).await;
                continue;
            }
            reply.body = String::from_utf8(body).map_err(|error| reply.unexpected(&error.to_string()))?;
            return Ok(reply);
        }
    }

    /// The URL of a route. Each part is one segment, whatever it holds.
    fn url(&self, path: &[&str], query: &Query<'_>) -> Url {
        let mut url = self.connection.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// A link of the server, followed at the URL that the user gave: the server may be reached under another name, and
    /// neither secret nor token ever goes elsewhere.
    fn on_server(&self, link: &str, reply: &Reply) -> Result<Url, ClientError> {
        let mut url = self.connection.server.clone();
        let link = url.join(link).map_err(|error| reply.unexpected(&format!("link {link:?}: {error}")))?;
        url.set_path(link.path());
        url.set_query(link.query());
        Ok(url)
    }
}

impl Reply {
    /// The body as an entity.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_str(&self.body).map_err(|error| self.unexpected(&error.to_string()))
    }

    fn unexpected(&self, fault: &str) -> ClientError {
        ClientError::Unexpected { url: self.url.clone(), status: self.status, fault: fault.to_owned() }
    }
}

impl Listing {
    /// The rows as entities.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<Vec<T>, serde_json::Error> {
        self.value.iter().map(|row| serde_json::from_str(row.get())).collect()
    }
}
