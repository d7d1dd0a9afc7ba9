//! Which server, as whom, and whom to trust: from the command line, the environment or a profile.
//!
//! A server given by hand comes with its own credentials: a profile's secret or token never goes to another server than
//! the profile's.

use std::fmt;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use domain::digest::Sha256Digest;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::error::{UsageError, origin};
use crate::profile::{self, Profile, ProfileFile, SignIn};

/// The longest secret that is read from a file or standard input, in bytes.
const SECRET_BYTES_MAX: u64 = 4096;

/// Options of every command that talks to a server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArguments {
    /// The profile to use, as written by `cordon login` [default: default]
    #[arg(long, global = true, env = "CORDON_PROFILE", value_name = "NAME", hide_env_values = true)]
    profile: Option<String>,
    /// The server's URL; with it no profile is read
    #[arg(long, global = true, env = "CORDON_SERVER", value_name = "URL", hide_env_values = true)]
    server: Option<String>,
    /// The app's id; without it, `cordon login` signs in a person
    #[arg(long, global = true, env = "CORDON_CLIENT_ID", value_name = "ID", hide_env_values = true)]
    client_id: Option<String>,
    /// The app's secret; other users can see it on a command line: prefer the next, or the environment
    #[arg(long, global = true, env = "CORDON_CLIENT_SECRET", value_name = "SECRET", hide_env_values = true)]
    client_secret: Option<Secret>,
    /// Read the app's secret from this file, or from standard input (-)
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "client_secret")]
    client_secret_file: Option<PathBuf>,
    /// Trust the certificate authorities in this PEM file, and no others
    #[arg(long, global = true, env = "CORDON_CA_FILE", value_name = "FILE", hide_env_values = true)]
    ca_file: Option<PathBuf>,
    /// Trust the certificate authority with this SHA-256, as the server presents it, and no others
    #[arg(long, global = true, env = "CORDON_CA_PIN", value_name = "SHA256", hide_env_values = true)]
    ca_pin: Option<Sha256Digest>,
}

/// A server, as whom, and who may vouch for the server.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// `https://host:port/`, without a path.
    pub(crate) server: Url,
    /// As whom.
    pub(crate) credentials: Credentials,
    /// Who may vouch for the server.
    pub(crate) trust: Trust,
}

/// As whom the server is called.
#[derive(Debug, Clone)]
pub(crate) enum Credentials {
    /// An app by itself.
    App {
        /// The app.
        id: String,
        /// Its secret.
        secret: Secret,
    },
    /// A person who signed in.
    Person(Person),
}

/// A person who signed in. The tokens stay in the profile, where each run finds the newest.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    /// The profile.
    pub(crate) profile: String,
    /// By means of which app.
    pub(crate) client_id: String,
}

/// Who may vouch for the server.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    /// The certificate authorities that this machine trusts.
    System,
    /// These, as PEM, and no others.
    Certificates(String),
    /// The one with this SHA-256 of its certificate, and no other.
    Pin(Sha256Digest),
}

/// A secret that no debug output shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// The secret itself.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Self {
        Self(secret.to_owned())
    }
}

impl ConnectionArguments {
    /// The connection for a command: a server given by hand, or a profile.
    pub(crate) fn resolve(&self) -> Result<Connection> {
        match (&self.server, &self.profile) {
            (Some(_), Some(_)) => usage(
                "both a server and a profile are given: drop --server or --profile (or unset CORDON_SERVER or \
                 CORDON_PROFILE)",
            ),
            (Some(_), None) => self.given(),
            (None, _) => self.kept(),
        }
    }

    /// The connection as an app, by what is given; asks for the secret when that is not.
    pub(crate) fn given(&self) -> Result<Connection> {
        let Some(id) = &self.client_id else {
            return usage("as which app? Give --client-id ID, or sign in as a person: cordon login");
        };
        let (server, trust) = self.server()?;
        let credentials = Credentials::App { id: id.clone(), secret: self.secret()? };
        Ok(Connection { server, credentials, trust })
    }

    /// The connection as a person who is about to sign in by means of the app `client_id`.
    pub(crate) fn signing_in(&self, client_id: &str) -> Result<Connection> {
        let (server, trust) = self.server()?;
        let person = Person { profile: self.profile().to_owned(), client_id: client_id.to_owned() };
        Ok(Connection { server, credentials: Credentials::Person(person), trust })
    }

    /// The app's id, if one is given.
    pub(crate) fn client_id(&self) -> Option<&str> {
        self.client_id.as_deref()
    }

    /// Whether a secret is given by an option or the environment.
    pub(crate) fn has_secret(&self) -> bool {
        self.client_secret.is_some() || self.client_secret_file.is_some()
    }

    fn server(&self) -> Result<(Url, Trust)> {
        let Some(server) = &self.server else { return usage("which server? Give --server URL") };
        let trust = match (&self.ca_file, self.ca_pin) {
            (Some(_), Some(_)) => return usage("give --ca-file or --ca-pin, not both"),
            (Some(file), None) => Trust::in_file(file)?,
            (None, Some(pin)) => Trust::Pin(pin),
            (None, None) => Trust::System,
        };
        Ok((server_url(server)?, trust))
    }

    /// The profile that is named, or the default one.
    pub(crate) fn profile(&self) -> &str {
        self.profile.as_deref().unwrap_or(profile::DEFAULT)
    }

