//! Settings: one TOML file, each key overridable by the environment, checked before anything starts.
//!
//! Owns names, defaults and limits of all settings. Deliberately reads nothing but the file it is given: the caller
//! hands the environment in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::Uri;
use domain::rate_limit::RateLimit;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// Where the settings are unless `--config` says otherwise. It may be missing: every setting has a default.
pub const CONFIG_PATH_DEFAULT: &str = "/etc/cordon/server.toml";
/// `CORDON_SERVER_LISTEN` overrides `listen`, and so on for every key.
const ENVIRONMENT_PREFIX: &str = "CORDON_SERVER_";
/// The longest settings file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The settings of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Keys, certificates and the database.
    pub data_dir: PathBuf,
    /// Where the API, the token issuer and enrollment are served.
    pub listen: SocketAddr,
    /// Where machines connect.
    pub agent_listen: SocketAddr,
    /// How clients reach `listen`: `https://name:port`. Names the token issuer, and stands in the certificate.
    /// When empty, made of the host name and the port of `listen`. Port 0 stands for the port that was bound.
    pub public_url: String,
    /// How machines reach `agent_listen`, likewise.
    pub agent_url: String,
    /// How many calls of one operation one app may make in any 60 seconds.
    pub rate_limit_per_minute: u32,
    /// How many calls of one operation one app may make in any hour.
    pub rate_limit_per_hour: u32,
    /// How long a machine action may stay open before it times out.
    pub action_deadline_seconds: u64,
    /// Mean time between two heartbeats of a machine.
    pub heartbeat_seconds: u32,
    /// The longest time that a machine waits before it tries again to connect.
    pub reconnect_seconds_max: u32,
    /// Audiences that tokens may name besides the vendor's and `public_url`.
    pub audiences: Vec<String>,
    /// The most connections to `listen` at a time; one address has at most a quarter of them.
    pub connections_max: u32,
    /// The most connections to `agent_listen` at a time.
    pub agent_connections_max: u32,
    /// `error`, `warn`, `info`, `debug` or `trace`, or a list of these per module (`info,cordon_server::agents=debug`).
    /// Libraries that could print a token never log below `info`.
    pub log_level: String,
    /// The form of the log, which goes to standard error.
    pub log_format: LogFormat,
    /// Whether apps may hand in people's passwords themselves (`grant_type=password`), as some old samples do. People
    /// then type their password into the app.
    pub password_grant: bool,
    /// Issuers whose tokens count besides the embedded one's: `[[issuers]]` in the file.
    pub issuers: Vec<IssuerSettings>,
}

/// An issuer (`OpenID Connect`) whose tokens count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerSettings {
    /// Its name in tokens, to the letter. The discovery document lies below it and must repeat it. By `https`; by
    /// `http` only at an address of this computer, such as `http://127.0.0.1:3000`.
    pub issuer: String,
    /// Audiences that its tokens may name, to the letter but for one slash at the end. Without it, `public_url` and
    /// `audiences`; not the vendor's names, because a token that another issuer made for the vendor is not meant for us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audiences: Option<Vec<String>>,
    /// How its tokens may be signed.
    #[serde(default = "IssuerSettings::algorithms_default")]
    pub algorithms: Vec<SigningAlgorithm>,
    /// Whether applications may act for themselves, with the permissions that `roles_claim` names. No machine group
    /// binds them.
    #[serde(default)]
    pub applications: bool,
    /// Whether applications may act for people.
    #[serde(default = "IssuerSettings::users_default")]
    pub users: bool,
    /// The claim with an application's permissions. A JSON pointer when it begins with a slash, as all three names of
    /// claims: `/realm_access/roles`.
    #[serde(default = "IssuerSettings::roles_claim_default")]
    pub roles_claim: String,
    /// The claim with a person's groups.
    #[serde(default = "IssuerSettings::groups_claim_default")]
    pub groups_claim: String,
    /// What is put before each group, so that groups of two issuers are never taken for one another.
    #[serde(default)]
    pub groups_prefix: String,
    /// The claim with a person's name. Without it: `upn`, `preferred_username`, or else the subject. Not `email`, which
    /// at many issuers people choose by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_claim: Option<String>,
    /// Certificates, as PEM, of the authorities that its TLS is checked by, and no others. Without it, those that this
    /// computer trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// How often its keys are fetched anew. A key that it no longer publishes counts that much longer.
    #[serde(default = "IssuerSettings::jwks_refresh_seconds_default")]
    pub jwks_refresh_seconds: u32,
}

