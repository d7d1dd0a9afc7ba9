//! A server of each test's own: its data in a temporary folder, its ports chosen by the system.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use cordon_server::config::Config;
use cordon_server::init::{InitOptions, Initialized, init};
use cordon_server::server::Server;
use domain::app::CLI_APP_ID;
use domain::permission::{Permission, Right};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::ClientBuilder;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use store::Store;

use super::client::{Client, Reply};

/// The password of every account of [`TestServer::account`].
pub(crate) const PASSWORD: &str = "correct horse battery staple";

pub(crate) struct TestServer {
    running: Option<Running>,
    pub(crate) config: Config,
    pub(crate) initialized: Initialized,
    pub(crate) http: reqwest::Client,
    admin: Option<Client>,
    folder: tempfile::TempDir,
}

/// How the server runs.
enum Running {
    Here(Server),
    Process(Child),
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts a server with settings of the test's own.
    pub(crate) async fn start_with(set: impl FnOnce(&mut Config)) -> Self {
        let mut server = Self::stopped(set).await;
        server.run().await;
        server
    }

    /// Starts the program, as a process of its own.
    pub(crate) async fn start_process() -> Self {
        let mut server = Self::stopped(|config| {
            let (public, agent) = (free_address(), free_address());
            config.public_url = format!("https://localhost:{}", public.port());
            config.agent_url = format!("https://localhost:{}", agent.port());
            (config.listen, config.agent_listen) = (public, agent);
        })
        .await;
        server.run_process().await;
        server
    }

    /// A server that was initialized and not started.
    pub(crate) async fn stopped(set: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = settings(folder.path(), set);
        let initialized = init(&config, InitOptions::default()).await.unwrap();
        let http = http_client(&initialized.ca_certificate, |builder| builder);
        Self { running: None, config, initialized, http, admin: None, folder }
    }

    /// Starts the server that was stopped, on the same ports.
    pub(crate) async fn run(&mut self) {
        let server = Server::start(self.config.clone()).await.unwrap();
        // The settings in force have the ports that were bound, so that a restart keeps the URLs.
        self.config = server.config().clone();
        self.config.listen = server.public_address();
        self.config.agent_listen = server.agent_address();
        self.running = Some(Running::Here(server));
        self.login_admin().await;
    }

