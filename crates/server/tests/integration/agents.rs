//! The machines' side of the server, frame by frame: what it sends when, and whom it drops.

use std::sync::Arc;
use std::time::Duration;

use agent_protocol::{
    ENROLL_PATH, EnrollReply, EnrollRequest, ExecutionEvent, FROM_AGENT_BYTES_MAX, FromAgent, FromServer,
    Heartbeat, Hello, ImpactPreview, LINK_PATH, PROTOCOL_VERSION, PreviewReport, PreviewState, RENEW_PATH,
    RenewReply, RenewRequest, RestrictionReport,
};
use domain::machine::MachineId;
use domain::restriction::{CanaryOutcome, Desired, Probe, Tier};
use domain::time::Timestamp;
use futures_util::{SinkExt as _, StreamExt as _};
use orders::{Order, Outcome, PublicKey, Receipt, SigningKey, TrustedKeys, VerifiedOrder, VerifiedPolicy};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::client::Reply;
use crate::harness::server::TestServer;
use crate::harness::wait_until;

/// Longer than anything that a server may take, shorter than a person's patience.
const PATIENCE: Duration = Duration::from_secs(20);

/// An enrolled machine: its keys and certificates.
struct Machine {
    id: MachineId,
    key: KeyPair,
    gate: SigningKey,
    enrolled: EnrollReply,
}

/// A connection on which the test says and hears each frame.
struct Link {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

fn request_of(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

fn enroll_request(server: &TestServer, key: &KeyPair, gate: &SigningKey) -> EnrollRequest {
    EnrollRequest {
        token: server.initialized.enrollment_token.clone(),
        certificate_request: request_of(key),
        gate_public_key: gate.public_key().to_string(),
        computer_dns_name: "lab-042".to_owned(),
    }
}

async fn post_enroll(server: &TestServer, request: &EnrollRequest) -> Reply {
    Reply::of(server.http.post(format!("{}{ENROLL_PATH}", server.url())).json(request)).await
}

impl Machine {
    async fn enroll(server: &TestServer) -> Self {
        let (key, gate) = (KeyPair::generate().unwrap(), SigningKey::generate().unwrap());
        let reply = post_enroll(server, &enroll_request(server, &key, &gate)).await.expect_status(200);
        let enrolled: EnrollReply = serde_json::from_value(reply).unwrap();
        Self { id: enrolled.machine.parse().unwrap(), key, gate, enrolled }
    }

    fn trusted(&self) -> TrustedKeys {
        TrustedKeys::new(self.enrolled.order_keys.iter().map(|key| key.parse::<PublicKey>().unwrap()))
    }

    fn report(&self, generation: u64, restricted: bool) -> RestrictionReport {
        let incarnation = self.enrolled.incarnation;
        RestrictionReport {
            incarnation,
            store_epoch: 1,
            generation,
            restricted,
            policy: None,
            break_glass: None,
        }
    }

    fn hello(&self, generation: u64, policies: &[String]) -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            agent_version: "0.1.0".to_owned(),
            computer_dns_name: "lab-042".to_owned(),
            os_platform: "Linux".to_owned(),
            os_version: "Debian 12".to_owned(),
            os_build: "6.1.0".to_owned(),
            os_architecture: "x86_64".to_owned(),
            interfaces: Vec::new(),
            tier: Some("fanotify".to_owned()),
            tier_note: String::new(),
            restriction: self.report(generation, false),
            policies: policies.to_vec(),
        }
    }

    /// TLS as this machine, with another certificate when there is one.
    async fn tls(&self, server: &TestServer, certificate: &str) -> TlsStream<TcpStream> {
        let key = PrivateKeyDer::from_pem_slice(self.key.serialize_pem().as_bytes()).unwrap();
        let config = tls_client(&self.enrolled.certificate_authority)
            .with_client_auth_cert(certificates(certificate), key)
            .unwrap();
        connect(server, config).await.unwrap()
    }

    /// A WebSocket on which nothing was said yet.
    async fn open(&self, server: &TestServer) -> Link {
        let tls = self.tls(server, &self.enrolled.certificate).await;
        let (socket, _) =
            tokio_tungstenite::client_async(format!("wss://localhost{LINK_PATH}"), tls).await.unwrap();
        Link { socket }
    }