/// How tokens may be signed: by a private key, and never by a secret that both sides know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SigningAlgorithm {
    /// RSA PKCS#1 with SHA-256.
    RS256,
    /// RSA PKCS#1 with SHA-384.
    RS384,
    /// RSA PKCS#1 with SHA-512.
    RS512,
    /// RSA PSS with SHA-256.
    PS256,
    /// RSA PSS with SHA-384.
    PS384,
    /// RSA PSS with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

impl SigningAlgorithm {
    /// The name in tokens and keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDSA => "EdDSA",
        }
    }
}

/// The most issuers.
const ISSUERS_MAX: usize = 16;

impl IssuerSettings {
    fn algorithms_default() -> Vec<SigningAlgorithm> {
        vec![SigningAlgorithm::RS256]
    }

    fn users_default() -> bool {
        true
    }

    fn roles_claim_default() -> String {
        "roles".to_owned()
    }

    fn groups_claim_default() -> String {
        "groups".to_owned()
    }

    fn jwks_refresh_seconds_default() -> u32 {
        3600
    }

    /// What is not possible, and why.
    fn fault(&self, public_url: &str) -> Option<String> {
        let Self { issuer, audiences, algorithms, .. } = self;
        if !is_issuer_url(issuer) {
            return Some(
                "issuer: not of the form https://name/path, nor http:// with an address of this computer, \
                 without user, query and fragment"
                    .to_owned(),
            );
        }
        let is_ours = |rest: &str| rest.is_empty() || rest.starts_with('/');
        if issuer.strip_prefix(public_url).is_some_and(is_ours) {
            return Some("issuer: this is this server itself, whose tokens count anyway".to_owned());
        }
        if let Some(audiences) = audiences {
            if audiences.is_empty() || audiences.len() > 64 {
                return Some("audiences: not between 1 and 64 entries".to_owned());
            }
            if let Some(audience) = audiences.iter().find(|audience| !is_short_text(audience)) {
                return Some(format!("audiences: {audience:?} is empty, or longer than 256 bytes"));
            }
        }
        let twice = |algorithm| algorithms.iter().filter(|other| *other == algorithm).count() > 1;
        if algorithms.is_empty() || algorithms.iter().any(twice) {
            return Some("algorithms: none is named, or one twice".to_owned());
        }
        if !self.applications && !self.users {
            return Some("applications, users: both are false, so that no token would count".to_owned());
        }
        let claims = [("roles_claim", &self.roles_claim), ("groups_claim", &self.groups_claim)];
        let name_claim = self.name_claim.iter().map(|claim| ("name_claim", claim));
        for (key, claim) in claims.into_iter().chain(name_claim) {
            if !is_short_text(claim) {
                return Some(format!("{key}: {claim:?} is empty, or longer than 256 bytes"));
            }
        }
        if self.groups_prefix.len() > 256 {
            return Some("groups_prefix: longer than 256 bytes".to_owned());
        }
        if let Some(path) = self.ca_file.as_ref().filter(|path| !path.is_absolute()) {
            return Some(format!("ca_file: {} is not an absolute path", path.display()));
        }
        if !(10..=3600).contains(&self.jwks_refresh_seconds) {
            return Some(format!(
                "jwks_refresh_seconds: {} is not between 10 and 3600",
                self.jwks_refresh_seconds
            ));
        }
        None
    }
}

fn is_short_text(text: &str) -> bool {
    (1..=256).contains(&text.len())
}