    fn kept(&self) -> Result<Connection> {
        let given = [
            ("client-id", self.client_id.is_some()),
            ("client-secret", self.has_secret()),
            ("ca-file", self.ca_file.is_some()),
            ("ca-pin", self.ca_pin.is_some()),
        ];
        if let Some((name, _)) = given.iter().find(|(_, is_given)| *is_given) {
            let variable = name.replace('-', "_").to_uppercase();
            return usage(&format!(
                "--{name} (or CORDON_{variable}) is given without a server: give --server too, or leave it to the \
                 profile"
            ));
        }
        let (name, file) = (self.profile(), ProfileFile::of_user()?);
        let Some(profile) = file.find(name)? else {
            return usage(&format!(
                "there is no profile {name:?} in {}: run cordon login, or give --server",
                file.path().display()
            ));
        };
        kept(name, profile)
    }

    fn secret(&self) -> Result<Secret> {
        if let Some(secret) = &self.client_secret {
            return Ok(secret.clone());
        }
        let secret = secret_from(self.client_secret_file.as_deref(), "client secret")?;
        if secret.0.is_empty() {
            return usage(
                "no client secret: give --client-secret-file, CORDON_CLIENT_SECRET, or a line on standard input",
            );
        }
        Ok(secret)
    }
}

/// The first line of a file, of standard input (also when no file is given), or what is typed on a terminal.
pub(crate) fn secret_from(file: Option<&Path>, what: &str) -> Result<Secret> {
    let line = match file {
        Some(file) if file != Path::new("-") => {
            let open =
                std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
            first_line(open).with_context(|| format!("cannot read {}", file.display()))?
        }
        None if std::io::stdin().is_terminal() => {
            let terminal = console::Term::stderr();
            terminal.write_str(&format!("{what} (it is not shown): "))?;
            terminal
                .read_secure_line()
                .with_context(|| format!("cannot read the {what} from the terminal"))?
        }
        Some(_) | None => first_line(std::io::stdin())
            .with_context(|| format!("cannot read the {what} from standard input"))?,
    };
    Ok(Secret(line))
}

impl Trust {
    /// The certificate authorities in a PEM file.
    pub(crate) fn in_file(file: &Path) -> Result<Self> {
        let pem = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self::Certificates(pem))
    }
}

fn kept(name: &str, profile: Profile) -> Result<Connection> {
    let trust = match (profile.ca_pin, profile.ca_certificates) {
        (Some(pin), _) => Trust::Pin(pin.parse().context("the profile's ca_pin")?),
        (None, Some(certificates)) => Trust::Certificates(certificates),
        (None, None) => Trust::System,
    };
    let credentials = match (profile.client_secret, profile.sign_in) {
        (Some(secret), None) => Credentials::App { id: profile.client_id, secret },
        (None, Some(_)) => {
            Credentials::Person(Person { profile: name.to_owned(), client_id: profile.client_id })
        }
        (Some(_), Some(_)) | (None, None) => {
            anyhow::bail!("the profile {name:?} must hold a secret or a sign-in: run cordon login again")
        }
    };
    Ok(Connection { server: server_url(&profile.server)?, credentials, trust })
}

impl Profile {
    /// A connection as it is kept. A person's sign-in is added by whoever has it.
    pub(crate) fn of(connection: Connection, sign_in: Option<SignIn>) -> Self {
        let (ca_pin, ca_certificates) = match connection.trust {
            Trust::System => (None, None),
            Trust::Certificates(certificates) => (None, Some(certificates)),
            Trust::Pin(pin) => (Some(pin.to_string()), None),
        };
        let (client_id, client_secret) = match connection.credentials {
            Credentials::App { id, secret } => (id, Some(secret)),
            Credentials::Person(person) => (person.client_id, None),
        };
        Self {
            server: origin(&connection.server),
            client_id,
            client_secret,
            ca_pin,
            ca_certificates,
            sign_in,
        }
    }
}

fn usage<T>(message: &str) -> Result<T> {
    Err(UsageError(message.to_owned()).into())
}

/// A server's URL, checked.
fn server_url(text: &str) -> Result<Url> {
    let bare = |url: &Url| {
        let nothing_else = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        url.scheme() == "https" && nothing_else && url.username().is_empty() && url.password().is_none()
    };
    match text.parse::<Url>() {
        Ok(url) if bare(&url) => Ok(url),
        _ => {
            usage(&format!("the server {text:?} must be https://NAME or https://NAME:PORT, and nothing more"))
        }
    }
}

fn first_line(input: impl std::io::Read) -> std::io::Result<String> {
    let mut text = String::new();
    input.take(SECRET_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_https_and_nothing_more() {
        for text in ["https://localhost:8443", "https://cordon.example/", "https://[::1]:1"] {
            assert!(server_url(text).is_ok(), "{text}");
        }
        for text in
            ["", "cordon.example", "http://cordon.example", "https://a/b", "https://a/?b", "https://u:p@a"]
        {
            assert!(server_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_is_the_first_line() {
        assert_eq!(first_line(" s3cret \r\nmore".as_bytes()).unwrap(), "s3cret");
        assert_eq!(first_line("".as_bytes()).unwrap(), "");
    }
}
