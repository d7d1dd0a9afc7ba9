//! Tokens, as OAuth 2 grants them: to an app for its secret, to a person by device code (RFC 8628) and then for a refresh
//! token.
//!
//! Works with the server's own issuer and with others, so it believes no more of a reply than the RFCs say.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use crate::connection::Secret;
use crate::error::ClientError;
use crate::http::Http;
use crate::progress::Progress;

/// No token is believed to be valid for longer.
pub(crate) const VALID_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// What RFC 6749 leaves open, and all issuers say.
const VALID_DEFAULT_SECONDS: u64 = 3600;
/// The pause between two polls when the issuer says none (RFC 8628, section 3.2), and how much longer it gets each time
/// that the issuer asks for it (section 3.5).
const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const INTERVAL_STEP: Duration = Duration::from_secs(5);
/// An issuer that says less gets no more polls than this, and nobody waits longer than the second.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_secs(120);
const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// What an issuer granted.
pub(crate) struct Grant {
    /// The bearer token.
    pub(crate) access_token: Secret,
    /// For how long.
    pub(crate) valid: Duration,
    /// For another one.
    pub(crate) refresh_token: Option<Secret>,
}

/// An issuer, and what it is asked for.
pub(crate) struct Issuer<'a> {
    /// Reaches it.
    pub(crate) http: &'a Http,
    /// This program's id there.
    pub(crate) client_id: &'a str,
    /// What the token is to allow.
    pub(crate) scope: &'a str,
    /// Whom it is for, where the scope does not say that (RFC 8707).
    pub(crate) resource: Option<&'a str>,
}

/// Endpoints of another issuer.
#[derive(Debug)]
pub(crate) struct Endpoints {
    /// Grants tokens.
    pub(crate) token: Url,
    /// Begins a sign-in by device code; none when the issuer has no such sign-in.
    pub(crate) device: Option<Url>,
}

/// What counts of a discovery document.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    token_endpoint: String,
    #[serde(default)]
    device_authorization_endpoint: Option<String>,
}

#[derive(Deserialize)]
struct TokenReply {
    access_token: Secret,
    #[serde(default)]
    token_type: String,
    #[serde(default)]
    expires_in: Option<u64>,
    #[serde(default)]
    refresh_token: Option<Secret>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    error_description: String,
    #[serde(default)]
    correlation_id: Option<String>,
}

#[derive(Deserialize)]
struct DeviceCode {
    device_code: Secret,
    user_code: String,
    #[serde(default)]
    verification_uri: Option<String>,
    /// The name of a draft, which some issuers still use, and some use both.
    #[serde(default)]
    verification_url: Option<String>,
    #[serde(default)]
    verification_uri_complete: Option<String>,
    expires_in: u64,
    #[serde(default)]
    interval: Option<u64>,
}

/// When to ask again whether a person has signed in.
struct Polling {
    interval: Duration,
}

impl Endpoints {
    /// Asks an issuer where its endpoints are (the discovery of OIDC, section 4).
    pub(crate) async fn discover(http: &Http, issuer: &Url) -> Result<Self> {
        let mut url = issuer.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend([".well-known", "openid-configuration"]);
        }
        let reply = http.exchange(&url, http.request(Method::GET, &url)).await?;
        if !reply.status.is_success() {
            bail!("{url} answered {}: is this the URL of an OpenID Connect issuer?", reply.status);
        }
        let is_none = || format!("{url} is no discovery document of an OpenID Connect issuer");
        let discovery: Discovery = serde_json::from_str(&reply.body).with_context(is_none)?;
        if discovery.issuer.trim_end_matches('/') != issuer.as_str().trim_end_matches('/') {
            bail!("{url} is of another issuer, {:?}", discovery.issuer);
        }
        let device = discovery.device_authorization_endpoint.map(|url| url.parse());
        Ok(Self {
            token: discovery.token_endpoint.parse().with_context(is_none)?,
            device: device.transpose().with_context(is_none)?,
        })
    }
}

impl Issuer<'_> {
    /// Signs a person in: shows where to go and which code to enter there, and waits until that is done.
    pub(crate) async fn sign_in(
        &self,
        device_endpoint: &Url,
        token_endpoint: &Url,
        progress: &Progress,
    ) -> Result<Grant> {
        let form = self.form(&[("client_id", self.client_id)]);
        let reply = self
            .http
            .exchange(device_endpoint, self.http.request(Method::POST, device_endpoint).form(&form))
            .await?;
        if !reply.status.is_success() {
            return Err(refused(reply.status, reply.decode()?, "you").into());
        }
        let code: DeviceCode = reply.decode()?;
        let ends = Instant::now() + Duration::from_secs(code.expires_in).min(VALID_MAX);
        let uri = code.verification_uri.as_ref().or(code.verification_url.as_ref());
        let uri = uri.ok_or_else(|| reply.unexpected("it names no page to sign in on"))?;
        progress.note(&format!("to sign in, open  {uri}"));
        progress.note(&format!("and enter         {}", code.user_code));
        if let Some(uri) = &code.verification_uri_complete {
            progress.note(&format!("or open only      {uri}"));
        }
        progress.waiting("waiting for you to sign in");
        let granted = self.poll(token_endpoint, &code, ends).await;
        progress.waited();
        granted
    }

    async fn poll(&self, endpoint: &Url, code: &DeviceCode, ends: Instant) -> Result<Grant> {
        let form = [
            ("grant_type", DEVICE_CODE),
            ("client_id", self.client_id),
            ("device_code", code.device_code.reveal()),
        ];
        let mut polling = Polling::new(code.interval);
        loop {
            tokio::time::sleep(polling.interval).await;
            if Instant::now() >= ends {
                bail!("nobody signed in while the code counted: run cordon login again");
            }
            match ask(self.http, endpoint, &form, "you").await {
                Ok(grant) => return Ok(grant),
                Err(error) => polling.go_on(error)?,
            }
        }
    }

    /// Another token for a refresh token, which counts no more then when the grant has one itself.
    pub(crate) async fn refresh(&self, endpoint: &Url, refresh_token: &Secret) -> Result<Grant, ClientError> {
        let form = self.form(&[
            ("grant_type", "refresh_token"),
            ("client_id", self.client_id),
            ("refresh_token", refresh_token.reveal()),
        ]);
        let result = ask(self.http, endpoint, &form, "you").await;
        if let Err(ClientError::Token { error, description, .. }) = &result
            && error == "invalid_grant"
        {
            return Err(ClientError::SignedOut(format!("{error}: {description}")));
        }
        result
    }

    fn form<'b>(&'b self, fields: &[(&'static str, &'b str)]) -> Vec<(&'static str, &'b str)> {
        let more = [("scope", Some(self.scope)), ("resource", self.resource)];
        let more = more.into_iter().filter_map(|(name, value)| Some((name, value?)));
        fields.iter().copied().chain(more).collect()
    }
}

