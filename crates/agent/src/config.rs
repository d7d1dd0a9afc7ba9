//! The agent's settings: one TOML file, each key of which the environment can override.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use tracing::level_filters::LevelFilter;

/// The settings. Every key has a default; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where the agent keeps the machine's key, its certificate and the inventory. Its owner is the agent's user.
    pub(crate) state_dir: PathBuf,
    /// The gate's socket.
    pub(crate) gate_socket: PathBuf,
    /// The root folder whose package databases, dpkg's and rpm's, are read.
    pub(crate) dpkg_root: PathBuf,
    /// Whether people who are logged in are told of a restriction and its end.
    pub(crate) notify: bool,
    /// What they are told of a restriction.
    pub(crate) notify_restricted: String,
    /// What they are told of its end.
    pub(crate) notify_released: String,
    /// How much to log: `error`, `warn`, `info`, `debug` or `trace`.
    pub(crate) log: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/cordon/agent".into(),
            gate_socket: "/run/cordon/gate.sock".into(),
            dpkg_root: "/".into(),
            notify: true,
            notify_restricted:
                "Your organization has restricted this machine: only programs that came with the \
                                system, and those that were approved, will start. Others are refused with \
                                \"Operation not permitted\". Please contact your security team."
                    .to_owned(),
            notify_released: "The restriction of this machine has been lifted: all programs start again."
                .to_owned(),
            log: "info".to_owned(),
        }
    }
}

impl Config {
    /// Where the file is unless told otherwise.
    pub(crate) const PATH: &'static str = "/etc/cordon/agent.toml";
    /// Before the upper-case name of a key.
    const ENVIRONMENT: &'static str = "CORDON_AGENT_";

    /// Reads the file, and then the environment. Without a file at the usual place, the defaults apply.
    ///
    /// # Errors
    /// Names the file or the variable, and what is wrong with it.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self> {
        let file = path.unwrap_or(Path::new(Self::PATH));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        // Read once as settings for errors that name the line.
        toml::from_str::<Self>(&text).with_context(|| format!("{} is not valid", file.display()))?;
        let mut table: Table = text.parse()?;
        overlay(&mut table, |name| std::env::var(name).ok())?;
        let config: Self = table.try_into()?;
        config.log_level()?;
        Ok(config)
    }

    /// How much to log.
    pub(crate) fn log_level(&self) -> Result<LevelFilter> {
        self.log
            .parse()
            .with_context(|| format!("log = {:?}: expected error, warn, info, debug or trace", self.log))
    }
}

/// Puts the values of the environment over those of the file.
fn overlay(table: &mut Table, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    for (key, default) in Table::try_from(Config::default())? {
        let name = format!("{}{}", Config::ENVIRONMENT, key.to_uppercase());
        let Some(text) = variable(&name) else { continue };
        let value = if default.is_bool() {
            let Ok(value) = text.parse() else { bail!("{name}={text:?}: expected true or false") };
            Value::Boolean(value)
        } else {
            Value::String(text)
        };
        table.insert(key, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(Some(&path)).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn keys_are_read_and_unknown_ones_refused() {
        let config = read("notify = false\nstate_dir = \"/s\"\n").unwrap();
        assert_eq!(config, Config { notify: false, state_dir: "/s".into(), ..Config::default() });
        let error = read("notfiy = false").unwrap_err();
        assert!(error.contains("unknown field `notfiy`") && error.contains("agent.toml"), "{error}");
        assert!(read("log = \"loud\"").unwrap_err().contains("expected error, warn"));
        assert!(read("notify = 1").is_err());
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let mut table: Table = "notify = true\nlog = \"warn\"".parse().unwrap();
        let set = |name: &str| match name {
            "CORDON_AGENT_NOTIFY" => Some("false".to_owned()),
            "CORDON_AGENT_STATE_DIR" => Some("/x".to_owned()),
            _ => None,
        };
        overlay(&mut table, set).unwrap();
        let config: Config = table.try_into().unwrap();
        let expected =
            Config { notify: false, state_dir: "/x".into(), log: "warn".to_owned(), ..Config::default() };
        assert_eq!(config, expected);
        let error = overlay(&mut Table::new(), |_| Some("maybe".to_owned())).unwrap_err();
        assert!(error.to_string().contains("CORDON_AGENT_NOTIFY"), "{error}");
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        assert!(Config::read(Some(Path::new("/nowhere/agent.toml"))).is_err());
    }
}
