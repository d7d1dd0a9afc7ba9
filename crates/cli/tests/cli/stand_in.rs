//! The HTTPS server: a token issuer, and whatever a test answers.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use api_types::error::{ErrorBody, ErrorEnvelope};
use api_types::machine::{ExecutionRestriction, Machine};
use api_types::machine_action::MachineAction;
use api_types::token::TokenError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

pub(crate) const CLIENT_ID: &str = "0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d";
pub(crate) const SECRET: &str = "correct horse";
pub(crate) const CORRELATION_ID: Uuid = Uuid::from_u128(0xc0);
/// The name in links and challenges: not the one under which the program reaches the server.
pub(crate) const PUBLIC_URL: &str = "https://cordon.example";
const TENANT: &str = "7e9a";

/// A request as the server got it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Method, path and query.
    pub(crate) line: String,
    pub(crate) body: String,
    pub(crate) token: Option<String>,
    /// The `Idempotency-Key`.
    pub(crate) key: Option<String>,
}

/// A reply.
pub(crate) struct Answer {
    status: u16,
    header: Option<(&'static str, String)>,
    body: String,
}

type Answers = Box<dyn FnMut(usize, &Call) -> Answer + Send>;

pub(crate) struct StandIn {
    pub(crate) url: String,
    pub(crate) ca_certificate: String,
    pub(crate) ca_pin: String,
    /// How people sign in here, and what came of it.
    pub(crate) people: Arc<Mutex<People>>,
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl StandIn {
    /// Starts a server that answers each call of the API, numbered from 0, with what `answer` says.
    pub(crate) fn start(answer: impl FnMut(usize, &Call) -> Answer + Send + 'static) -> Self {
        Self::start_site(Box::new(answer), Challenge::Tenant, certificates(None))
    }

    fn start_site(answer: Answers, challenge: Challenge, certificates: Certificates) -> Self {
        let Certificates { acceptor, ca_certificate, ca_pin } = certificates;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let people = Arc::new(Mutex::new(People { url: url.clone(), ..People::default() }));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let site =
            Site { answer, challenge, calls: Arc::clone(&calls), tokens: 0, people: Arc::clone(&people) };
        let site = Arc::new(Mutex::new(site));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, acceptor, site) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { url, ca_certificate, ca_pin, people, calls, stop: Some(stop), thread: Some(thread) }
    }

    /// A server that answers every call, but says to nobody where to get a token.
    pub(crate) fn without_issuer() -> Self {
        Self::start_site(Box::new(|_, _| Answer::ok(&"who are you?")), Challenge::Unknown, certificates(None))
    }

    /// An attacker's server: it presents the certificate authority of another, which anyone can get, without having a
    /// certificate from it.
    pub(crate) fn posing_as(other: &Self) -> Self {
        let certificates = certificates(Some(&other.ca_certificate));
        Self::start_site(Box::new(|_, _| Answer::ok(&"welcome")), Challenge::Tenant, certificates)
    }

    /// What was called so far with a token.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// First lines of what was called so far with a token.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.line).collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The device code flow (RFC 8628) and refresh tokens that count once, of the server's own issuer and, below `/issuer`,
/// of another one.
#[derive(Default)]
pub(crate) struct People {
    url: String,
    /// What polls are refused with, before the sign-in counts.
    pub(crate) refusals: Vec<&'static str>,
    /// Seconds that each access token is valid for; the last one goes for all that follow.
    pub(crate) valid: Vec<u64>,
    /// What the sign-in calls itself, instead of itself.
    pub(crate) issuer: Option<String>,
    /// Forms as they came, of all endpoints.
    pub(crate) forms: Vec<String>,
    granted: usize,
}

impl People {
    fn handle(&mut self, call: &Call) -> Option<Answer> {
        let url = &self.url;
        match call.line.as_str() {
            "GET /issuer/.well-known/openid-configuration" => {
                let issuer = self.issuer.clone().unwrap_or_else(|| format!("{url}/issuer"));
                Some(Answer::ok(&json!({
                    "issuer": issuer, "token_endpoint": format!("{url}/issuer/token"),
                    "device_authorization_endpoint": format!("{url}/issuer/device"), "jwks_uri": "x"
                })))
            }
            "POST /7e9a/oauth2/v2.0/devicecode" | "POST /issuer/device" => {
                self.forms.push(call.body.clone());
                Some(Answer::ok(&json!({
                    "device_code": "device-1", "user_code": "BDSD-HQMK", "expires_in": 900, "interval": 1,
                    "verification_uri": "https://cordon.example/device", "message": "ignored",
                    "verification_url": "https://cordon.example/device"
                })))
            }
            "POST /7e9a/oauth2/v2.0/token" | "POST /issuer/token" => self.token(&call.body),
            _ => None,
        }
    }

