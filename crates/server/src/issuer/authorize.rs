//! The authorization endpoints: the page on which a person signs in to an app, and the code that the app gets.
//!
//! An app gets a code only at an address that is registered for it, and redeems it only with the verifier of PKCE.
//! Before the address is known to be the app's, what is wrong is shown on a page; nothing is ever sent elsewhere.
//! There is no cookie: the request travels in the address of the form, and is checked again when the form arrives.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use control_plane::{CodeBinding, Error};
use domain::app::{App, CLI_APP_ID};
use domain::permission::Permission;
use domain::session::Asked;
use zeroize::Zeroizing;

use super::credentials::{Unreadable, once};
use super::endpoints::require_tenant;
use super::origin::Origin;
use super::page::{Form, Page};
use super::refused::{Refused, not_stored, whole_seconds};
use super::sign_in::{SignInFault, sign_in};
use super::{Version, client, scope};
use crate::state::{AppState, now};
use crate::tls::Peer;

/// The longest query, in bytes.
const QUERY_BYTES_MAX: usize = 8 * 1024;
/// The longest `state`, in bytes: what apps put there is theirs.
const STATE_BYTES_MAX: usize = 4 * 1024;
/// The longest `nonce`, in bytes.
const NONCE_BYTES_MAX: usize = 512;
/// The length of a challenge by `S256`: a SHA-256 in base64url.
const CHALLENGE_LEN: usize = 43;

/// `GET /{tenant}/oauth2/authorize`
pub(super) async fn show_v1(
    state: State<AppState>,
    tenant: Path<String>,
    peer: Extension<Peer>,
    query: RawQuery,
) -> Response {
    show(Version::V1, &state, &tenant, &peer, query).await
}

/// `GET /{tenant}/oauth2/v2.0/authorize`
pub(super) async fn show_v2(
    state: State<AppState>,
    tenant: Path<String>,
    peer: Extension<Peer>,
    query: RawQuery,
) -> Response {
    show(Version::V2, &state, &tenant, &peer, query).await
}

/// `POST /{tenant}/oauth2/authorize`
pub(super) async fn submit_v1(
    state: State<AppState>,
    tenant: Path<String>,
    peer: Extension<Peer>,
    origin: Origin,
    query: RawQuery,
    form: Result<Bytes, BytesRejection>,
) -> Response {
    submit(Version::V1, &state, &tenant, &peer, &origin, query, form).await
}

/// `POST /{tenant}/oauth2/v2.0/authorize`
pub(super) async fn submit_v2(
    state: State<AppState>,
    tenant: Path<String>,
    peer: Extension<Peer>,
    origin: Origin,
    query: RawQuery,
    form: Result<Bytes, BytesRejection>,
) -> Response {
    submit(Version::V2, &state, &tenant, &peer, &origin, query, form).await
}

async fn show(
    version: Version,
    state: &AppState,
    tenant: &str,
    peer: &Peer,
    RawQuery(query): RawQuery,
) -> Response {
    match resolve(version, state, tenant, peer, query.as_deref()).await {
        Ok(request) => request.page(None, &request.login_hint).response(StatusCode::OK),
        Err(fault) => fault.response(),
    }
}

