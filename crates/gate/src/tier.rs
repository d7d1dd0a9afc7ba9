//! Chooses the mechanism of the kernel: the strongest that works here, or the one that the settings name.

use std::path::PathBuf;

use domain::restriction::Tier;
use enforcement::{Enforcer, Error, Fanotify, Keepers, Kernel, KernelSettings};

use crate::config::{Config, Scope, TierChoice};

/// What is to be known of tier T3.
const FANOTIFY_NOTE: &str = "reduced: sees neither memfd, nor mappings; when the gate and its keepers die at once, the \
                             kernel allows until the gate is back";

/// What was chosen.
pub struct Chosen {
    /// The mechanism.
    pub enforcer: Box<dyn Enforcer>,
    /// Why even this one cannot work here, when it cannot.
    pub unsupported: Option<String>,
    /// What is to be known of it: what it does not see, and why no stronger one was taken.
    pub note: String,
    /// Who may still have an earlier gate's restriction by fanotify, when this one has no use for it: to be ended once
    /// this one holds.
    pub former: Option<Keepers>,
}

/// One tier that was looked at.
pub struct Tried {
    /// Which.
    pub tier: Tier,
    /// Why it cannot work here; none when it can, as far as was tried.
    pub obstacle: Option<String>,
}

/// The tiers that the settings allow, the strongest first.
fn candidates(config: &Config) -> &'static [Tier] {
    match (config.tier, config.scope) {
        (TierChoice::Auto, Scope::Filesystem) => &[Tier::BpfLsm, Tier::FmodRet, Tier::Fanotify],
        (TierChoice::BpfLsm, _) => &[Tier::BpfLsm],
        (TierChoice::FmodRet, _) => &[Tier::FmodRet],
        (TierChoice::Fanotify, _) | (TierChoice::Auto, Scope::Mount) => &[Tier::Fanotify],
    }
}

/// What a person calls a tier.
pub fn title(tier: Tier) -> &'static str {
    match tier {
        Tier::BpfLsm => "T1 (bpf-lsm)",
        Tier::FmodRet => "T2 (fmod-ret)",
        Tier::Fanotify => "T3 (fanotify)",
    }
}

/// Looks at each candidate without changing anything.
pub fn look(config: &Config) -> Vec<Tried> {
    let obstacle = |tier| match tier {
        Tier::BpfLsm | Tier::FmodRet => enforcement::kernel_obstacle(tier),
        Tier::Fanotify => enforcement::support(),
    };
    candidates(config).iter().map(|tier| Tried { tier: *tier, obstacle: obstacle(*tier) }).collect()
}

/// The kernel options that the tiers need, and which of them.
const OPTIONS: &[(&str, &str)] = &[
    ("CONFIG_BPF_SYSCALL", "T1 and T2"),
    ("CONFIG_BPF_JIT", "T1 and T2"),
    ("CONFIG_DEBUG_INFO_BTF", "T1 and T2"),
    ("CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS", "T2"),
    ("CONFIG_BPF_LSM", "T1"),
    ("CONFIG_FANOTIFY_ACCESS_PERMISSIONS", "T3"),
];

/// The kernel options that are missing, each with who needs it; or why that cannot be told.
///
/// # Errors
/// When the kernel's configuration is not where distributions put it.
pub fn missing_options() -> std::io::Result<Vec<(&'static str, &'static str)>> {
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let path = format!("/boot/config-{release}");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| std::io::Error::new(error.kind(), format!("{path}: {error}")))?;
    Ok(missing_in(&text))
}

fn missing_in(configuration: &str) -> Vec<(&'static str, &'static str)> {
    let is_set = |option: &str| {
        configuration.lines().any(|line| line.strip_prefix(option).is_some_and(|value| value == "=y"))
    };
    OPTIONS.iter().copied().filter(|(option, _)| !is_set(option)).collect()
}

