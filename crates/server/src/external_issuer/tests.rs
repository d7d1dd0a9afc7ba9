//! The cache of keys against a real HTTP server, whose requests are counted.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::permission::Permission;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};

use super::*;

const NOW: Timestamp = Timestamp::from_unix_seconds(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);

/// What the server of the issuer answers, and how often it was asked for keys.
#[derive(Default)]
struct Published {
    keys: Mutex<Value>,
    document: Mutex<Option<Value>>,
    /// The answer to everything, while there is one.
    down: Mutex<Option<StatusCode>>,
    fetches: AtomicUsize,
    /// Fetches wait for this.
    held: tokio::sync::RwLock<()>,
}

struct Signer {
    id: String,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn new(id: &str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": id, "alg": "EdDSA", "use": "sig"});
        Self { id: id.to_owned(), key, jwk }
    }

    fn token(&self, issuer: &str) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id.clone());
        let claims = json!({
            "iss": issuer, "aud": "api://cordon/", "azp": "client", "sub": "client",
            "exp": NOW.unix_seconds() + 60, "roles": ["Machine.Read.All"],
        });
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

struct Fixture {
    published: Arc<Published>,
    issuer: Arc<ExternalIssuer>,
    stop: watch::Sender<bool>,
}

async fn serve(State(published): State<Arc<Published>>, uri: Uri) -> Response {
    let _held = published.held.read().await;
    if let Some(status) = *published.down.lock().unwrap() {
        return (status, [(header::LOCATION, "/keys")], "{}").into_response();
    }
    if uri.path() == "/keys" {
        published.fetches.fetch_add(1, Ordering::SeqCst);
        return axum::Json(published.keys.lock().unwrap().clone()).into_response();
    }
    axum::Json(published.document.lock().unwrap().clone()).into_response()
}

fn pace() -> Pace {
    Pace {
        refresh: HOUR,
        unknown_key: HOUR,
        retry_first: Duration::from_millis(20),
        retry_max: Duration::from_millis(40),
        keys_age_max: HOUR,
    }
}

async fn fixture(pace: Pace, signers: &[&Signer]) -> Fixture {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let published = Arc::new(Published::default());
    *published.document.lock().unwrap() = Some(json!({"issuer": url, "jwks_uri": format!("{url}/keys")}));
    let router = Router::new().fallback(serve).with_state(Arc::clone(&published));
    tokio::spawn(async { axum::serve(listener, router).await });
    let settings = toml::from_str(&format!(
        "issuer = \"{url}\"\nalgorithms = [\"EdDSA\"]\naudiences = [\"api://cordon\"]\napplications = true"
    ));
    let settings: IssuerSettings = settings.unwrap();
    let audiences = settings.audiences.clone().unwrap();
    let issuer = Arc::new(ExternalIssuer::new(settings, &audiences, pace).unwrap());
    let stop = watch::Sender::new(false);
    let fixture = Fixture { published, issuer, stop };
    fixture.publish(signers);
    fixture
}

impl Fixture {
    fn publish(&self, signers: &[&Signer]) {
        let keys: Vec<_> = signers.iter().map(|signer| signer.jwk.clone()).collect();
        *self.published.keys.lock().unwrap() = json!({ "keys": keys });
    }

    fn run(&self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(Arc::clone(&self.issuer).run(self.stop.subscribe()))
    }

    fn set_down(&self, status: Option<StatusCode>) {
        *self.published.down.lock().unwrap() = status;
    }

    fn fetches(&self) -> usize {
        self.published.fetches.load(Ordering::SeqCst)
    }

    async fn validate(&self, signer: &Signer) -> Result<Token, TokenFault> {
        let token = signer.token(self.issuer.url());
        self.issuer.validate(&token::read(&token).unwrap(), NOW).await
    }

    async fn known(&self, state: impl FnMut(&Known) -> bool) {
        let mut news = self.issuer.known.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(30), news.wait_for(state));
        waited.await.unwrap().unwrap();
    }
}

fn unknown() -> Result<Token, TokenFault> {
    Err(TokenFault::invalid("the token's key is unknown"))
}

