//! People sign in: by the page and a code, on a device, by a password that an app was given; and what ends a session.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cordon_server::config::Config;
use domain::app::CLI_APP_ID;
use domain::permission::Permission;
use domain::session::{Asked, Decision, DeviceCode};
use domain::time::Timestamp;
use reqwest::Method;
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use sha2::Digest as _;
use store::session::{
    device_code_create, device_code_decide, device_code_fetch, session_by_refresh_handle, session_renew,
};
use uuid::Uuid;

use crate::harness::client::{Client, Reply};
use crate::harness::server::{TestServer, http_client, token_parts};

const PASSWORD: &str = "correct horse battery staple";
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const CALLBACK: &str = "https://soar.example/callback?x=1";
const VENDOR: &str = "https://api.securitycenter.microsoft.com";

/// A server with an account `ann` that may see and restrict machines, and a browser that follows nothing.
struct Place {
    server: TestServer,
    browser: reqwest::Client,
}

impl Place {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(set: impl FnOnce(&mut Config)) -> Self {
        let server = TestServer::start_with(set).await;
        let admin = server.admin();
        let ann =
            json!({"name": "Ann@lab.example", "displayName": "Ann", "groups": ["soc"], "password": PASSWORD});
        admin.post("/api/cordon/v1/users", &ann).await.expect_status(201);
        let role = json!({
            "name": "responder", "rights": ["View data", "Active remediation actions"], "userGroups": ["soc"],
        });
        let reply = admin.put("/api/cordon/v1/roles/responder", &role).await;
        assert!(reply.status < 300, "{}", reply.text);
        let browser =
            http_client(&server.initialized.ca_certificate, |builder| builder.redirect(Policy::none()));
        Self { server, browser }
    }

    /// An app that people sign in to; its id and secret.
    async fn app(&self, public: bool, redirect_uris: &[&str]) -> (String, Option<String>) {
        let body = json!({
            "name": format!("app {}", Uuid::new_v4()), "permissions": ["Machine.Read.All", "Machine.RestrictExecution"],
            "public": public, "redirectUris": redirect_uris,
        });
        let app = self.server.admin().post("/api/cordon/v1/apps", &body).await.expect_status(201);
        (app["id"].as_str().unwrap().to_owned(), app["secret"].as_str().map(str::to_owned))
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{}/oauth2{path}", self.server.url(), self.server.initialized.tenant)
    }

    fn default_scope(&self) -> String {
        format!("{}/.default", self.server.url())
    }

    async fn get(&self, url: String) -> Reply {
        Reply::of(self.browser.get(url)).await
    }

    async fn post(&self, url: String, form: &[(&str, &str)]) -> Reply {
        Reply::of(self.browser.post(url).form(form)).await
    }

    async fn token(&self, form: &[(&str, &str)]) -> Reply {
        self.post(self.url("/v2.0/token"), form).await
    }

    /// The address of the page, for a request that is right but for `changes`; an empty value leaves a parameter out.
    fn authorize(&self, app: &str, changes: &[(&str, &str)]) -> String {
        let scope = format!("{VENDOR}/Machine.Read openid offline_access");
        let mut parameters = vec![
            ("client_id", app),
            ("response_type", "code"),
            ("redirect_uri", CALLBACK),
            ("scope", &scope),
            ("state", "a state & more"),
            ("nonce", "n-0S6"),
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
        ];
        for (name, value) in changes {
            parameters.retain(|(known, _)| known != name);
            if !value.is_empty() {
                parameters.push((name, value));
            }
        }
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        format!("{}?{query}", self.url("/v2.0/authorize"))
    }

    async fn sign_in(&self, url: String, password: &str) -> Reply {
        let form = [("username", "ann@LAB.example"), ("password", password), ("decision", "sign_in")];
        self.post(url, &form).await
    }

    /// Signs in and takes the code.
    async fn code(&self, app: &str, changes: &[(&str, &str)]) -> String {
        let reply = self.sign_in(self.authorize(app, changes), PASSWORD).await;
        assert_eq!(reply.status, 303, "{}", reply.text);
        parameter(&reply, "code").unwrap()
    }

    /// The tokens of a public app for a whole sign-in.
    async fn tokens(&self, app: &str) -> Value {
        let code = self.code(app, &[]).await;
        self.token(&redeem(app, &code)).await.expect_status(200)
    }