    /// A connection that is greeted, and holds the policies that the server had when it connected.
    async fn connect(&self, server: &TestServer) -> (Link, Vec<String>) {
        let mut link = self.open(server).await;
        link.say(&FromAgent::Hello(Box::new(self.hello(0, &[])))).await;
        assert!(matches!(link.hear().await, FromServer::Welcome(_)));
        let FromServer::Policy { envelope } = link.hear().await else { panic!("no policy") };
        (link, vec![self.digest_of(&envelope)])
    }

    fn digest_of(&self, envelope: &str) -> String {
        VerifiedPolicy::verify(envelope.as_bytes(), &self.trusted()).unwrap().digest().to_string()
    }

    fn order_in(&self, frame: &FromServer) -> Order {
        let FromServer::Order { envelope } = frame else { panic!("{frame:?}") };
        let now = Timestamp::from(std::time::SystemTime::now());
        VerifiedOrder::verify(envelope.as_bytes(), &self.trusted(), self.id, now).unwrap().order().clone()
    }

    /// The receipt of a gate that obeyed, signed by `key`.
    fn receipt(&self, order: &Order, key: &SigningKey) -> FromAgent {
        let unlisted = match order.desired {
            Desired::Restricted => CanaryOutcome::Refused,
            Desired::Released => CanaryOutcome::Ran,
        };
        let receipt = Receipt {
            machine: self.id,
            fence: order.fence,
            action: order.action,
            desired: order.desired,
            outcome: Outcome::Enforced,
            probe: Some(Probe { unlisted, listed: CanaryOutcome::Ran, mappings: None }),
            tier: Tier::Fanotify,
            policy: order.policy,
            baseline: None,
            boot_id: "7".to_owned(),
            issued_at: order.issued_at,
        };
        FromAgent::Receipt { envelope: String::from_utf8(receipt.sign(key).to_bytes()).unwrap() }
    }
}

impl Link {
    async fn say(&mut self, frame: &FromAgent) {
        self.socket.send(Message::text(agent_protocol::encode(frame))).await.unwrap();
    }

    /// The next frame.
    async fn hear(&mut self) -> FromServer {
        let frame = self.hear_or_end().await;
        frame.expect("the server closed the connection")
    }

    /// The next frame; none when the connection has ended.
    async fn hear_or_end(&mut self) -> Option<FromServer> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("nothing is heard");
            match message {
                Some(Ok(Message::Text(text))) => {
                    return Some(agent_protocol::decode(text.as_bytes(), 8 << 20).unwrap());
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_) | Message::Binary(_) | Message::Frame(_)) | Err(_)) | None => {
                    return None;
                }
            }
        }
    }

    /// The reason with which the server closes the connection.
    async fn hear_goodbye(&mut self) -> String {
        let FromServer::Goodbye { reason } = self.hear().await else { panic!("no Goodbye") };
        assert_eq!(self.hear_or_end().await, None);
        reason
    }
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

type TlsBuilder = rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>;

fn tls_client(authority: &str) -> TlsBuilder {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(authority) {
        roots.add(certificate).unwrap();
    }
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
}

async fn connect(server: &TestServer, config: rustls::ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(server.agent_address()).await?;
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// Posts JSON over a connection of the machine's own; status and body.
async fn post_as_machine(
    tls: TlsStream<TcpStream>,
    path: &str,
    body: &impl serde::Serialize,
) -> (u16, Value) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tls = tls;
    let body = serde_json::to_string(body).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    tls.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut reply = String::new();
    tls.read_to_string(&mut reply).await.unwrap();
    let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap())
}

