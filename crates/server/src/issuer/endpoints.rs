//! The issuer over HTTP: token endpoints, discovery and public keys, with the paths and bodies of the vendor's.
//!
//! Errors are in OAuth's form, not in the API's envelope. The tenant in the path must be the server's own: there is one.

use std::time::Duration;

use api_types::token::{TokenError, TokenV1, TokenV2};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use chrono::DateTime;
use domain::app::App;
use domain::time::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::credentials::TokenRequest;
use super::{Issuer, TOKEN_VALIDITY, Version};
use crate::attempts::{self, TooMany};
use crate::state::{AppState, now};
use crate::tls::Peer;

/// The longest form, in bytes.
const FORM_BYTES_MAX: usize = 16 * 1024;
/// What some clients put in front of the scope that they mean.
const SCOPES_IGNORED: [&str; 4] = ["offline_access", "openid", "profile", "email"];

/// The token endpoints, discovery and keys, to merge into the public router.
pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/{tenant}/oauth2/token", get(token_v1).post(token_v1))
        .route("/{tenant}/oauth2/v2.0/token", get(token_v2).post(token_v2))
        .route("/{tenant}/oauth2/authorize", get(authorize))
        .route("/{tenant}/oauth2/v2.0/authorize", get(authorize))
        .route("/{tenant}/.well-known/openid-configuration", get(discovery_v1))
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(discovery_v2))
        .route("/{tenant}/discovery/keys", get(keys))
        .route("/{tenant}/discovery/v2.0/keys", get(keys))
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
}

/// Why there is no token.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    /// OAuth's word for it.
    error: &'static str,
    /// The vendor's number for it.
    code: u32,
    text: String,
    retry_after: Option<Duration>,
    /// Asks for HTTP Basic again, because that is how the credentials came.
    challenge: bool,
}

impl Refused {
    fn new(status: StatusCode, error: &'static str, code: u32, text: impl Into<String>) -> Self {
        Self { status, error, code, text: text.into(), retry_after: None, challenge: false }
    }

    fn request(code: u32, text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", code, text)
    }

    fn missing(parameter: &str) -> Self {
        let text = format!("The request body must contain the following parameter: '{parameter}'.");
        Self::request(900_144, text)
    }

    fn too_many(too_many: TooMany) -> Self {
        let mut refused = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "temporarily_unavailable",
            90_055,
            "There were too many failed logins from this address or as this application.",
        );
        refused.retry_after = Some(too_many.retry_after);
        refused
    }

    /// The reply. `headers` are the request's.
    fn response(self, headers: &HeaderMap, at: Timestamp) -> Response {
        let trace_id = Uuid::new_v4();
        let given = headers.get("client-request-id").and_then(|id| id.to_str().ok()?.parse().ok());
        let correlation_id = given.unwrap_or(trace_id);
        let timestamp = DateTime::from_timestamp(at.unix_seconds(), 0).unwrap_or_default();
        let timestamp = timestamp.format("%Y-%m-%d %H:%M:%SZ").to_string();
        tracing::info!(%trace_id, %correlation_id, error = self.error, code = self.code, "no token");
        let body = TokenError {
            error: self.error.to_owned(),
            error_description: format!(
                "AADSTS{}: {} Trace ID: {trace_id} Correlation ID: {correlation_id} Timestamp: {timestamp}",
                self.code, self.text
            ),
            error_codes: vec![self.code],
            timestamp,
            trace_id,
            correlation_id,
        };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(retry_after) = self.retry_after {
            // Rounded up, so that a client that waits it out succeeds.
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.challenge {
            let challenge = HeaderValue::from_static("Basic realm=\"cordon\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        not_stored(response)
    }
}

async fn token_v1(
    state: State<AppState>,
    tenant: Path<String>,
    peer: Extension<Peer>,
    headers: HeaderMap,
    form: Result<Bytes, BytesRejection>,
) -> Response {
    token(Version::V1, state, tenant, peer, headers, form).await
}

async fn token_v2(
    state: State<AppState>,
    tenant: Path<String>,
    peer: Extension<Peer>,
    headers: HeaderMap,
    form: Result<Bytes, BytesRejection>,
) -> Response {
    token(Version::V2, state, tenant, peer, headers, form).await
}

async fn token(
    version: Version,
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    form: Result<Bytes, BytesRejection>,
) -> Response {
    let now = now();
    let granted = async {
        require_tenant(&state.issuer, &tenant)?;
        let form = form.map_err(|rejection| {
            Refused::new(rejection.status(), "invalid_request", 90_016, rejection.body_text())
        })?;
        let request = TokenRequest::read(&headers, &form)
            .map_err(|unreadable| Refused::request(90_016, unreadable.0))?;
        let app = authenticate(&state, &request, &peer, now).await?;
        let audience = audience(version, &state.issuer, &request)?;
        let token = state.issuer.sign(version, &app, audience.clone(), now).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "no token could be signed");
            unavailable()
        })?;
        tracing::info!(app = %app.id, audience, "token issued");
        Ok(granted(version, token, audience, now))
    };
    granted.await.unwrap_or_else(|refused: Refused| refused.response(&headers, now))
}

