//! The token endpoints: what an app shows, and the tokens that it gets for it.

use api_types::token::{TokenV1, TokenV2};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control_plane::{Error, Granted, Poll};
use domain::app::App;
use domain::session::Asked;
use domain::time::Timestamp;
use serde_json::json;

use super::credentials::TokenRequest;
use super::endpoints::require_tenant;
use super::refused::{Refused, not_stored, shown};
use super::sign_in::sign_in;
use super::{TOKEN_VALIDITY, Version, client, scope};
use crate::attempts;
use crate::state::{AppState, now};
use crate::tls::Peer;

/// What `grant_type` may be. The last has two names.
pub(super) const GRANT_TYPES: [&str; 4] =
    ["client_credentials", "authorization_code", "refresh_token", DEVICE_CODE];
const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// `/{tenant}/oauth2/token`
pub(super) async fn token_v1(
    state: State<AppState>,
    tenant: Path<String>,
    peer: Extension<Peer>,
    headers: HeaderMap,
    form: Result<Bytes, BytesRejection>,
) -> Response {
    token(Version::V1, state, tenant, peer, headers, form).await
}

/// `/{tenant}/oauth2/v2.0/token`
pub(super) async fn token_v2(
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
        let request = TokenRequest::of(&headers, form)?;
        Grant { state: &state, version, request: &request, peer: &peer, now }.answer().await
    };
    granted.await.unwrap_or_else(|refused: Refused| refused.response(&headers, now))
}

/// One request for a token.
struct Grant<'a> {
    state: &'a AppState,
    version: Version,
    request: &'a TokenRequest,
    peer: &'a Peer,
    now: Timestamp,
}