async fn submit(
    version: Version,
    state: &AppState,
    tenant: &str,
    peer: &Peer,
    origin: &Origin,
    RawQuery(query): RawQuery,
    form: Result<Bytes, BytesRejection>,
) -> Response {
    if origin.is_foreign(&state.config.public_url) {
        return Fault::Page(Refused::foreign()).response();
    }
    let request = match resolve(version, state, tenant, peer, query.as_deref()).await {
        Ok(request) => request,
        Err(fault) => return fault.response(),
    };
    let read =
        form.map_err(|rejection| Unreadable(rejection.body_text())).and_then(|form| SignInForm::read(&form));
    let form = match read {
        Ok(form) => form,
        Err(unreadable) => return Fault::Page(Refused::request(90_016, unreadable.0)).response(),
    };
    if form.decision.as_deref() == Some("cancel") {
        let refused =
            Refused::new(StatusCode::FORBIDDEN, "access_denied", 65_004, "The person declined to sign in.");
        return request.back.refuse(&refused);
    }
    let name = form.username.unwrap_or_default();
    let password = form.password.unwrap_or_default();
    let user = match sign_in(state, peer, &name, &password, now()).await {
        Ok(user) => user,
        Err(fault) => {
            let page = request.page(Some(fault.text()), &name);
            return match fault {
                SignInFault::TooMany(too_many) => {
                    let mut response = page.response(StatusCode::TOO_MANY_REQUESTS);
                    let seconds = whole_seconds(too_many.retry_after);
                    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
                    response
                }
                SignInFault::Wrong => page.response(StatusCode::FORBIDDEN),
                SignInFault::Unavailable => page.response(StatusCode::SERVICE_UNAVAILABLE),
            };
        }
    };
    let AuthorizeRequest { app, asked, back, challenge, nonce, .. } = request;
    let binding = CodeBinding { redirect_uri: back.redirect_uri.clone(), challenge, nonce };
    match state.control.session_begin_by_code(&user, &app, asked, binding).await {
        Ok(code) => {
            tracing::info!(app = %app.id, user = %user.id, "a person signed in");
            back.send(&[("code", &code)])
        }
        Err(Error::Unauthenticated(_)) => {
            let text = "The account was changed while the person signed in.";
            back.refuse(&Refused::new(StatusCode::FORBIDDEN, "access_denied", 50_126, text))
        }
        Err(error) => back.refuse(&Refused::fault(&error)),
    }
}

/// A request whose app, address and demands are checked.
struct AuthorizeRequest {
    app: App,
    asked: Asked,
    back: Back,
    challenge: String,
    nonce: Option<String>,
    login_hint: String,
    /// The request as it arrived, for the form.
    query: String,
}

/// Where the answer goes: an address that is the app's.
struct Back {
    redirect_uri: String,
    /// Whether the answer is a form that the person sends on, instead of a part of the address.
    by_form: bool,
    state: Option<String>,
    /// Who answers (RFC 9207), so that an app of several issuers is not mixed up.
    issuer: String,
}

/// Why there is no page to sign in on.
enum Fault {
    /// The address is not known to be the app's.
    Page(Refused),
    /// The app is to know.
    Redirect(Box<Back>, Refused),
}

impl Fault {
    fn response(self) -> Response {
        match self {
            Self::Page(refused) => {
                refused.log();
                let page = Page::new("You cannot sign in like this").fault(refused.text());
                let mut response = page
                    .paragraph(
                        "The application sent you here with a request that is not right. Tell whoever runs it.",
                    )
                    .response(refused.status);
                if let Some(wait) = refused.retry_after {
                    response.headers_mut().insert(header::RETRY_AFTER, whole_seconds(wait).into());
                }
                response
            }
            Self::Redirect(back, refused) => back.refuse(&refused),
        }
    }
}

/// The parameters that count.
#[derive(Default)]
struct Parameters {
    client_id: Option<String>,
    redirect_uri: Option<String>,
    response_type: Option<String>,
    response_mode: Option<String>,
    scope: Option<String>,
    resource: Option<String>,
    state: Option<String>,
    nonce: Option<String>,
    code_challenge: Option<String>,
    code_challenge_method: Option<String>,
    prompt: Option<String>,
    login_hint: Option<String>,
}

impl Parameters {
    fn read(query: &str) -> Result<Self, Unreadable> {
        let mut parameters = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let field = match &*name {
                "client_id" => &mut parameters.client_id,
                "redirect_uri" => &mut parameters.redirect_uri,
                "response_type" => &mut parameters.response_type,
                "response_mode" => &mut parameters.response_mode,
                "scope" => &mut parameters.scope,
                "resource" => &mut parameters.resource,
                "state" => &mut parameters.state,
                "nonce" => &mut parameters.nonce,
                "code_challenge" => &mut parameters.code_challenge,
                "code_challenge_method" => &mut parameters.code_challenge_method,
                "prompt" => &mut parameters.prompt,
                "login_hint" => &mut parameters.login_hint,
                _ => continue,
            };
            once(field, &name, value.into_owned())?;
        }
        Ok(parameters)
    }
}

