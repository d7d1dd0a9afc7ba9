//! The only map from errors to HTTP: status, code, message and headers of every API reply that is not a success.
//!
//! An error travels as an extension of an empty reply, until `router::answer` writes the envelope: that layer alone
//! knows the correlation id, and it catches what no handler made. Deliberately decides nothing: `control-plane` says
//! what went wrong, this file how that is spelled. What callers must not see is kept apart, for the log.

use std::error::Error as StdError;
use std::time::Duration;

use api_types::error::{ErrorBody, ErrorEnvelope};
use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use control_plane::Error;
use domain::permission::Permission;
use uuid::Uuid;

/// A reply that is not a success.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    status: StatusCode,
    /// One of the contract's.
    code: &'static str,
    /// For the caller.
    message: String,
    /// Boxed: results with this error stay small.
    header: Option<Box<(HeaderName, HeaderValue)>>,
    /// The chain of causes, for the log only.
    internal: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), header: None, internal: None }
    }

    fn with_header(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some(Box::new((name, value))), ..self }
    }

    /// The body is not what it should be.
    pub(crate) fn invalid_body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequestBody", message)
    }

    /// The body is longer than it may be.
    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("The body is longer than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "InvalidRequestBody", message)
    }

    /// A parameter is missing.
    pub(crate) fn missing(parameter: &str) -> Self {
        let message = format!("Parameter {parameter} is missing");
        Self::new(StatusCode::BAD_REQUEST, "MissingRequiredParameter", message)
    }

    /// A value is not possible.
    pub(crate) fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidInput", message)
    }

    /// There is no such thing.
    pub(crate) fn not_found(entity: &str, id: &str) -> Self {
        let id: String = id.chars().take(SAID_BACK_CHARS_MAX).collect();
        Self::new(StatusCode::NOT_FOUND, "ResourceNotFound", format!("{entity} {id} was not found"))
    }

    /// There is no usable token. `challenge` is the `WWW-Authenticate` header's value.
    pub(crate) fn unauthorized(message: impl Into<String>, challenge: HeaderValue) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
            .with_header(header::WWW_AUTHENTICATE, challenge)
    }

    /// The token is for somebody else.
    pub(crate) fn wrong_audience(accepted: &[String]) -> Self {
        let message =
            format!("The token is not for this API, which accepts the audiences: {}", accepted.join(", "));
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// The caller lacks a permission. The first sentence is the vendor's, which clients parse.
    fn forbidden(delegated: bool, required: &[&str], held: &[&str], only_restricts: bool) -> Self {
        let names = if delegated { "scopes" } else { "roles" };
        let (required, held) = (required.join(","), held.join(","));
        let mut message = format!(
            "Missing application {names}. API required {names}: {required}, application {names}: {held}."
        );
        if only_restricts {
            let restrict = Permission::MachineRestrictExecution;
            message += &format!(" {restrict} starts and cancels actions, and does not include reading them.");
        }
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// The caller tried too often.
    pub(crate) fn too_many(retry_after: Duration) -> Self {
        let wait = whole_seconds(retry_after);
        let message = format!("Too many requests; try again in {wait} seconds");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
            .with_header(header::RETRY_AFTER, wait.into())
    }

    /// A fault of the server, which the log alone is told.
    pub(crate) fn internal(error: &dyn StdError) -> Self {
        Self::fault(chain(error))
    }

    /// A fault of the server, in words for the log only.
    pub(crate) fn fault(internal: impl Into<String>) -> Self {
        let message = "An internal error has occurred; the server's log has it under the id in target";
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message);
        Self { internal: Some(internal.into()), ..error }
    }

    /// The server cannot do it at the moment; `internal` is for the log only.
    pub(crate) fn unavailable(message: impl Into<String>, internal: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"));
        Self { internal: Some(internal.into()), ..error }
    }

    /// The server cannot do it for a while; the log knows why.
    pub(crate) fn unavailable_for(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
            .with_header(header::RETRY_AFTER, whole_seconds(retry_after).into())
    }

    /// What the framework answered by itself, such as 405.
    pub(crate) fn from_status(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::new(status, "Unauthorized", "The request is not authorized"),
            StatusCode::FORBIDDEN => Self::new(status, "Forbidden", "The request is not allowed"),
            StatusCode::NOT_FOUND => Self::new(status, "NotFound", "There is no such route"),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(status, "MethodNotAllowed", "The route does not know this method")
            }
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(status, "InvalidRequestBody", "The body is too long"),
            StatusCode::TOO_MANY_REQUESTS => Self::new(status, "TooManyRequests", "Too many requests"),
            StatusCode::SERVICE_UNAVAILABLE => {
                Self::new(status, "ServiceUnavailable", "The server cannot answer at the moment")
            }
            other if other.is_client_error() => Self::new(status, "BadRequest", "The request cannot be read"),
            other => Self { status: other, ..Self::fault(format!("a reply of {other} without a reason")) },
        }
    }

    /// The reply as the caller sees it.
    pub(crate) fn envelope(&self, target: Uuid) -> Response {
        let error = ErrorBody { code: self.code.to_owned(), message: self.message.clone(), target };
        let mut response = (self.status, Json(ErrorEnvelope { error })).into_response();
        if let Some((name, value)) = self.header.as_deref() {
            response.headers_mut().insert(name, value.clone());
        }
        response
    }

    /// One of the contract's.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// For the caller.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What the log is to hold of it, and the caller is not to see.
    pub(crate) fn internal_cause(&self) -> Option<&str> {
        self.internal.as_deref()
    }
}

