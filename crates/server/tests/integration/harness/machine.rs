//! A machine: the agent's and the gate's side of the protocol, with the real keys, certificates, orders and receipts.
//! Only what a kernel would do is played.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

use agent_protocol::{
    BreakGlassReport, ENROLL_PATH, EnrollReply, EnrollRequest, ExecutionEvent, FromAgent, FromServer,
    Heartbeat, Hello, ImpactPreview, Interface, LINK_PATH, PROTOCOL_VERSION, PreviewReport, PreviewState,
    RefusedFile, RestrictionReport,
};
use domain::machine::MachineId;
use domain::restriction::{CanaryOutcome, Desired, Fence, Probe, Tier};
use domain::time::Timestamp;
use futures_util::{SinkExt as _, StreamExt as _};
use orders::{
    BreakGlassLog, BreakGlassUse, Order, Outcome, PublicKey, Receipt, SigningKey, TrustedKeys,
    VerifiedBreakGlass, VerifiedOrder, VerifiedPolicy,
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::client::Reply;
use super::server::TestServer;

/// How a gate meets an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behavior {
    /// It obeys, and proves it.
    Obey,
    /// It refuses the order.
    Refuse,
    /// It cannot switch.
    FailToApply,
    /// It switches, and its canaries do not prove it.
    FailProbe,
    /// The order is durable, and nothing more is heard.
    AcceptOnly,
    /// Nothing is heard at all.
    Silent,
}

/// What a machine says of itself that tests vary.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) os_platform: String,
    pub(crate) tier: Option<String>,
    pub(crate) tier_note: String,
}

impl Description {
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            os_platform: "Linux".to_owned(),
            tier: Some("fanotify".to_owned()),
            tier_note: String::new(),
        }
    }
}

/// A machine with its keys and its gate's memory, which outlive its connections.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) id: String,
    description: Description,
    tls: Arc<rustls::ClientConfig>,
    gate: Arc<Mutex<Gate>>,
}

/// A connection of a machine; ends when dropped.
pub(crate) struct Connection {
    task: tokio::task::JoinHandle<()>,
    frames: mpsc::UnboundedSender<FromAgent>,
    ordered: Arc<Mutex<BTreeSet<String>>>,
}

struct Gate {
    machine: MachineId,
    key: SigningKey,
    trusted: TrustedKeys,
    fence: Fence,
    restricted: bool,
    policy: Option<String>,
    policies: HashSet<String>,
    /// The last order that was accepted.
    order: Option<Order>,
    /// The last answer to an order, until the server has it.
    receipt: Option<(u64, String)>,
    /// The break-glass codes held, and those that were used.
    statement: Option<VerifiedBreakGlass>,
    uses: Vec<BreakGlassUse>,
}

impl Machine {
    /// Enrolls a machine that can be restricted.
    pub(crate) async fn enroll(server: &TestServer, name: &str) -> Self {
        Self::enroll_described(server, Description::named(name)).await
    }