async fn resolve(
    version: Version,
    state: &AppState,
    tenant: &str,
    peer: &Peer,
    query: Option<&str>,
) -> Result<AuthorizeRequest, Fault> {
    let issuer = &state.issuer;
    require_tenant(issuer, tenant).map_err(Fault::Page)?;
    let query = query.unwrap_or_default();
    if query.len() > QUERY_BYTES_MAX {
        return Err(Fault::Page(Refused::request(90_015, "The request is too long.")));
    }
    let parameters =
        Parameters::read(query).map_err(|unreadable| Fault::Page(Refused::request(90_016, unreadable.0)))?;
    let client_id =
        parameters.client_id.as_deref().ok_or_else(|| Fault::Page(Refused::missing("client_id")))?;
    let app = client::known(state, client_id).await.map_err(|refused| {
        let is_unknown = refused.error == "unauthorized_client";
        Fault::Page(if is_unknown { client::counted(state, peer, refused, now()) } else { refused })
    })?;
    let redirect_uri =
        parameters.redirect_uri.ok_or_else(|| Fault::Page(Refused::missing("redirect_uri")))?;
    if !is_registered(&app, &redirect_uri) {
        let text = "The redirect URI of the request is none that is registered for the application.";
        return Err(Fault::Page(Refused::request(50_011, text)));
    }
    let back = Back {
        redirect_uri,
        by_form: parameters.response_mode.as_deref() == Some("form_post"),
        state: parameters.state.filter(|state| state.len() <= STATE_BYTES_MAX),
        issuer: issuer.name(version),
    };
    let checked = checked_rest(&parameters.response_mode, &parameters.response_type, &parameters.prompt)
        .and_then(|()| {
            checked_challenge(parameters.code_challenge, parameters.code_challenge_method.as_deref())
        })
        .and_then(|challenge| {
            if parameters.nonce.as_ref().is_some_and(|nonce| nonce.len() > NONCE_BYTES_MAX) {
                return Err(Refused::request(90_015, "The nonce is too long."));
            }
            let (resource, scope) = (parameters.resource.as_deref(), parameters.scope.as_deref());
            Ok((challenge, scope::asked_something(issuer, &app, resource, scope)?))
        });
    let (challenge, asked) = match checked {
        Ok(checked) => checked,
        Err(refused) => return Err(Fault::Redirect(Box::new(back), refused)),
    };
    Ok(AuthorizeRequest {
        app,
        asked,
        back,
        challenge,
        nonce: parameters.nonce,
        login_hint: parameters.login_hint.unwrap_or_default(),
        query: query.to_owned(),
    })
}

fn checked_rest(
    response_mode: &Option<String>,
    response_type: &Option<String>,
    prompt: &Option<String>,
) -> Result<(), Refused> {
    if !matches!(response_mode.as_deref(), None | Some("query" | "form_post")) {
        return Err(Refused::request(70_007, "The response_mode must be 'query' or 'form_post'."));
    }
    match response_type.as_deref() {
        Some("code") => {}
        None => return Err(Refused::missing("response_type")),
        Some(_) => {
            let text = "The response_type must be 'code'.";
            return Err(Refused::new(StatusCode::BAD_REQUEST, "unsupported_response_type", 700_054, text));
        }
    }
    if prompt.as_deref().is_some_and(|prompt| prompt.split_ascii_whitespace().any(|word| word == "none")) {
        let text = "Nobody stays signed in here, so the person must be asked: leave 'prompt=none' out.";
        return Err(Refused::new(StatusCode::BAD_REQUEST, "login_required", 50_058, text));
    }
    Ok(())
}

/// PKCE: by `S256` only, because a plain challenge is the verifier itself.
fn checked_challenge(challenge: Option<String>, method: Option<&str>) -> Result<String, Refused> {
    let challenge = challenge.ok_or_else(|| {
        let text = "Proof Key for Code Exchange is required: the request has no 'code_challenge'.";
        Refused::request(9_002_325, text)
    })?;
    if method != Some("S256") {
        return Err(Refused::request(501_491, "The code_challenge_method must be 'S256'."));
    }
    let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if challenge.len() != CHALLENGE_LEN || !challenge.bytes().all(is_base64url) {
        return Err(Refused::request(501_491, "The code_challenge is not a SHA-256 in base64url."));
    }
    Ok(challenge)
}