    fn token(&mut self, form: &str) -> Option<Answer> {
        let field = |name: &str| {
            let fields = form.split('&').filter_map(|field| field.split_once('='));
            fields.into_iter().find(|(field, _)| *field == name).map(|(_, value)| value.to_owned())
        };
        let refused = |error: &str| {
            Some(Answer {
                status: 400,
                ..Answer::ok(&json!({ "error": error, "error_description": "told" }))
            })
        };
        match field("grant_type")?.as_str() {
            "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code" => {
                self.forms.push(form.to_owned());
                if !self.refusals.is_empty() {
                    return refused(self.refusals.remove(0));
                }
            }
            "refresh_token" => {
                self.forms.push(form.to_owned());
                if field("refresh_token")? != format!("refresh-{}", self.granted) {
                    return refused("invalid_grant");
                }
            }
            _ => return None,
        }
        self.granted += 1;
        let valid = self.valid.get(self.granted - 1).or(self.valid.last()).copied().unwrap_or(3600);
        Some(Answer::ok(&json!({
            "token_type": "Bearer", "expires_in": valid, "access_token": person_token(self.granted),
            "refresh_token": format!("refresh-{}", self.granted), "scope": "x"
        })))
    }
}

/// The access token that is granted to the person as the `number`th: what it says, unsigned.
pub(crate) fn person_token(number: usize) -> String {
    let claims = json!({
        "iss": "https://cordon.example/7e9a/v2.0", "aud": PUBLIC_URL, "exp": 1_772_442_895, "jti": number,
        "preferred_username": "ann@example.org", "scp": "Machine.Read Machine.RestrictExecution",
        "azp": "c07d0000-0000-4000-8000-000000000001", "groups": ["responders"]
    });
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// What a caller without a token is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Challenge {
    Tenant,
    Unknown,
}

struct Site {
    answer: Answers,
    challenge: Challenge,
    calls: Arc<Mutex<Vec<Call>>>,
    tokens: u32,
    people: Arc<Mutex<People>>,
}

async fn serve(listener: std::net::TcpListener, acceptor: TlsAcceptor, site: Arc<Mutex<Site>>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, site) = (acceptor.clone(), Arc::clone(&site));
        tokio::spawn(async move {
            // A client that does not trust us ends the handshake, and one that was killed the connection.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| handle(request, Arc::clone(&site)));
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn handle(
    request: Request<Incoming>,
    site: Arc<Mutex<Site>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri().path_and_query().unwrap());
    let token = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let token = token.map(|token| token.strip_prefix("Bearer ").unwrap().to_owned());
    let key = request.headers().get("idempotency-key").map(|value| value.to_str().unwrap().to_owned());
    let body =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let call = Call { line, body: String::from_utf8(body.to_vec()).unwrap(), token, key };
    let answer = site.lock().unwrap().handle(&call);
    let mut response = Response::builder().status(answer.status).header("content-type", "application/json");
    if let Some((name, value)) = answer.header {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(answer.body.into())).unwrap())
}

impl Site {
    fn handle(&mut self, call: &Call) -> Answer {
        if let Some(answer) = self.people.lock().unwrap().handle(call) {
            return answer;
        }
        if call.line == "POST /7e9a/oauth2/v2.0/token" {
            return self.token(&call.body);
        }
        if call.token.is_none() && self.challenge == Challenge::Tenant {
            let uri = format!("{PUBLIC_URL}/{TENANT}/oauth2/authorize");
            let challenge = format!("Bearer realm=\"{PUBLIC_URL}\", authorization_uri=\"{uri}\"");
            return Answer {
                header: Some(("www-authenticate", challenge)),
                ..Answer::error(401, "Unauthorized", "There is no bearer token in the request")
            };
        }
        let number = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(call.clone());
            calls.len() - 1
        };
        (self.answer)(number, call)
    }

    fn token(&mut self, form: &str) -> Answer {
        let expected = format!(
            "grant_type=client_credentials&client_id={CLIENT_ID}&client_secret=correct+horse\
             &scope=https%3A%2F%2Fcordon.example%2F.default"
        );
        if form != expected {
            let error = TokenError {
                error: "invalid_client".to_owned(),
                error_description: "Invalid client secret provided.\r\nTrace ID: 1".to_owned(),
                error_codes: vec![7_000_215],
                timestamp: "2026-03-02 08:14:55Z".to_owned(),
                trace_id: CORRELATION_ID,
                correlation_id: CORRELATION_ID,
            };
            return Answer { status: 401, ..Answer::ok(&error) };
        }
        self.tokens += 1;
        Answer::ok(&json!({
            "token_type": "Bearer", "expires_in": 3600, "ext_expires_in": 3600,
            "access_token": format!("token-{}", self.tokens)
        }))
    }
}

impl Answer {
    pub(crate) fn ok(body: &impl Serialize) -> Self {
        Self { status: 200, header: None, body: serde_json::to_string(body).unwrap() }
    }