    pub(crate) async fn enroll_described(server: &TestServer, description: Description) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let gate_key = SigningKey::generate().unwrap();
        let request = EnrollRequest {
            token: server.initialized.enrollment_token.clone(),
            certificate_request: request.pem().unwrap(),
            gate_public_key: gate_key.public_key().to_string(),
            computer_dns_name: description.name.clone(),
        };
        let reply = server.http.post(format!("{}{ENROLL_PATH}", server.url())).json(&request);
        let reply: EnrollReply = serde_json::from_value(Reply::of(reply).await.expect_status(200)).unwrap();
        let trusted = reply.order_keys.iter().map(|key| key.parse::<PublicKey>().unwrap());
        let fence = Fence { store_epoch: 0, incarnation: reply.incarnation, generation: 0 };
        Self {
            tls: Arc::new(client_tls(&reply, &key)),
            gate: Arc::new(Mutex::new(Gate {
                machine: reply.machine.parse().unwrap(),
                key: gate_key,
                trusted: TrustedKeys::new(trusted),
                fence,
                restricted: false,
                policy: None,
                policies: HashSet::new(),
                order: None,
                receipt: None,
                statement: None,
                uses: Vec::new(),
            })),
            id: reply.machine,
            description,
        }
    }

    /// Enrolls a machine and connects it, as a machine that obeys.
    pub(crate) async fn online(server: &TestServer, name: &str) -> (Self, Connection) {
        let machine = Self::enroll(server, name).await;
        let connection = machine.connect(server, Behavior::Obey).await;
        (machine, connection)
    }

    pub(crate) fn is_restricted(&self) -> bool {
        self.gate.lock().unwrap().restricted
    }

    /// The gate's public key.
    pub(crate) fn gate_key(&self) -> String {
        self.gate.lock().unwrap().key.public_key().to_string()
    }

    /// The serial of the first break-glass code that the gate holds.
    pub(crate) fn first_code(&self) -> Option<u64> {
        self.gate.lock().unwrap().statement.as_ref().map(|held| held.statement().first.serial)
    }

    /// Somebody types a break-glass code on the machine; whether it lifts the restriction.
    pub(crate) fn break_glass(&self, code: &str) -> bool {
        let mut gate = self.gate.lock().unwrap();
        let held = gate.statement.as_ref().expect("codes");
        let number = held.number_of(&code.parse().unwrap());
        let last = gate.uses.last().map(|used| used.code);
        let Some(code) = number.filter(|number| last.is_none_or(|last| *number > last)) else { return false };
        let at = Timestamp::from(std::time::SystemTime::now());
        let used = BreakGlassUse { code, generation: gate.fence.generation, at };
        gate.uses.push(used);
        gate.restricted = false;
        true
    }

    /// Carries out the order that was accepted last, with no connection to say so.
    pub(crate) fn finish_order(&self) {
        let mut gate = self.gate.lock().unwrap();
        let order = gate.order.clone().unwrap();
        gate.obey(&order, FromAgent::Accepted { generation: order.fence.generation });
    }

    /// Connects; the server has recorded the machine's words when this returns.
    pub(crate) async fn connect(&self, server: &TestServer, behavior: Behavior) -> Connection {
        let mut socket = self.open(server).await;
        send(&mut socket, &FromAgent::Hello(Box::new(self.hello()))).await;
        let welcome = receive(&mut socket).await;
        assert!(matches!(welcome, Some(FromServer::Welcome(_))), "{welcome:?}");
        let (frames, outgoing) = mpsc::unbounded_channel();
        let ordered = Arc::new(Mutex::new(BTreeSet::new()));
        let link = Link { machine: self.clone(), behavior, socket, outgoing, ordered: Arc::clone(&ordered) };
        Connection { task: tokio::spawn(link.run()), frames, ordered }
    }

    async fn open(&self, server: &TestServer) -> Socket {
        let tcp = TcpStream::connect(server.agent_address()).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
        let tls = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
        let url = format!("wss://localhost{LINK_PATH}");
        tokio_tungstenite::client_async(url, tls).await.unwrap().0
    }

    fn hello(&self) -> Hello {
        let gate = self.gate.lock().unwrap();
        Hello {
            protocol: PROTOCOL_VERSION,
            agent_version: "0.1.0".to_owned(),
            computer_dns_name: self.description.name.clone(),
            os_platform: self.description.os_platform.clone(),
            os_version: "Debian 12".to_owned(),
            os_build: "6.18.0".to_owned(),
            os_architecture: "x86_64".to_owned(),
            interfaces: vec![
                Interface { address: "127.0.0.1".parse().unwrap(), mac: None, up: true },
                Interface {
                    address: "10.0.0.5".parse().unwrap(),
                    mac: Some("02AB00000001".to_owned()),
                    up: true,
                },
            ],
            tier: self.description.tier.clone(),
            tier_note: self.description.tier_note.clone(),
            restriction: gate.report(),
            policies: gate.policies.iter().cloned().collect(),
        }
    }
}

impl Connection {
    /// Reports a refused execution.
    pub(crate) fn report_execution(&self, path: &str) {
        let event = ExecutionEvent {
            at: Timestamp::from_unix_seconds(1_800_000_000).ticks(),
            path: path.to_owned(),
            sha256: Some("ab".repeat(32)),
            cause: "unlisted".to_owned(),
            rule: None,
            pid: 4242,
            ppid: 4241,
            uid: Some(1000),
            parent_program: "/usr/bin/bash".to_owned(),
            count: 3,
            hook: "execute".to_owned(),
            ..ExecutionEvent::default()
        };
        self.frames.send(FromAgent::Executions { batch: 1, events: vec![event], dropped: 0 }).unwrap();
    }