impl AuthorizeRequest {
    fn page(&self, fault: Option<&str>, name: &str) -> Page {
        let mut page = Page::new("Sign in").sends_to(&self.back.redirect_uri);
        if let Some(fault) = fault {
            page = page.fault(fault);
        }
        let lead = format!(
            "{} asks you to sign in. It will be able, as far as your roles allow, to:",
            self.app.name
        );
        page = page.list(&lead, descriptions(&self.asked.permissions));
        page = page.paragraph(&format!("You are then sent to {}.", host_of(&self.back.redirect_uri)));
        let form = Form::post(&format!("?{}", self.query)).credentials(name);
        page.form(form.submit("sign_in", "Sign in").decline("cancel", "Cancel"))
    }
}

impl Back {
    fn refuse(&self, refused: &Refused) -> Response {
        refused.log();
        self.send(&[("error", refused.error), ("error_description", &refused.description())])
    }

    /// Sends the person back to the app with these parameters.
    fn send(&self, parameters: &[(&str, &str)]) -> Response {
        let mut parameters = parameters.to_vec();
        if let Some(state) = &self.state {
            parameters.push(("state", state));
        }
        parameters.push(("iss", &self.issuer));
        if self.by_form {
            let mut form = Form::post(&self.redirect_uri);
            for (name, value) in parameters {
                form = form.hidden(name, value);
            }
            let page = Page::new("Continue").sends_to(&self.redirect_uri);
            let page = page.paragraph(&format!("Go on to {}.", host_of(&self.redirect_uri)));
            return page.form(form.plain_submit("Continue")).response(StatusCode::OK);
        }
        let mut location = self.redirect_uri.clone();
        location.push(if location.contains('?') { '&' } else { '?' });
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        location.push_str(&query);
        let Ok(location) = HeaderValue::from_str(&location) else {
            return Fault::Page(Refused::request(50_011, "The redirect URI cannot be used.")).response();
        };
        not_stored((StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response())
    }
}

/// What a person is asked to grant, in words.
pub(super) fn descriptions(permissions: &[Permission]) -> impl Iterator<Item = &'static str> {
    permissions.iter().map(|permission| match permission {
        Permission::MachineReadAll => "see machines, their actions and what they refused to run",
        Permission::MachineReadWriteAll => "see machines and change their tags",
        Permission::MachineRestrictExecution => "restrict and release the execution of programs on machines",
        Permission::CordonBulkRemediation => "do so on many machines at once",
        Permission::CordonBreakGlass => "see codes that release machines without a network",
        Permission::CordonAdminister => "administer Cordon: apps, people, policies and settings",
    })
}

/// Whether an address is the app's. Exactly a registered one; on the loopback, a registered one without a port stands
/// for every port, because native apps take the one that is free (RFC 8252, section 7.3). The command line needs none
/// registered.
fn is_registered(app: &App, uri: &str) -> bool {
    if !uri.bytes().all(|byte| byte.is_ascii_graphic()) || uri.contains(['#', '\\']) {
        return false;
    }
    if app.redirect_uris.iter().any(|registered| registered == uri) {
        return true;
    }
    let Some(asked) = Loopback::read(uri) else { return false };
    if app.id == CLI_APP_ID {
        return true;
    }
    let fits = |registered: Loopback<'_>| {
        registered.port.is_none() && registered.host == asked.host && registered.path == asked.path
    };
    app.redirect_uris.iter().filter_map(|registered| Loopback::read(registered)).any(fits)
}

/// An address of the computer that the browser runs on.
struct Loopback<'a> {
    host: &'a str,
    port: Option<&'a str>,
    /// With its query; without a lone slash.
    path: &'a str,
}

impl<'a> Loopback<'a> {
    fn read(uri: &'a str) -> Option<Self> {
        const HOSTS: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];
        let rest = uri.strip_prefix("http://")?;
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |start| rest.split_at(start));
        let host = HOSTS.into_iter().find(|host| authority.starts_with(host))?;
        let port = match authority.strip_prefix(host)? {
            "" => None,
            port => {
                Some(port.strip_prefix(':').filter(|port| port.parse::<u16>().is_ok_and(|port| port > 0))?)
            }
        };
        Some(Self { host, port, path: if path == "/" { "" } else { path } })
    }
}