#[tokio::test]
async fn a_machine_is_greeted_and_given_the_policies_it_lacks() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let mut link = machine.open(&server).await;
    link.say(&FromAgent::Hello(Box::new(machine.hello(0, &[])))).await;
    let FromServer::Welcome(welcome) = link.hear().await else { panic!("no Welcome") };
    assert_eq!((welcome.protocol, welcome.heartbeat_seconds), (PROTOCOL_VERSION, 60));
    let FromServer::Policy { envelope } = link.hear().await else { panic!("no policy") };
    let digest = machine.digest_of(&envelope);
    let known = server.admin().machine(&machine.id.to_string()).await;
    assert_eq!((&known["computerDnsName"], &known["osPlatform"]), (&json!("lab-042"), &json!("Linux")));
    assert_eq!(known["executionRestriction"]["reported"], "Released");
    // One that it holds already is not sent again: the next frame is about something else.
    let mut again = machine.open(&server).await;
    again.say(&FromAgent::Hello(Box::new(machine.hello(0, &[digest])))).await;
    assert!(matches!(again.hear().await, FromServer::Welcome(_)));
    server.admin().restrict(&machine.id.to_string()).await.expect_status(201);
    assert_eq!(machine.order_in(&again.hear().await).desired, Desired::Restricted);
}

#[tokio::test]
async fn an_order_is_carried_out_and_proved() {
    let server = TestServer::start().await;
    let (admin, machine) = (server.admin(), Machine::enroll(&server).await);
    let id = machine.id.to_string();
    let (mut link, _) = machine.connect(&server).await;
    let action = admin.restrict(&id).await.expect_status(201);
    let order = machine.order_in(&link.hear().await);
    assert_eq!(
        (order.fence.generation, order.action.0.to_string().as_str()),
        (1, action["id"].as_str().unwrap())
    );
    link.say(&FromAgent::Accepted { generation: 1 }).await;
    admin.wait_for(&action, "InProgress").await;
    // Signed by somebody else's gate: not believed, and no reason to lose the connection.
    link.say(&machine.receipt(&order, &SigningKey::generate().unwrap())).await;
    link.say(&machine.receipt(&order, &machine.gate)).await;
    assert_eq!(link.hear().await, FromServer::ReceiptStored { generation: 1 });
    assert_eq!(admin.action(action["id"].as_str().unwrap()).await["status"], "Succeeded");
    // Heard twice is as good as once.
    link.say(&machine.receipt(&order, &machine.gate)).await;
    assert_eq!(link.hear().await, FromServer::ReceiptStored { generation: 1 });
    assert_eq!(admin.machine(&id).await["executionRestriction"]["reported"], "Restricted");
}

#[tokio::test]
async fn a_forged_receipt_proves_nothing() {
    let server = TestServer::start().await;
    let (admin, machine) = (server.admin(), Machine::enroll(&server).await);
    let (mut link, _) = machine.connect(&server).await;
    let action = admin.restrict(&machine.id.to_string()).await.expect_status(201);
    let order = machine.order_in(&link.hear().await);
    link.say(&machine.receipt(&order, &SigningKey::generate().unwrap())).await;
    link.say(&FromAgent::Receipt { envelope: "{}".to_owned() }).await;
    // The answer to what comes later shows that the receipts were looked at.
    link.say(&FromAgent::Executions { batch: 1, events: Vec::new(), dropped: 0 }).await;
    assert_eq!(link.hear().await, FromServer::ExecutionsStored { batch: 1 });
    let status = admin.action(action["id"].as_str().unwrap()).await["status"].clone();
    assert_eq!(status, "Pending");
}

#[tokio::test]
async fn an_order_waits_for_its_machine_and_follows_its_policy() {
    let server = TestServer::start().await;
    let (admin, machine) = (server.admin(), Machine::enroll(&server).await);
    let id = machine.id.to_string();
    drop(machine.connect(&server).await);
    let action = admin.restrict(&id).await.expect_status(201);
    let mut link = machine.open(&server).await;
    link.say(&FromAgent::Hello(Box::new(machine.hello(0, &[])))).await;
    assert!(matches!(link.hear().await, FromServer::Welcome(_)));
    let FromServer::Policy { envelope } = link.hear().await else { panic!("an order before its policy") };
    let order = machine.order_in(&link.hear().await);
    assert_eq!(order.policy.unwrap().to_string(), machine.digest_of(&envelope));
    link.say(&machine.receipt(&order, &machine.gate)).await;
    admin.wait_for(&action, "Succeeded").await;
}