    /// Starts the program that was stopped, on the same ports.
    pub(crate) async fn run_process(&mut self) {
        let file = self.folder.path().join("server.toml");
        std::fs::write(&file, toml::to_string(&self.config).unwrap()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_cordon-server"))
            .args(["run", "--config"])
            .arg(&file)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        self.running = Some(Running::Process(child));
        let address = self.config.listen;
        super::wait_until("the server listens", async || std::net::TcpStream::connect(address).is_ok()).await;
        self.login_admin().await;
    }

    pub(crate) async fn stop(&mut self) {
        match self.running.take().unwrap() {
            Running::Here(server) => server.shutdown().await,
            Running::Process(_) => panic!("a process is sent a signal"),
        }
    }

    /// Sends the process a signal and waits for its end.
    pub(crate) async fn signal(&mut self, signal: Signal) -> ExitStatus {
        let Some(Running::Process(mut child)) = self.running.take() else { panic!("no process") };
        let id = Pid::from_child(&child);
        kill_process(id, signal).unwrap();
        let mut status = None;
        super::wait_until("the process has ended", async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    async fn login_admin(&mut self) {
        let (id, secret) = (self.initialized.client_id.to_string(), self.initialized.client_secret.clone());
        self.admin = Some(self.login(&id, &secret).await);
    }

    /// The database, beside the server.
    pub(crate) fn store(&self) -> Store {
        Store::open(&self.config.data_dir.join("cordon.db")).unwrap()
    }

    pub(crate) fn url(&self) -> &str {
        &self.config.public_url
    }

    pub(crate) fn agent_address(&self) -> SocketAddr {
        self.config.agent_listen
    }

    /// The app that `init` made, which holds every permission.
    pub(crate) fn admin(&self) -> Client {
        self.admin.clone().unwrap()
    }

    /// A new app with these permissions.
    pub(crate) async fn client(&self, permissions: &[Permission]) -> Client {
        let permissions: Vec<_> = permissions.iter().map(|permission| permission.name()).collect();
        let name = format!("app {}", uuid::Uuid::new_v4());
        let body = json!({"name": name, "permissions": permissions});
        let app = self.admin().post("/api/cordon/v1/apps", &body).await.expect_status(201);
        self.login(app["id"].as_str().unwrap(), app["secret"].as_str().unwrap()).await
    }

    /// Starts a server where people sign in by a password that the command line is given: the shortest way to their
    /// tokens.
    pub(crate) async fn with_people() -> Self {
        Self::start_with(|config| config.password_grant = true).await
    }

    /// Makes an account.
    pub(crate) async fn account(&self, name: &str, groups: &[&str]) {
        let body = json!({"name": name, "groups": groups, "password": PASSWORD});
        self.admin().post("/api/cordon/v1/users", &body).await.expect_status(201);
    }

    /// Makes or changes a role.
    pub(crate) async fn role(&self, name: &str, rights: &[Right], user_groups: &[&str]) {
        let rights: Vec<_> = rights.iter().map(|right| right.name()).collect();
        let body = json!({"name": name, "rights": rights, "userGroups": user_groups});
        self.admin().put(&format!("/api/cordon/v1/roles/{name}"), &body).await.expect_status(200);
    }

    /// Makes or changes a machine group of the machines whose names begin so.
    pub(crate) async fn machine_group(&self, name: &str, start: &str, user_groups: &[&str]) {
        let rule = json!([{"property": "name", "operator": "startsWith", "value": start}]);
        let body = json!({"name": name, "rule": rule, "userGroups": user_groups});
        self.admin().put(&format!("/api/cordon/v1/machineGroups/{name}"), &body).await.expect_status(200);
    }

    /// Signs an account in to the command line, for these scopes.
    pub(crate) async fn sign_in(&self, name: &str, scopes: &[Permission]) -> Client {
        let scopes: Vec<_> = scopes.iter().map(|scope| format!("{}/{}", self.url(), scope.scope())).collect();
        let (app, scope) = (CLI_APP_ID.to_string(), scopes.join(" "));
        let form = [
            ("grant_type", "password"),
            ("client_id", &app),
            ("username", name),
            ("password", PASSWORD),
            ("scope", &scope),
        ];
        let reply = Reply::of(self.http.post(self.token_url("/v2.0")).form(&form)).await.expect_status(200);
        Client {
            http: self.http.clone(),
            base: self.url().to_owned(),
            app,
            token: reply["access_token"].as_str().unwrap().to_owned(),
        }
    }

    pub(crate) fn token_url(&self, version: &str) -> String {
        format!("{}/{}/oauth2{version}/token", self.url(), self.initialized.tenant)
    }

    pub(crate) async fn login(&self, id: &str, secret: &str) -> Client {
        let scope = format!("{}/.default", self.url());
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret),
            ("scope", &scope),
        ];
        let reply = Reply::of(self.http.post(self.token_url("/v2.0")).form(&form)).await.expect_status(200);
        Client {
            http: self.http.clone(),
            base: self.url().to_owned(),
            app: id.to_owned(),
            token: reply["access_token"].as_str().unwrap().to_owned(),
        }
    }

    /// The claims of a token of ours, changed by `change`, signed with the server's own key.
    pub(crate) fn forge(&self, token: &str, change: impl FnOnce(&mut Value)) -> String {
        let folder = self.config.data_dir.join("issuer");
        let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let key = EncodingKey::from_rsa_pem(&std::fs::read(file).unwrap()).unwrap();
        let (header, mut claims) = token_parts(token);
        change(&mut claims);
        let mut forged = Header::new(Algorithm::RS256);
        forged.kid = header["kid"].as_str().map(str::to_owned);
        jsonwebtoken::encode(&forged, &claims, &key).unwrap()
    }
}

/// The header and the claims of a token.
pub(crate) fn token_parts(token: &str) -> (Value, Value) {
    use base64::Engine as _;
    let part = |index: usize| {
        let text = token.split('.').nth(index).unwrap();
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    (part(0), part(1))
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(Running::Process(child)) = &mut self.running {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

/// Settings with everything in `folder` and ports chosen by the system.
pub(crate) fn settings(folder: &Path, set: impl FnOnce(&mut Config)) -> Config {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config {
        data_dir: folder.join("data"),
        listen: any_port,
        agent_listen: any_port,
        public_url: "https://localhost:0".to_owned(),
        agent_url: "https://localhost:0".to_owned(),
        ..Config::default()
    };
    set(&mut config);
    config
}

/// An HTTP client that trusts this certificate authority, and no other.
pub(crate) fn http_client(
    ca_certificate: &Path,
    set: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> reqwest::Client {
    // Another test may have installed it already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let pem = std::fs::read(ca_certificate).unwrap();
    let authority = reqwest::Certificate::from_pem(&pem).unwrap();
    set(reqwest::Client::builder().tls_certs_only([authority])).build().unwrap()
}