/// Where an address leads, for people.
fn host_of(uri: &str) -> &str {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or(rest)
}

/// What a person sends.
#[derive(Default)]
struct SignInForm {
    username: Option<String>,
    password: Option<Zeroizing<String>>,
    decision: Option<String>,
}

impl SignInForm {
    fn read(form: &[u8]) -> Result<Self, Unreadable> {
        let mut read = Self::default();
        for (name, value) in form_urlencoded::parse(form) {
            match &*name {
                "username" => once(&mut read.username, &name, value.into_owned())?,
                "password" => once(&mut read.password, &name, Zeroizing::new(value.into_owned()))?,
                "decision" => once(&mut read.decision, &name, value.into_owned())?,
                _ => {}
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;
    use uuid::Uuid;

    use super::*;

    fn app(id: Uuid, redirect_uris: &[&str]) -> App {
        App {
            id,
            name: "console".to_owned(),
            permissions: vec![Permission::MachineReadAll],
            is_public: true,
            redirect_uris: redirect_uris.iter().map(|uri| (*uri).to_owned()).collect(),
            machine_groups: None,
            bulk_machines_max: None,
            created_at: Timestamp::default(),
            revoked_at: None,
        }
    }

    #[test]
    fn people_are_sent_to_registered_addresses_only() {
        let console = app(
            Uuid::from_u128(7),
            &[
                "https://soar.example/callback",
                "http://localhost",
                "http://127.0.0.1/cb",
                "http://127.0.0.1:99/x",
            ],
        );
        for uri in [
            "https://soar.example/callback",
            "http://localhost",
            "http://localhost:50123",
            "http://localhost:50123/",
            "http://127.0.0.1:1/cb",
            "http://127.0.0.1:99/x",
        ] {
            assert!(is_registered(&console, uri), "{uri}");
        }
        for uri in [
            "",
            "https://soar.example/callback/",
            "https://soar.example/callback?x=1",
            "https://soar.example/callback#",
            "https://soar.example.evil.example/callback",
            "https://SOAR.example/callback",
            "http://soar.example/callback",
            "http://localhost:50123/other",
            "http://localhost.evil.example",
            "http://localhost:50123@evil.example/",
            "http://localhost:@evil.example/",
            "http://localhost\\@evil.example/",
            "http://localhost:0",
            "http://localhost:99999",
            "http://127.0.0.1:98/x",
            "http://[::1]:5/cb",
            "http://127.0.0.1:5/cb\r\nx: y",
            "javascript:alert(1)",
        ] {
            assert!(!is_registered(&console, uri), "{uri}");
        }
    }

    #[test]
    fn the_command_line_listens_on_any_port_of_its_own_computer() {
        let cli = app(CLI_APP_ID, &[]);
        for uri in ["http://127.0.0.1:5/", "http://localhost:5123/x?y", "http://[::1]:5"] {
            assert!(is_registered(&cli, uri), "{uri}");
        }
        for uri in
            ["https://evil.example/", "http://127.0.0.1.evil.example/", "http://10.0.0.5:80/", "http://"]
        {
            assert!(!is_registered(&cli, uri), "{uri}");
        }
        assert!(!is_registered(&app(Uuid::from_u128(7), &[]), "http://127.0.0.1:5/"));
    }

    #[test]
    fn only_s256_proves_anything() {
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM".to_owned();
        assert!(checked_challenge(Some(challenge.clone()), Some("S256")).is_ok());
        for (challenge, method) in [
            (None, Some("S256")),
            (Some(challenge.clone()), None),
            (Some(challenge.clone()), Some("plain")),
            (Some(challenge.clone()), Some("s256")),
            (Some(format!("{challenge}A")), Some("S256")),
            (Some(challenge.replace('-', "+")), Some("S256")),
            (Some(String::new()), Some("S256")),
        ] {
            assert!(checked_challenge(challenge.clone(), method).is_err(), "{challenge:?} {method:?}");
        }
    }
}
