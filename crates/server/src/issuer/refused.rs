//! Refusals in OAuth's form, with the numbers that the vendor's clients show to people.

use std::time::Duration;

use api_types::token::TokenError;
use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use chrono::DateTime;
use domain::time::Timestamp;
use uuid::Uuid;

use super::origin::FOREIGN;
use crate::attempts::TooMany;

/// Why there is no token, or no code.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    /// OAuth's word for it.
    pub(super) error: &'static str,
    /// The vendor's number for it.
    code: u32,
    text: String,
    pub(super) retry_after: Option<Duration>,
    /// Asks for HTTP Basic again, because that is how the credentials came.
    pub(super) challenge: bool,
}

impl Refused {
    pub(super) fn new(status: StatusCode, error: &'static str, code: u32, text: impl Into<String>) -> Self {
        Self { status, error, code, text: text.into(), retry_after: None, challenge: false }
    }

    /// The request itself is wrong.
    pub(super) fn request(code: u32, text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", code, text)
    }

    /// The request lacks a parameter.
    pub(super) fn missing(parameter: &str) -> Self {
        let text = format!("The request body must contain the following parameter: '{parameter}'.");
        Self::request(900_144, text)
    }

    /// What the client shows for a token does not count.
    pub(super) fn grant(text: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_grant", 70_008, sentence(text))
    }

    /// What is asked for cannot be granted.
    pub(super) fn scope(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_scope", 70_011, text)
    }

    /// The client is not who it says.
    pub(super) fn client(code: u32, text: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_client", code, text)
    }

    pub(super) fn too_many(too_many: TooMany) -> Self {
        let mut refused = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "temporarily_unavailable",
            90_055,
            "There were too many failed logins from this address or for this account.",
        );
        refused.retry_after = Some(too_many.retry_after);
        refused
    }

    /// Another site sent the form.
    pub(super) fn foreign() -> Self {
        Self::new(StatusCode::FORBIDDEN, "access_denied", 90_016, FOREIGN)
    }

    /// Too many devices of the caller's network wait for a person.
    pub(super) fn too_many_devices() -> Self {
        let text =
            "Too many devices of this network wait to be approved: approve or decline some, or try later.";
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self {
            retry_after: Some(Duration::from_secs(60)),
            ..Self::new(status, "temporarily_unavailable", 90_055, text)
        }
    }

    pub(super) fn unavailable() -> Self {
        let text = "The service is temporarily unavailable. Please retry later.";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(status, "temporarily_unavailable", 90_033, text)
        }
    }

    /// A fault of the server or its store, which is logged here.
    pub(super) fn fault(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a sign-in could not be carried out");
        Self::unavailable()
    }

    /// What people are to read.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The description with its number, for clients.
    pub(super) fn description(&self) -> String {
        format!("AADSTS{}: {}", self.code, self.text)
    }

    /// Writes it to the log, which is to hold no value of the request.
    pub(super) fn log(&self) {
        tracing::info!(error = self.error, code = self.code, "sign-in refused");
    }

    /// The reply. `headers` are the request's.
    pub(super) fn response(self, headers: &HeaderMap, at: Timestamp) -> Response {
        let trace_id = Uuid::new_v4();
        let given = headers.get("client-request-id").and_then(|id| id.to_str().ok()?.parse().ok());
        let correlation_id = given.unwrap_or(trace_id);
        let timestamp = DateTime::from_timestamp(at.unix_seconds(), 0).unwrap_or_default();
        let timestamp = timestamp.format("%Y-%m-%d %H:%M:%SZ").to_string();
        tracing::info!(%trace_id, %correlation_id, error = self.error, code = self.code, "no token");
        let body = TokenError {
            error: self.error.to_owned(),
            error_description: format!(
                "{} Trace ID: {trace_id} Correlation ID: {correlation_id} Timestamp: {timestamp}",
                self.description()
            ),
            error_codes: vec![self.code],
            timestamp,
            trace_id,
            correlation_id,
        };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(retry_after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, whole_seconds(retry_after).into());
        }
        if self.challenge {
            let challenge = HeaderValue::from_static("Basic realm=\"cordon\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        not_stored(response)
    }
}

/// Rounded up, so that a client that waits it out succeeds.
pub(super) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// A caller's text for an answer: not longer than a person reads.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// RFC 6749, section 5.1.
pub(super) fn not_stored(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// A text of a use case as a sentence.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_use_cases_become_sentences() {
        assert_eq!(sentence("the code has expired"), "The code has expired.");
        assert_eq!(sentence(""), ".");
    }
}