/// The app that the credentials belong to.
async fn authenticate(
    state: &AppState,
    request: &TokenRequest,
    peer: &Peer,
    now: Timestamp,
) -> Result<App, Refused> {
    let issuer = &state.issuer;
    let network = attempts::network(peer.address.ip());
    issuer.failures_by_network.check(&network, now).map_err(Refused::too_many)?;
    match request.grant_type.as_deref() {
        None | Some("") => return Err(Refused::missing("grant_type")),
        Some("client_credentials") => {}
        Some(other) => {
            let text =
                format!("The grant type '{}' is not supported: use 'client_credentials'.", shown(other));
            return Err(Refused::new(StatusCode::BAD_REQUEST, "unsupported_grant_type", 70_003, text));
        }
    }
    let id = request.client_id.as_deref().filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| Refused::missing("client_id"))?;
    let refused = |code, text: String| {
        let status = StatusCode::UNAUTHORIZED;
        Refused { challenge: request.by_header, ..Refused::new(status, "invalid_client", code, text) }
    };
    let Some(secret) = request.client_secret.as_deref().filter(|secret| !secret.is_empty()) else {
        let text = match request.client_assertion {
            Some(_) => "Client assertions are not supported: use 'client_secret'.",
            None => "The request body must contain the following parameter: 'client_secret'.",
        };
        return Err(refused(7_000_218, text.to_owned()));
    };
    let wrong = || {
        let text = format!("Unknown application '{}', or invalid client secret provided.", shown(id));
        refused(7_000_215, text)
    };
    let Ok(id) = id.parse::<Uuid>() else {
        issuer.failures_by_network.fail(network, now);
        return Err(wrong());
    };
    match state.control.app_authenticate(id, secret).await {
        Ok(app) => Ok(app),
        Err(control_plane::Error::Unauthenticated(_)) => {
            issuer.failures_by_network.fail(network, now);
            tracing::warn!(app = %id, address = %peer.address, "login refused");
            Err(wrong())
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a login could not be checked");
            Err(unavailable())
        }
    }
}

