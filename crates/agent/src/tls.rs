//! TLS towards the server, which is trusted by one certificate authority and nothing else of this machine's.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use domain::digest::Sha256Digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::credential::{Credential, digest_of};

/// Believes a server whose chain holds the pinned authority, and who passes every usual check against it: name, dates,
/// signatures. For enrollment, before anything else is known.
///
/// # Errors
/// When TLS cannot be set up.
pub(crate) fn pinned(pin: Sha256Digest) -> Result<ClientConfig> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Pinned { pin, provider: Arc::clone(&provider), algorithms };
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    // Not weaker than the usual verifier, which it asks once the authority is found.
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// Believes servers of the machine's own authority, and shows them the machine's certificate.
///
/// # Errors
/// When the credential cannot be used.
pub(crate) fn mutual(credential: &Credential) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(credential.authority.clone()).context("the certificate authority cannot be used")?;
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let chain = vec![credential.certificate.clone(), credential.authority.clone()];
    builder
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, credential.key.private()?)
        .context("the machine's certificate cannot be used")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[derive(Debug)]
struct Pinned {
    pin: Sha256Digest,
    provider: Arc<CryptoProvider>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|certificate| digest_of(certificate) == self.pin);
        let authority = authority.ok_or_else(|| {
            Error::General("the server's certificate authority is not the one of --ca-pin".to_owned())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
