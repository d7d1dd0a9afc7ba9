//! Calls of the HTTP API: the token, and paging.
//!
//! Knows the contract's envelopes, not its nouns: those are in `commands`.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use api_types::error::ErrorEnvelope;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode, Url};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::connection::{Connection, Credentials, Person, Secret};
use crate::error::{ClientError, origin};
use crate::http::{Http, Reply};
use crate::oauth::{self, Grant, Issuer};
use crate::profile::{Profile, ProfileFile};
use crate::progress::Progress;

/// The most rows that a list gathers over its pages.
const ROWS_MAX: usize = 1_000_000;
/// A token is not used in its last minute: the server's clock may be ahead.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);
/// The page size of collections that page by `before`.
const HISTORY_PAGE: u32 = 1000;

/// A client of one server, as one app or person.
pub(crate) struct Client {
    http: Http,
    connection: Connection,
    progress: Rc<Progress>,
    token: RefCell<Option<Token>>,
    /// A kept token that the server no longer takes.
    refused: RefCell<Option<Secret>>,
}

/// A bearer token, in memory.
#[derive(Clone)]
struct Token {
    text: Secret,
    ends: Instant,
}

/// What a request carries.
struct Call {
    method: Method,
    url: Url,
    body: Option<String>,
    headers: Vec<(&'static str, String)>,
}

/// The rows of a list, over all its pages.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// The API's context, of the first page.
    #[serde(rename = "@odata.context", default, skip_serializing_if = "Option::is_none")]
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

/// Where tokens of the server's own issuer come from.
pub(crate) struct OwnIssuer {
    /// `{server}/{tenant}`, at the URL that the user gave.
    base: Url,
    /// The server's name for itself, which tokens are for.
    pub(crate) audience: String,
}

impl OwnIssuer {
    /// `{server}/{tenant}/oauth2/v2.0/{endpoint}`.
    pub(crate) fn endpoint(&self, endpoint: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(["oauth2", "v2.0", endpoint]);
        }
        url
    }
}

impl Client {
    /// A client that has not called yet.
    pub(crate) fn new(connection: Connection, progress: Rc<Progress>) -> Result<Self> {
        let http = Http::new(&connection.trust, Rc::clone(&progress))?;
        Ok(Self { http, connection, progress, token: RefCell::new(None), refused: RefCell::new(None) })
    }

    /// The server, for messages.
    pub(crate) fn server(&self) -> String {
        origin(&self.connection.server)
    }

    /// As whom.
    pub(crate) fn credentials(&self) -> &Credentials {
        &self.connection.credentials
    }

    /// Gets an entity.
    pub(crate) async fn get(&self, path: &[&str]) -> Result<Reply> {
        self.get_where(path, &[]).await
    }

    /// Gets an entity, with query options.
    pub(crate) async fn get_where(&self, path: &[&str], query: &Query<'_>) -> Result<Reply> {
        self.call(Call::new(Method::GET, self.url(path, query))).await
    }

    /// Posts an entity.
    pub(crate) async fn post(&self, path: &[&str], body: &impl Serialize) -> Result<Reply> {
        self.post_once(path, body, None).await
    }

    /// Posts an entity; with a key, what an earlier call with the same key did is not done again.
    pub(crate) async fn post_once(
        &self,
        path: &[&str],
        body: &impl Serialize,
        key: Option<&str>,
    ) -> Result<Reply> {
        let headers = key.map(|key| ("idempotency-key", key.to_owned())).into_iter().collect();
        let call = Call::new(Method::POST, self.url(path, &[])).with(body)?;
        self.call(Call { headers, ..call }).await
    }

    /// Posts nothing.
    pub(crate) async fn post_nothing(&self, path: &[&str]) -> Result<Reply> {
        self.call(Call::new(Method::POST, self.url(path, &[]))).await
    }

    /// Puts an entity, with query options.
    pub(crate) async fn put(&self, path: &[&str], query: &Query<'_>, body: &impl Serialize) -> Result<Reply> {
        self.call(Call::new(Method::PUT, self.url(path, query)).with(body)?).await
    }

    /// Changes an entity.
    pub(crate) async fn patch(&self, path: &[&str], body: &impl Serialize) -> Result<Reply> {
        self.call(Call::new(Method::PATCH, self.url(path, &[])).with(body)?).await
    }