#[tokio::test]
async fn a_token_waits_for_the_first_keys() {
    let signer = Signer::new("a");
    let fixture = fixture(pace(), &[&signer]).await;
    let (token, ()) = tokio::join!(fixture.validate(&signer), async { drop(fixture.run()) });
    let app = format!("{}|client", fixture.issuer.url());
    let subject = Subject::App { permissions: vec![Permission::MachineReadAll] };
    assert_eq!(token, Ok(Token { app, subject }));
    for _ in 0..10 {
        fixture.validate(&signer).await.unwrap();
    }
    assert_eq!(fixture.fetches(), 1);
}

#[tokio::test]
async fn rotated_keys_are_fetched_once_and_old_ones_end() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let fixture = fixture(pace(), &[&old]).await;
    fixture.run();
    fixture.validate(&old).await.unwrap();
    fixture.publish(&[&new]);
    fixture.validate(&old).await.unwrap();
    fixture.validate(&new).await.unwrap();
    assert_eq!(fixture.validate(&old).await, unknown());
    assert_eq!(fixture.fetches(), 2);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_costs_one_fetch() {
    let signer = Signer::new("a");
    let fixture = fixture(pace(), &[&signer]).await;
    fixture.run();
    fixture.validate(&signer).await.unwrap();
    let strangers: Vec<_> = (0..200).map(|number| Signer::new(&format!("x{number}"))).collect();
    let held = fixture.published.held.write().await;
    let flood = futures_util::future::join_all(strangers.iter().map(|stranger| fixture.validate(stranger)));
    let (refused, _) = tokio::join!(flood, async { drop(held) });
    for refused in refused {
        assert_eq!(refused, unknown());
    }
    for stranger in &strangers {
        assert_eq!(fixture.validate(stranger).await, unknown());
    }
    assert_eq!(fixture.fetches(), 2);
    fixture.validate(&signer).await.unwrap();
}

#[tokio::test]
async fn keys_are_refreshed_without_any_token() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let pace = Pace { refresh: Duration::from_millis(20), ..pace() };
    let fixture = fixture(pace, &[&old]).await;
    fixture.run();
    fixture.validate(&old).await.unwrap();
    fixture.publish(&[&new]);
    fixture.known(|known| known.keys.as_ref().is_some_and(|(keys, _)| !keys.contains("old"))).await;
    fixture.validate(&new).await.unwrap();
}

#[tokio::test]
async fn an_outage_is_no_refusal_and_ends() {
    let signer = Signer::new("a");
    let fixture = fixture(pace(), &[&signer]).await;
    fixture.set_down(Some(StatusCode::BAD_GATEWAY));
    fixture.run();
    let refused = fixture.validate(&signer).await;
    assert_eq!(refused, Err(TokenFault::Unavailable { retry_after: Duration::from_secs(1) }));
    fixture.set_down(None);
    fixture.known(|known| known.keys.is_some()).await;
    fixture.validate(&signer).await.unwrap();

    // Known keys outlive an outage; a key that may be new is not refused for it.
    fixture.set_down(Some(StatusCode::BAD_GATEWAY));
    let new = Signer::new("new");
    fixture.publish(&[&signer, &new]);
    assert!(matches!(fixture.validate(&new).await, Err(TokenFault::Unavailable { .. })));
    fixture.validate(&signer).await.unwrap();
    fixture.set_down(None);
    fixture.known(|known| known.retry.is_none() && !known.fetching).await;
    fixture.validate(&new).await.unwrap();
}

#[tokio::test]
async fn keys_do_not_outlive_their_age() {
    let signer = Signer::new("a");
    let fixture = fixture(Pace { keys_age_max: Duration::ZERO, ..pace() }, &[&signer]).await;
    fixture.run();
    assert!(matches!(fixture.validate(&signer).await, Err(TokenFault::Unavailable { .. })));
}

