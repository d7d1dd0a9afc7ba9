//! The issuer over HTTP: the list of its endpoints, discovery and public keys, with the paths and bodies of the vendor's.
//!
//! Errors are in OAuth's form or on a page, not in the API's envelope. The tenant in the path must be the server's own:
//! there is one.

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use domain::permission::Permission;
use serde_json::json;

use super::refused::{Refused, shown};
use super::{Issuer, Version, assertion, authorize, device, grant};
use crate::state::{AppState, now};

/// The longest form, in bytes.
const FORM_BYTES_MAX: usize = 32 * 1024;

/// The issuer's endpoints, to merge into the public router.
pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/{tenant}/oauth2/token", get(grant::token_v1).post(grant::token_v1))
        .route("/{tenant}/oauth2/v2.0/token", get(grant::token_v2).post(grant::token_v2))
        .route("/{tenant}/oauth2/authorize", get(authorize::show_v1).post(authorize::submit_v1))
        .route("/{tenant}/oauth2/v2.0/authorize", get(authorize::show_v2).post(authorize::submit_v2))
        .route("/{tenant}/oauth2/devicecode", post(device::create))
        .route("/{tenant}/oauth2/v2.0/devicecode", post(device::create))
        .route("/{tenant}/oauth2/deviceauth", get(device::show).post(device::submit))
        .route("/{tenant}/.well-known/openid-configuration", get(discovery_v1))
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(discovery_v2))
        .route("/{tenant}/discovery/keys", get(keys))
        .route("/{tenant}/discovery/v2.0/keys", get(keys))
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
}

async fn discovery_v1(
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Response {
    discovery(Version::V1, &state, &tenant, &headers)
}

async fn discovery_v2(
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Response {
    discovery(Version::V2, &state, &tenant, &headers)
}

/// What clients learn of the issuer. There is no `userinfo_endpoint`: the id token says all that there is.
fn discovery(version: Version, state: &AppState, tenant: &str, headers: &HeaderMap) -> Response {
    let issuer = &state.issuer;
    if let Err(refused) = require_tenant(issuer, tenant) {
        return refused.response(headers, now());
    }
    let base = format!("{}/{}", issuer.public_url, issuer.tenant);
    let part = match version {
        Version::V1 => "",
        Version::V2 => "/v2.0",
    };
    let mut grant_types = grant::GRANT_TYPES.to_vec();
    if state.config.password_grant {
        grant_types.push("password");
    }
    let mut scopes = vec!["openid", "profile", "offline_access", ".default"];
    scopes.extend(Permission::ALL.map(Permission::scope));
    Json(json!({
        "issuer": issuer.name(version),
        "authorization_endpoint": format!("{base}/oauth2{part}/authorize"),
        "token_endpoint": format!("{base}/oauth2{part}/token"),
        "device_authorization_endpoint": format!("{base}/oauth2{part}/devicecode"),
        "jwks_uri": format!("{base}/discovery{part}/keys"),
        "token_endpoint_auth_methods_supported":
            ["client_secret_post", "client_secret_basic", "private_key_jwt", "none"],
        "token_endpoint_auth_signing_alg_values_supported": assertion::ALGORITHMS,
        "grant_types_supported": grant_types,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query", "form_post"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
        "request_parameter_supported": false,
        "request_uri_parameter_supported": false,
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": scopes,
        "claims_supported": [
            "sub", "iss", "aud", "exp", "iat", "nbf", "auth_time", "nonce", "oid", "tid", "sid", "ver", "upn",
            "preferred_username", "name",
        ],
    }))
    .into_response()
}

async fn keys(State(state): State<AppState>, Path(tenant): Path<String>, headers: HeaderMap) -> Response {
    match require_tenant(&state.issuer, &tenant) {
        Ok(()) => Json(state.issuer.public_keys()).into_response(),
        Err(refused) => refused.response(&headers, now()),
    }
}

/// Refuses every tenant but the server's own. Names that stand for any tenant, such as `common`, are none.
pub(super) fn require_tenant(issuer: &Issuer, tenant: &str) -> Result<(), Refused> {
    if tenant.parse() == Ok(issuer.tenant) {
        return Ok(());
    }
    let text = format!("Tenant '{}' not found. Use the id that cordon-server init printed.", shown(tenant));
    Err(Refused::request(90_002, text))
}