    async fn renew(&self, app: &str, token: &Value) -> Reply {
        let form =
            [("grant_type", "refresh_token"), ("client_id", app), ("refresh_token", token.as_str().unwrap())];
        self.token(&form).await
    }

    fn client(&self, tokens: &Value) -> Client {
        self.server.admin().with_token(tokens["access_token"].as_str().unwrap())
    }

    async fn audited(&self, operation: &str) -> Vec<Value> {
        let reply =
            self.server.admin().get(&format!("/api/cordon/v1/auditEntries?operation={operation}")).await;
        reply.expect_status(200)["value"].as_array().unwrap().clone()
    }

    async fn device(&self) -> Value {
        let cli = CLI_APP_ID.to_string();
        let scope = format!("{} offline_access", self.default_scope());
        let form = [("client_id", cli.as_str()), ("scope", &scope)];
        self.post(self.url("/v2.0/devicecode"), &form).await.expect_status(200)
    }

    async fn poll(&self, device: &Value) -> Reply {
        let cli = CLI_APP_ID.to_string();
        let code = device["device_code"].as_str().unwrap();
        let grant = "urn:ietf:params:oauth:grant-type:device_code";
        self.token(&[("grant_type", grant), ("client_id", &cli), ("device_code", code)]).await
    }
}

fn redeem<'a>(app: &'a str, code: &'a str) -> [(&'a str, &'a str); 6] {
    [
        ("grant_type", "authorization_code"),
        ("client_id", app),
        ("code", code),
        ("redirect_uri", CALLBACK),
        ("code_verifier", VERIFIER),
        ("client_info", "1"),
    ]
}

/// A parameter of the address that a reply leads to.
fn parameter(reply: &Reply, name: &str) -> Option<String> {
    let location = reply.headers.get("location")?.to_str().unwrap();
    let query = location.split_once('?')?.1;
    let found = form_urlencoded::parse(query.as_bytes()).find(|(known, _)| known == name);
    found.map(|(_, value)| value.into_owned())
}

/// A device that waits until a time.
fn device_code(expires_at: Timestamp) -> DeviceCode {
    DeviceCode {
        app: CLI_APP_ID,
        asked: Asked {
            audience: VENDOR.to_owned(),
            permissions: vec![Permission::MachineReadAll],
            everything: false,
            openid: false,
            offline: false,
        },
        address: "192.0.2.7".to_owned(),
        created_at: Timestamp::from_unix_seconds(1),
        expires_at,
        interval: Duration::from_secs(5),
        polled_at: None,
        decision: None,
    }
}

fn digest(text: &str) -> String {
    hex::encode(sha2::Sha256::digest(text))
}