#[tokio::test]
async fn an_order_is_offered_until_the_machine_has_proved_it() {
    let server = TestServer::start().await;
    let (admin, machine) = (server.admin(), Machine::enroll(&server).await);
    let (mut link, _) = machine.connect(&server).await;
    admin.restrict(&machine.id.to_string()).await.expect_status(201);
    let order = machine.order_in(&link.hear().await);
    for _ in 0..2 {
        link.say(&FromAgent::Heartbeat(Heartbeat { restriction: machine.report(0, false) })).await;
        assert_eq!(machine.order_in(&link.hear().await), order);
    }
    // That it is in force is no proof: the receipt may have got lost.
    link.say(&FromAgent::Heartbeat(Heartbeat { restriction: machine.report(1, true) })).await;
    assert_eq!(machine.order_in(&link.hear().await), order);
    link.say(&machine.receipt(&order, &machine.gate)).await;
    assert_eq!(link.hear().await, FromServer::ReceiptStored { generation: 1 });
    link.say(&FromAgent::Heartbeat(Heartbeat { restriction: machine.report(1, true) })).await;
    link.say(&FromAgent::Executions { batch: 9, events: Vec::new(), dropped: 3 }).await;
    assert_eq!(link.hear().await, FromServer::ExecutionsStored { batch: 9 });
}

#[tokio::test]
async fn the_newest_order_is_the_only_one() {
    let server = TestServer::start().await;
    let (admin, machine) = (server.admin(), Machine::enroll(&server).await);
    let id = machine.id.to_string();
    drop(machine.connect(&server).await);
    admin.restrict(&id).await.expect_status(201);
    admin.unrestrict(&id).await.expect_status(201);
    let mut link = machine.open(&server).await;
    link.say(&FromAgent::Hello(Box::new(machine.hello(0, &[])))).await;
    assert!(matches!(link.hear().await, FromServer::Welcome(_)));
    let order = machine.order_in(&link.hear().await);
    assert_eq!((order.fence.generation, order.desired), (2, Desired::Released));
}

#[tokio::test]
async fn a_changed_policy_reaches_connected_machines() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let (mut link, held) = machine.connect(&server).await;
    let rule = json!({"id": "r1", "effect": "allow", "sha256": "ab".repeat(32)});
    for name in ["strict", "wide"] {
        let policy = json!({"name": name, "profile": "os-only", "rules": [rule]});
        let path = format!("/api/cordon/v1/policies/{name}");
        let stored = server.admin().put(&path, &policy).await.expect_status(200);
        let FromServer::Policy { envelope } = link.hear().await else { panic!("no policy") };
        assert_eq!(machine.digest_of(&envelope), stored["digest"].as_str().unwrap());
        assert!(!held.contains(&machine.digest_of(&envelope)));
    }
}

#[tokio::test]
async fn executions_are_stored_before_they_are_acknowledged() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let (mut link, _) = machine.connect(&server).await;
    let event = |path: &str| ExecutionEvent {
        at: Timestamp::from_unix_seconds(1_800_000_000).ticks(),
        path: path.to_owned(),
        sha256: Some("AB".repeat(32)),
        cause: "unlisted".to_owned(),
        rule: None,
        pid: 42,
        ppid: 41,
        uid: Some(1000),
        parent_program: "/bin/sh".to_owned(),
        hook: "map\n".to_owned(),
        cgroup: Some("/docker/\x1b".to_owned()),
        container: Some("cd".repeat(32)),
        interpreter: Some("/bin/bash".to_owned()),
        script: Some("/tmp/\x07".to_owned()),
        policy: Some("default".to_owned()),
        policy_revision: Some(u64::MAX),
        audited: true,
        count: u64::MAX,
    };
    let events = vec![event("/tmp/a"), event("/tmp/\x1b[2Jb")];
    link.say(&FromAgent::Executions { batch: 5, events, dropped: 0 }).await;
    assert_eq!(link.hear().await, FromServer::ExecutionsStored { batch: 5 });
    let path = format!("/api/cordon/v1/executionEvents?machineId={}&top=10", machine.id);
    let stored = server.admin().get(&path).await.expect_status(200);
    let paths: Vec<_> =
        stored["value"].as_array().unwrap().iter().map(|event| event["path"].clone()).collect();
    assert_eq!(paths, ["/tmp/\\u{1b}[2Jb", "/tmp/a"]);
    assert_eq!(stored["value"][0]["sha256"], "ab".repeat(32));
    for (field, expected) in [
        ("hook", "map\\n".into()),
        ("cgroup", "/docker/\\u{1b}".into()),
        ("containerId", "cd".repeat(32).into()),
        ("interpreter", "/bin/bash".into()),
        ("script", "/tmp/\\u{7}".into()),
        ("policy", "default".into()),
        ("policyRevision", serde_json::json!(i64::MAX)),
        ("audited", true.into()),
    ] {
        assert_eq!(stored["value"][0][field], expected, "{field}");
    }
    // What the machine lost is counted, by a batch without events too.
    link.say(&FromAgent::Executions { batch: 6, events: Vec::new(), dropped: 41 }).await;
    assert_eq!(link.hear().await, FromServer::ExecutionsStored { batch: 6 });
    let shown = server.admin().get(&format!("/api/machines/{}", machine.id)).await.expect_status(200);
    assert_eq!(shown["executionRestriction"]["eventsDropped"], 41);
}

