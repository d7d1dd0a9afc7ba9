//! What can go wrong between this program and a server, in words that say what to do.

use std::error::Error;
use std::io;

use reqwest::{StatusCode, Url};
use rustls::CertificateError;
use uuid::Uuid;

/// The command line, or the environment that completes it, makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The API answered with its error envelope.
    #[error("{code}: {message} (correlation id {correlation_id})")]
    Api {
        /// HTTP status.
        status: StatusCode,
        /// The contract's code.
        code: String,
        /// The server's words.
        message: String,
        /// Finds the call in the server's log.
        correlation_id: Uuid,
    },
    /// The token endpoint answered with an error in the OAuth form.
    #[error("no token for {whom}: {error}: {description}")]
    Token {
        /// HTTP status.
        status: StatusCode,
        /// For whom.
        whom: &'static str,
        /// Such as `invalid_client`.
        error: String,
        /// The issuer's words, with the correlation id when there is one.
        description: String,
    },
    /// A person's sign-in counts no more.
    #[error("the sign-in of this profile has ended ({0}): run cordon login again")]
    SignedOut(String),
    /// The connection could not be made, or broke.
    #[error("cannot reach {server}: {cause}; check that the server runs, its URL, and the network between")]
    Unreachable {
        /// The server.
        server: String,
        /// The innermost cause.
        cause: String,
    },
    /// The connection was made, and the server is not who it should be.
    #[error("{server} is not to be trusted: {reason}; {advice}")]
    Untrusted {
        /// The server.
        server: String,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The reply is not one of the contract.
    #[error(
        "{url} answered {status}, and not as the Cordon API does ({fault}): is this the URL of a Cordon server?"
    )]
    Unexpected {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: StatusCode,
        /// What is wrong with it.
        fault: String,
    },
}

impl ClientError {
    /// The error of a request that brought no reply.
    pub(crate) fn transport(server: &Url, error: &reqwest::Error) -> Self {
        let server = origin(server);
        match tls_fault(error) {
            Some(fault) => {
                let (reason, advice) = explained(fault);
                Self::Untrusted { server, reason, advice }
            }
            None => {
                let cause =
                    if error.is_timeout() { "no answer in time".to_owned() } else { innermost(error) };
                let arrived =
                    if error.is_connect() { "" } else { " (the call may have arrived all the same)" };
                Self::Unreachable { server, cause: cause + arrived }
            }
        }
    }

    /// Whether the server understood and said no.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Api { status, .. } | Self::Token { status, .. } => status.is_client_error(),
            Self::SignedOut(_) => true,
            Self::Unreachable { .. } | Self::Untrusted { .. } | Self::Unexpected { .. } => false,
        }
    }

    /// Whether the same call may succeed a moment later: the server restarts, or the network is away.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Api { status, .. } | Self::Token { status, .. } | Self::Unexpected { status, .. } => {
                status.is_server_error()
            }
            Self::Unreachable { .. } => true,
            Self::Untrusted { .. } | Self::SignedOut(_) => false,
        }
    }

    /// Whether the app lacks the permission for the call.
    pub(crate) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Api { status, .. } if *status == StatusCode::FORBIDDEN)
    }
}

/// Whether the API knows no such thing.
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::Api { status: StatusCode::NOT_FOUND, .. }))
}

/// Scheme, host and port, for messages.
pub(crate) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// The error and its causes, outermost first. `source` jumps over an error that an `io::Error` wraps, so that is asked
/// apart.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    let mut next = Some(error as &(dyn Error + 'static));
    std::iter::from_fn(move || {
        let current = next?;
        let wrapped = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => current.source(),
        };
        Some(current)
    })
}

fn tls_fault(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn innermost(error: &reqwest::Error) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

fn explained(fault: &rustls::Error) -> (String, &'static str) {
    let reason = fault.to_string();
    let rustls::Error::InvalidCertificate(certificate_fault) = fault else {
        return (reason, "check that the URL is that of a Cordon server, and that nothing stands between");
    };
    // The vendor's enum may grow: what is not named here gets the general advice.
    #[expect(clippy::wildcard_enum_match_arm, reason = "not an enum of ours")]
    match certificate_fault {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "its certificate was not issued by a certificate authority that is trusted here".to_owned(),
            "give the server's own by --ca-file or --ca-pin (cordon-server init prints both)",
        ),
        CertificateError::ApplicationVerificationFailure => (
            "no certificate authority that it presents has the pinned SHA-256".to_owned(),
            "compare the pin with what cordon-server init printed; if it is right, someone may sit in between",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            (reason, "use a name in the URL for which the server has a certificate")
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            (reason, "check this machine's clock and the server's")
        }
        _ => (reason, "check the server's certificate"),
    }
}
