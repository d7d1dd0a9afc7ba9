//! Enrollment and certificate renewal: plain JSON over HTTPS.

use serde::{Deserialize, Serialize};

use crate::limits::{FrameError, HEX_BYTES_MAX, Limited, NAME_BYTES_MAX, at_most};

/// The longest PEM text, in bytes: a request or a chain of two.
const PEM_BYTES_MAX: usize = 16 * 1024;
/// The most order keys in a reply.
const KEYS_MAX: usize = 8;

/// Asks for a machine's credential. The key never leaves the machine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// The enrollment token's secret.
    pub token: String,
    /// PKCS #10 certificate request (RFC 2986), PEM, signed by the machine's own key.
    pub certificate_request: String,
    /// The gate's Ed25519 public key, 64 hexadecimal digits.
    pub gate_public_key: String,
    /// The machine's name, until its first connection says more.
    pub computer_dns_name: String,
}

impl std::fmt::Debug for EnrollRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrollRequest")
            .field("computer_dns_name", &self.computer_dns_name)
            .finish_non_exhaustive()
    }
}

/// A machine's credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollReply {
    /// The machine id: 40 hexadecimal digits of the key's hash.
    pub machine: String,
    /// Counts the enrollments of this machine.
    pub incarnation: u64,
    /// The client certificate, PEM.
    pub certificate: String,
    /// The certificate authority that the server's certificate chains to, PEM.
    pub certificate_authority: String,
    /// Where to connect: `https://host:port`.
    pub agent_url: String,
    /// Ed25519 public keys whose orders and policies count, 64 hexadecimal digits each.
    pub order_keys: Vec<String>,
}

/// Asks for a fresh certificate for the same key, over a connection that the current one authenticates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// PKCS #10 certificate request, PEM, signed by the machine's own key.
    pub certificate_request: String,
}

/// A fresh certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewReply {
    /// The client certificate, PEM.
    pub certificate: String,
}

impl Limited for EnrollRequest {
    fn check(&self) -> Result<(), FrameError> {
        at_most("token", self.token.len(), NAME_BYTES_MAX)?;
        at_most("certificate_request", self.certificate_request.len(), PEM_BYTES_MAX)?;
        at_most("gate_public_key", self.gate_public_key.len(), HEX_BYTES_MAX)?;
        at_most("computer_dns_name", self.computer_dns_name.len(), NAME_BYTES_MAX)
    }
}

impl Limited for EnrollReply {
    fn check(&self) -> Result<(), FrameError> {
        at_most("machine", self.machine.len(), HEX_BYTES_MAX)?;
        at_most("certificate", self.certificate.len(), PEM_BYTES_MAX)?;
        at_most("certificate_authority", self.certificate_authority.len(), PEM_BYTES_MAX)?;
        at_most("agent_url", self.agent_url.len(), NAME_BYTES_MAX)?;
        at_most("order_keys", self.order_keys.len(), KEYS_MAX)
    }
}

impl Limited for RenewRequest {
    fn check(&self) -> Result<(), FrameError> {
        at_most("certificate_request", self.certificate_request.len(), PEM_BYTES_MAX)
    }
}

impl Limited for RenewReply {
    fn check(&self) -> Result<(), FrameError> {
        at_most("certificate", self.certificate.len(), PEM_BYTES_MAX)
    }
}