/// What the token is to be for.
fn audience(version: Version, issuer: &Issuer, request: &TokenRequest) -> Result<String, Refused> {
    let audience = match version {
        Version::V1 => {
            let resource = request.resource.as_deref().filter(|resource| !resource.is_empty());
            resource.ok_or_else(|| Refused::missing("resource"))?
        }
        Version::V2 => {
            let scope = request.scope.as_deref().filter(|scope| !scope.trim().is_empty());
            let scope = scope.ok_or_else(|| Refused::missing("scope"))?;
            let mut meant = scope.split_ascii_whitespace().filter(|scope| !SCOPES_IGNORED.contains(scope));
            match (meant.next().and_then(|scope| scope.strip_suffix("/.default")), meant.next()) {
                (Some(audience), None) => audience,
                _ => {
                    let text = format!(
                        "The provided value for scope '{}' is not valid. Client credential flows must have one \
                         scope, with /.default suffixed to the resource identifier.",
                        shown(scope)
                    );
                    return Err(Refused::new(StatusCode::BAD_REQUEST, "invalid_scope", 1_002_012, text));
                }
            }
        }
    };
    if issuer.accepts(audience) {
        return Ok(audience.to_owned());
    }
    let text = format!(
        "The resource '{}' was not found in this tenant, which has: {}.",
        shown(audience),
        issuer.audiences.join(", ")
    );
    Err(Refused::new(StatusCode::BAD_REQUEST, "invalid_resource", 500_011, text))
}

fn granted(version: Version, access_token: String, resource: String, now: Timestamp) -> Response {
    let token_type = "Bearer".to_owned();
    let seconds = TOKEN_VALIDITY.as_secs();
    not_stored(match version {
        Version::V1 => Json(TokenV1 {
            token_type,
            expires_in: seconds.to_string(),
            ext_expires_in: seconds.to_string(),
            expires_on: now.plus(TOKEN_VALIDITY).unix_seconds().to_string(),
            not_before: now.unix_seconds().to_string(),
            resource,
            access_token,
        })
        .into_response(),
        Version::V2 => {
            Json(TokenV2 { token_type, expires_in: seconds, ext_expires_in: seconds, access_token })
                .into_response()
        }
    })
}

/// Some clients look at the discovery document for this endpoint, and never call it.
async fn authorize(
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Response {
    let refused = require_tenant(&state.issuer, &tenant).err().unwrap_or_else(|| {
        Refused::new(
            StatusCode::BAD_REQUEST,
            "unsupported_response_type",
            70_005,
            "People cannot sign in here: this issuer serves applications, at its token endpoint.",
        )
    });
    refused.response(&headers, now())
}

async fn discovery_v1(
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Response {
    discovery(Version::V1, &state.issuer, &tenant, &headers)
}

async fn discovery_v2(
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Response {
    discovery(Version::V2, &state.issuer, &tenant, &headers)
}

fn discovery(version: Version, issuer: &Issuer, tenant: &str, headers: &HeaderMap) -> Response {
    if let Err(refused) = require_tenant(issuer, tenant) {
        return refused.response(headers, now());
    }
    let base = format!("{}/{}", issuer.public_url, issuer.tenant);
    let part = match version {
        Version::V1 => "",
        Version::V2 => "/v2.0",
    };
    Json(json!({
        "issuer": issuer.name(version),
        "authorization_endpoint": format!("{base}/oauth2{part}/authorize"),
        "token_endpoint": format!("{base}/oauth2{part}/token"),
        "jwks_uri": format!("{base}/discovery{part}/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }))
    .into_response()
}

async fn keys(State(state): State<AppState>, Path(tenant): Path<String>, headers: HeaderMap) -> Response {
    match require_tenant(&state.issuer, &tenant) {
        Ok(()) => Json(state.issuer.public_keys()).into_response(),
        Err(refused) => refused.response(&headers, now()),
    }
}

fn require_tenant(issuer: &Issuer, tenant: &str) -> Result<(), Refused> {
    if tenant.parse() == Ok(issuer.tenant) {
        return Ok(());
    }
    let text = format!("Tenant '{}' not found. Use the id that cordon-server init printed.", shown(tenant));
    Err(Refused::request(90_002, text))
}

fn unavailable() -> Refused {
    let text = "The service is temporarily unavailable. Please retry later.";
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Refused {
        retry_after: Some(Duration::from_secs(1)),
        ..Refused::new(status, "temporarily_unavailable", 90_033, text)
    }
}

/// A caller's text for an answer: not longer than a person reads.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// RFC 6749, section 5.1.
fn not_stored(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}