#[tokio::test]
async fn a_preview_is_asked_for_once_and_what_nobody_asked_for_is_not_kept() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let (mut link, policies) = machine.connect(&server).await;
    let path = format!("/api/machines/{}/impactPreview", machine.id);
    let report = |state: PreviewState| {
        FromAgent::Preview(Box::new(PreviewReport { policy: policies[0].clone(), state }))
    };
    // Of its own accord.
    link.say(&report(PreviewState::Made(ImpactPreview::default()))).await;
    let states = async || {
        let found = server.admin().get(&path).await.expect_status(200);
        (
            found["state"].clone(),
            found["filesDone"].clone(),
            found["unavailableReason"].clone(),
            found["preview"].clone(),
        )
    };
    assert_eq!(states().await, (json!("Underway"), json!(0), Value::Null, Value::Null));
    let FromServer::Preview { policy, age_seconds_max } = link.hear().await else { panic!("no question") };
    assert_eq!((&policy, age_seconds_max), (&policies[0], 300));
    link.say(&report(PreviewState::Underway { files_done: 3, files_total: 9 })).await;
    wait_until("the server knows how far it is", async || states().await.1 == 3).await;
    link.say(&report(PreviewState::Failed { reason: "no\x1b".to_owned() })).await;
    wait_until("the failure is told", async || {
        states().await == (json!("Unavailable"), Value::Null, json!("no\\u{1b}"), Value::Null)
    })
    .await;
    // Asked again, and only once for however many calls.
    assert_eq!(states().await.0, "Underway");
    assert_eq!(states().await.0, "Underway");
    assert!(matches!(link.hear().await, FromServer::Preview { .. }));
    link.say(&report(PreviewState::Made(ImpactPreview { files: 7, ..ImpactPreview::default() }))).await;
    wait_until("the preview is there", async || {
        let (state, _, _, preview) = states().await;
        state == "Ready" && preview["files"] == 7
    })
    .await;
}

#[tokio::test]
async fn an_older_agent_is_not_asked_for_a_preview() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let mut link = machine.open(&server).await;
    let hello = Hello { protocol: 3, ..machine.hello(0, &[]) };
    link.say(&FromAgent::Hello(Box::new(hello))).await;
    assert!(matches!(link.hear().await, FromServer::Welcome(_)));
    let path = format!("/api/machines/{}/impactPreview", machine.id);
    let found = server.admin().get(&path).await.expect_status(200);
    assert_eq!(found["unavailableReason"], "the machine's agent is too old: upgrade it");
}

#[tokio::test]
async fn an_event_of_an_older_agent_is_taken() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let (mut link, _) = machine.connect(&server).await;
    let event = serde_json::json!({"at": 1, "path": "/tmp/old", "sha256": null, "cause": "unlisted", "rule": null,
        "pid": 1, "ppid": 1, "uid": null, "parent_program": "", "count": 1});
    let event: ExecutionEvent = serde_json::from_value(event).unwrap();
    link.say(&FromAgent::Executions { batch: 1, events: vec![event], dropped: 0 }).await;
    assert_eq!(link.hear().await, FromServer::ExecutionsStored { batch: 1 });
    let stored = server.admin().get("/api/cordon/v1/executionEvents").await.expect_status(200);
    let stored = &stored["value"][0];
    assert_eq!((&stored["hook"], &stored["audited"]), (&"execute".into(), &false.into()));
    assert_eq!(stored["policyRevision"], Value::Null);
}

