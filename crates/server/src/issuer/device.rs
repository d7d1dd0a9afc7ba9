//! Sign-in on a device that has no browser (RFC 8628): the device shows a code, and a person types it on a page here.
//!
//! Owns the endpoint that makes the codes, and the page. The device gets its tokens at the token endpoint. The page says
//! which app asks, from where and for what, because anybody can send somebody a code of a device of his own.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use control_plane::{DeviceBegun, Error};
use domain::session::{DEVICE_CODE_VALIDITY, DeviceCode, POLL_INTERVAL};
use domain::time::Timestamp;
use serde_json::json;
use zeroize::Zeroizing;

use super::authorize::descriptions;
use super::credentials::{TokenRequest, Unreadable, once};
use super::endpoints::require_tenant;
use super::origin::Origin;
use super::page::{Form, Page};
use super::refused::{Refused, not_stored, whole_seconds};
use super::sign_in::{SignInFault, sign_in};
use super::{Issuer, client, origin, scope};
use crate::attempts::{self, TooMany};
use crate::state::{AppState, now};
use crate::tls::Peer;

/// `POST /{tenant}/oauth2/v2.0/devicecode`, and the vendor's older path: makes the codes.
pub(super) async fn create(
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    form: Result<Bytes, BytesRejection>,
) -> Response {
    let now = now();
    let made = async {
        require_tenant(&state.issuer, &tenant)?;
        let request = TokenRequest::of(&headers, form)?;
        make(&state, &request, &peer, now).await
    };
    made.await.unwrap_or_else(|refused: Refused| refused.response(&headers, now))
}

async fn make(
    state: &AppState,
    request: &TokenRequest,
    peer: &Peer,
    now: Timestamp,
) -> Result<Response, Refused> {
    let issuer = &state.issuer;
    let app = client::authenticate(state, request, peer, now).await?;
    let (resource, scope) = (request.resource.as_deref(), request.scope.as_deref());
    let asked = scope::asked_something(issuer, &app, resource, scope)?;
    // Every code is kept for a while, so codes count, not failures.
    let network = attempts::network(peer.address.ip());
    issuer.device_codes.begin(network, now).map_err(Refused::too_many)?;
    let address = peer.address.ip().to_canonical().to_string();
    let begun = state.control.device_code_create(&app, asked, address, network.to_string()).await;
    let (device_code, user_code) = match begun.map_err(|error| Refused::fault(&error))? {
        DeviceBegun::Waits { device_code, user_code } => (device_code, user_code),
        DeviceBegun::TooManyOfNetwork => return Err(Refused::too_many_devices()),
        DeviceBegun::TooMany => {
            tracing::warn!("too many devices wait to be approved");
            return Err(Refused::unavailable());
        }
    };
    tracing::info!(app = %app.id, address = %peer.address, "a device waits to be approved");
    let page = page_url(issuer);
    let reply = json!({
        "device_code": device_code,
        "user_code": user_code,
        "verification_uri": page,
        // The vendor's older name.
        "verification_url": page,
        "verification_uri_complete": format!("{page}?user_code={user_code}"),
        "expires_in": DEVICE_CODE_VALIDITY.as_secs(),
        "interval": POLL_INTERVAL.as_secs(),
        "message": format!("To sign in, open the page {page} in a browser and enter the code {user_code}."),
    });
    Ok(not_stored(Json(reply).into_response()))
}

/// Where people approve devices.
fn page_url(issuer: &Issuer) -> String {
    format!("{}/{}/oauth2/deviceauth", issuer.public_url, issuer.tenant)
}

/// `GET /{tenant}/oauth2/deviceauth`: asks for the code, then who asks and what for.
pub(super) async fn show(
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    Extension(peer): Extension<Peer>,
    origin: Origin,
    RawQuery(query): RawQuery,
) -> Response {
    if let Err(refused) = require_tenant(&state.issuer, &tenant) {
        return Page::new("Sign in on a device").fault(refused.text()).response(refused.status);
    }
    let code = match ApprovalForm::read(query.unwrap_or_default().as_bytes()) {
        Ok(form) => form.user_code,
        Err(unreadable) => return code_page(Some(&unreadable.0)).response(StatusCode::BAD_REQUEST),
    };
    let Some(code) = code.filter(|code| !code.trim().is_empty()) else {
        return code_page(None).response(StatusCode::OK);
    };
    if origin.is_foreign(&state.config.public_url) {
        // A link on another site, or in a mail on one. The person goes on; a page that loads it unseen does not.
        return code_form(None, &code).response(StatusCode::OK);
    }
    match find(&state, &peer, &code).await {
        Ok(found) => found.page(None, "").response(StatusCode::OK),
        Err(fault) => fault.response(),
    }
}