/// Whether a URL may name an issuer, or lead to its keys: whoever answers there decides who gets in.
pub(crate) fn is_issuer_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_here = address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    (scheme == "https" || (scheme == "http" && is_here))
        && !authority.as_str().contains('@')
        && !host.is_empty()
        && text.len() <= 1024
        && !text.contains(['#', '?', '|', '\\'])
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings in {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is longer than a settings file can be.
    #[error("{} has more than {FILE_BYTES_MAX} bytes: this is no settings file", .0.display())]
    TooLong(PathBuf),
    /// The file is not TOML, or has a key or a type that is not known.
    #[error("{}: {message}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A variable that names no setting, or does not fit it.
    #[error("environment variable {name}: {message}")]
    Variable {
        /// The variable.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A value is not possible.
    #[error("{origin}: {key}: {message}")]
    Value {
        /// Where the value comes from.
        origin: Origin,
        /// The setting.
        key: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The settings file.
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
    /// Neither: the default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Default => f.write_str("default settings"),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/cordon/server"),
            listen: SocketAddr::from(([0, 0, 0, 0], 8443)),
            agent_listen: SocketAddr::from(([0, 0, 0, 0], 8444)),
            public_url: String::new(),
            agent_url: String::new(),
            rate_limit_per_minute: RateLimit::VENDOR.minute.calls,
            rate_limit_per_hour: RateLimit::VENDOR.hour.calls,
            action_deadline_seconds: domain::machine_action::DEADLINE_DEFAULT.as_secs(),
            heartbeat_seconds: 60,
            reconnect_seconds_max: 120,
            audiences: Vec::new(),
            connections_max: 4096,
            agent_connections_max: 20_000,
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
            password_grant: false,
            issuers: Vec::new(),
        }
    }
}

impl Config {
    /// Reads and checks the settings: defaults, then the file, then the environment. Without a path, the default path
    /// is read if it is there.
    ///
    /// # Errors
    /// [`ConfigError`], which names the key and where its value comes from.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let default_path = Path::new(CONFIG_PATH_DEFAULT);
        let used = path.unwrap_or(default_path);
        let text = match read_capped(used) {
            Err(ConfigError::Read { source, .. })
                if path.is_none() && source.kind() == std::io::ErrorKind::NotFound =>
            {
                String::new()
            }
            other => other?,
        };
        let mut layers = Layers::read(used, &text)?;
        for (name, value) in environment {
            layers.add_variable(&name, &value)?;
        }
        layers.finish()
    }

    /// The rate limit of each operation and app.
    pub(crate) fn rate_limit(&self) -> RateLimit {
        RateLimit::per_minute_and_hour(self.rate_limit_per_minute, self.rate_limit_per_hour)
    }

    /// How long an action may stay open.
    pub(crate) fn action_deadline(&self) -> Duration {
        Duration::from_secs(self.action_deadline_seconds)
    }

    /// Puts the bound ports in place of the ports 0 of the URLs.
    pub(crate) fn put_ports(&mut self, public: u16, agent: u16) {
        for (url, port) in [(&mut self.public_url, public), (&mut self.agent_url, agent)] {
            if let Some(name) = url.strip_suffix(":0") {
                *url = format!("{name}:{port}");
            }
        }
    }

    /// The names under which the server is reached, for its certificate.
    pub(crate) fn host_names(&self) -> Vec<String> {
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        for url in [&self.public_url, &self.agent_url] {
            if let Some(name) = host_of(url).filter(|name| !names.contains(name)) {
                names.push(name);
            }
        }
        names
    }

    /// Fills in what depends on other settings.
    fn complete(&mut self) {
        for (url, address) in [(&mut self.public_url, self.listen), (&mut self.agent_url, self.agent_listen)]
        {
            if url.is_empty() {
                *url = format!("https://{}:{}", host_name(), address.port());
            }
            if let Some(bare) = url.strip_suffix('/') {
                *url = bare.to_owned();
            }
        }
    }

    /// The first setting that is not possible, and why.
    fn fault(&self) -> Option<(&'static str, String)> {
        let numbers: [(&'static str, u64, RangeInclusive<u64>); 7] = [
            ("rate_limit_per_minute", self.rate_limit_per_minute.into(), 1..=10_000_000),
            ("rate_limit_per_hour", self.rate_limit_per_hour.into(), 1..=10_000_000),
            ("action_deadline_seconds", self.action_deadline_seconds, 1..=365 * 24 * 60 * 60),
            ("heartbeat_seconds", self.heartbeat_seconds.into(), 1..=3600),
            ("reconnect_seconds_max", self.reconnect_seconds_max.into(), 1..=3600),
            ("connections_max", self.connections_max.into(), 16..=1_000_000),
            ("agent_connections_max", self.agent_connections_max.into(), 1..=1_000_000),
        ];
        for (key, value, range) in numbers {
            if !range.contains(&value) {
                return Some((key, format!("{value} is not between {} and {}", range.start(), range.end())));
            }
        }
        for (key, url) in [("public_url", &self.public_url), ("agent_url", &self.agent_url)] {
            if host_of(url).is_none() {
                return Some((key, format!("{url:?} is not of the form https://name:port, without a path")));
            }
        }
        if self.listen == self.agent_listen && self.listen.port() != 0 {
            return Some(("agent_listen", format!("{} is the address of listen too", self.listen)));
        }
        if !self.data_dir.is_absolute() {
            return Some(("data_dir", format!("{} is not an absolute path", self.data_dir.display())));
        }
        let impossible = |audience: &&String| audience.is_empty() || audience.len() > 256;
        if let Some(audience) = self.audiences.iter().find(impossible) {
            return Some(("audiences", format!("{audience:?} is empty, or longer than 256 bytes")));
        }
        if self.audiences.len() > 64 {
            return Some(("audiences", "more than 64 entries".to_owned()));
        }
        if let Err(error) = EnvFilter::try_new(&self.log_level) {
            return Some(("log_level", format!("{:?}: {error}", self.log_level)));
        }
        self.issuers_fault().map(|message| ("issuers", message))
    }

    fn issuers_fault(&self) -> Option<String> {
        if self.issuers.len() > ISSUERS_MAX {
            return Some(format!("more than {ISSUERS_MAX} entries"));
        }
        for (index, settings) in self.issuers.iter().enumerate() {
            let twice = self.issuers.iter().take(index).any(|other| other.issuer == settings.issuer);
            let fault = settings.fault(&self.public_url);
            if let Some(fault) = fault.or_else(|| twice.then(|| "issuer: named twice".to_owned())) {
                return Some(format!("entry {} ({:?}): {fault}", index + 1, settings.issuer));
            }
        }
        None
    }
}

