//! A client of the API, as a script would be one.

use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use serde_json::{Value, json};

/// Calls the API with one token.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    /// `https://localhost:port`
    pub(crate) base: String,
    /// The app that the token is for.
    pub(crate) app: String,
    pub(crate) token: String,
}

/// What the server answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// The body as JSON; null when it is none.
    pub(crate) body: Value,
}

impl Client {
    pub(crate) fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: token.into(), ..self.clone() }
    }

    /// A request with the token. `path` may be a whole URL, as in a `nextLink`.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = if path.starts_with("https://") { path.to_owned() } else { format!("{}{path}", self.base) };
        self.http.request(method, url).header(AUTHORIZATION, format!("Bearer {}", self.token))
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        Reply::of(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        Reply::of(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        Reply::of(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Reply {
        Reply::of(self.request(Method::PUT, path).json(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Reply {
        Reply::of(self.request(Method::PATCH, path).json(body)).await
    }

    /// Posts bytes as they are.
    pub(crate) async fn post_raw(
        &self,
        path: &str,
        content_type: Option<&str>,
        body: impl Into<Vec<u8>>,
    ) -> Reply {
        let mut request = self.request(Method::POST, path).body(body.into());
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        Reply::of(request).await
    }

    pub(crate) async fn restrict(&self, machine: &str) -> Reply {
        self.post(&format!("/api/machines/{machine}/restrictCodeExecution"), &json!({"Comment": "test"}))
            .await
    }

    pub(crate) async fn unrestrict(&self, machine: &str) -> Reply {
        self.post(&format!("/api/machines/{machine}/unrestrictCodeExecution"), &json!({"Comment": "test"}))
            .await
    }

    pub(crate) async fn action(&self, id: &str) -> Value {
        self.get(&format!("/api/machineactions/{id}")).await.expect_status(200)
    }

    pub(crate) async fn machine(&self, id: &str) -> Value {
        self.get(&format!("/api/machines/{id}")).await.expect_status(200)
    }

    /// Polls an action until it has this status; what it is then.
    pub(crate) async fn wait_for(&self, action: &Value, status: &str) -> Value {
        let id = action["id"].as_str().unwrap();
        super::wait_until(&format!("action {id} is {status}"), async || {
            self.action(id).await["status"] == status
        })
        .await;
        self.action(id).await
    }
}

impl Reply {
    pub(crate) async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Self { status, headers, text, body }
    }

    /// The body of a reply that is to have this status.
    #[track_caller]
    pub(crate) fn expect_status(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }

    /// Checks that this is the contract's error with this code; its message.
    #[track_caller]
    pub(crate) fn expect_error(self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/json");
        let body = self.body.as_object().unwrap();
        assert_eq!(body.keys().collect::<Vec<_>>(), ["error"], "{}", self.text);
        let error = body["error"].as_object().unwrap();
        assert_eq!(error.keys().collect::<Vec<_>>(), ["code", "message", "target"], "{}", self.text);
        assert_eq!(error["code"], code, "{}", self.text);
        let target: uuid::Uuid = error["target"].as_str().unwrap().parse().unwrap();
        assert_eq!(self.headers["x-request-id"], target.to_string());
        error["message"].as_str().unwrap().to_owned()
    }
}
