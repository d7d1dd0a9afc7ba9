//! The certificate authority that machines pin: it certifies this server and the keys of machines, and nothing else.
//!
//! Owns what stands in each certificate. OpenSSL wants what rustls does not ask for: names that differ between
//! authority and server, key usages, and authority key identifiers. Deliberately takes nothing from a certificate
//! request but its key.

mod machine_key;

use std::time::Duration;

use domain::time::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::Digest as _;
use uuid::Uuid;
use zeroize::Zeroizing;

pub(crate) use machine_key::{MachineKey, MachineKeyError};

use crate::data_dir::{DataDir, DataDirError, Readers};

/// The authority's certificate, PEM: what clients are given as their trusted certificate.
const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";
/// The life of an installation.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(20 * 365 * DAY);
/// How long a machine's and the server's own certificates are valid.
pub(crate) const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(90 * DAY);
/// How far certificates reach back, for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(DAY);
const DAY: u64 = 24 * 60 * 60;

/// The authority with its key.
pub(crate) struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate could not be made. Never the fault of a request: those are checked before.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate for {subject}")]
pub struct IssueError {
    subject: String,
    #[source]
    source: rcgen::Error,
}

impl CertificateAuthority {
    /// Opens the folder's authority; makes it on the folder's first use.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub(crate) fn open(data: &DataDir, tenant: Uuid, now: Timestamp) -> Result<Self, DataDirError> {
        let made = |error: rcgen::Error| DataDirError::Random(error.to_string());
        let key = data.text_or_make(KEY_FILE, Readers::Owner, || {
            Ok(Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?.serialize_pem()))
        })?;
        let key = KeyPair::from_pem(&key).map_err(|error| data.damaged(KEY_FILE, error.to_string()))?;
        let pem = data.text_or_make(CERTIFICATE_FILE, Readers::Anybody, || {
            Ok(Zeroizing::new(authority_params(tenant, now).self_signed(&key).map_err(made)?.pem()))
        })?;
        let damaged = |message: String| data.damaged(CERTIFICATE_FILE, message);
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(error.to_string()))?;
        require_same_key(&certificate, &key).map_err(damaged)?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|error| damaged(error.to_string()))?;
        Ok(Self { issuer, certificate, pem: pem.to_string() })
    }

    /// The certificate's path in the folder.
    pub(crate) fn certificate_path(data: &DataDir) -> std::path::PathBuf {
        data.file(CERTIFICATE_FILE)
    }

    /// The certificate, PEM.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// The certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the certificate, by which a machine knows the server when it enrolls: 64 hexadecimal digits.
    pub(crate) fn pin(&self) -> String {
        hex::encode(sha2::Sha256::digest(&self.certificate))
    }

    /// Certifies a machine's key as its id.
    ///
    /// # Errors
    /// [`IssueError`].
    pub(crate) fn issue_machine(&self, key: &MachineKey, now: Timestamp) -> Result<String, IssueError> {
        let id = key.id().to_string();
        let fault = |source| IssueError { subject: format!("machine {id}"), source };
        let mut params = leaf_params(&id, now).map_err(fault)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let public_key = rcgen::SubjectPublicKeyInfo::from_der(key.as_der()).map_err(fault)?;
        Ok(params.signed_by(&public_key, &self.issuer).map_err(fault)?.pem())
    }

    /// Makes a key and a certificate for the server under these names: the leaf, then the authority's certificate.
    ///
    /// # Errors
    /// [`IssueError`].
    pub(crate) fn issue_server(&self, names: &[String], now: Timestamp) -> Result<CertifiedKey, IssueError> {
        let fault = |source| IssueError { subject: format!("the server ({})", names.join(", ")), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(fault)?;
        let mut params = leaf_params("cordon-server", now).map_err(fault)?;
        params.subject_alt_names = CertificateParams::new(names.to_vec()).map_err(fault)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(fault)?;
        let private = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|message| fault(rcgen::Error::PemError(message.to_owned())))?;
        let signing = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&private)
            .map_err(|error| fault(rcgen::Error::PemError(error.to_string())))?;
        Ok(CertifiedKey::new(vec![certificate.into(), self.certificate.clone()], signing))
    }
}

