//! The outermost layer: every request gets a correlation id, a reply in the contract's form, and a line in the log.
//!
//! Owns what holds for all replies: the error envelope, also for panics, time-outs and what the framework refuses; the
//! headers of every reply; the access log, which never holds a token, a body, or a path with its values.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::auth::CalledBy;
use crate::error::ApiError;
use crate::router::unread::Unread;

/// Time for one request: twice what the listener gives a body to arrive.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);

/// The name of the header with the correlation id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers of every reply: nothing here is a page, and nothing is to be kept or guessed at.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000")),
];

/// Runs the request and makes its reply one of the contract.
pub(crate) async fn answer(request: Request, next: Next) -> Response {
    let (id, start) = (Uuid::new_v4(), Instant::now());
    let method = request.method().clone();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("none", MatchedPath::as_str);
    let span = tracing::info_span!("request", %id);

    let request = request.map(|body| Body::new(Unread::new(body)));
    // A task of its own: what a use case does after its commit is done even when the caller has gone away.
    let handled = tokio::spawn(next.run(request).instrument(span.clone()));
    let handled = tokio::time::timeout(REQUEST_TIME_MAX, handled).await;
    let response = match handled {
        Ok(Ok(response)) => response,
        // The panic hook has said where.
        Ok(Err(_panic)) => ApiError::fault("the handler panicked").into_response(),
        Err(_elapsed) => {
            let message = "The request took too long, and may still be carried out";
            ApiError::unavailable(message, "the request took too long").into_response()
        }
    };
    let app = response.extensions().get::<CalledBy>().map(|called_by| called_by.0.clone());
    let mut response = in_envelope(response, id, &span);
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(value);
    }
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(REQUEST_ID, value);
    }
    let status = response.status().as_u16();
    let duration_ms = start.elapsed().as_secs_f64() * 1000.0;
    let app = app.as_deref().map(tracing::field::display);
    tracing::info!(parent: &span, %method, route, status, duration_ms, app, "answered");
    response
}

/// Writes the envelope of an error, of ours or of the framework. An error that has a JSON body or a page
/// already, as those of the token issuer, stays.
fn in_envelope(mut response: Response, id: Uuid, span: &tracing::Span) -> Response {
    let status = response.status();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None if (status.is_client_error() || status.is_server_error()) && !is_written(&response) => {
            ApiError::from_status(status)
        }
        None => return response,
    };
    if let Some(cause) = error.internal_cause() {
        tracing::error!(parent: span, status = status.as_u16(), cause, "request failed");
    }
    let mut enveloped = error.envelope(id);
    if let Some(allow) = response.headers_mut().remove(header::ALLOW) {
        enveloped.headers_mut().insert(header::ALLOW, allow);
    }
    enveloped
}

fn is_written(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.starts_with("application/json") || value.starts_with("text/html"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::to_bytes;
    use axum::http::StatusCode;
    use axum::middleware::from_fn;
    use axum::routing::{get, post};
    use tower::ServiceExt as _;

    use super::*;

    async fn reply(method: &str, path: &str) -> (StatusCode, serde_json::Value, Response) {
        async fn panics() -> StatusCode {
            panic!("a secret detail")
        }
        let router = Router::new()
            .route("/panics", get(panics))
            .route("/hangs", get(std::future::pending::<StatusCode>))
            .route("/fails", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "a secret detail") }))
            .route("/rejects", post(|_: axum::Json<u32>| async {}))
            .layer(from_fn(answer));
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
        let body = to_bytes(body, 4096).await.unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("secret"));
        (
            parts.status,
            serde_json::from_slice(&body).unwrap(),
            Response::from_parts(parts, ().into_response().into_body()),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_fails_is_in_the_envelope() {
        for (method, path, status, code) in [
            ("GET", "/panics", 500, "InternalServerError"),
            ("GET", "/hangs", 503, "ServiceUnavailable"),
            ("GET", "/fails", 500, "InternalServerError"),
            ("POST", "/rejects", 415, "BadRequest"),
            ("GET", "/nowhere", 404, "NotFound"),
            ("PUT", "/fails", 405, "MethodNotAllowed"),
        ] {
            let (answered, body, response) = reply(method, path).await;
            assert_eq!((answered.as_u16(), body["error"]["code"].as_str()), (status, Some(code)), "{path}");
            assert!(!body["error"]["message"].as_str().unwrap().is_empty());
            assert_eq!(body["error"]["target"].as_str().unwrap(), response.headers()["x-request-id"]);
            assert_eq!(response.headers()["content-type"], "application/json");
            assert_eq!(response.headers()["cache-control"], "no-store");
            assert_eq!(response.headers().contains_key("allow"), status == 405);
        }
    }

    /// A log that tests can read.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_log_tells_what_was_called_and_no_secret() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        // With one subscriber in the process, a thread that has none can switch a place off for all when it comes there
        // first; with two, each is asked.
        let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
        let _logged = tracing::subscriber::set_default(subscriber);
        let app = Uuid::from_u128(7);
        let handler = move || async move {
            let mut response = ApiError::fault("the disk is full").into_response();
            response.extensions_mut().insert(CalledBy(app.to_string()));
            response
        };
        let router = Router::new().route("/api/machines/{machine}", post(handler)).layer(from_fn(answer));
        let request = Request::post("/api/machines/secret-name?$filter=secret-query")
            .header(header::AUTHORIZATION, "Bearer secret-token")
            .body(Body::from("{\"Comment\": \"secret-body\"}"))
            .unwrap();
        let response = router.oneshot(request).await.unwrap();
        let id = response.headers()[REQUEST_ID].to_str().unwrap();
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let answered = log.lines().find(|line| line.contains("answered")).unwrap();
        for field in [
            id,
            "method=POST",
            "route=\"/api/machines/{machine}\"",
            "status=500",
            "duration_ms=",
            &format!("app={app}"),
        ] {
            assert!(answered.contains(field), "{field}: {log}");
        }
        let failed = log.lines().find(|line| line.contains("request failed")).unwrap();
        assert!(failed.contains("cause=\"the disk is full\"") && failed.contains(id), "{log}");
        assert!(!log.contains("secret"), "{log}");
    }
}