    /// Deletes an entity.
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<Reply> {
        self.call(Call::new(Method::DELETE, self.url(path, &[]))).await
    }

    /// Gets what is of any size, and writes it to standard output as it comes.
    pub(crate) async fn download(&self, path: &[&str], query: &Query<'_>) -> Result<()> {
        let call = Call::new(Method::GET, self.url(path, query));
        // Before the first byte nothing is printed, so that a token that ended can be renewed as in any call.
        self.renewing(async |token| {
            let request = self.http.request(Method::GET, &call.url).bearer_auth(token.reveal());
            success(self.http.download(&call.url, request).await?).map(drop).map_err(Into::into)
        })
        .await
    }

    /// All rows of a list, page by page as the server links them.
    pub(crate) async fn list(&self, path: &[&str], query: &Query<'_>) -> Result<Listing> {
        let mut url = self.url(path, query);
        let mut listing = Listing { context: None, value: Vec::new() };
        loop {
            let reply = self.call(Call::new(Method::GET, url.clone())).await?;
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
            let page: Page = self.get_where(path, &query).await?.decode()?;
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

    async fn call(&self, call: Call) -> Result<Reply> {
        self.renewing(async |token| {
            let mut request = self.http.request(call.method.clone(), &call.url).bearer_auth(token.reveal());
            for (name, value) in &call.headers {
                request = request.header(*name, value);
            }
            if let Some(body) = &call.body {
                request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
            }
            Ok(success(self.http.exchange(&call.url, request).await?)?)
        })
        .await
    }

    /// Calls with the token, and once more with another when the server does not take one that was there before.
    async fn renewing<T>(&self, once: impl AsyncFn(Secret) -> Result<T>) -> Result<T> {
        let is_person = matches!(self.connection.credentials, Credentials::Person(_));
        let was_there = is_person || self.token.borrow().is_some();
        match once(self.token().await?).await {
            // The token may have ended while this machine slept, or the server has other keys.
            Err(error) if was_there && is_unauthorized(&error) => {
                let old = self.token.take();
                self.refused.replace(old.map(|token| token.text));
                once(self.token().await?).await
            }
            result => result,
        }
    }

    /// The token, from memory, from the profile, or from the issuer.
    ///
    /// # Errors
    /// [`ClientError`]; the profile file.
    pub(crate) async fn token(&self) -> Result<Secret> {
        if let Some(token) = self.token.borrow().as_ref().filter(|token| Instant::now() < token.ends) {
            return Ok(token.text.clone());
        }
        let token = match &self.connection.credentials {
            Credentials::App { id, secret } => {
                let issuer = self.discover().await?;
                let asked = Instant::now();
                let scope = format!("{}/.default", issuer.audience);
                let form = [
                    ("grant_type", "client_credentials"),
                    ("client_id", id),
                    ("client_secret", secret.reveal()),
                    ("scope", &scope),
                ];
                let grant = oauth::ask(&self.http, &issuer.endpoint("token"), &form, "this app").await?;
                let ends = asked + grant.valid.saturating_sub(TOKEN_MARGIN);
                Token { text: grant.access_token, ends }
            }
            Credentials::Person(person) => self.token_of(person).await?,
        };
        self.token.replace(Some(token.clone()));
        Ok(token.text)
    }

    /// The kept token of a person, or another one for the kept refresh token. Each refresh token counts once, so runs
    /// of this program that need one at the same time take turns, and the second finds what the first got.
    async fn token_of(&self, person: &Person) -> Result<Token> {
        let file = ProfileFile::of_user()?;
        let locked = file.lock()?;
        let kept = locked.find(&person.profile)?;
        let Some((profile, sign_in)) = kept
            .and_then(|profile| Some((profile.clone(), profile.sign_in?)))
            .filter(|(profile, _)| profile.server == self.server() && profile.client_id == person.client_id)
        else {
            return Err(ClientError::SignedOut("it was changed or removed meanwhile".to_owned()).into());
        };
        let now = oauth::unix_seconds();
        let left = Duration::from_secs(sign_in.access_token_ends.saturating_sub(now));
        let is_refused = self.refused.borrow().as_ref() == Some(&sign_in.access_token);
        if left > TOKEN_MARGIN && !is_refused {
            return Ok(Token {
                text: sign_in.access_token,
                ends: Instant::now() + left.min(oauth::VALID_MAX).saturating_sub(TOKEN_MARGIN),
            });
        }
        let Some(refresh_token) = &sign_in.refresh_token else {
            let reason = "its token has ended, and the issuer gave none to renew it".to_owned();
            return Err(ClientError::SignedOut(reason).into());
        };
        let endpoint: Url = sign_in.token_endpoint.parse()?;
        let own;
        let http = if endpoint.origin() == self.connection.server.origin() {
            &self.http
        } else {
            own = Http::new(&sign_in.trust(), Rc::clone(&self.progress))?;
            &own
        };
        let issuer = Issuer {
            http,
            client_id: &person.client_id,
            scope: &sign_in.scope,
            resource: sign_in.resource.as_deref(),
        };
        let asked = Instant::now();
        let grant = issuer.refresh(&endpoint, refresh_token).await?;
        let ends = asked + grant.valid.saturating_sub(TOKEN_MARGIN);
        let text = grant.access_token.clone();
        let sign_in = sign_in.renewed(grant);
        locked.store(&person.profile, Profile { sign_in: Some(sign_in), ..profile })?;
        Ok(Token { text, ends })
    }

    /// Takes a token that was just granted, before there is a profile of it.
    pub(crate) fn hold(&self, grant: &Grant) {
        let ends = Instant::now() + grant.valid;
        self.token.replace(Some(Token { text: grant.access_token.clone(), ends }));
    }

    /// Makes a call with the token at hand to learn whether the server takes it; the server's words when it knows who
    /// calls, and allows nothing of this.
    pub(crate) async fn probe(&self) -> Result<Option<String>> {
        let token = self.token().await?;
        let url = self.url(&["api", "machines"], &[("$top", "1".to_owned())]);
        let request = self.http.request(Method::GET, &url).bearer_auth(token.reveal());
        match success(self.http.exchange(&url, request).await?) {
            Ok(_) => Ok(None),
            Err(error) if error.is_forbidden() => Ok(Some(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks where to get a token, and the name by which the server knows itself.
    ///
    /// A call without a token is refused with `authorization_uri="{public URL}/{tenant}/oauth2/authorize"`, by which
    /// the clients of the vendor's API find their tenant too.
    pub(crate) async fn discover(&self) -> Result<OwnIssuer, ClientError> {
        let url = self.url(&["api", "machines"], &[]);
        let reply = self.http.exchange(&url, self.http.request(Method::GET, &url)).await?;
        let uri = reply.challenge.as_deref().and_then(|challenge| {
            let (_, uri) = challenge.split_once("authorization_uri=\"")?;
            uri.split_once('"')?.0.parse::<Url>().ok()
        });
        let tenant =
            uri.as_ref().and_then(|uri| uri.path().strip_suffix("/oauth2/authorize")?.strip_prefix('/'));
        let (Some(uri), Some(tenant)) = (&uri, tenant) else {
            return Err(reply.unexpected("it does not say where to get a token"));
        };
        Ok(OwnIssuer { base: self.url(&[tenant], &[]), audience: origin(uri) })
    }

    /// The issuer of the server's own, for a person that signs in there.
    pub(crate) fn issuer<'a>(&'a self, client_id: &'a str, scope: &'a str) -> Issuer<'a> {
        Issuer { http: &self.http, client_id, scope, resource: None }
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

impl Call {
    fn new(method: Method, url: Url) -> Self {
        Self { method, url, body: None, headers: Vec::new() }
    }

    fn with(self, body: &impl Serialize) -> Result<Self> {
        Ok(Self { body: Some(serde_json::to_string(body)?), ..self })
    }
}

impl Listing {
    /// The rows as entities.
    pub(crate) fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<Vec<T>, serde_json::Error> {
        self.value.iter().map(|row| serde_json::from_str(row.get())).collect()
    }
}

/// The reply when it is a success, else the error that its envelope tells.
fn success(reply: Reply) -> Result<Reply, ClientError> {
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

fn is_unauthorized(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::Api { status: StatusCode::UNAUTHORIZED, .. }))
}