#[tokio::test]
async fn a_newer_connection_takes_the_place_of_the_older() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let (mut older, _) = machine.connect(&server).await;
    let (mut newer, _) = machine.connect(&server).await;
    assert_eq!(older.hear_goodbye().await, "the machine has a newer connection");
    server.admin().restrict(&machine.id.to_string()).await.expect_status(201);
    assert_eq!(machine.order_in(&newer.hear().await).fence.generation, 1);
}

#[tokio::test]
async fn frames_that_are_not_of_the_protocol_end_the_connection() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let hello = |change: &dyn Fn(&mut Hello)| {
        let mut hello = machine.hello(0, &[]);
        change(&mut hello);
        Message::text(agent_protocol::encode(&FromAgent::Hello(Box::new(hello))))
    };
    let heartbeat = FromAgent::Heartbeat(Heartbeat { restriction: machine.report(0, false) });
    let first: [(Message, &str); 9] = [
        (Message::text("{"), "not a frame of this protocol"),
        (Message::text(r#"{"type":"order"}"#), "not a frame of this protocol"),
        (Message::binary(vec![1]), "frames are text"),
        (Message::text(agent_protocol::encode(&heartbeat)), "the first frame is to be Hello"),
        (hello(&|hello| hello.protocol = PROTOCOL_VERSION + 1), "upgrade the server first"),
        (hello(&|hello| hello.protocol = 0), "upgrade the server first"),
        (hello(&|hello| hello.os_version = "x".repeat(300)), "os_version is longer than its limit"),
        (hello(&|hello| hello.policies = vec!["zz".to_owned()]), "policies: a SHA-256 digest"),
        (hello(&|hello| hello.restriction.generation = u64::MAX), "is no number of"),
    ];
    for (message, reason) in first {
        let mut link = machine.open(&server).await;
        link.socket.send(message).await.unwrap();
        let said = link.hear_goodbye().await;
        assert!(said.contains(reason), "{said}");
    }
    for message in [hello(&|_| {}), Message::text("[]")] {
        let (mut link, _) = machine.connect(&server).await;
        link.socket.send(message).await.unwrap();
        link.hear_goodbye().await;
    }
}

#[tokio::test]
async fn a_flood_does_not_keep_an_order_back() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let (mut link, _) = machine.connect(&server).await;
    let heartbeat = FromAgent::Heartbeat(Heartbeat { restriction: machine.report(0, false) });
    // More than the server reads at once: what is beyond waits in the socket.
    for _ in 0..1500 {
        link.say(&heartbeat).await;
    }
    server.admin().restrict(&machine.id.to_string()).await.expect_status(201);
    assert_eq!(machine.order_in(&link.hear().await).desired, Desired::Restricted);
}

#[tokio::test]
async fn an_oversized_frame_is_cut_off() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let (mut link, _) = machine.connect(&server).await;
    // Whether it can be sent at all depends on when the server closes.
    drop(link.socket.send(Message::text("x".repeat(FROM_AGENT_BYTES_MAX + 1))).await);
    assert_eq!(link.hear_or_end().await, None);
}

#[tokio::test]
async fn a_machine_that_says_nothing_is_dropped() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let mut link = machine.open(&server).await;
    assert_eq!(link.hear_or_end().await, None);
}