/// `POST /{tenant}/oauth2/deviceauth`: approves or declines.
pub(super) async fn submit(
    State(state): State<AppState>,
    Path(tenant): Path<String>,
    Extension(peer): Extension<Peer>,
    origin: Origin,
    form: Result<Bytes, BytesRejection>,
) -> Response {
    if let Err(refused) = require_tenant(&state.issuer, &tenant) {
        return Page::new("Sign in on a device").fault(refused.text()).response(refused.status);
    }
    if origin.is_foreign(&state.config.public_url) {
        return code_page(Some(origin::FOREIGN)).response(StatusCode::FORBIDDEN);
    }
    let read = form
        .map_err(|rejection| Unreadable(rejection.body_text()))
        .and_then(|form| ApprovalForm::read(&form));
    let form = match read {
        Ok(form) => form,
        Err(unreadable) => return code_page(Some(&unreadable.0)).response(StatusCode::BAD_REQUEST),
    };
    match decide(&state, &peer, form).await {
        Ok(page) => page.response(StatusCode::OK),
        Err(fault) => fault.response(),
    }
}

async fn decide(state: &AppState, peer: &Peer, form: ApprovalForm) -> Result<Page, Fault> {
    let found = find(state, peer, form.user_code.as_deref().unwrap_or_default()).await?;
    match form.decision.as_deref() {
        Some("decline") => {
            let declined = state.control.device_code_decline(&found.user_code).await;
            declined.map_err(|error| Fault::of(&error))?;
            let page = Page::new("Declined");
            Ok(page.paragraph("The device was told, and gets nothing. You can close this page."))
        }
        Some("approve") => {
            let name = form.username.unwrap_or_default();
            let password = form.password.unwrap_or_default();
            let signed_in = sign_in(state, peer, &name, &password, now()).await;
            let user = match signed_in {
                Ok(user) => user,
                Err(fault) => return Err(Fault::SignIn(Box::new(found), fault, name)),
            };
            match state.control.device_code_approve(&found.user_code, &found.app, &user).await {
                Ok(true) => {}
                Ok(false) => return Err(Fault::UnknownCode),
                // The account was changed meanwhile.
                Err(Error::Unauthenticated(_)) => {
                    return Err(Fault::SignIn(Box::new(found), SignInFault::Wrong, name));
                }
                Err(error) => return Err(Fault::of(&error)),
            }
            tracing::info!(app = %found.app.id, user = %user.id, "a device was approved");
            let text = format!("{} is signed in. You can close this page and go back to it.", found.app.name);
            Ok(Page::new("Done").paragraph(&text))
        }
        _ => Ok(found.page(None, form.username.as_deref().unwrap_or_default())),
    }
}

/// A device that waits.
struct Found {
    user_code: String,
    app: domain::app::App,
    code: DeviceCode,
}

/// Why there is nothing to decide.
enum Fault {
    UnknownCode,
    TooMany(TooMany),
    SignIn(Box<Found>, SignInFault, String),
    Unavailable,
}

impl Fault {
    fn of(error: &Error) -> Self {
        tracing::error!(error = error as &dyn std::error::Error, "a device could not be looked up");
        Self::Unavailable
    }

