//! Many machines without a computer: enrolled for real, with keys of their own, and each has said hello once.

use std::net::ToSocketAddrs as _;
use std::sync::Arc;

use agent_protocol::{
    ENROLL_PATH, EnrollReply, EnrollRequest, FromAgent, Hello, LINK_PATH, PROTOCOL_VERSION, RestrictionReport,
};
use anyhow::{Context as _, Result, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::client::Api;
use crate::lab::{Lab, text};

/// Enrolls `count` machines and connects each once, so that the server knows what they can do. Their ids.
pub(super) async fn enroll(lab: &Lab, api: &Api, count: u32) -> Result<Vec<String>> {
    let token = api.enrollment_token(count).await?;
    let client = api.client();
    let mut machines = Vec::new();
    for number in 0..count {
        machines.push(
            enroll_one(lab, client, &token, number).await.with_context(|| format!("machine {number}"))?,
        );
    }
    Ok(machines)
}

async fn enroll_one(lab: &Lab, client: &reqwest::Client, token: &str, number: u32) -> Result<String> {
    let key = KeyPair::generate()?;
    let name = format!("fleet-{number}");
    let request = EnrollRequest {
        token: token.to_owned(),
        certificate_request: CertificateParams::new([name.clone()])?.serialize_request(&key)?.pem()?,
        // Nothing will be signed with it: the machine never answers.
        gate_public_key: orders::SigningKey::generate()?.public_key().to_string(),
        computer_dns_name: name.clone(),
    };
    let reply = client.post(format!("{}{ENROLL_PATH}", lab.url)).body(agent_protocol::encode(&request));
    let reply = reply.header("Content-Type", "application/json").send().await?;
    let (status, body) = (reply.status(), reply.text().await?);
    ensure!(status.is_success(), "enrollment answered {status}: {body}");
    let reply: EnrollReply = serde_json::from_str(&body)?;
    say_hello(&reply, &key, name).await?;
    Ok(reply.machine)
}

async fn say_hello(enrolled: &EnrollReply, key: &KeyPair, name: String) -> Result<()> {
    let authority = CertificateDer::from_pem_slice(enrolled.certificate_authority.as_bytes())?;
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let certificates =
        CertificateDer::pem_slice_iter(enrolled.certificate.as_bytes()).collect::<Result<_, _>>()?;
    let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config =
        ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(certificates, private)?;

    let place = enrolled.agent_url.strip_prefix("https://").context("the agent URL is not https")?;
    let address = place.to_socket_addrs()?.find(std::net::SocketAddr::is_ipv4).context("no address")?;
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    let stream = TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from(host.to_owned())?, stream).await?;
    let (mut link, _reply) =
        tokio_tungstenite::client_async(format!("wss://{place}{LINK_PATH}"), stream).await?;

    let hello = FromAgent::Hello(Box::new(Hello {
        protocol: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        computer_dns_name: name,
        os_platform: "Linux".to_owned(),
        os_version: "Debian 12".to_owned(),
        os_build: "6.1.0".to_owned(),
        os_architecture: "x86_64".to_owned(),
        interfaces: Vec::new(),
        tier: Some("fanotify".to_owned()),
        tier_note: String::new(),
        restriction: RestrictionReport {
            incarnation: enrolled.incarnation,
            store_epoch: 0,
            generation: 0,
            restricted: false,
            policy: None,
            break_glass: None,
        },
        policies: Vec::new(),
    }));
    link.send(Message::text(agent_protocol::encode(&hello))).await?;
    let welcome = link.next().await.context("no answer to hello")??.into_text()?;
    let welcome: Value = serde_json::from_str(&welcome)?;
    ensure!(text(&welcome, "type")? == "welcome", "hello was answered by {welcome}");
    link.close(None).await?;
    // The server's half of the close, so that it is done with this machine.
    while link.next().await.is_some_and(|frame| frame.is_ok()) {}
    Ok(())
}