/// The most characters of a caller's own text that are said back.
const SAID_BACK_CHARS_MAX: usize = 256;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let bad_request = |code| Self::new(StatusCode::BAD_REQUEST, code, error.to_string());
        match &error {
            Error::NotFound { entity, id } => Self::not_found(entity, id),
            Error::InvalidInput(_) | Error::AlreadyExists(_) => bad_request("InvalidInput"),
            Error::MissingParameter(parameter) => Self::missing(parameter),
            Error::BadRequest(_) => bad_request("BadRequest"),
            Error::BadQuery(_) => bad_request("ODataError"),
            Error::ActiveAction(_) => bad_request("ActiveRequestAlreadyExists"),
            Error::OsPlatformNotSupported(_) => bad_request("OsPlatformNotSupported"),
            Error::ClientVersionNotSupported(_) => bad_request("ClientVersionNotSupported"),
            Error::Unauthenticated(_) => {
                Self::unauthorized(error.to_string(), HeaderValue::from_static("Bearer"))
            }
            Error::Forbidden { delegated, required, held, only_restricts } => {
                Self::forbidden(*delegated, required, held, *only_restricts)
            }
            Error::MissingRight(_) => Self::new(StatusCode::FORBIDDEN, "Forbidden", sentence(&error)),
            Error::Disallowed(_) => Self::new(StatusCode::FORBIDDEN, "DisallowedOperation", sentence(&error)),
            Error::Disabled(_) => Self::new(StatusCode::FORBIDDEN, "DisabledFeature", sentence(&error)),
            Error::RateLimited(exceeded) => {
                let (limit, wait) = (exceeded.limit, whole_seconds(exceeded.retry_after));
                let message = format!(
                    "At most {} calls in {} seconds are possible; try again in {wait} seconds",
                    limit.calls,
                    limit.window.as_secs()
                );
                Self { message, ..Self::too_many(exceeded.retry_after) }
            }
            Error::Unavailable(_) => {
                Self::unavailable("The server's database cannot be used at the moment", chain(&error))
            }
            Error::Busy(_) => Self::unavailable(sentence(&error), "too many wait"),
            // What machines do wrong is no caller's business, and what is added later is not to leak.
            Error::MachineMisbehaves(_) | Error::Internal(_) | _ => Self::internal(&error),
        }
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        match rejection.status() {
            StatusCode::BAD_REQUEST => Self::invalid_body(rejection.body_text()),
            status => Self::from_status(status),
        }
    }
}

impl From<odata::Error> for ApiError {
    fn from(error: odata::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "ODataError", error.to_string())
    }
}

/// Rounded up, so that a client that waits it out succeeds.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// An error's text, with a capital letter.
fn sentence(error: &Error) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// An error with its causes.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_rounded_up() {
        let table = [(0, 1, 1), (1, 0, 1), (1, 1, 2), (59, 999_999_999, 60)];
        for (seconds, nanos, whole) in table {
            assert_eq!(whole_seconds(Duration::new(seconds, nanos)), whole);
        }
    }

    #[test]
    fn a_caller_never_sees_the_cause() {
        let error = ApiError::from(Error::Internal(store::StoreError::Damaged("phase 77".to_owned())));
        assert!(!error.message.contains("77"));
        assert!(error.internal_cause().unwrap().contains("phase 77"));
    }

    #[test]
    fn every_framework_status_keeps_its_number() {
        for number in 400..600 {
            let status = StatusCode::from_u16(number).unwrap();
            assert_eq!(ApiError::from_status(status).envelope(Uuid::nil()).status(), status);
        }
    }
}