#[tokio::test]
async fn nobody_connects_without_a_certificate_of_this_server() {
    let server = TestServer::start().await;
    let other = TestServer::start().await;
    let (machine, stranger) = (Machine::enroll(&server).await, Machine::enroll(&other).await);
    let authority = &machine.enrolled.certificate_authority;
    let key = PrivateKeyDer::from_pem_slice(stranger.key.serialize_pem().as_bytes()).unwrap();
    let anonymous = tls_client(authority).with_no_client_auth();
    let foreign = tls_client(authority)
        .with_client_auth_cert(certificates(&stranger.enrolled.certificate), key.clone_key())
        .unwrap();
    // The certificate of a machine, with another one's key: the proof of the key fails.
    let stolen = certificates(&machine.enrolled.certificate);
    let stolen = rustls::sign::CertifiedKey::new(
        stolen,
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key).unwrap(),
    );
    let stolen = tls_client(authority)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(stolen)));
    for config in [anonymous, foreign, stolen] {
        // In TLS 1.3 the client hears of a refusal only when it reads.
        let refused = match connect(&server, config).await {
            Err(_) => true,
            Ok(tls) => {
                tokio_tungstenite::client_async(format!("wss://localhost{LINK_PATH}"), tls).await.is_err()
            }
        };
        assert!(refused);
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_for_its_own_key_only() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let own = &machine.enrolled.certificate;
    let renew = |request: String| RenewRequest { certificate_request: request };
    let tls = machine.tls(&server, own).await;
    let (status, body) = post_as_machine(tls, RENEW_PATH, &renew(request_of(&machine.key))).await;
    assert_eq!(status, 200, "{body}");
    let renewed: RenewReply = serde_json::from_value(body).unwrap();
    assert_ne!(&renewed.certificate, own);
    let tls = machine.tls(&server, &renewed.certificate).await;
    let (mut socket, _) =
        tokio_tungstenite::client_async(format!("wss://localhost{LINK_PATH}"), tls).await.unwrap();
    let hello = FromAgent::Hello(Box::new(machine.hello(0, &[])));
    socket.send(Message::text(agent_protocol::encode(&hello))).await.unwrap();
    assert!(matches!(Link { socket }.hear().await, FromServer::Welcome(_)));
    for request in [request_of(&KeyPair::generate().unwrap()), "rubbish".to_owned()] {
        let (status, body) =
            post_as_machine(machine.tls(&server, own).await, RENEW_PATH, &renew(request)).await;
        assert_eq!((status, body["error"]["code"].as_str()), (400, Some("InvalidInput")), "{body}");
    }
}

#[tokio::test]
async fn enrollment_refuses_what_is_wrong_without_spending_the_token() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let one_use = json!({"usesMax": 1, "expiresInSeconds": 3600, "comment": "one"});
    let token = admin.post("/api/cordon/v1/enrollmentTokens", &one_use).await.expect_status(201);
    let secret = token["secret"].as_str().unwrap().to_owned();
    assert!(token["command"].as_str().unwrap().contains(&server.initialized.ca_pin));
    let (key, gate) = (KeyPair::generate().unwrap(), SigningKey::generate().unwrap());
    let good = EnrollRequest { token: secret, ..enroll_request(&server, &key, &gate) };
    let url = format!("{}{ENROLL_PATH}", server.url());
    let raw = |body: String| Reply::of(server.http.post(&url).body(body));
    raw("{".to_owned()).await.expect_error(400, "InvalidRequestBody");
    raw("x".repeat(100_000)).await.expect_error(413, "InvalidRequestBody");
    let wrong = EnrollRequest { certificate_request: "rubbish".to_owned(), ..good.clone() };
    let message = post_enroll(&server, &wrong).await.expect_error(400, "InvalidInput");
    assert!(message.contains("certificate_request"), "{message}");
    let wrong = EnrollRequest { gate_public_key: "00".to_owned(), ..good.clone() };
    post_enroll(&server, &wrong).await.expect_error(400, "InvalidInput");
    let wrong = EnrollRequest { computer_dns_name: "x".repeat(300), ..good.clone() };
    post_enroll(&server, &wrong).await.expect_error(400, "InvalidRequestBody");
    // The one use is still there; afterwards it is gone.
    post_enroll(&server, &good).await.expect_status(200);
    post_enroll(&server, &good).await.expect_error(401, "Unauthorized");
}