impl Polling {
    fn new(interval: Option<u64>) -> Self {
        let interval = interval.map_or(INTERVAL_DEFAULT, Duration::from_secs);
        Self { interval: interval.clamp(INTERVAL_MIN, INTERVAL_MAX) }
    }

    /// Whether to go on after a poll that brought no token, and how fast.
    ///
    /// # Errors
    /// Why there will be none.
    fn go_on(&mut self, error: ClientError) -> Result<()> {
        let ClientError::Token { error: word, .. } = &error else {
            if !error.is_transient() {
                return Err(error.into());
            }
            // RFC 8628, section 3.5: ever slower.
            self.interval = (self.interval * 2).min(INTERVAL_MAX);
            return Ok(());
        };
        match word.as_str() {
            "authorization_pending" => Ok(()),
            "slow_down" => {
                self.interval = (self.interval + INTERVAL_STEP).min(INTERVAL_MAX);
                Ok(())
            }
            "expired_token" => bail!("nobody signed in while the code counted: run cordon login again"),
            "access_denied" => Err(error).context("the sign-in was declined"),
            _ if error.is_transient() => Ok(()),
            _ => Err(error.into()),
        }
    }
}

/// Asks a token endpoint. `whom` the token is for tells the error.
pub(crate) async fn ask(
    http: &Http,
    endpoint: &Url,
    form: &[(&str, &str)],
    whom: &'static str,
) -> Result<Grant, ClientError> {
    let reply = http.exchange(endpoint, http.request(Method::POST, endpoint).form(form)).await?;
    if !reply.status.is_success() {
        return Err(refused(reply.status, reply.decode()?, whom));
    }
    let token: TokenReply = reply.decode()?;
    if !token.token_type.eq_ignore_ascii_case("bearer") {
        return Err(reply.unexpected("the token is not of the type Bearer"));
    }
    let valid = Duration::from_secs(token.expires_in.unwrap_or(VALID_DEFAULT_SECONDS)).min(VALID_MAX);
    Ok(Grant { access_token: token.access_token, valid, refresh_token: token.refresh_token })
}

fn refused(status: StatusCode, refusal: Refusal, whom: &'static str) -> ClientError {
    let id = refusal.correlation_id.map(|id| format!(" (correlation id {id})")).unwrap_or_default();
    ClientError::Token {
        status,
        whom,
        error: refusal.error,
        description: format!("{}{id}", refusal.error_description),
    }
}

/// This machine's clock.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(error: &str) -> ClientError {
        let description = String::new();
        ClientError::Token {
            status: StatusCode::BAD_REQUEST,
            whom: "you",
            error: error.to_owned(),
            description,
        }
    }

    #[test]
    fn polls_are_as_far_apart_as_the_issuer_asks() {
        let seconds = |polling: &Polling| polling.interval.as_secs();
        assert_eq!(
            [None, Some(0), Some(7), Some(u64::MAX)].map(|i| seconds(&Polling::new(i))),
            [5, 1, 7, 120]
        );
        let mut polling = Polling::new(Some(2));
        polling.go_on(error("authorization_pending")).unwrap();
        assert_eq!(seconds(&polling), 2);
        polling.go_on(error("slow_down")).unwrap();
        assert_eq!(seconds(&polling), 7);
        let unreachable = || ClientError::Unreachable { server: String::new(), cause: String::new() };
        polling.go_on(unreachable()).unwrap();
        assert_eq!(seconds(&polling), 14);
        for _ in 0..30 {
            polling.go_on(unreachable()).unwrap();
            polling.go_on(error("slow_down")).unwrap();
        }
        assert_eq!(seconds(&polling), 120);
    }

    #[test]
    fn polling_ends_when_there_will_be_no_token() {
        for end in ["expired_token", "access_denied", "invalid_grant", "unauthorized_client"] {
            assert!(Polling::new(None).go_on(error(end)).is_err(), "{end}");
        }
        let denied = Polling::new(None).go_on(error("access_denied")).unwrap_err();
        assert!(denied.downcast_ref().is_some_and(ClientError::is_refusal));
    }
}
