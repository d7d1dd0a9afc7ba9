//! A server that speaks the protocol to one machine, as a test tells it to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use agent_protocol::{
    ENROLL_PATH, EnrollReply, EnrollRequest, ExecutionEvent, FROM_AGENT_BYTES_MAX, FromAgent, FromServer,
    Hello, InventorySummary, LINK_PATH, PROTOCOL_VERSION, PreviewState, RENEW_PATH, RenewReply, RenewRequest,
    RestrictionReport, Welcome, decode, encode,
};
use domain::allow_policy::{AllowPolicy, Profile};
use domain::digest::Sha256Digest;
use domain::machine_action::MachineActionId;
use domain::policy_settings::PolicySettings;
use domain::restriction::{Desired, Fence};
use domain::time::Timestamp;
use futures_util::{SinkExt as _, StreamExt as _};
use orders::{Order, Receipt, SigningKey, VerifiedReceipt, sign_policy};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

pub(crate) struct Server {
    shared: Arc<Shared>,
    ports: (u16, u16),
    // Dropped last: its tasks hold the rest.
    _runtime: Runtime,
}

struct Shared {
    authority: CertifiedIssuer<'static, KeyPair>,
    order_key: SigningKey,
    /// How long the certificates that it gives out have lasted already, and will last.
    lifetime: Mutex<(Duration, Duration)>,
    seen: Mutex<Seen>,
    frames: broadcast::Sender<String>,
    agent_port: u16,
}

/// What the machine did.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) enrolled: u64,
    pub(crate) renewed: u64,
    pub(crate) previews: Vec<PreviewState>,
    pub(crate) gate_key: String,
    pub(crate) machine: String,
    pub(crate) name: String,
    pub(crate) links: u64,
    pub(crate) ended: u64,
    pub(crate) hello: Option<Hello>,
    pub(crate) heartbeats: Vec<RestrictionReport>,
    pub(crate) accepted: Vec<u64>,
    pub(crate) receipts: BTreeMap<u64, Receipt>,
    pub(crate) events: Vec<ExecutionEvent>,
    pub(crate) inventory: Option<InventorySummary>,
    generation: u64,
    order: Option<FromServer>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let authority = authority();
        let (public, agents) = runtime.block_on(async {
            let bind = || TcpListener::bind(("127.0.0.1", 0));
            (bind().await.unwrap(), bind().await.unwrap())
        });
        let ports = (public.local_addr().unwrap().port(), agents.local_addr().unwrap().port());
        let shared = Arc::new(Shared {
            authority,
            order_key: SigningKey::from_seed(&[1; 32]),
            lifetime: Mutex::new((Duration::from_secs(60), Duration::from_secs(90 * 86_400))),
            seen: Mutex::default(),
            frames: broadcast::channel(64).0,
            agent_port: ports.1,
        });
        for (listener, tls) in [(public, shared.tls(false)), (agents, shared.tls(true))] {
            runtime.spawn(accept(listener, tls, Arc::clone(&shared)));
        }
        Self { shared, ports, _runtime: runtime }
    }

    pub(crate) fn public_url(&self) -> String {
        format!("https://localhost:{}", self.ports.0)
    }

    /// SHA-256 of the authority's certificate.
    pub(crate) fn pin(&self) -> String {
        hex::encode(Sha256::digest(self.shared.authority.der()))
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().unwrap()
    }

    /// How many connections there were, and how many of them have ended.
    pub(crate) fn links(&self) -> (u64, u64) {
        let seen = self.seen();
        (seen.links, seen.ended)
    }

    pub(crate) fn wait(&self, state: &str, reached: impl Fn(&Seen) -> bool) {
        crate::wait_until(state, || reached(&self.seen()));
    }

    /// Certificates are given out as if they were as old as this, and will last as long as that.
    pub(crate) fn set_lifetime(&self, gone: Duration, left: Duration) {
        *self.shared.lifetime.lock().unwrap() = (gone, left);
    }

    /// Sends the text as it is to the connected machine.
    pub(crate) fn send_raw(&self, text: String) {
        drop(self.shared.frames.send(text));
    }

    /// Wants an impact preview for the policy that the machine holds.
    pub(crate) fn want_preview(&self) {
        let policy = self.shared.policy().0.to_string();
        self.send_raw(encode(&FromServer::Preview { policy, age_seconds_max: 10 }));
    }

    /// Orders the machine to be this; the generation of the order.
    pub(crate) fn order(&self, desired: Desired) -> u64 {
        let mut seen = self.seen();
        seen.generation += 1;
        let order = Order {
            machine: seen.machine.parse().unwrap(),
            fence: Fence { store_epoch: 1, incarnation: seen.enrolled, generation: seen.generation },
            action: MachineActionId(uuid::Uuid::from_u128(seen.generation.into())),
            desired,
            policy: Some(self.shared.policy().0),
            issued_at: now(),
            not_after: now().plus(Duration::from_secs(3600)),
            ends_at: None,
        };
        let envelope = String::from_utf8(order.sign(&self.shared.order_key).to_bytes()).unwrap();
        let order = FromServer::Order { envelope };
        seen.order = Some(order.clone());
        self.send_raw(encode(&order));
        seen.generation
    }

    /// Orders the machine to be this, and waits for the proof.
    pub(crate) fn enforce(&self, desired: Desired) {
        let generation = self.order(desired);
        self.wait("the order is proved", |seen| seen.receipts.contains_key(&generation));
        assert_eq!(self.seen().receipts[&generation].outcome, orders::Outcome::Enforced);
    }
}

