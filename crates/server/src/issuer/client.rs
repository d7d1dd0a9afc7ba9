//! Which app it is that calls, and how it proves that: a secret, an assertion, or, for a public one, nothing.

use domain::app::App;
use domain::time::Timestamp;
use uuid::Uuid;

use super::assertion::{self, ASSERTION_TYPE};
use super::credentials::TokenRequest;
use super::refused::{Refused, shown};
use crate::attempts;
use crate::state::AppState;
use crate::tls::Peer;

/// The app that the credentials of a request belong to. Only wrong ones count for the caller's network, and are refused
/// when there were too many: others behind the same address never keep out an app that shows the right ones, which
/// nobody guesses.
pub(super) async fn authenticate(
    state: &AppState,
    request: &TokenRequest,
    peer: &Peer,
    now: Timestamp,
) -> Result<App, Refused> {
    identified(state, request, now).await.map_err(|mut refused| {
        if !matches!(refused.error, "invalid_client" | "unauthorized_client") {
            return refused;
        }
        refused.challenge = request.by_header && refused.error == "invalid_client";
        counted(state, peer, refused, now)
    })
}

/// Counts something wrong for the caller's network; the refusal, or that of one that did too much wrong.
pub(super) fn counted(state: &AppState, peer: &Peer, refused: Refused, now: Timestamp) -> Refused {
    match state.issuer.secrets.begin(attempts::network(peer.address.ip()), now) {
        Ok(()) => {
            tracing::warn!(address = %peer.address, error = refused.error, "a login was refused");
            refused
        }
        Err(too_many) => Refused::too_many(too_many),
    }
}

async fn identified(state: &AppState, request: &TokenRequest, now: Timestamp) -> Result<App, Refused> {
    let id = request.client_id.as_deref().filter(|id| !id.is_empty());
    let secret = request.client_secret.as_deref().filter(|secret| !secret.is_empty());
    match (secret, request.client_assertion.as_deref()) {
        (Some(_), Some(_)) => {
            Err(Refused::request(90_016, "The request has both a client_secret and a client_assertion."))
        }
        (None, Some(assertion)) => {
            if request.client_assertion_type.as_deref() != Some(ASSERTION_TYPE) {
                let text = format!("The client_assertion_type must be '{ASSERTION_TYPE}'.");
                return Err(Refused::request(90_016, text));
            }
            assertion::authenticate(state, id, assertion, now).await
        }
        (Some(secret), None) => {
            let id = id.ok_or_else(|| Refused::missing("client_id"))?;
            by_secret(state, id, secret).await
        }
        (None, None) => {
            let id = id.ok_or_else(|| Refused::missing("client_id"))?;
            let app = known(state, id).await?;
            if app.is_public {
                return Ok(app);
            }
            let text = "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.";
            Err(Refused::client(7_000_218, text))
        }
    }
}

async fn by_secret(state: &AppState, id: &str, secret: &str) -> Result<App, Refused> {
    let wrong = || {
        let text = format!("Unknown application '{}', or invalid client secret provided.", shown(id));
        Refused::client(7_000_215, text)
    };
    let uuid = id.parse::<Uuid>().map_err(|_no_id| wrong())?;
    state.control.app_authenticate(uuid, secret).await.map_err(|error| {
        if matches!(error, control_plane::Error::Unauthenticated(_)) {
            wrong()
        } else {
            Refused::fault(&error)
        }
    })
}

/// The app with this id, which has proved nothing.
pub(super) async fn known(state: &AppState, id: &str) -> Result<App, Refused> {
    let unknown = || {
        let text = format!("Application with identifier '{}' was not found in this tenant.", shown(id));
        Refused::new(axum::http::StatusCode::BAD_REQUEST, "unauthorized_client", 700_016, text)
    };
    let uuid = id.parse::<Uuid>().map_err(|_no_id| unknown())?;
    let found = state.control.app_for_sign_in(uuid).await.map_err(|error| Refused::fault(&error))?;
    found.map(|(app, _)| app).ok_or_else(unknown)
}