/// The file's values with the environment's on top.
struct Layers {
    path: PathBuf,
    values: toml::Table,
    variables: Vec<String>,
}

impl Layers {
    fn read(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let fault = |error: toml::de::Error| ConfigError::File {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        };
        // Read as settings too, because errors then point at the line.
        toml::from_str::<Config>(text).map_err(fault)?;
        Ok(Self { path: path.to_owned(), values: text.parse().map_err(fault)?, variables: Vec::new() })
    }

    /// Takes a variable with our prefix; a text setting takes the value as it is, others as TOML writes it.
    fn add_variable(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let Some(key) = name.strip_prefix(ENVIRONMENT_PREFIX).map(str::to_lowercase) else { return Ok(()) };
        let fault = |message: String| ConfigError::Variable { name: name.to_owned(), message };
        let as_setting = |value: toml::Value| {
            let table = toml::Table::from_iter([(key.clone(), value.clone())]);
            table.try_into::<Config>().map(|_| value).map_err(|error| error.message().to_owned())
        };
        let value = match as_setting(toml::Value::String(text.to_owned())) {
            Ok(value) => value,
            Err(not_text) => {
                let typed = format!("value = {text}").parse::<toml::Table>().ok();
                let Some(value) = typed.and_then(|mut table| table.remove("value")) else {
                    return Err(fault(not_text));
                };
                as_setting(value).map_err(fault)?
            }
        };
        self.variables.push(key.clone());
        self.values.insert(key, value);
        Ok(())
    }

    fn finish(self) -> Result<Config, ConfigError> {
        let mut config: Config = self.values.clone().try_into().map_err(|error: toml::de::Error| {
            ConfigError::File { path: self.path.clone(), message: error.message().to_owned() }
        })?;
        config.complete();
        match config.fault() {
            None => Ok(config),
            Some((key, message)) => Err(ConfigError::Value { origin: self.origin(key), key, message }),
        }
    }

    fn origin(&self, key: &str) -> Origin {
        if self.variables.iter().any(|variable| variable == key) {
            Origin::Variable(format!("{ENVIRONMENT_PREFIX}{}", key.to_uppercase()))
        } else if self.values.contains_key(key) {
            Origin::File(self.path.clone())
        } else {
            Origin::Default
        }
    }
}

fn read_capped(path: &Path) -> Result<String, ConfigError> {
    let fault = |source| ConfigError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(fault)?.len() > FILE_BYTES_MAX {
        return Err(ConfigError::TooLong(path.to_owned()));
    }
    std::fs::read_to_string(path).map_err(fault)
}