impl Shared {
    fn policy(&self) -> (Sha256Digest, String) {
        let policy = AllowPolicy {
            name: "default".to_owned(),
            revision: 1,
            profile: Profile::OsAndApproved,
            settings: PolicySettings::default(),
            rules: Vec::new(),
        };
        let envelope = sign_policy(&policy, &self.order_key);
        (envelope.payload_digest().unwrap(), String::from_utf8(envelope.to_bytes()).unwrap())
    }

    fn tls(&self, asks_for_certificates: bool) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, "test server");
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = parameters.signed_by(&key, &self.authority).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = if asks_for_certificates {
            let mut roots = RootCertStore::empty();
            roots.add(self.authority.der().clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.unwrap().with_client_cert_verifier(verifier)
        } else {
            builder.unwrap().with_no_client_auth()
        };
        let chain = vec![certificate.der().clone(), self.authority.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
    }

    fn certify(&self, request: &str) -> (String, String) {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        let (gone, left) = *self.lifetime.lock().unwrap();
        request.params.not_before = (SystemTime::now() - gone).into();
        request.params.not_after = (SystemTime::now() + left).into();
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = request.signed_by(&self.authority).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
        let machine = hex::encode(&Sha256::digest(parsed.public_key().raw)[..20]);
        (certificate.pem(), machine)
    }

    fn enroll(&self, body: &[u8]) -> (u16, String) {
        let request: EnrollRequest = decode(body, 64 * 1024).unwrap();
        if request.token != "good-token" {
            let body = r#"{"error":{"code":"Unauthorized","message":"The enrollment token is not known, used up or expired","target":""}}"#;
            return (401, body.to_owned());
        }
        let (certificate, machine) = self.certify(&request.certificate_request);
        let mut seen = self.seen.lock().unwrap();
        seen.enrolled += 1;
        seen.gate_key = request.gate_public_key;
        seen.name = request.computer_dns_name;
        seen.machine.clone_from(&machine);
        let reply = EnrollReply {
            machine,
            incarnation: seen.enrolled,
            certificate,
            certificate_authority: self.authority.pem(),
            agent_url: format!("https://localhost:{}", self.agent_port),
            order_keys: vec![self.order_key.public_key().to_string()],
        };
        (200, encode(&reply))
    }

    fn renew(&self, body: &[u8]) -> (u16, String) {
        let request: RenewRequest = decode(body, 64 * 1024).unwrap();
        let (certificate, _) = self.certify(&request.certificate_request);
        self.seen.lock().unwrap().renewed += 1;
        (200, encode(&RenewReply { certificate }))
    }

    /// What is answered to a frame.
    fn take(&self, frame: FromAgent) -> Vec<FromServer> {
        let mut seen = self.seen.lock().unwrap();
        let current = |seen: &Seen, report: &RestrictionReport| {
            seen.order.clone().filter(|_| report.generation < seen.generation)
        };
        match frame {
            FromAgent::Hello(hello) => {
                let mut frames = vec![FromServer::Welcome(Welcome {
                    protocol: PROTOCOL_VERSION,
                    now: now().ticks(),
                    heartbeat_seconds: 1,
                    reconnect_seconds_max: 1,
                })];
                let (digest, envelope) = self.policy();
                if !hello.policies.contains(&digest.to_string()) {
                    frames.push(FromServer::Policy { envelope });
                }
                frames.extend(current(&seen, &hello.restriction));
                seen.links += 1;
                seen.hello = Some(*hello);
                frames
            }
            FromAgent::Heartbeat(heartbeat) => {
                let order = current(&seen, &heartbeat.restriction);
                seen.heartbeats.push(heartbeat.restriction);
                order.into_iter().collect()
            }
            FromAgent::Accepted { generation } => {
                seen.accepted.push(generation);
                Vec::new()
            }
            FromAgent::Receipt { envelope } => {
                let (key, machine) = (seen.gate_key.parse().unwrap(), seen.machine.parse().unwrap());
                let receipt =
                    VerifiedReceipt::verify(envelope.as_bytes(), key, machine).unwrap().receipt().clone();
                let Fence { generation, .. } = receipt.fence;
                seen.receipts.insert(generation, receipt);
                vec![FromServer::ReceiptStored { generation }]
            }
            FromAgent::Executions { batch, events, dropped: _ } => {
                seen.events.extend(events);
                vec![FromServer::ExecutionsStored { batch }]
            }
            FromAgent::Preview(report) => {
                seen.previews.push(report.state);
                Vec::new()
            }
            FromAgent::Inventory(summary) => {
                seen.inventory = Some(summary);
                Vec::new()
            }
        }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            // A client that does not like the certificate goes away.
            let Ok(stream) = tls.accept(stream).await else { return };
            serve(stream, &shared).await;
        });
    }
}