fn authority_params(tenant: Uuid, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&format!("Cordon CA {tenant}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, AUTHORITY_VALIDITY);
    params
}

fn leaf_params(common_name: &str, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    // Left to itself, rcgen derives the number from the key: a renewed certificate would have the number of its
    // predecessor.
    let mut serial = [0_u8; 16];
    getrandom::fill(&mut serial).map_err(|error| rcgen::Error::PemError(error.to_string()))?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    set_validity(&mut params, now, CERTIFICATE_VALIDITY);
    Ok(params)
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Cordon");
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid from a little before `now` to `length` after it.
fn set_validity(params: &mut CertificateParams, now: Timestamp, length: Duration) {
    let at = |time: Timestamp| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(time.unix_seconds().try_into().unwrap_or(0))
    };
    params.not_before = at(now.minus(BACKDATED));
    params.not_after = at(now.plus(length));
}

fn require_same_key(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), String> {
    use rcgen::PublicKeyData as _;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    if parsed.public_key().raw == key.subject_public_key_info() {
        Ok(())
    } else {
        Err(format!("it is not the certificate of {KEY_FILE}"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn now() -> Timestamp {
        crate::state::now()
    }

    fn authority(folder: &std::path::Path) -> CertificateAuthority {
        CertificateAuthority::open(&DataDir::open(folder).unwrap(), Uuid::nil(), now()).unwrap()
    }

    fn request(key: &KeyPair) -> String {
        CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
    }

    fn openssl(folder: &std::path::Path, arguments: &[&str]) -> String {
        let output = Command::new("openssl").current_dir(folder).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    #[test]
    fn the_authority_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let pin = authority(folder.path()).pin();
        assert_eq!(authority(folder.path()).pin(), pin);
        assert_eq!(pin.len(), 64);
    }

    #[test]
    fn a_certificate_of_another_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(authority(folder.path()));
        let other = KeyPair::generate().unwrap().serialize_pem();
        crate::data_dir::write(&folder.path().join(KEY_FILE), other.as_bytes()).unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let refused = CertificateAuthority::open(&data, Uuid::nil(), now());
        assert!(matches!(refused, Err(DataDirError::Damaged { .. })));
    }

    #[test]
    fn openssl_accepts_the_certificates_for_their_purpose_only() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let key = KeyPair::generate().unwrap();
        let machine_key = MachineKey::from_request(&request(&key)).unwrap();
        let machine = authority.issue_machine(&machine_key, now()).unwrap();
        let server = authority.issue_server(&["localhost".to_owned(), "::1".to_owned()], now()).unwrap();
        let leaf = server.cert.first().unwrap();
        std::fs::write(folder.path().join("machine.pem"), &machine).unwrap();
        std::fs::write(folder.path().join("server.der"), leaf).unwrap();
        openssl(folder.path(), &["x509", "-inform", "der", "-in", "server.der", "-out", "server.pem"]);
        let verify = |purpose: &str, file: &str| {
            let output = Command::new("openssl")
                .current_dir(folder.path())
                .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile", CERTIFICATE_FILE, file])
                .output()
                .unwrap();
            output.status.success()
        };
        assert!(verify("sslserver", "server.pem") && verify("sslclient", "machine.pem"));
        assert!(!verify("sslclient", "server.pem") && !verify("sslserver", "machine.pem"));
        let text = openssl(folder.path(), &["x509", "-noout", "-text", "-in", "machine.pem"]);
        for part in [
            "CA:FALSE",
            "Authority Key Identifier",
            "Digital Signature",
            &format!("CN = {}", machine_key.id()),
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let text = openssl(folder.path(), &["x509", "-noout", "-text", "-in", "server.pem"]);
        assert!(text.contains("DNS:localhost") && text.contains("IP Address:0:0:0:0:0:0:0:1"), "{text}");
    }

    #[test]
    fn a_renewed_certificate_has_another_number_and_the_same_machine() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let key = MachineKey::from_request(&request(&KeyPair::generate().unwrap())).unwrap();
        let issue = || {
            let pem = authority.issue_machine(&key, now()).unwrap();
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
            (parsed.raw_serial().to_vec(), MachineKey::from_certificate(&der).unwrap().id())
        };
        let (first, second) = (issue(), issue());
        assert_ne!(first.0, second.0);
        assert_eq!((first.1, second.1), (key.id(), key.id()));
    }
}