#[tokio::test]
async fn only_the_right_documents_count() {
    let signer = Signer::new("a");
    let fixture = fixture(pace(), &[&signer]).await;
    let (issuer, published) = (&fixture.issuer, &fixture.published);
    issuer.fetcher.fetch().await.ok().unwrap();
    let url = issuer.url().to_owned();
    let keys = format!("{url}/keys");
    let failure = async || {
        let mut error: &dyn std::error::Error = &issuer.fetcher.fetch().await.err().unwrap();
        let mut text = error.to_string();
        while let Some(cause) = error.source() {
            text += &format!(": {cause}");
            error = cause;
        }
        text
    };
    let right = published.document.lock().unwrap().clone();
    for (document, expected) in [
        (json!({"issuer": format!("{url}/"), "jwks_uri": keys}), "not the configured one"),
        (json!({"issuer": "https://evil.example", "jwks_uri": keys}), "not the configured one"),
        (json!({"jwks_uri": keys}), "not the configured one"),
        (json!({"issuer": url}), "has no jwks_uri"),
        (json!({"issuer": url, "jwks_uri": "http://evil.example/keys"}), "not by https"),
        (json!({"issuer": url, "jwks_uri": "file:///etc/passwd"}), "not by https"),
        (json!({"issuer": url, "jwks_uri": "http://u@127.0.0.1/keys"}), "not by https"),
        (json!([]), "no JSON object"),
    ] {
        *published.document.lock().unwrap() = Some(document.clone());
        let text = failure().await;
        assert!(text.contains(expected), "{document}: {text}");
    }
    *published.document.lock().unwrap() = right;
    *published.keys.lock().unwrap() = json!({"keys": [], "pad": "a".repeat(600 * 1024)});
    assert!(failure().await.contains("more than 524288 bytes"));
    *published.keys.lock().unwrap() = json!({"keys": [signer.jwk, signer.jwk]});
    assert!(failure().await.contains("no sound key"));
    for status in [StatusCode::FOUND, StatusCode::PERMANENT_REDIRECT, StatusCode::NOT_FOUND] {
        fixture.set_down(Some(status));
        assert!(failure().await.contains(status.as_str()));
    }
}

#[tokio::test]
async fn people_have_the_groups_of_their_issuer() {
    let signer = Signer::new("a");
    let mut fixture = fixture(pace(), &[&signer]).await;
    let issuer = Arc::get_mut(&mut fixture.issuer).unwrap();
    issuer.settings.groups_prefix = "corp:".to_owned();
    issuer.settings.name_claim = Some("/person/login".to_owned());
    issuer.settings.groups_claim = "/person/teams".to_owned();
    fixture.run();
    let url = fixture.issuer.url().to_owned();
    let claims = json!({
        "iss": url, "aud": ["other", "api://cordon"], "azp": "console", "sub": "s1", "exp": NOW.unix_seconds() + 60,
        "scp": "Machine.Read openid", "auth_time": 5, "roles": ["Cordon.Administer"],
        "person": {"login": "ann", "teams": ["responders", "tier 2"]},
    });
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some("a".to_owned());
    let token = jsonwebtoken::encode(&header, &claims, &signer.key).unwrap();
    let subject = Subject::User {
        name: "ann".to_owned(),
        id: format!("{url}|s1"),
        scopes: vec![Permission::MachineReadAll],
        groups: vec!["corp:responders".to_owned(), "corp:tier 2".to_owned()],
        signed_in_at: 5,
        local: false,
    };
    let token = fixture.issuer.validate(&token::read(&token).unwrap(), NOW).await;
    assert_eq!(token, Ok(Token { app: format!("{url}|console"), subject }));
}

#[tokio::test]
async fn the_task_ends_with_the_server() {
    let fixture = fixture(pace(), &[&Signer::new("a")]).await;
    let task = fixture.run();
    fixture.stop.send_replace(true);
    task.await.unwrap();
}

#[test]
fn waits_double_up_to_the_longest() {
    let pace = Pace { retry_first: Duration::from_secs(1), retry_max: Duration::from_secs(60), ..pace() };
    let waits = [1, 2, 3, 6, 7, 8, 40, u32::MAX].map(|n| pace.retry_after(n).as_secs());
    assert_eq!(waits, [1, 2, 4, 32, 60, 60, 60, 60]);
}
