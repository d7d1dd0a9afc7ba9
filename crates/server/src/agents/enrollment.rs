//! Enrollment and renewal: a machine's key gets a certificate.

use std::net::IpAddr;

use agent_protocol::{EnrollReply, EnrollRequest, Limited, RenewReply, RenewRequest, decode};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use orders::PublicKey;

use super::REQUEST_BYTES_MAX;
use crate::attempts::{Attempts, network};
use crate::certificate_authority::{CertificateAuthority, IssueError, MachineKey, MachineKeyError};
use crate::config::Config;
use crate::error::ApiError;
use crate::state::{AppState, now};
use crate::tls::Peer;

/// Failed enrollments a minute from one network.
const FAILURES_PER_NETWORK: u32 = 30;

/// Gives machines their certificates.
pub(crate) struct Enrollment {
    authority: CertificateAuthority,
    order_keys: Vec<String>,
    public_url: String,
    agent_url: String,
    failures: Attempts<IpAddr>,
}

impl Enrollment {
    pub(crate) fn new(authority: CertificateAuthority, order_keys: &[PublicKey], config: &Config) -> Self {
        Self {
            authority,
            order_keys: order_keys.iter().map(ToString::to_string).collect(),
            public_url: config.public_url.clone(),
            agent_url: config.agent_url.clone(),
            failures: Attempts::new(FAILURES_PER_NETWORK),
        }
    }

    /// The authority that machines trust.
    pub(crate) fn authority(&self) -> &CertificateAuthority {
        &self.authority
    }

    /// The command with which a machine enrolls by the token with this secret.
    pub(crate) fn command(&self, token_secret: &str) -> String {
        enrollment_command(&self.public_url, token_secret, &self.authority.pin())
    }
}

/// The command to run, as root, on a machine that is to enroll.
pub(crate) fn enrollment_command(public_url: &str, token_secret: &str, pin: &str) -> String {
    format!("cordon-agent enroll --server {public_url} --token {token_secret} --ca-pin {pin}")
}

/// Enrolls a machine: spends a use of its token, and certifies its key.
pub(super) async fn enroll(
    State(state): State<AppState>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<EnrollReply>, ApiError> {
    let enrollment = &state.enrollment;
    let network = network(peer.address.ip());
    enrollment.failures.check(&network, now()).map_err(|wait| ApiError::too_many(wait.retry_after))?;
    let request: EnrollRequest = read(body)?;
    let key = MachineKey::from_request(&request.certificate_request)?;
    let gate_key: PublicKey = request
        .gate_public_key
        .parse()
        .map_err(|error| ApiError::invalid_input(format!("gate_public_key: {error}")))?;
    // Made before the token is spent: no use is lost to a certificate that cannot be made.
    let certificate = enrollment.authority.issue_machine(&key, now())?;
    let enrolled = state
        .control
        .machine_enroll(&request.token, key.id(), gate_key, &request.computer_dns_name, peer.address.ip())
        .await;
    if let Err(control_plane::Error::Unauthenticated(_)) = enrolled {
        enrollment.failures.fail(network, now());
        tracing::warn!(address = %peer.address, machine = %key.id(), "enrollment refused");
    }
    let incarnation = enrolled?;
    tracing::info!(machine = %key.id(), incarnation, address = %peer.address, "machine enrolled");
    Ok(Json(EnrollReply {
        machine: key.id().to_string(),
        incarnation,
        certificate,
        certificate_authority: enrollment.authority.certificate_pem().to_owned(),
        agent_url: enrollment.agent_url.clone(),
        order_keys: enrollment.order_keys.clone(),
    }))
}

/// Certifies a machine's key again. It must be the key that the connection proved to hold.
pub(super) async fn renew(
    State(state): State<AppState>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RenewReply>, ApiError> {
    let request: RenewRequest = read(body)?;
    let key = MachineKey::from_request(&request.certificate_request)?;
    if peer.machine != Some(key.id()) {
        let text = "certificate_request: it is for another key than the connection's";
        return Err(ApiError::invalid_input(text));
    }
    let certificate = state.enrollment.authority.issue_machine(&key, now())?;
    tracing::info!(machine = %key.id(), address = %peer.address, "certificate renewed");
    Ok(Json(RenewReply { certificate }))
}

fn read<T: serde::de::DeserializeOwned + Limited>(
    body: Result<Bytes, BytesRejection>,
) -> Result<T, ApiError> {
    decode(&body?, REQUEST_BYTES_MAX).map_err(|error| ApiError::invalid_body(error.to_string()))
}

impl From<MachineKeyError> for ApiError {
    fn from(error: MachineKeyError) -> Self {
        Self::invalid_input(format!("certificate_request: {error}"))
    }
}

impl From<IssueError> for ApiError {
    fn from(error: IssueError) -> Self {
        Self::internal(&error)
    }
}