#[tokio::test]
async fn a_person_signs_in_on_the_page_and_uses_the_api() {
    let place = Place::start().await;
    let (app, _) = place.app(true, &[CALLBACK]).await;
    let page = place.get(place.authorize(&app, &[("login_hint", "\"><script>")])).await;
    assert_eq!(page.status, 200);
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    for part in ["default-src 'none'", "frame-ancestors 'none'", "form-action 'self' https://soar.example;"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert_eq!(page.headers["cache-control"], "no-store");
    for part in
        ["autocomplete=\"current-password\"", "see machines", "soar.example", "&quot;&gt;&lt;script&gt;"]
    {
        assert!(page.text.contains(part), "{part}: {}", page.text);
    }
    assert!(!page.text.contains("<script"), "{}", page.text);

    let reply = place.sign_in(place.authorize(&app, &[]), PASSWORD).await;
    assert_eq!(reply.status, 303, "{}", reply.text);
    assert!(reply.headers["location"].to_str().unwrap().starts_with(&format!("{CALLBACK}&code=")));
    assert_eq!(parameter(&reply, "state").unwrap(), "a state & more");
    let issuer = format!("{}/{}/v2.0", place.server.url(), place.server.initialized.tenant);
    assert_eq!(parameter(&reply, "iss").unwrap(), issuer);

    let code = parameter(&reply, "code").unwrap();
    let tokens = place.token(&redeem(&app, &code)).await.expect_status(200);
    assert_eq!(tokens["scope"], format!("{VENDOR}/Machine.Read openid profile offline_access"));
    let (_, claims) = token_parts(tokens["access_token"].as_str().unwrap());
    let expected = json!({
        "aud": VENDOR, "scp": "Machine.Read", "upn": "ann@lab.example", "preferred_username": "ann@lab.example",
        "name": "Ann", "groups": ["soc"], "azp": app, "ver": "2.0", "iss": issuer,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&claims[name], value, "{claims}");
    }
    assert!(claims.get("roles").is_none() && claims["oid"] == claims["sub"], "{claims}");
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    let (_, id) = token_parts(tokens["id_token"].as_str().unwrap());
    assert_eq!((&id["aud"], &id["nonce"], &id["sub"]), (&json!(app), &json!("n-0S6"), &claims["sub"]));
    let info = URL_SAFE_NO_PAD.decode(tokens["client_info"].as_str().unwrap()).unwrap();
    let info: Value = serde_json::from_slice(&info).unwrap();
    assert_eq!(info, json!({"uid": claims["oid"], "utid": claims["tid"]}));

    // What was not asked for is not granted; an id token grants nothing.
    let client = place.client(&tokens);
    client.get("/api/machines").await.expect_status(200);
    client.restrict("nothing").await.expect_error(403, "Forbidden");
    let id_token = client.with_token(tokens["id_token"].as_str().unwrap());
    assert!(matches!(id_token.get("/api/machines").await.status, 401 | 403));
    let audited = place.audited("user_sign_in").await;
    assert_eq!((&audited[0]["actor"], &audited[0]["subject"]), (&json!("ann@lab.example"), &json!(app)));
}

#[tokio::test]
async fn an_app_with_a_secret_shows_it_with_the_code() {
    let place = Place::start().await;
    let (app, secret) = place.app(false, &[CALLBACK]).await;
    let resource = [("scope", "openid"), ("resource", VENDOR)];
    let code = place.code(&app, &resource).await;
    place.token(&redeem(&app, &code)).await.expect_status(401);
    let secret = secret.unwrap();
    let with_secret = [&redeem(&app, &code)[..], &[("client_secret", &secret)]].concat();
    let reply = place.post(place.url("/token"), &with_secret).await.expect_status(200);
    let (_, claims) = token_parts(reply["access_token"].as_str().unwrap());
    assert_eq!(claims["appid"], app);
    assert_eq!(claims["scp"], "Machine.Read Machine.RestrictExecution");
    assert!(reply["expires_in"].is_string() && reply.get("refresh_token").is_none(), "{reply}");
}

#[tokio::test]
async fn a_code_counts_once_and_for_its_own_request_only() {
    let place = Place::start().await;
    let ((app, _), (other, _)) = (place.app(true, &[CALLBACK]).await, place.app(true, &[CALLBACK]).await);
    let code = place.code(&app, &[]).await;
    for (name, value) in [
        ("client_id", other.as_str()),
        ("code", "cordon-code-0"),
        ("redirect_uri", "https://soar.example/callback"),
        ("code_verifier", CHALLENGE),
        ("code_verifier", ""),
    ] {
        let mut form = redeem(&app, &code);
        form.iter_mut().filter(|(known, _)| *known == name).for_each(|field| field.1 = value);
        let body = place.token(&form).await.expect_status(400);
        assert_eq!(body["error"], "invalid_grant", "{name} {value}: {body}");
    }
    let tokens = place.token(&redeem(&app, &code)).await.expect_status(200);
    let again = place.token(&redeem(&app, &code)).await.expect_status(400);
    assert!(again["error_description"].as_str().unwrap().contains("revoked"), "{again}");
    // Somebody else has the code: what it led to has ended.
    let renewed = place.renew(&app, &tokens["refresh_token"]).await.expect_status(400);
    assert_eq!(renewed["error"], "invalid_grant");
    assert_eq!(place.audited("session_revoke").await.len(), 1);
}

#[tokio::test]
async fn nobody_is_sent_to_where_an_app_is_not() {
    let place = Place::start().await;
    let (app, _) = place.app(true, &[CALLBACK, "http://localhost/cb"]).await;
    let elsewhere = [
        [("redirect_uri", "https://evil.example/callback")],
        [("redirect_uri", "https://soar.example/callback")],
        [("redirect_uri", "http://localhost:5/other")],
        [("redirect_uri", "")],
        [("client_id", "00000000-0000-0000-0000-000000000000")],
        [("client_id", "<b>")],
        [("client_id", "")],
    ];
    for changes in elsewhere {
        for response_type in ["code", "token"] {
            let changes = [&changes[..], &[("response_type", response_type)]].concat();
            let url = place.authorize(&app, &changes);
            for reply in [place.get(url.clone()).await, place.sign_in(url.clone(), PASSWORD).await] {
                assert_eq!(reply.status, 400, "{changes:?}: {}", reply.text);
                assert!(!reply.headers.contains_key("location"), "{changes:?}");
                assert!(reply.headers["content-type"].to_str().unwrap().starts_with("text/html"));
                assert!(
                    !reply.text.contains("evil.example") && !reply.text.contains("<b>"),
                    "{}",
                    reply.text
                );
            }
        }
    }
    let twice = format!("{}&redirect_uri=https%3A%2F%2Fevil.example", place.authorize(&app, &[]));
    assert_eq!(place.get(twice).await.status, 400);
    place.code(&app, &[("redirect_uri", "http://localhost:50123/cb")]).await;
    let tenant = place.server.initialized.tenant.to_string();
    for wrong in ["common", "organizations", "00000000-0000-0000-0000-000000000000"] {
        let reply = place.get(place.authorize(&app, &[]).replace(&tenant, wrong)).await;
        assert_eq!(reply.status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn an_app_hears_what_is_wrong_with_its_request() {
    let place = Place::start().await;
    let (app, _) = place.app(true, &[CALLBACK]).await;
    let everything = format!("{VENDOR}/Cordon.Administer");
    for (changes, error) in [
        ([("response_type", "token")], "unsupported_response_type"),
        ([("response_type", "code id_token")], "unsupported_response_type"),
        ([("response_type", "")], "invalid_request"),
        ([("response_mode", "fragment")], "invalid_request"),
        ([("code_challenge", "")], "invalid_request"),
        ([("code_challenge", "short")], "invalid_request"),
        ([("code_challenge_method", "plain")], "invalid_request"),
        ([("code_challenge_method", "")], "invalid_request"),
        ([("prompt", "none")], "login_required"),
        ([("scope", "openid")], "invalid_scope"),
        ([("scope", "Everything.All")], "invalid_scope"),
        ([("scope", everything.as_str())], "invalid_scope"),
        ([("scope", "https://graph.microsoft.com/.default")], "invalid_resource"),
    ] {
        let reply = place.get(place.authorize(&app, &changes)).await;
        assert_eq!(reply.status, 303, "{changes:?}: {}", reply.text);
        assert_eq!(parameter(&reply, "error").as_deref(), Some(error), "{changes:?}");
        assert_eq!(parameter(&reply, "state").unwrap(), "a state & more");
        assert!(parameter(&reply, "error_description").unwrap().starts_with("AADSTS"));
        assert!(parameter(&reply, "iss").is_some() && parameter(&reply, "code").is_none());
    }
    let cancelled = place.post(place.authorize(&app, &[]), &[("decision", "cancel")]).await;
    assert_eq!(parameter(&cancelled, "error").as_deref(), Some("access_denied"));
    let wrong = place.sign_in(place.authorize(&app, &[]), "wrong").await;
    assert_eq!(wrong.status, 403);
    assert!(wrong.text.contains("role=\"alert\"") && wrong.text.contains("value=\"ann@LAB.example\""));
    assert!(!wrong.text.contains("value=\"wrong\""));
}

#[tokio::test]
async fn an_answer_can_be_a_form_that_the_person_sends_on() {
    let place = Place::start().await;
    let (app, _) = place.app(true, &[CALLBACK]).await;
    let url = place.authorize(&app, &[("response_mode", "form_post"), ("state", "\"><script>")]);
    let reply = place.sign_in(url, PASSWORD).await;
    assert_eq!(reply.status, 200);
    for part in [
        "method=\"post\" action=\"https://soar.example/callback?x=1\"",
        "name=\"code\" value=\"cordon-code-",
        "name=\"iss\"",
        "value=\"&quot;&gt;&lt;script&gt;\"",
    ] {
        assert!(reply.text.contains(part), "{part}: {}", reply.text);
    }
    assert!(!reply.text.contains("<script"));
}

#[tokio::test]
async fn a_session_is_renewed_by_its_newest_token_only() {
    let place = Place::start().await;
    let (app, _) = place.app(true, &[CALLBACK]).await;
    let (other, _) = place.app(true, &[CALLBACK]).await;
    let first = place.tokens(&app).await;
    place.renew(&other, &first["refresh_token"]).await.expect_status(400);
    let second = place.renew(&app, &first["refresh_token"]).await.expect_status(200);
    let third = place.renew(&app, &second["refresh_token"]).await.expect_status(200);
    let (_, before) = token_parts(first["access_token"].as_str().unwrap());
    let (_, after) = token_parts(third["access_token"].as_str().unwrap());
    for claim in ["sid", "auth_time", "scp", "aud"] {
        assert_eq!(before[claim], after[claim], "{claim}");
    }
    place.client(&third).get("/api/machines").await.expect_status(200);
    // Asking for more gives no more.
    let form = [
        ("grant_type", "refresh_token"),
        ("client_id", &app),
        ("refresh_token", third["refresh_token"].as_str().unwrap()),
        ("scope", &place.default_scope()),
    ];
    let fourth = place.token(&form).await.expect_status(200);
    assert_eq!(token_parts(fourth["access_token"].as_str().unwrap()).1["scp"], "Machine.Read");
    // An old one in somebody's hands ends the session for both.
    let reused = place.renew(&app, &second["refresh_token"]).await.expect_status(400);
    assert!(reused["error_description"].as_str().unwrap().contains("already"), "{reused}");
    place.renew(&app, &fourth["refresh_token"]).await.expect_status(400);
    for rubbish in ["", "x", "cordon-refresh-", "cordon-refresh-a.b", "\u{0}"] {
        place.renew(&app, &json!(rubbish)).await.expect_status(400);
    }
}

#[tokio::test]
async fn a_session_ends_when_it_was_idle_or_the_account_changed() {
    let place = Place::start().await;
    let (app, _) = place.app(true, &[CALLBACK]).await;
    let idle = place.tokens(&app).await;
    let token = idle["refresh_token"].as_str().unwrap().to_owned();
    let handle = digest(token.strip_prefix("cordon-refresh-").unwrap().split_once('.').unwrap().0);
    let store = place.server.store();
    let expires = store.write(move |tx| {
        let (session, digests) = session_by_refresh_handle(tx, &handle)?.unwrap();
        session_renew(tx, session.id, Some(&digests), Timestamp::from_unix_seconds(1))?;
        Ok::<_, store::StoreError>(session.expires_at.since(session.signed_in_at))
    });
    let expires = expires.await.unwrap();
    assert!((Duration::from_secs(12 * 3600)..Duration::from_secs(12 * 3600 + 60)).contains(&expires));
    let body = place.renew(&app, &json!(token)).await.expect_status(400);
    assert!(body["error_description"].as_str().unwrap().contains("expired"), "{body}");

    let admin = place.server.admin();
    for change in
        [json!({"enabled": false}), json!({"enabled": true, "password": "another pass phrase, longer"})]
    {
        if change["enabled"] == true {
            // Signed in a second before the change at least: times in tokens are whole seconds.
            let patched = admin.request(Method::PATCH, "/api/cordon/v1/users/ann@lab.example");
            Reply::of(patched.json(&json!({"enabled": true}))).await.expect_status(200);
        }
        let tokens = place.tokens(&app).await;
        let (_, claims) = token_parts(tokens["access_token"].as_str().unwrap());
        let signed_in = claims["auth_time"].as_i64().unwrap();
        crate::harness::wait_until("the clock has gone on", async || {
            Timestamp::from(std::time::SystemTime::now()).unix_seconds() > signed_in
        })
        .await;
        place.client(&tokens).get("/api/machines").await.expect_status(200);
        let patched = admin.request(Method::PATCH, "/api/cordon/v1/users/ann@lab.example");
        Reply::of(patched.json(&change)).await.expect_status(200);
        place.client(&tokens).get("/api/machines").await.expect_error(401, "Unauthorized");
        place.renew(&app, &tokens["refresh_token"]).await.expect_status(400);
    }
}

#[tokio::test]
async fn a_device_is_approved_on_the_page() {
    let place = Place::start().await;
    let device = place.device().await;
    for name in ["device_code", "user_code", "verification_uri", "verification_uri_complete", "message"] {
        assert!(device[name].is_string(), "{device}");
    }
    assert_eq!((&device["expires_in"], &device["interval"]), (&json!(900), &json!(5)));
    let user_code = device["user_code"].as_str().unwrap();
    assert_eq!(place.poll(&device).await.expect_status(400)["error"], "authorization_pending");
    assert_eq!(place.poll(&device).await.expect_status(400)["error"], "slow_down");

    let empty = place.get(device["verification_uri"].as_str().unwrap().to_owned()).await;
    assert!(empty.status == 200 && empty.text.contains("name=\"user_code\""), "{}", empty.text);
    let page = place.get(device["verification_uri_complete"].as_str().unwrap().to_owned()).await;
    for part in ["Cordon command line", "administer Cordon", "127.0.0.1", "Approve", "Decline"] {
        assert!(page.text.contains(part), "{part}: {}", page.text);
    }
    let typed = user_code.to_lowercase().replace('-', " ");
    let approve = |password| {
        [
            ("user_code", typed.as_str()),
            ("username", "ann@lab.example"),
            ("password", password),
            ("decision", "approve"),
        ]
    };
    let wrong = place.post(place.url("/deviceauth"), &approve("wrong")).await;
    assert!(wrong.status == 403 && wrong.text.contains("role=\"alert\""), "{}", wrong.text);
    let done = place.post(place.url("/deviceauth"), &approve(PASSWORD)).await;
    assert!(done.status == 200 && done.text.contains("is signed in"), "{}", done.text);
    let again = place.post(place.url("/deviceauth"), &approve(PASSWORD)).await;
    assert_eq!(again.status, 404, "a code is approved once");

    let tokens = place.poll(&device).await.expect_status(200);
    assert!(tokens["refresh_token"].is_string());
    place.client(&tokens).get("/api/machines").await.expect_status(200);
    assert_eq!(place.poll(&device).await.expect_status(400)["error"], "invalid_grant");
    place.renew(&CLI_APP_ID.to_string(), &tokens["refresh_token"]).await.expect_status(200);
}

#[tokio::test]
async fn a_device_is_declined_or_comes_too_late() {
    let place = Place::start().await;
    let device = place.device().await;
    let code = device["user_code"].as_str().unwrap();
    let declined =
        place.post(place.url("/deviceauth"), &[("user_code", code), ("decision", "decline")]).await;
    assert!(declined.status == 200 && declined.text.contains("Declined"), "{}", declined.text);
    assert_eq!(place.poll(&device).await.expect_status(400)["error"], "access_denied");

    let code = device_code(Timestamp::from_unix_seconds(1));
    let store = place.server.store();
    let created =
        store.write(move |tx| device_code_create(tx, &code, "n", &digest("late"), &digest("BBBBBBBB")));
    created.await.unwrap();
    assert_eq!(
        place.poll(&json!({"device_code": "late"})).await.expect_status(400)["error"],
        "expired_token"
    );
    let page = place.get(format!("{}?user_code=BBBB-BBBB", place.url("/deviceauth"))).await;
    assert_eq!(page.status, 404);
}

#[tokio::test]
async fn codes_of_devices_cannot_be_guessed() {
    let place = Place::start().await;
    let mut statuses = Vec::new();
    for number in 0..35 {
        let url = format!("{}?user_code=BCDF-{number}", place.url("/deviceauth"));
        statuses.push(place.get(url).await.status);
    }
    assert_eq!(statuses.first(), Some(&404));
    assert_eq!(statuses.last(), Some(&429), "{statuses:?}");
    // Wrong codes keep nobody from the rest: who signs in, and apps.
    let (app, secret) = place.app(false, &[CALLBACK]).await;
    let code = place.code(&app, &[]).await;
    place
        .token(&[&redeem(&app, &code)[..], &[("client_secret", &secret.unwrap())]].concat())
        .await
        .expect_status(200);
}

#[tokio::test]
async fn other_sites_spend_nobodys_attempts() {
    let place = Place::start().await;
    let (app, _) = place.app(true, &[CALLBACK]).await;
    let device = place.device().await;
    let code = device["user_code"].as_str().unwrap();
    let elsewhere =
        [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example"), ("origin", "null")];
    for (name, value) in elsewhere {
        let wrong = [("username", "ann@lab.example"), ("password", "wrong"), ("decision", "sign_in")];
        for _ in 0..11 {
            let request = place.browser.post(place.authorize(&app, &[])).header(name, value);
            assert_eq!(Reply::of(request.form(&wrong)).await.status, 403, "{name}: {value}");
        }
        let decline = [("user_code", code), ("decision", "decline")];
        let request = place.browser.post(place.url("/deviceauth")).header(name, value);
        assert_eq!(Reply::of(request.form(&decline)).await.status, 403, "{name}: {value}");
    }
    for number in 0..40 {
        let url = format!("{}?user_code=BCDF-{number}", place.url("/deviceauth"));
        let reply = Reply::of(place.browser.get(url).header("sec-fetch-site", "cross-site")).await;
        assert!(reply.status == 200 && reply.text.contains(&format!("value=\"BCDF-{number}\"")));
    }
    assert_eq!(place.poll(&device).await.expect_status(400)["error"], "authorization_pending");
    let url = place.url("/deviceauth");
    let form = [("user_code", code), ("decision", "decline")];
    let request = place.browser.post(url).header("sec-fetch-site", "same-origin").header("origin", "null");
    assert_eq!(Reply::of(request.form(&form)).await.status, 200);
    let request = place.browser.post(place.authorize(&app, &[])).header("origin", place.server.url());
    let right = [("username", "ann@lab.example"), ("password", PASSWORD), ("decision", "sign_in")];
    assert_eq!(Reply::of(request.form(&right)).await.status, 303);
    assert!(place.audited("user_lock").await.is_empty());
}

#[tokio::test]
async fn a_network_has_a_share_of_the_devices_that_wait() {
    let place = Place::start().await;
    let (cli, scope) = (CLI_APP_ID.to_string(), place.default_scope());
    let form = [("client_id", cli.as_str()), ("scope", &scope)];
    let store = place.server.store();
    let created = store.write(|tx| {
        for number in 0..60 {
            // Ten are of another network, ten have expired.
            let network = if number < 10 { "192.0.2.7" } else { "127.0.0.1" };
            let expires = if number < 20 { 1 } else { 4_000_000_000 };
            let code = device_code(Timestamp::from_unix_seconds(expires));
            device_code_create(tx, &code, network, &number.to_string(), &number.to_string())?;
        }
        Ok::<_, store::StoreError>(())
    });
    created.await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..11 {
        statuses.push(place.post(place.url("/v2.0/devicecode"), &form).await.status);
    }
    assert_eq!(statuses, [vec![200; 10], vec![429]].concat());
    let decided = store.write(|tx| device_code_decide(tx, "30", Decision::Declined, Timestamp::default()));
    assert!(decided.await.unwrap());
    place.post(place.url("/v2.0/devicecode"), &form).await.expect_status(200);
}

#[tokio::test]
async fn early_polls_change_nothing_and_are_counted() {
    let place = Place::start().await;
    let device = place.device().await;
    assert_eq!(place.poll(&device).await.expect_status(400)["error"], "authorization_pending");
    let digest = digest(device["device_code"].as_str().unwrap());
    let store = place.server.store();
    let fetched = async || {
        let digest = digest.clone();
        store.read(move |tx| device_code_fetch(tx, &digest)).await.unwrap()
    };
    let before = fetched().await;
    for _ in 0..3 {
        assert_eq!(place.poll(&device).await.expect_status(400)["error"], "slow_down");
    }
    assert_eq!(fetched().await, before);
}

#[tokio::test]
async fn an_address_cannot_fill_the_server_with_devices() {
    let place = Place::start().await;
    let (cli, scope) = (CLI_APP_ID.to_string(), place.default_scope());
    let mut statuses = Vec::new();
    for _ in 0..32 {
        let form = [("client_id", cli.as_str()), ("scope", &scope)];
        statuses.push(place.post(place.url("/v2.0/devicecode"), &form).await.status);
    }
    assert_eq!((statuses.first(), statuses.last()), (Some(&200), Some(&429)), "{statuses:?}");
}

#[tokio::test]
async fn passwords_cannot_be_guessed() {
    let place = Place::start().await;
    let (app, _) = place.app(true, &[CALLBACK]).await;
    let url = place.authorize(&app, &[]);
    for _ in 0..10 {
        assert_eq!(place.sign_in(url.clone(), "wrong").await.status, 403);
    }
    let reply = place.sign_in(url.clone(), PASSWORD).await;
    assert_eq!(reply.status, 429, "{}", reply.text);
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(place.audited("user_lock").await.len(), 1);
    // Another account, from the same address.
    let form = [("username", "bob"), ("password", "wrong"), ("decision", "sign_in")];
    assert_eq!(place.post(url, &form).await.status, 403);
}

#[tokio::test]
async fn passwords_in_apps_are_off_by_default() {
    let place = Place::start().await;
    let (app, _) = place.app(true, &[]).await;
    let form = [
        ("grant_type", "password"),
        ("client_id", app.as_str()),
        ("username", "ann@lab.example"),
        ("password", PASSWORD),
        ("resource", VENDOR),
    ];
    let body = place.token(&form).await.expect_status(400);
    assert_eq!(body["error"], "unsupported_grant_type");
    assert!(body["error_description"].as_str().unwrap().contains("password_grant"), "{body}");

    let place = Place::start_with(|config| config.password_grant = true).await;
    let (app, _) = place.app(true, &[]).await;
    let mut form = form;
    form[1].1 = &app;
    let tokens = place.post(place.url("/token"), &form).await.expect_status(200);
    place.client(&tokens).get("/api/machines").await.expect_status(200);
    form[3].1 = "wrong";
    let body = place.post(place.url("/token"), &form).await.expect_status(400);
    assert_eq!((&body["error"], &body["error_codes"]), (&json!("invalid_grant"), &json!([50126])));
}

#[tokio::test]
async fn discovery_tells_clients_everything() {
    let place = Place::start().await;
    let base = format!("{}/{}", place.server.url(), place.server.initialized.tenant);
    for (part, version) in [("", ""), ("/v2.0", "/v2.0")] {
        let url = format!("{base}{part}/.well-known/openid-configuration");
        let document = place.get(url).await.expect_status(200);
        assert_eq!(document["device_authorization_endpoint"], format!("{base}/oauth2{version}/devicecode"));
        assert_eq!(document["authorization_endpoint"], format!("{base}/oauth2{version}/authorize"));
        assert_eq!(document["code_challenge_methods_supported"], json!(["S256"]));
        assert_eq!(document["response_types_supported"], json!(["code"]));
        let contains = |name: &str, value: &str| document[name].as_array().unwrap().contains(&json!(value));
        assert!(contains("token_endpoint_auth_methods_supported", "private_key_jwt"));
        assert!(contains("grant_types_supported", "urn:ietf:params:oauth:grant-type:device_code"));
        assert!(contains("scopes_supported", "Machine.RestrictExecution"));
        assert!(!contains("grant_types_supported", "password"));
        assert!(document.get("userinfo_endpoint").is_none());
    }
}

/// A log that tests can read.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

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
async fn no_log_holds_what_signs_in() {
    let log = Log::default();
    let writer = log.clone();
    let filter = "trace,h2=info,hyper=info,rustls=info,tungstenite=info,reqwest=info,hyper_util=info";
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // With one subscriber in the process, a thread that has none can switch a place off for all when it comes there
    // first; with two, each is asked.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    // The test and the server run on this thread.
    let _logged = tracing::subscriber::set_default(subscriber);
    let place = Place::start().await;
    let (app, secret) = place.app(false, &[CALLBACK]).await;
    let secret = secret.unwrap();
    let code = place.code(&app, &[]).await;
    let form = [&redeem(&app, &code)[..], &[("client_secret", &secret)]].concat();
    let tokens = place.token(&form).await.expect_status(200);
    place.token(&form).await.expect_status(400);
    place.client(&tokens).get("/api/machines").await.expect_status(200);
    let device = place.device().await;
    let user_code = device["user_code"].as_str().unwrap();
    let approve = [
        ("user_code", user_code),
        ("username", "ann@lab.example"),
        ("password", PASSWORD),
        ("decision", "approve"),
    ];
    place.post(place.url("/deviceauth"), &approve).await.expect_status(200);
    let of_device = place.poll(&device).await.expect_status(200);
    let wrong = [("username", "my password typed into the name"), ("password", "a wrong guess")];
    place.post(place.authorize(&app, &[]), &wrong).await;

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("a person signed in") && log.contains("a device was approved"), "{log}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut secrets = vec![
        PASSWORD.to_owned(),
        form_urlencoded::byte_serialize(PASSWORD.as_bytes()).collect(),
        "my password".to_owned(),
        "a wrong guess".to_owned(),
        code,
        secret,
        VERIFIER.to_owned(),
        CHALLENGE.to_owned(),
        "a state".to_owned(),
        user_code.to_owned(),
        text(&device["device_code"]),
        text(&tokens["id_token"]),
    ];
    for tokens in [&tokens, &of_device] {
        secrets.extend([text(&tokens["access_token"]), text(&tokens["refresh_token"])]);
    }
    for secret in secrets {
        assert!(!log.contains(&secret), "the log holds {secret}");
    }
}
