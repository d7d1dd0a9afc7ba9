//! JSON bodies of requests, by the contract's rules: strict in form, deaf to keys that it does not know.

use axum::body::{self, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// What a body may hold.
pub(crate) trait RequestBody: DeserializeOwned {
    /// Every key, as it must be spelled.
    const KEYS: &'static [&'static str];
    /// The keys that must be there, and not null.
    const REQUIRED: &'static [&'static str];
    /// Its greatest length.
    const BYTES_MAX: usize = super::BODY_BYTES_MAX;
}

/// A body that was read.
pub(crate) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: RequestBody> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        require_json(request.headers())?;
        let body = request.into_body();
        let too_large = || ApiError::body_too_large(T::BYTES_MAX);
        // A length that the head claims is not waited for.
        if usize::try_from(body.size_hint().lower()).map_or(true, |claimed| claimed > T::BYTES_MAX) {
            return Err(too_large());
        }
        let bytes = body::to_bytes(body, T::BYTES_MAX).await.map_err(|error| {
            let cause = error.into_inner();
            if cause.is::<LengthLimitError>() {
                too_large()
            } else {
                ApiError::invalid_body(format!("The body cannot be read: {cause}"))
            }
        })?;
        read(&bytes).map(Self)
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(ApiError::invalid_body(
            "The Content-Type header is missing: it must be application/json",
        ));
    };
    let essence = value.to_str().ok().and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let shown: String = essence.chars().take(80).collect();
    Err(ApiError::invalid_body(format!("The Content-Type is {shown:?}: it must be application/json")))
}

fn read<T: RequestBody>(bytes: &[u8]) -> Result<T, ApiError> {
    let malformed =
        |error: serde_json::Error| ApiError::invalid_body(format!("The body cannot be used: {error}"));
    let object: Map<String, Value> = serde_json::from_slice(bytes).map_err(malformed)?;
    for key in object.keys().filter(|key| !T::KEYS.contains(&key.as_str())) {
        if let Some(right) = T::KEYS.iter().find(|right| right.eq_ignore_ascii_case(key)) {
            return Err(ApiError::invalid_body(format!("The key {key:?} must be spelled {right:?}")));
        }
    }
    if let Some(missing) = T::REQUIRED.iter().find(|key| object.get(**key).is_none_or(Value::is_null)) {
        return Err(ApiError::missing(missing));
    }
    // Read from the bytes again, because errors then say where.
    serde_json::from_slice(bytes).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn any_parameters_of_json_are_json() {
        let table = [
            (Some("application/json"), true),
            (Some("application/json; charset=utf-8"), true),
            (Some("Application/JSON;odata.metadata=minimal ; x=y"), true),
            (Some("text/json"), false),
            (Some("application/jsonp"), false),
            (Some("application/x-www-form-urlencoded"), false),
            (Some(""), false),
            (None, false),
        ];
        for (value, accepted) in table {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            }
            assert_eq!(require_json(&headers).is_ok(), accepted, "{value:?}");
        }
    }
}