impl Grant<'_> {
    async fn answer(&self) -> Result<Response, Refused> {
        let kind = self.request.grant_type.as_deref().filter(|kind| !kind.is_empty());
        match kind.ok_or_else(|| Refused::missing("grant_type"))? {
            "client_credentials" => self.client_credentials().await,
            "authorization_code" => self.authorization_code().await,
            "refresh_token" => self.refresh_token().await,
            DEVICE_CODE | "device_code" => self.device_code().await,
            "password" => self.password().await,
            other => {
                let text = format!(
                    "The grant type '{}' is not supported: use one of {}.",
                    shown(other),
                    GRANT_TYPES.join(", ")
                );
                Err(Refused::new(StatusCode::BAD_REQUEST, "unsupported_grant_type", 70_003, text))
            }
        }
    }

    async fn client(&self) -> Result<App, Refused> {
        client::authenticate(self.state, self.request, self.peer, self.now).await
    }

    async fn client_credentials(&self) -> Result<Response, Refused> {
        let app = self.client().await?;
        if app.is_public {
            let text = "A public client acts for people only, and has no token of its own.";
            return Err(Refused::client(7_000_218, text));
        }
        let request = self.request;
        let (resource, scope) = (given(&request.resource), given(&request.scope));
        let audience = scope::audience(self.version, &self.state.issuer, resource, scope)?;
        let token = self.state.issuer.sign(self.version, &app, &audience, self.now);
        let token = token.map_err(|error| Refused::fault(&error))?;
        tracing::info!(app = %app.id, audience, "token issued");
        Ok(reply(self.version, audience, token, More::default(), self.now))
    }

    async fn authorization_code(&self) -> Result<Response, Refused> {
        let app = self.client().await?;
        let code = self.request.code.as_deref().ok_or_else(|| Refused::missing("code"))?;
        let redirect_uri =
            given(&self.request.redirect_uri).ok_or_else(|| Refused::missing("redirect_uri"))?;
        let verifier =
            self.request.code_verifier.as_deref().ok_or_else(|| Refused::missing("code_verifier"))?;
        let redeemed =
            self.state.control.session_redeem_code(&app, code, redirect_uri, verifier, self.narrowed(&app)?);
        let granted = redeemed.await.map_err(|error| self.not_granted(&error))?;
        self.tokens(&app, &granted)
    }

    async fn refresh_token(&self) -> Result<Response, Refused> {
        let app = self.client().await?;
        let token = self.request.refresh_token.as_deref().ok_or_else(|| Refused::missing("refresh_token"))?;
        let renewed = self.state.control.session_renew(&app, token, self.narrowed(&app)?);
        let granted = renewed.await.map_err(|error| self.not_granted(&error))?;
        self.tokens(&app, &granted)
    }

    async fn device_code(&self) -> Result<Response, Refused> {
        let app = self.client().await?;
        let code = self.request.device_code.as_deref();
        // The vendor's old name of it.
        let code = code.or(self.request.code.as_deref()).ok_or_else(|| Refused::missing("device_code"))?;
        let refused = |error, code, text: &str| Err(Refused::new(StatusCode::BAD_REQUEST, error, code, text));
        let slow_down = || {
            let text = "The device asks too often: wait 5 seconds longer between two requests from now on.";
            refused("slow_down", 70_020, text)
        };
        let network = attempts::network(self.peer.address.ip());
        let early_polls = &self.state.issuer.early_polls;
        if early_polls.check(&network, self.now).is_err() {
            return slow_down();
        }
        let poll = self.state.control.device_code_poll(&app, code, self.narrowed(&app)?).await;
        match poll.map_err(|error| self.not_granted(&error))? {
            Poll::Granted(granted) => self.tokens(&app, &granted),
            Poll::Pending => refused(
                "authorization_pending",
                70_016,
                "The person has not approved this device yet. Ask again after the interval.",
            ),
            Poll::SlowDown => {
                early_polls.fail(network, self.now);
                slow_down()
            }
            Poll::Declined => refused("access_denied", 65_004, "The person declined this device."),
            Poll::Expired => refused("expired_token", 70_019, "The code has expired. Begin again."),
        }
    }

    async fn password(&self) -> Result<Response, Refused> {
        if !self.state.config.password_grant {
            let text = "Signing in by 'grant_type=password' is switched off: use an authorization code or a device \
                        code, or let the administrator set password_grant in the server's settings.";
            return Err(Refused::new(StatusCode::BAD_REQUEST, "unsupported_grant_type", 70_003, text));
        }
        let app = self.client().await?;
        let name = given(&self.request.username).ok_or_else(|| Refused::missing("username"))?;
        let password = self.request.password.as_deref().ok_or_else(|| Refused::missing("password"))?;
        let (resource, scope) = (given(&self.request.resource), given(&self.request.scope));
        let asked = scope::asked_something(&self.state.issuer, &app, resource, scope)?;
        let user = sign_in(self.state, self.peer, name, password, self.now).await?;
        let begun = self.state.control.session_begin_by_password(&user, &app, asked);
        let granted = begun.await.map_err(|error| self.not_granted(&error))?;
        self.tokens(&app, &granted)
    }

    /// What the app asks for now, of what it was granted.
    fn narrowed(&self, app: &App) -> Result<Option<Asked>, Refused> {
        scope::asked(&self.state.issuer, app, given(&self.request.resource), given(&self.request.scope))
    }

    fn not_granted(&self, error: &Error) -> Refused {
        if let Error::Unauthenticated(why) = error {
            return client::counted(self.state, self.peer, Refused::grant(why), self.now);
        }
        if let Error::InvalidInput(why) = error {
            return Refused::scope(format!("The request is refused: {why}."));
        }
        Refused::fault(error)
    }

    fn tokens(&self, app: &App, granted: &Granted) -> Result<Response, Refused> {
        let (issuer, version) = (&self.state.issuer, self.version);
        let access = issuer.sign_for_user(version, app, granted, self.now);
        let access = access.map_err(|error| Refused::fault(&error))?;
        let id_token = granted.asked.openid.then(|| issuer.sign_id(version, app, granted, self.now));
        let id_token = id_token.transpose().map_err(|error| Refused::fault(&error))?;
        // The vendor's client libraries name their cached accounts by it.
        let client_info = self.request.client_info.as_deref() == Some("1");
        let client_info = client_info.then(|| {
            let info = json!({"uid": granted.user.id, "utid": issuer.tenant});
            URL_SAFE_NO_PAD.encode(info.to_string())
        });
        let more = More {
            scope: Some(scope::granted(&granted.asked)),
            refresh_token: granted.refresh_token.clone(),
            id_token,
            client_info,
        };
        tracing::info!(app = %app.id, user = %granted.user.id, session = %granted.session, "token issued");
        Ok(reply(version, granted.asked.audience.clone(), access, more, self.now))
    }
}

/// What only replies for people have.
#[derive(Default)]
struct More {
    scope: Option<String>,
    refresh_token: Option<String>,
    id_token: Option<String>,
    client_info: Option<String>,
}

fn given(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|value| !value.trim().is_empty())
}

fn reply(version: Version, resource: String, access_token: String, more: More, now: Timestamp) -> Response {
    let More { scope, refresh_token, id_token, client_info } = more;
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
            scope,
            refresh_token,
            id_token,
            client_info,
        })
        .into_response(),
        Version::V2 => Json(TokenV2 {
            token_type,
            expires_in: seconds,
            ext_expires_in: seconds,
            access_token,
            scope,
            refresh_token,
            id_token,
            client_info,
        })
        .into_response(),
    })
}