async fn serve(mut stream: TlsStream<TcpStream>, shared: &Shared) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
        line.map(|line| line.split_once(':').unwrap().1.trim().to_owned())
    };
    let path = head.split(' ').nth(1).unwrap();
    if path == LINK_PATH {
        let accept = derive_accept_key(header("sec-websocket-key").unwrap().as_bytes());
        let reply = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(reply.as_bytes()).await.unwrap();
        link(WebSocketStream::from_raw_socket(stream, Role::Server, None).await, shared).await;
        shared.seen.lock().unwrap().ended += 1;
        return;
    }
    let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    let (status, reply) = match path {
        ENROLL_PATH => shared.enroll(&body),
        RENEW_PATH => shared.renew(&body),
        _ => (404, "{}".to_owned()),
    };
    let length = reply.len();
    let reply = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nDate: {}\r\nConnection: close\r\n\r\n{reply}",
        "Sun, 06 Nov 1994 08:49:37 GMT"
    );
    stream.write_all(reply.as_bytes()).await.unwrap();
    drop(stream.shutdown().await);
}

async fn link(mut socket: WebSocketStream<TlsStream<TcpStream>>, shared: &Shared) {
    let mut frames = shared.frames.subscribe();
    loop {
        let answers = tokio::select! {
            text = frames.recv() => vec![text.unwrap()],
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let frame = decode(text.as_bytes(), FROM_AGENT_BYTES_MAX).unwrap();
                    shared.take(frame).iter().map(encode).collect()
                }
                Some(Ok(_)) => Vec::new(),
                Some(Err(_)) | None => return,
            }
        };
        for answer in answers {
            if socket.send(Message::text(answer)).await.is_err() {
                return;
            }
        }
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, "test authority");
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