/// Starts the first candidate that works. The last one is taken whether it works or not: the gate must run to say so.
///
/// `keepers` have what a restriction by fanotify must not lose. `baseline_files` is how many files packages shipped, as
/// far as is known.
///
/// # Errors
/// When there is no thread for a backend.
pub fn choose(config: &Config, keepers: Keepers, baseline_files: usize) -> Result<Chosen, Error> {
    let mut before = Vec::new();
    let tiers = candidates(config);
    for tier in tiers {
        let found = match tier {
            Tier::BpfLsm | Tier::FmodRet => start(*tier, config, baseline_files),
            Tier::Fanotify => {
                let unsupported = enforcement::support();
                let enforcer = Box::new(fanotify(config, keepers)?);
                let note = with_reasons(FANOTIFY_NOTE, &before);
                return Ok(Chosen { enforcer, unsupported, note, former: None });
            }
        };
        match found {
            Ok(kernel) => {
                let note = "the kernel decides by itself, also when the gate is gone";
                return Ok(Chosen {
                    enforcer: Box::new(kernel),
                    unsupported: None,
                    note: with_reasons(note, &before),
                    former: Some(keepers),
                });
            }
            Err(reason) => before.push(format!("{} cannot be used: {reason}", title(*tier))),
        }
    }
    let enforcer = Box::new(Fanotify::new(config.enforcement()));
    Ok(Chosen { enforcer, unsupported: Some(before.join("; ")), note: String::new(), former: None })
}

fn fanotify(config: &Config, keepers: Keepers) -> Result<Fanotify, Error> {
    let wants_keeper = keepers.socket.is_some();
    let backend = Fanotify::kept_by(config.enforcement(), keepers)?;
    if wants_keeper && !backend.has_keeper() {
        log!("no keeper answers on {}", config.keeper_socket.display());
    }
    Ok(backend)
}

fn with_reasons(note: &str, before: &[String]) -> String {
    std::iter::once(note).chain(before.iter().map(String::as_str)).collect::<Vec<_>>().join("; ")
}

fn start(tier: Tier, config: &Config, baseline_files: usize) -> Result<Kernel, String> {
    if let Some(obstacle) = enforcement::kernel_obstacle(tier) {
        return Err(obstacle);
    }
    let gate_program = std::fs::read_link("/proc/self/exe").map_err(|error| error.to_string())?;
    Kernel::start(tier, settings(config, gate_program, baseline_files)).map_err(|error| chain(&error))
}

fn settings(config: &Config, gate_program: PathBuf, baseline_files: usize) -> KernelSettings {
    let behavior = config.enforcement();
    let state = &config.state_dir;
    KernelSettings {
        pins: Some(config.pins.clone()),
        // Below the state's folder each folder is its own.
        own: vec![state.clone(), state.join("policies"), state.join("canaries"), gate_program.clone()],
        gate_program,
        hash_bytes_max: behavior.hash_bytes_max,
        places: baseline_files,
        memory: Some(state.join("read")),
    }
}

fn chain(error: &Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_options_are_named() {
        let all: String = OPTIONS.iter().map(|(option, _)| format!("{option}=y\n")).collect();
        assert_eq!(missing_in(&all), []);
        let without = all.replace("CONFIG_BPF_LSM=y", "# CONFIG_BPF_LSM is not set\nCONFIG_BPF_LSM_X=y");
        assert_eq!(missing_in(&without), [("CONFIG_BPF_LSM", "T1")]);
    }

    #[test]
    fn what_covers_one_namespace_only_is_fanotify() {
        let mount = Config { scope: Scope::Mount, ..Config::default() };
        assert_eq!(candidates(&mount), [Tier::Fanotify]);
        assert_eq!(candidates(&Config::default()), [Tier::BpfLsm, Tier::FmodRet, Tier::Fanotify]);
        for (tier, only) in [
            (TierChoice::BpfLsm, Tier::BpfLsm),
            (TierChoice::FmodRet, Tier::FmodRet),
            (TierChoice::Fanotify, Tier::Fanotify),
        ] {
            assert_eq!(candidates(&Config { tier, ..Config::default() }), [only]);
        }
    }
}
