//! The gate's settings: one TOML file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use enforcement::{Keepers, MarkScope, Settings};
use serde::{Deserialize, Serialize};

use crate::survival::loader_of;

/// The settings. Every key has a default; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the gate keeps its state; only root may look inside.
    pub state_dir: PathBuf,
    /// The socket for the agent.
    pub socket: PathBuf,
    /// The user of the agent. Besides root, only this user may send orders, policies and baselines.
    pub agent_uid: u32,
    /// The agent's program, which belongs to the survival set.
    pub agent_program: PathBuf,
    /// Which mechanism of the kernel is used.
    pub tier: TierChoice,
    /// A folder on a BPF filesystem, for what must outlive the gate at the tiers `bpf-lsm` and `fmod-ret`.
    pub pins: PathBuf,
    /// Where signed manifests lie.
    pub manifests_dir: PathBuf,
    /// What a restriction covers.
    pub scope: Scope,
    /// Whether the kernel keeps verdicts. Off: it asks at each execution.
    pub verdict_cache: bool,
    /// A decision that takes longer, in milliseconds, is a refusal: 100 to 60000.
    pub decision_deadline_ms: u64,
    /// Below which folder the system is whose survival is seen to. Another one than `/` is for trying things out.
    pub system_root: PathBuf,
    /// A machine that was restricted and within so many seconds is found out of reach is released again: 1 to 120.
    pub deadman_seconds: u64,
    /// Whether a restriction of tier T3 outlives the gate by means of a keeper.
    pub keeper: Keeper,
    /// The keeper's socket; only root may connect.
    pub keeper_socket: PathBuf,
    /// What is executed to start the gate again, besides the gate itself and its loader. The keeper lets it run while
    /// no gate answers, if it may run at all.
    pub restart_programs: Vec<PathBuf>,
}

/// Where the keeper comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeper {
    /// The gate starts it when none listens, unless it runs below a service manager that tells it so (`NOTIFY_SOCKET`):
    /// then a unit of its own does.
    Start,
    /// Somebody else starts it.
    Connect,
    /// There is none: when the gate dies, the kernel allows. For trying things out.
    None,
}

/// Which mechanism of the kernel is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierChoice {
    /// The strongest that works on this machine.
    Auto,
    /// Tier T1, or nothing.
    BpfLsm,
    /// Tier T2, or nothing.
    FmodRet,
    /// Tier T3, or nothing.
    Fanotify,
}

/// What a restriction covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The whole machine.
    Filesystem,
    /// The mounts of the gate's own mount namespace. For trying things out: nothing outside is covered. Only fanotify
    /// can do that.
    Mount,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/cordon/gate".into(),
            socket: "/run/cordon/gate.sock".into(),
            agent_uid: 0,
            agent_program: "/usr/bin/cordon-agent".into(),
            tier: TierChoice::Auto,
            pins: "/sys/fs/bpf/cordon".into(),
            manifests_dir: "/etc/cordon/manifests.d".into(),
            scope: Scope::Filesystem,
            verdict_cache: true,
            decision_deadline_ms: 5_000,
            keeper: Keeper::Start,
            keeper_socket: "/run/cordon/keeper.sock".into(),
            restart_programs: vec!["/usr/lib/systemd/systemd-executor".into()],
            system_root: "/".into(),
            deadman_seconds: 20,
        }
    }
}

impl Config {
    /// Where the file is unless told otherwise.
    pub const PATH: &'static str = "/etc/cordon/gate.toml";

    /// Reads the file. Without one at the usual place, the defaults apply.
    ///
    /// # Errors
    /// Names the file, the line and what is wrong.
    pub fn read(path: Option<&Path>) -> Result<Self> {
        let file = path.unwrap_or(Path::new(Self::PATH));
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(&text).with_context(|| format!("{} is not valid", file.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => {
                Ok(Self::default())
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        // Less would refuse what merely lies on a slow disk, more would hold up whoever executes.
        let possible = 100..=60_000;
        anyhow::ensure!(
            possible.contains(&config.decision_deadline_ms),
            "decision_deadline_ms is {}, and must be {} to {}",
            config.decision_deadline_ms,
            possible.start(),
            possible.end()
        );
        let covers_all = matches!(config.tier, TierChoice::BpfLsm | TierChoice::FmodRet);
        anyhow::ensure!(
            !(covers_all && config.scope == Scope::Mount),
            "scope is \"mount\", but the tiers bpf-lsm and fmod-ret cover the whole machine"
        );
        // Who sent the order waits for its answer as long.
        let possible = 1..=120;
        anyhow::ensure!(
            possible.contains(&config.deadman_seconds),
            "deadman_seconds is {}, and must be {} to {}",
            config.deadman_seconds,
            possible.start(),
            possible.end()
        );
        Ok(config)
    }

    /// Who keeps what the gate must not lose. To be asked once, before the process opens anything.
    ///
    /// # Errors
    /// When the gate does not find its own program.
    pub fn keepers(&self) -> Result<Keepers> {
        let inherited = enforcement::inherited_group();
        let own = std::env::current_exe().context("cannot find the gate's own program")?;
        let words = [
            own.as_ref(),
            "keeper".as_ref(),
            "--stay".as_ref(),
            "--socket".as_ref(),
            self.keeper_socket.as_os_str(),
        ];
        let is_ours = self.keeper == Keeper::Start && std::env::var_os("NOTIFY_SOCKET").is_none();
        Ok(Keepers {
            socket: (self.keeper != Keeper::None).then(|| self.keeper_socket.clone()),
            start: is_ours.then(|| words.map(ToOwned::to_owned).to_vec()),
            inherited,
            programs: std::iter::once(own.clone())
                .chain(loader_of(&own))
                .chain(self.restart_programs.iter().cloned())
                .collect(),
        })
    }

    /// How the backend is to behave.
    pub fn enforcement(&self) -> Settings {
        Settings {
            scope: match self.scope {
                Scope::Filesystem => MarkScope::Filesystem,
                Scope::Mount => MarkScope::Mount,
            },
            verdict_cache: self.verdict_cache,
            decision_deadline: Duration::from_millis(self.decision_deadline_ms),
            ..Settings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        for (text, message) in [
            ("colour = 1", "unknown field `colour`"),
            ("scope = \"galaxy\"", "unknown variant `galaxy`"),
            ("tier = \"lsm\"", "unknown variant `lsm`"),
            ("tier = \"bpf-lsm\"\nscope = \"mount\"", "cover the whole machine"),
            ("decision_deadline_ms = 0", "decision_deadline_ms is 0, and must be 100 to 60000"),
            ("decision_deadline_ms = 60001", "must be 100 to 60000"),
            ("deadman_seconds = 0", "deadman_seconds is 0, and must be 1 to 120"),
            ("deadman_seconds = 121", "must be 1 to 120"),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
        let written = toml::to_string(&Config::default()).unwrap();
        assert_eq!(Config::parse(&written).unwrap(), Config::default());
    }
}