    pub(crate) fn created(body: &impl Serialize) -> Self {
        Self { status: 201, ..Self::ok(body) }
    }

    pub(crate) fn empty() -> Self {
        Self { status: 204, header: None, body: String::new() }
    }

    pub(crate) fn text(status: u16, body: &str) -> Self {
        Self { status, header: None, body: body.to_owned() }
    }

    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let error = ErrorBody { code: code.to_owned(), message: message.to_owned(), target: CORRELATION_ID };
        Self { status, ..Self::ok(&ErrorEnvelope { error }) }
    }

    pub(crate) fn too_many_requests(retry_after: u32) -> Self {
        let message = format!("100 calls in 60 seconds; try again in {retry_after} seconds");
        Self {
            header: Some(("retry-after", retry_after.to_string())),
            ..Self::error(429, "TooManyRequests", &message)
        }
    }
}

struct Certificates {
    acceptor: TlsAcceptor,
    ca_certificate: String,
    ca_pin: String,
}

/// A certificate authority and a server that has a certificate from it. The server presents that authority, or
/// `presented` in its place.
fn certificates(presented: Option<&str>) -> Certificates {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "Cordon test CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let pin = Sha256::digest(authority.der()).iter().map(|byte| format!("{byte:02x}")).collect();
    let presented = presented.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
    let chain = vec![leaf.der().clone(), presented.unwrap_or_else(|| authority.der().clone())];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Certificates {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        ca_certificate: authority.pem(),
        ca_pin: pin,
    }
}

/// The action that all tests are about, `milliseconds` after it was made.
pub(crate) fn action(status: &str, milliseconds: u32) -> MachineAction {
    MachineAction {
        id: Uuid::from_u128(0xac),
        r#type: "RestrictCodeExecution".to_owned(),
        title: None,
        requestor: CLIENT_ID.to_owned(),
        requestor_comment: "IR-20771".to_owned(),
        status: status.to_owned(),
        machine_id: MACHINE_ID.to_owned(),
        computer_dns_name: "lab-042".to_owned(),
        creation_date_time_utc: "2026-03-02T08:14:55.0000000Z".parse().unwrap(),
        last_update_date_time_utc: format!("2026-03-02T08:14:55.{milliseconds:03}Z").parse().unwrap(),
        cancellation_requestor: None,
        cancellation_comment: None,
        cancellation_date_time_utc: None,
        error_h_result: 0,
        scope: None,
        external_id: None,
        request_source: "PublicApi".to_owned(),
        related_file_info: None,
        commands: Vec::new(),
        troubleshoot_info: None,
    }
}

pub(crate) const MACHINE_ID: &str = "0f3c9a7be1d2445566778899aabbccddeeff0011";

/// A machine with this name.
pub(crate) fn machine(name: &str) -> Machine {
    Machine {
        id: MACHINE_ID.to_owned(),
        computer_dns_name: name.to_owned(),
        first_seen: "2026-02-01T00:00:00Z".parse().unwrap(),
        last_seen: "2026-03-02T08:14:55.1203341Z".parse().unwrap(),
        os_platform: "Linux".to_owned(),
        os_processor: "x86_64".to_owned(),
        os_architecture: "x86_64".to_owned(),
        version: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        os_build: "6.1.0-40-amd64".to_owned(),
        health_status: "Active".to_owned(),
        onboarding_status: "onboarded".to_owned(),
        rbac_group_id: 0,
        rbac_group_name: None,
        risk_score: "None".to_owned(),
        exposure_level: "None".to_owned(),
        device_value: "Normal".to_owned(),
        aad_device_id: None,
        machine_tags: vec!["lab".to_owned()],
        last_ip_address: None,
        last_external_ip_address: None,
        ip_addresses: Vec::new(),
        agent_version: "0.1.0".to_owned(),
        execution_restriction: ExecutionRestriction {
            desired: "Restricted".to_owned(),
            reported: "Released".to_owned(),
            generation: 7,
            since: None,
            policy: Some("default".to_owned()),
            drift: true,
            backend: Some("fanotify".to_owned()),
            ends_at: None,
            events_dropped: 0,
            broken_glass_at: None,
        },
    }
}
