//! A real provider of `OpenID` Connect: `oidc-provider` of npm, run by Node.js on this computer.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{StatusCode, Url};

use super::issuer::CLIENT;
use crate::harness::client::Reply;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oidc-provider");
const FILES: [&str; 3] = ["package.json", "package-lock.json", "provider.mjs"];
const REDIRECT: &str = "http://127.0.0.1/callback";

/// The folder with the provider and what it needs, installed once for each content of the lock file.
fn installed() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oidc-provider");
        let installed = folder.join("node_modules/.installed");
        let lock = std::fs::read(Path::new(SOURCE).join("package-lock.json")).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        for file in FILES {
            std::fs::copy(Path::new(SOURCE).join(file), folder.join(file)).unwrap();
        }
        if std::fs::read(&installed).is_ok_and(|of| of == lock) {
            return folder;
        }
        let output = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&folder)
            .output()
            .expect("npm cannot be run; this test needs Node.js and npm (cargo xtask test installs them)");
        assert!(output.status.success(), "npm ci: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(&installed, lock).unwrap();
        folder
    })
}

/// A provider that runs.
pub(crate) struct Provider {
    child: Child,
    /// Open, because it would end at a line that it cannot print.
    _output: BufReader<ChildStdout>,
    pub(crate) url: String,
    http: reqwest::Client,
}

impl Provider {
    /// Starts a provider that signs with this algorithm.
    pub(crate) fn start(algorithm: &str, http: reqwest::Client) -> Self {
        let mut child = Command::new("node")
            .arg("provider.mjs")
            .arg(algorithm)
            .current_dir(installed())
            // It ends when this test does, however that is.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("node cannot be run; this test needs Node.js (cargo xtask test installs it)");
        let mut url = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut url).unwrap();
        assert!(url.starts_with("http://127.0.0.1:"), "the provider did not start: {url:?}");
        Self { child, _output: output, url: url.trim().to_owned(), http }
    }

    /// A token for the application itself.
    pub(crate) async fn app_token(&self) -> String {
        let form = [("grant_type", "client_credentials"), ("resource", "api://cordon")];
        let request = self.http.post(format!("{}/token", self.url)).form(&form);
        let reply = Reply::of(request.basic_auth(CLIENT, Some("not-a-secret"))).await.expect_status(200);
        reply["access_token"].as_str().unwrap().to_owned()
    }

    /// A token for a person who signs in: authorization code with PKCE, as a browser and a public client do it.
    pub(crate) async fn user_token(&self, person: &str, scope: &str) -> String {
        let verifier = "a".repeat(43);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes());
        let challenge = URL_SAFE_NO_PAD.encode(digest);
        let scope = format!("openid {scope}");
        let query = [
            ("client_id", "console"),
            ("response_type", "code"),
            ("redirect_uri", REDIRECT),
            ("scope", &scope),
            ("resource", "api://cordon"),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
            ("login_hint", person),
        ];
        let code = self.sign_in(Url::parse_with_params(&format!("{}/auth", self.url), query).unwrap()).await;
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", "console"),
            ("code", &code),
            ("redirect_uri", REDIRECT),
            ("code_verifier", &verifier),
            ("resource", "api://cordon"),
        ];
        let request = self.http.post(format!("{}/token", self.url)).form(&form);
        let reply = Reply::of(request).await.expect_status(200);
        reply["access_token"].as_str().unwrap().to_owned()
    }

    /// Follows the provider with its cookies, back to the client; the code.
    async fn sign_in(&self, mut url: Url) -> String {
        let mut cookies = BTreeMap::new();
        for _ in 0..10 {
            let header: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let request = self.http.get(url.clone()).header(COOKIE, header.join("; "));
            let response = request.send().await.unwrap();
            assert!(response.status().is_redirection(), "{url}: {}", response.status());
            assert_ne!(response.status(), StatusCode::NOT_MODIFIED);
            for cookie in response.headers().get_all(SET_COOKIE) {
                let pair = cookie.to_str().unwrap().split(';').next().unwrap();
                let (name, value) = pair.split_once('=').unwrap();
                cookies.insert(name.to_owned(), value.to_owned());
            }
            url = url.join(response.headers()[LOCATION].to_str().unwrap()).unwrap();
            if url.as_str().starts_with(REDIRECT) {
                let code = url.query_pairs().find(|(name, _)| name == "code");
                return code.unwrap_or_else(|| panic!("{url}")).1.into_owned();
            }
        }
        panic!("the provider never came back to the client: {url}")
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
