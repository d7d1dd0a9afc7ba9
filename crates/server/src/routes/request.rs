//! What a restrict or unrestrict says beside its machine: the same for one machine and for many.

use std::convert::Infallible;
use std::time::Duration;

use api_types::duration;
use api_types::machine_action::ActionRequest;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use control_plane::Request;
use domain::machine_action::RequestSource;

use crate::error::ApiError;

/// RFC 7240.
const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// draft-ietf-httpapi-idempotency-key-header.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest wait, below the time that a request may take.
const WAIT_MAX: Duration = Duration::from_secs(50);

/// What the headers of a restrict or unrestrict ask for.
pub(crate) struct Wishes {
    /// How long the reply may be held until the action is final.
    pub(super) wait: Option<Duration>,
    idempotency_key: Option<HeaderValue>,
    is_ambiguous: bool,
}

impl<S: Sync> FromRequestParts<S> for Wishes {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let mut keys = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let idempotency_key = keys.next().cloned();
        Ok(Self { wait: wait(&parts.headers), idempotency_key, is_ambiguous: keys.next().is_some() })
    }
}

impl Wishes {
    /// The use case's request.
    pub(super) fn request(&self, body: ActionRequest) -> Result<Request, ApiError> {
        if self.is_ambiguous {
            return Err(ApiError::invalid_input("there are several Idempotency-Key headers"));
        }
        let key = self.idempotency_key.as_ref().map(|key| {
            let text = key.to_str().map_err(|_not_text| "the Idempotency-Key header is not ASCII text");
            text.map(str::to_owned).map_err(ApiError::invalid_input)
        });
        let expires_in = body.expires_in.map(|text| {
            duration::parse(&text).map_err(|why| ApiError::invalid_input(format!("ExpiresIn: {why}")))
        });
        Ok(Request {
            comment: body.comment.unwrap_or_default(),
            source: RequestSource::PublicApi,
            external_id: body.external_id,
            expires_in: expires_in.transpose()?,
            policy: body.policy,
            idempotency_key: key.transpose()?,
        })
    }

    /// The header that says which wish was heeded.
    pub(super) fn applied(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(wait) = self.wait
            && let Ok(value) = HeaderValue::try_from(format!("wait={}", wait.as_secs()))
        {
            headers.insert(PREFERENCE_APPLIED, value);
        }
        headers
    }
}

/// The seconds of the first `wait` preference; what cannot be read is no preference (RFC 7240, section 2).
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split(','));
    let seconds = preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        (name.trim().eq_ignore_ascii_case("wait") && is_number).then(|| value.parse().unwrap_or(u64::MAX))
    })?;
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_and_capped() {
        for (value, seconds) in [
            ("wait=30", Some(30)),
            ("respond-async, Wait = \"5\"; x=y", Some(5)),
            ("wait=9999999999999999999999", Some(50)),
            ("wait=0", Some(0)),
            ("wait", None),
            ("wait=-1", None),
            ("wait=1.5", None),
            ("await=30", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(PREFER, HeaderValue::from_static(value));
            assert_eq!(wait(&headers), seconds.map(Duration::from_secs), "{value}");
        }
        assert_eq!(wait(&HeaderMap::new()), None);
    }
}