#[tokio::test]
async fn guessing_tokens_and_secrets_is_slow() {
    let server = TestServer::start().await;
    let (key, gate) = (KeyPair::generate().unwrap(), SigningKey::generate().unwrap());
    let wrong =
        EnrollRequest { token: "cordon-enroll-guess".to_owned(), ..enroll_request(&server, &key, &gate) };
    let mut statuses = Vec::new();
    for _ in 0..31 {
        statuses.push(post_enroll(&server, &wrong).await.status);
    }
    assert_eq!(statuses, [vec![401; 30], vec![429]].concat());
    let client_id = server.initialized.client_id.to_string();
    let form = |secret: &str| {
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", &client_id),
            ("client_secret", secret),
            ("resource", server.url()),
        ];
        Reply::of(server.http.post(server.token_url("")).form(&fields))
    };
    let mut statuses = Vec::new();
    for _ in 0..31 {
        statuses.push(form("guess").await.status);
    }
    assert_eq!(statuses, [vec![401; 30], vec![429]].concat());
    let refused = form("guess").await;
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    assert_eq!(refused.expect_status(429)["error"], "temporarily_unavailable");
    // Whoever guesses keeps out nobody else behind the same address.
    form(&server.initialized.client_secret).await.expect_status(200);
}

#[tokio::test]
async fn a_machine_that_enrolls_again_obeys_only_orders_of_its_last_enrollment() {
    let server = TestServer::start().await;
    let (admin, first) = (server.admin(), Machine::enroll(&server).await);
    let id = first.id.to_string();
    drop(first.connect(&server).await);
    admin.restrict(&id).await.expect_status(201);
    let request = enroll_request(&server, &first.key, &first.gate);
    let reply = post_enroll(&server, &request).await.expect_status(200);
    let enrolled: EnrollReply = serde_json::from_value(reply).unwrap();
    assert_eq!((enrolled.machine.as_str(), enrolled.incarnation), (id.as_str(), 2));
    let again = Machine { enrolled, ..first };
    let mut link = again.open(&server).await;
    link.say(&FromAgent::Hello(Box::new(again.hello(0, &[])))).await;
    assert!(matches!(link.hear().await, FromServer::Welcome(_)));
    let mut frame = link.hear().await;
    if let FromServer::Policy { .. } = frame {
        frame = link.hear().await;
    }
    assert_eq!(again.order_in(&frame).fence.incarnation, 2);
}

#[tokio::test]
async fn a_server_that_stops_says_so_and_forgets_nothing() {
    let mut server = TestServer::start().await;
    let machine = Machine::enroll(&server).await;
    let id = machine.id.to_string();
    let (mut link, _) = machine.connect(&server).await;
    let seen_before = server.admin().machine(&id).await["lastSeen"].clone();
    server.admin().restrict(&id).await.expect_status(201);
    let order = machine.order_in(&link.hear().await);
    link.say(&FromAgent::Heartbeat(Heartbeat { restriction: machine.report(0, false) })).await;
    machine.order_in(&link.hear().await);
    server.stop().await;
    assert_eq!(link.hear_goodbye().await, "the server stops");
    server.run().await;
    // Told in a batch at the latest when the server stopped.
    assert_ne!(server.admin().machine(&id).await["lastSeen"], seen_before);
    let mut link = machine.open(&server).await;
    link.say(&FromAgent::Hello(Box::new(machine.hello(0, &[order.policy.unwrap().to_string()])))).await;
    assert!(matches!(link.hear().await, FromServer::Welcome(_)));
    assert_eq!(machine.order_in(&link.hear().await), order);
}

#[tokio::test]
async fn many_machines_are_each_told_their_own_order() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let mut machines = Vec::new();
    for _ in 0..20 {
        let machine = Machine::enroll(&server).await;
        let (link, _) = machine.connect(&server).await;
        machines.push((machine, link));
    }
    let calls = machines.iter().map(|(machine, _)| {
        let (admin, id) = (admin.clone(), machine.id.to_string());
        async move { admin.restrict(&id).await.expect_status(201) }
    });
    futures_util::future::join_all(calls).await;
    for (machine, link) in &mut machines {
        // Verification fails for an order that is addressed to another machine.
        let order = machine.order_in(&link.hear().await);
        link.say(&machine.receipt(&order, &machine.gate)).await;
        assert_eq!(link.hear().await, FromServer::ReceiptStored { generation: 1 });
    }
    wait_until("every machine is restricted", async || {
        let all = admin.get("/api/machines").await.expect_status(200);
        let restricted = |machine: &&Value| machine["executionRestriction"]["reported"] == "Restricted";
        all["value"].as_array().unwrap().iter().filter(restricted).count() == 20
    })
    .await;
}
