//! Whom to trust, as TLS settings: the machine's certificate authorities, those of a file, or a pinned one.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use domain::digest::Sha256Digest;
use reqwest::ClientBuilder;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

use crate::connection::Trust;

/// Makes a client trust who is to be trusted, and nobody else.
pub(crate) fn trusting(builder: ClientBuilder, trust: &Trust) -> Result<ClientBuilder> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(match trust {
        Trust::System => {
            // It fails only when there is one already, which is as well.
            drop(provider.as_ref().clone().install_default());
            builder
        }
        Trust::Certificates(pem) => {
            drop(provider.as_ref().clone().install_default());
            let certificates =
                reqwest::Certificate::from_pem_bundle(pem.as_bytes()).context("the CA file")?;
            anyhow::ensure!(!certificates.is_empty(), "the CA file holds no certificate in PEM form");
            builder.tls_certs_only(certificates)
        }
        Trust::Pin(pin) => {
            let verifier = PinnedAuthority { pin: *pin, provider: Arc::clone(&provider) };
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_no_client_auth();
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            builder.tls_backend_preconfigured(config)
        }
    })
}

/// Trusts the one certificate authority with this SHA-256.
///
/// The server presents the authority's certificate in its chain. Everything else is verified as with any other trusted
/// authority: the server's certificate was issued by it, for this name, and is valid at this time.
#[derive(Debug)]
struct PinnedAuthority {
    pin: Sha256Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_pinned =
            |certificate: &&CertificateDer<'_>| Sha256::digest(certificate).as_slice() == self.pin.as_bytes();
        let mismatch = CertificateError::ApplicationVerificationFailure;
        let authority = intermediates.iter().find(is_pinned).ok_or(mismatch)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