    /// The actions whose orders arrived. An order may arrive more than once.
    pub(crate) fn ordered(&self) -> BTreeSet<String> {
        self.ordered.lock().unwrap().clone()
    }

    /// Waits until the server has closed the connection.
    pub(crate) async fn closed(mut self) {
        (&mut self.task).await.unwrap();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Socket = WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

struct Link {
    machine: Machine,
    behavior: Behavior,
    socket: Socket,
    outgoing: mpsc::UnboundedReceiver<FromAgent>,
    ordered: Arc<Mutex<BTreeSet<String>>>,
}

impl Link {
    async fn run(mut self) {
        let unsent = self.machine.gate.lock().unwrap().receipt.clone();
        if let Some((_, envelope)) = unsent {
            send(&mut self.socket, &FromAgent::Receipt { envelope }).await;
        }
        loop {
            tokio::select! {
                frame = receive(&mut self.socket) => {
                    let Some(frame) = frame else { return };
                    if let FromServer::Order { envelope } = &frame {
                        let order = self.machine.gate.lock().unwrap().verified(envelope);
                        self.ordered.lock().unwrap().insert(order.action.0.to_string());
                    }
                    let answers = self.machine.gate.lock().unwrap().answer(&frame, self.behavior);
                    for answer in answers {
                        send(&mut self.socket, &answer).await;
                    }
                }
                Some(frame) = self.outgoing.recv() => send(&mut self.socket, &frame).await,
            }
        }
    }
}

impl Gate {
    fn answer(&mut self, frame: &FromServer, behavior: Behavior) -> Vec<FromAgent> {
        match frame {
            FromServer::Policy { envelope } => {
                let policy = VerifiedPolicy::verify(envelope.as_bytes(), &self.trusted).unwrap();
                self.policies.insert(policy.digest().to_string());
                Vec::new()
            }
            FromServer::Order { envelope } => self.meet(envelope, behavior),
            FromServer::BreakGlass { envelope } => {
                let verified = VerifiedBreakGlass::verify(envelope.as_bytes(), &self.trusted, self.machine);
                self.statement = Some(verified.unwrap());
                vec![FromAgent::Heartbeat(Heartbeat { restriction: self.report() })]
            }
            FromServer::ReceiptStored { generation } => {
                self.receipt.take_if(|(stored, _)| stored == generation);
                Vec::new()
            }
            FromServer::Preview { policy, .. } => {
                assert!(self.policies.contains(policy), "a preview before its policy");
                let refused = RefusedFile {
                    path: "/home/ann/\x1btool".to_owned(),
                    sha256: Some("AB".repeat(32)),
                    cause: "unlisted".to_owned(),
                    last_seen: Timestamp::from_unix_seconds(1_800_000_000).ticks(),
                    processes: 2,
                    pids: vec![41, 42],
                    ..RefusedFile::default()
                };
                let state = PreviewState::Made(ImpactPreview {
                    at: Timestamp::from_unix_seconds(1_800_000_000).ticks(),
                    processes: 12,
                    files: 34,
                    refused_files: u64::MAX,
                    refused: vec![refused],
                    ..ImpactPreview::default()
                });
                let report = PreviewReport { policy: policy.clone(), state };
                vec![FromAgent::Preview(Box::new(report))]
            }
            FromServer::Welcome(_) | FromServer::ExecutionsStored { .. } | FromServer::Goodbye { .. } => {
                Vec::new()
            }
        }
    }

    fn break_glass(&self) -> BreakGlassReport {
        let first = self.statement.as_ref().map(|held| held.statement().first);
        let log = BreakGlassLog { machine: self.machine, uses: self.uses.clone() };
        let log = (!self.uses.is_empty()).then(|| String::from_utf8(log.sign(&self.key).to_bytes()).unwrap());
        BreakGlassReport {
            store_epoch: first.map_or(0, |first| first.store_epoch),
            incarnation: first.map_or(0, |first| first.incarnation),
            first: first.map_or(0, |first| first.serial),
            log,
        }
    }

    fn verified(&self, envelope: &str) -> Order {
        let now = Timestamp::from(std::time::SystemTime::now());
        let verified = VerifiedOrder::verify(envelope.as_bytes(), &self.trusted, self.machine, now);
        verified.unwrap().order().clone()
    }

    fn meet(&mut self, envelope: &str, behavior: Behavior) -> Vec<FromAgent> {
        if behavior == Behavior::Silent {
            return Vec::new();
        }
        let order = &self.verified(envelope);
        let accepted = FromAgent::Accepted { generation: order.fence.generation };
        if behavior == Behavior::Refuse {
            return vec![self.receipt(order, Outcome::Rejected("the test's gate refuses".to_owned()), None)];
        }
        if self.fence.admit(&order.fence).is_err() {
            return self
                .receipt
                .iter()
                .map(|(_, envelope)| FromAgent::Receipt { envelope: envelope.clone() })
                .collect();
        }
        let digest = order.policy.map(|digest| digest.to_string());
        assert!(
            digest.as_ref().is_none_or(|digest| self.policies.contains(digest)),
            "an order before its policy"
        );
        self.fence = order.fence;
        self.order = Some(order.clone());
        let unlisted =
            |outcome| Some(Probe { unlisted: outcome, listed: CanaryOutcome::Ran, mappings: None });
        let (outcome, probe) = match behavior {
            Behavior::AcceptOnly => return vec![accepted],
            Behavior::FailToApply => (Outcome::ApplyFailed("no mark could be set".to_owned()), None),
            Behavior::FailProbe => {
                (Outcome::ProbeFailed("the unlisted program ran".to_owned()), unlisted(CanaryOutcome::Ran))
            }
            Behavior::Obey | Behavior::Refuse | Behavior::Silent => return self.obey(order, accepted),
        };
        let receipt = self.receipt(order, outcome, probe);
        vec![accepted, receipt, FromAgent::Heartbeat(Heartbeat { restriction: self.report() })]
    }

    fn obey(&mut self, order: &Order, accepted: FromAgent) -> Vec<FromAgent> {
        self.restricted = order.desired == Desired::Restricted;
        self.policy = order.policy.map(|digest| digest.to_string());
        let unlisted = if self.restricted { CanaryOutcome::Refused } else { CanaryOutcome::Ran };
        let probe = Probe { unlisted, listed: CanaryOutcome::Ran, mappings: None };
        let receipt = self.receipt(order, Outcome::Enforced, Some(probe));
        vec![accepted, receipt, FromAgent::Heartbeat(Heartbeat { restriction: self.report() })]
    }

    fn receipt(&mut self, order: &Order, outcome: Outcome, probe: Option<Probe>) -> FromAgent {
        let receipt = Receipt {
            machine: self.machine,
            fence: order.fence,
            action: order.action,
            desired: order.desired,
            outcome,
            probe,
            tier: Tier::Fanotify,
            policy: order.policy,
            baseline: None,
            boot_id: "9e4c1c4e-0000-4000-8000-000000000000".to_owned(),
            issued_at: Timestamp::from(std::time::SystemTime::now()),
        };
        let envelope = String::from_utf8(receipt.sign(&self.key).to_bytes()).unwrap();
        self.receipt = Some((order.fence.generation, envelope.clone()));
        FromAgent::Receipt { envelope }
    }

    fn report(&self) -> RestrictionReport {
        RestrictionReport {
            incarnation: self.fence.incarnation,
            store_epoch: self.fence.store_epoch,
            generation: self.fence.generation,
            restricted: self.restricted,
            policy: self.policy.clone(),
            break_glass: Some(self.break_glass()),
        }
    }
}

fn client_tls(reply: &EnrollReply, key: &KeyPair) -> rustls::ClientConfig {
    let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&reply.certificate_authority) {
        roots.add(certificate).unwrap();
    }
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&reply.certificate), key)
        .unwrap()
}

async fn send(socket: &mut Socket, frame: &FromAgent) {
    // A connection that the server closed is seen by who reads.
    drop(socket.send(Message::text(agent_protocol::encode(frame))).await);
}

/// The next frame; none when the server has closed the connection.
async fn receive(socket: &mut Socket) -> Option<FromServer> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let limit = agent_protocol::FROM_SERVER_BYTES_MAX;
                return Some(agent_protocol::decode(text.as_bytes(), limit).unwrap());
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_) | Message::Binary(_) | Message::Frame(_)) | Err(_)) | None => {
                return None;
            }
        }
    }
}
