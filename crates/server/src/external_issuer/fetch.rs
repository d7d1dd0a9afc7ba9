//! Fetches the keys of an issuer: its discovery document, and the set of keys that this names.
//!
//! Owns how far the answers of another server are trusted: over TLS, from the very place that is configured, a bounded
//! number of bytes in a bounded time. Follows no redirection.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, StatusCode, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde_json::Value;

use super::keys::{KeySet, KeySetFault};
use crate::config::{IssuerSettings, is_issuer_url};
use crate::token::read_object;

/// Time for all that one fetch takes.
const FETCH_TIME_MAX: Duration = Duration::from_secs(10);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest document, in bytes.
const DOCUMENT_BYTES_MAX: usize = 512 * 1024;
const DEPTH_MAX: usize = 16;

/// Why an issuer cannot be asked at all: its settings do not fit this computer.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The file of its certificate authorities.
    #[error("issuer {issuer}: ca_file {} holds no certificates as PEM, or cannot be read: {message}", .path.display())]
    CaFile {
        /// The issuer.
        issuer: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// TLS cannot be set up, as on a computer that trusts no certificate authority.
    #[error(
        "issuer {issuer}: TLS cannot be set up; without ca_file, this computer must trust some authority"
    )]
    Tls {
        /// The issuer.
        issuer: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// Why the keys could not be had, for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// No answer.
    #[error("{url} does not answer")]
    Request {
        /// What was fetched.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Another status than 200.
    #[error("{url} answers {status}")]
    Status {
        /// What was fetched.
        url: String,
        /// The status.
        status: StatusCode,
    },
    /// Too long an answer.
    #[error("{0} has more than {DOCUMENT_BYTES_MAX} bytes")]
    TooLong(String),
    /// Too slow an answer.
    #[error("the keys did not arrive within {FETCH_TIME_MAX:?}")]
    TooSlow,
    /// The discovery document.
    #[error("{url} is no discovery document: {why}")]
    Discovery {
        /// What was fetched.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The set of keys.
    #[error("{url} is no set of keys")]
    Keys {
        /// What was fetched.
        url: String,
        /// What is wrong.
        #[source]
        source: KeySetFault,
    },
}

/// Fetches keys of one issuer.
pub(super) struct Fetcher {
    client: Client,
    issuer: String,
}

impl Fetcher {
    /// Sets up TLS for the issuer.
    ///
    /// # Errors
    /// [`IssuerError`].
    pub(super) fn new(settings: &IssuerSettings) -> Result<Self, IssuerError> {
        let tls = |source| IssuerError::Tls { issuer: settings.issuer.clone(), source };
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls_config(settings)?)
            .user_agent("cordon-server")
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIME_MAX)
            .timeout(FETCH_TIME_MAX);
        if settings.issuer.starts_with("http://") {
            // This computer is not behind a proxy of its own.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| tls(error.into()))?;
        Ok(Self { client, issuer: settings.issuer.clone() })
    }

    /// The keys that the issuer publishes now.
    pub(super) async fn fetch(&self) -> Result<KeySet, FetchError> {
        let fetched = tokio::time::timeout(FETCH_TIME_MAX, self.fetch_unhurried());
        fetched.await.unwrap_or(Err(FetchError::TooSlow))
    }

    async fn fetch_unhurried(&self) -> Result<KeySet, FetchError> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let document = self.get(&url).await?;
        let keys_url = self.keys_url(&document).map_err(|why| FetchError::Discovery { url, why })?;
        let keys = self.get(&keys_url).await?;
        KeySet::read(&keys).map_err(|source| FetchError::Keys { url: keys_url, source })
    }

    /// What the discovery document says of where the keys are.
    fn keys_url(&self, document: &[u8]) -> Result<String, &'static str> {
        let document =
            read_object(document, DEPTH_MAX).ok_or("no JSON object, or with two members of one name")?;
        if document.get("issuer").and_then(Value::as_str) != Some(&self.issuer) {
            return Err("its issuer is not the configured one, to the letter");
        }
        let url = document.get("jwks_uri").and_then(Value::as_str).ok_or("it has no jwks_uri")?;
        // What came by TLS does not lead away from it. A query is nothing unusual here.
        let place = url.split_once('?').map_or(url, |(place, _)| place);
        if !is_issuer_url(place) || (self.issuer.starts_with("https:") && !place.starts_with("https:")) {
            return Err("its jwks_uri is not by https");
        }
        Ok(url.to_owned())
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        let failed = |source: reqwest::Error| FetchError::Request {
            url: url.to_owned(),
            source: source.without_url(),
        };
        let request = self.client.get(url).header(reqwest::header::ACCEPT, "application/json");
        let mut response = request.send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status { url: url.to_owned(), status: response.status() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len().saturating_add(chunk.len()) > DOCUMENT_BYTES_MAX {
                return Err(FetchError::TooLong(url.to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn tls_config(settings: &IssuerSettings) -> Result<ClientConfig, IssuerError> {
    let issuer = || settings.issuer.clone();
    let tls = |source: rustls::Error| IssuerError::Tls { issuer: issuer(), source: source.into() };
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(tls)?;
    let mut roots = RootCertStore::empty();
    let builder = match &settings.ca_file {
        None if settings.issuer.starts_with("https:") => builder.with_platform_verifier().map_err(tls)?,
        None => builder.with_root_certificates(roots),
        Some(path) => {
            let fault =
                |message: String| IssuerError::CaFile { issuer: issuer(), path: path.clone(), message };
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| fault(error.to_string()))?;
                roots.add(certificate).map_err(|error| fault(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(fault("there is none".to_owned()));
            }
            builder.with_root_certificates(roots)
        }
    };
    Ok(builder.with_no_client_auth())
}