/// The host of a URL that has a scheme, a host and perhaps a port, and nothing else. Without an address's brackets.
fn host_of(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let bare = url.strip_prefix("https://")? == authority.as_str() && !authority.as_str().contains('@');
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    (bare && !host.is_empty() && host.len() <= 253).then(|| host.to_lowercase())
}

/// The name of this computer.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    if plain(&name) && !name.is_empty() { name.to_lowercase() } else { "localhost".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(&path), environment)
            .map_err(|error| error.to_string().replace(&*path.to_string_lossy(), "FILE"))
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = load("", &[]).unwrap();
        assert_eq!((config.rate_limit_per_minute, config.rate_limit_per_hour), (100, 1500));
        assert_eq!(config.action_deadline_seconds, 3 * 24 * 60 * 60);
        assert!(config.public_url.starts_with("https://") && config.public_url.ends_with(":8443"));
        assert!(config.agent_url.ends_with(":8444"));
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let file = "listen = \"127.0.0.1:1\"\nrate_limit_per_minute = 5\nlog_format = \"text\"";
        let environment = [
            ("CORDON_SERVER_LISTEN", "127.0.0.1:2"),
            ("CORDON_SERVER_RATE_LIMIT_PER_HOUR", "7"),
            ("CORDON_SERVER_AUDIENCES", r#"["https://a", "https://b"]"#),
            ("CORDON_SERVER_LOG_FORMAT", "json"),
            ("CORDON_SERVER_PUBLIC_URL", "https://Cordon.example/"),
            ("CORDON_SERVER", "https://not-a-setting"),
            ("PATH", "/bin"),
        ];
        let config = load(file, &environment).unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!((config.rate_limit_per_minute, config.rate_limit_per_hour), (5, 7));
        assert_eq!(config.audiences, ["https://a", "https://b"]);
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(config.public_url, "https://Cordon.example");
        assert!(config.host_names().contains(&"cordon.example".to_owned()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
        let table: [Case<'_>; 16] = [
            ("colour = 1", &[], &["FILE", "line 1", "unknown field `colour`"]),
            ("listen = ", &[], &["FILE", "line 1"]),
            ("\nheartbeat_seconds = \"x\"", &[], &["FILE", "line 2", "heartbeat_seconds", "expected u32"]),
            ("rate_limit_per_minute = 0", &[], &["FILE: rate_limit_per_minute: 0 is not between 1 and"]),
            ("heartbeat_seconds = -1", &[], &["FILE", "heartbeat_seconds"]),
            (
                "public_url = \"http://a\"",
                &[],
                &["FILE: public_url: \"http://a\" is not of the form https://"],
            ),
            ("public_url = \"https://a/b\"", &[], &["FILE: public_url:"]),
            ("public_url = \"https://u@a\"", &[], &["FILE: public_url:"]),
            ("agent_url = \"https://a?b\"", &[], &["FILE: agent_url:"]),
            ("data_dir = \"relative\"", &[], &["FILE: data_dir: relative is not an absolute path"]),
            ("audiences = [\"\"]", &[], &["FILE: audiences:"]),
            ("log_level = \"a=b=c\"", &[], &["FILE: log_level:"]),
            ("listen = \"0.0.0.0:1\"\nagent_listen = \"0.0.0.0:1\"", &[], &["FILE: agent_listen:"]),
            (
                "",
                &[("CORDON_SERVER_COLOUR", "1")],
                &["variable CORDON_SERVER_COLOUR: unknown field `colour`"],
            ),
            (
                "",
                &[("CORDON_SERVER_HEARTBEAT_SECONDS", "x y")],
                &["variable CORDON_SERVER_HEARTBEAT_SECONDS:"],
            ),
            (
                "heartbeat_seconds = 5",
                &[("CORDON_SERVER_HEARTBEAT_SECONDS", "0")],
                &["variable CORDON_SERVER_HEARTBEAT_SECONDS: heartbeat_seconds: 0 is not between 1 and 3600"],
            ),
        ];
        for (file, environment, expected) in table {
            let message = load(file, environment).unwrap_err();
            for part in expected {
                assert!(message.contains(part), "{file:?} {environment:?}: {message}");
            }
        }
    }

    #[test]
    fn issuers_are_lists_of_tables_in_the_file_and_in_the_environment() {
        let file = r#"
            [[issuers]]
            issuer = "https://login.example/tenant/v2.0"

            [[issuers]]
            issuer = "http://127.0.0.1:3000"
            audiences = ["api://cordon"]
            algorithms = ["ES256", "EdDSA"]
            applications = true
            roles_claim = "/realm_access/roles"
            ca_file = "/etc/cordon/issuer.pem"
            jwks_refresh_seconds = 600
        "#;
        let config = load(file, &[]).unwrap();
        let [first, second] = config.issuers.as_slice() else { panic!("{config:?}") };
        assert_eq!((first.audiences.as_ref(), first.applications, first.users), (None, false, true));
        assert_eq!(first.algorithms, [SigningAlgorithm::RS256]);
        assert_eq!((first.roles_claim.as_str(), first.groups_claim.as_str()), ("roles", "groups"));
        assert_eq!(second.algorithms, [SigningAlgorithm::ES256, SigningAlgorithm::EdDSA]);
        assert_eq!(load(&toml::to_string(&config).unwrap(), &[]).unwrap(), config);

        let variable = r#"[{issuer = "https://other.example", users = false, applications = true}]"#;
        let config = load(file, &[("CORDON_SERVER_ISSUERS", variable)]).unwrap();
        assert_eq!(config.issuers.len(), 1);
        assert_eq!(config.issuers[0].issuer, "https://other.example");
    }

    #[test]
    fn what_is_wrong_with_an_issuer_is_named() {
        let table = [
            ("issuer = \"http://login.example\"", "issuers: entry 1 (\"http://login.example\"): issuer:"),
            ("issuer = \"http://localhost:1\"", "issuer:"),
            ("issuer = \"http://127.0.0.1.example\"", "issuer:"),
            ("issuer = \"https://u@login.example\"", "issuer:"),
            ("issuer = \"https://login.example?a\"", "issuer:"),
            ("issuer = \"https://login.example#a\"", "issuer:"),
            ("issuer = \"login.example\"", "issuer:"),
            ("issuer = \"https://cordon.example/t/v2.0\"", "issuer: this is this server itself"),
            ("users = true", "missing field `issuer`"),
            ("issuer = \"https://a\"\naudiences = []", "audiences:"),
            ("issuer = \"https://a\"\naudiences = [\"\"]", "audiences:"),
            ("issuer = \"https://a\"\nalgorithms = []", "algorithms:"),
            ("issuer = \"https://a\"\nalgorithms = [\"none\"]", "unknown variant `none`"),
            ("issuer = \"https://a\"\nalgorithms = [\"HS256\"]", "unknown variant `HS256`"),
            ("issuer = \"https://a\"\nalgorithms = [\"RS256\", \"RS256\"]", "algorithms:"),
            ("issuer = \"https://a\"\nusers = false", "applications, users:"),
            ("issuer = \"https://a\"\nroles_claim = \"\"", "roles_claim:"),
            ("issuer = \"https://a\"\nname_claim = \"\"", "name_claim:"),
            ("issuer = \"https://a\"\nca_file = \"a.pem\"", "ca_file:"),
            ("issuer = \"https://a\"\njwks_refresh_seconds = 3601", "jwks_refresh_seconds:"),
            ("issuer = \"https://a\"\ncolour = 1", "unknown field `colour`"),
            (
                "issuer = \"https://a\"\n[[issuers]]\nissuer = \"https://a\"",
                "entry 2 (\"https://a\"): issuer: named twice",
            ),
        ];
        for (entry, expected) in table {
            let file = format!("public_url = \"https://cordon.example\"\n[[issuers]]\n{entry}");
            let message = load(&file, &[]).unwrap_err();
            assert!(message.contains(expected), "{entry}: {message}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Some(Path::new("/nonexistent/server.toml")), []).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the settings in /nonexistent/server.toml");
    }

    #[test]
    fn port_0_becomes_the_bound_port() {
        let mut config = load("public_url = \"https://a:0\"\nagent_url = \"https://[::1]:0\"", &[]).unwrap();
        config.put_ports(5, 6);
        assert_eq!(
            (config.public_url.as_str(), config.agent_url.as_str()),
            ("https://a:5", "https://[::1]:6")
        );
        assert_eq!(config.host_names(), ["localhost", "127.0.0.1", "::1", "a"]);
    }

    #[test]
    fn what_check_config_prints_reads_back() {
        let config = load("heartbeat_seconds = 7", &[]).unwrap();
        assert_eq!(load(&toml::to_string(&config).unwrap(), &[]).unwrap(), config);
    }
}