    fn response(self) -> Response {
        let (page, status, wait) = match self {
            Self::UnknownCode => {
                let text = "There is no device that waits with this code: it was mistyped, was used, or has expired.";
                (code_page(Some(text)), StatusCode::NOT_FOUND, None)
            }
            Self::TooMany(many) => {
                let text = "There were too many wrong codes. Wait a minute, then try again.";
                (code_page(Some(text)), StatusCode::TOO_MANY_REQUESTS, Some(many))
            }
            Self::SignIn(found, fault, name) => {
                let page = found.page(Some(fault.text()), &name);
                match fault {
                    SignInFault::TooMany(many) => (page, StatusCode::TOO_MANY_REQUESTS, Some(many)),
                    SignInFault::Wrong => (page, StatusCode::FORBIDDEN, None),
                    SignInFault::Unavailable => (page, StatusCode::SERVICE_UNAVAILABLE, None),
                }
            }
            Self::Unavailable => {
                let text = "The server cannot answer at the moment. Try again.";
                (code_page(Some(text)), StatusCode::SERVICE_UNAVAILABLE, None)
            }
        };
        let mut response = page.response(status);
        if let Some(many) = wait {
            response.headers_mut().insert(header::RETRY_AFTER, whole_seconds(many.retry_after).into());
        }
        response
    }
}

/// The device that waits with a code. Wrong codes count, so that they cannot be guessed.
async fn find(state: &AppState, peer: &Peer, user_code: &str) -> Result<Found, Fault> {
    let (network, now) = (attempts::network(peer.address.ip()), now());
    let failures = &state.issuer.user_codes;
    failures.begin(network, now).map_err(Fault::TooMany)?;
    let code = match state.control.device_code_waiting(user_code).await {
        Ok(Some(code)) => code,
        Ok(None) => return Err(Fault::UnknownCode),
        Err(error) => {
            failures.take_back(&network, now);
            return Err(Fault::of(&error));
        }
    };
    failures.take_back(&network, now);
    let app = state.control.app_for_sign_in(code.app).await.map_err(|error| Fault::of(&error))?;
    // An app that was revoked meanwhile.
    let (app, _) = app.ok_or(Fault::UnknownCode)?;
    Ok(Found { user_code: user_code.to_owned(), app, code })
}

impl Found {
    fn page(&self, fault: Option<&str>, name: &str) -> Page {
        let mut page = Page::new("Sign in on a device");
        if let Some(fault) = fault {
            page = page.fault(fault);
        }
        let lead = format!(
            "{} asks to be signed in as you. It will be able, as far as your roles allow, to:",
            self.app.name
        );
        let asked =
            format!("It was asked for at {} from the address {}.", self.code.created_at, self.code.address);
        page = page.list(&lead, descriptions(&self.code.asked.permissions)).paragraph(&asked).paragraph(
            "Approve only what you began yourself a moment ago. If somebody sent you the code, decline.",
        );
        let form = Form::post("?").hidden("user_code", &self.user_code).credentials(name);
        page.form(form.submit("approve", "Approve").decline("decline", "Decline"))
    }
}

fn code_page(fault: Option<&str>) -> Page {
    code_form(fault, "")
}

fn code_form(fault: Option<&str>, code: &str) -> Page {
    const ATTRIBUTES: &str = "class=\"code\" autocomplete=\"off\" autocapitalize=\"characters\" spellcheck=\"false\" \
                              maxlength=\"16\" placeholder=\"XXXX-XXXX\"";
    let page = Page::new("Sign in on a device");
    let page = match fault {
        Some(fault) => page.fault(fault),
        None => page,
    };
    let form = Form::get("?").field("user_code", "The code that the device shows", code, ATTRIBUTES);
    page.form(form.plain_submit("Next"))
}

/// What a person sends.
#[derive(Default)]
struct ApprovalForm {
    user_code: Option<String>,
    username: Option<String>,
    password: Option<Zeroizing<String>>,
    decision: Option<String>,
}

impl ApprovalForm {
    fn read(form: &[u8]) -> Result<Self, Unreadable> {
        let mut read = Self::default();
        for (name, value) in form_urlencoded::parse(form) {
            match &*name {
                "user_code" => once(&mut read.user_code, &name, value.into_owned())?,
                "username" => once(&mut read.username, &name, value.into_owned())?,
                "password" => once(&mut read.password, &name, Zeroizing::new(value.into_owned()))?,
                "decision" => once(&mut read.decision, &name, value.into_owned())?,
                _ => {}
            }
        }
        Ok(read)
    }
}
