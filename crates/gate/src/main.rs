//! The program `cordon-gate`: arguments, and nothing else.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use cordon_gate::config::Config;
use cordon_gate::gate::Gate;
use cordon_gate::state::State;
use cordon_gate::{console, socket, tier};
use domain::time::Timestamp;
use gate_protocol::Status;

/// Restricts execution on this machine by signed orders.
///
/// The gate runs as root and has no network. It obeys only orders that the control plane signed for this machine, and
/// keeps a restriction over restarts.
#[derive(Parser)]
#[command(name = "cordon-gate", version)]
struct Arguments {
    /// The settings; without it, /etc/cordon/gate.toml if there is one
    #[arg(long, env = "CORDON_GATE_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Run the gate (the default)
    Run,
    /// Show the settings in force, or what is wrong with them
    CheckConfig,
    /// Show the running gate's state
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Check whether this kernel can hold a restriction
    Doctor,
    /// Keep what a gate must not lose when it dies
    ///
    /// Holds the kernel's questions while there is no gate, and refuses them when none comes back in time. What the
    /// kernel has been told to let run, runs on.
    Keeper {
        /// Where it listens; without it, where the settings say
        #[arg(long, value_name = "FILE")]
        socket: Option<PathBuf>,
        /// Outlive the gate, which starts it so
        #[arg(long)]
        stay: bool,
    },
    /// Lift the restriction by a break-glass code, without a network
    ///
    /// Asks for the code, which whoever may see break-glass codes gets from the server: `cordon machine
    /// break-glass-code`. Needs root. Works without a running gate too.
    BreakGlass,
    /// Check whether Cordon may be removed from this machine: not while it is to be restricted
    ///
    /// For the scripts of packages. Ends with 0 when it may be removed, with 1 and the reason when not.
    UninstallCheck,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to tell when standard error is gone.
            drop(writeln!(std::io::stderr(), "cordon-gate: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let config = Config::read(arguments.config.as_deref())?;
    let mut out = std::io::stdout().lock();
    match arguments.command.unwrap_or(Action::Run) {
        Action::Run => {
            if !nix::unistd::geteuid().is_root() {
                bail!("the gate must run as root: it answers the kernel's permission events");
            }
            // What the kernel kills for memory must not be what restricts the machine.
            drop(std::fs::write("/proc/self/oom_score_adj", "-1000"));
            // The restriction is in force again before the socket opens, and before anything else.
            let mut gate = start(&config)?;
            gate.watch_over(&config);
            socket::serve(&config.socket, config.agent_uid, gate)
                .with_context(|| format!("cannot serve {}", config.socket.display()))?;
        }
        Action::Keeper { socket, stay } => {
            drop(std::fs::write("/proc/self/oom_score_adj", "-1000"));
            if stay {
                enforcement::keeper::stay()?;
            }
            let socket = socket.unwrap_or(config.keeper_socket);
            enforcement::keeper::serve(&socket, &mut |line| {
                drop(writeln!(std::io::stderr(), "cordon-gate keeper: {line}"));
            })
            .with_context(|| format!("cannot serve {}", socket.display()))?;
        }
        Action::CheckConfig => write!(out, "{}", toml::to_string(&config)?)?,
        Action::Status { output } => {
            let status = console::status(&config.socket)?;
            match output {
                Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?,
                Output::Text => print_status(&mut out, &status)?,
            }
        }
        Action::BreakGlass => {
            if !nix::unistd::geteuid().is_root() {
                bail!("only root may lift the restriction by a code");
            }
            let proof = console::break_glass(&config.socket, &mut out, || start(&config))?;
            writeln!(
                out,
                "The restriction is lifted ({proof}). It stays lifted until a new order of the control plane."
            )?;
        }
        Action::UninstallCheck => {
            if let Some(reason) = console::why_restricted(&config) {
                writeln!(out, "Cordon cannot be removed while this machine is to be restricted: {reason}.")?;
                writeln!(
                    out,
                    "Lift the restriction first: cordon machine unrestrict, or here: cordon-gate break-glass"
                )?;
                return Ok(ExitCode::FAILURE);
            }
            writeln!(out, "Cordon may be removed: this machine is not restricted.")?;
        }
        Action::Doctor => {
            let mut works = false;
            for tried in tier::look(&config) {
                let title = tier::title(tried.tier);
                match tried.obstacle {
                    None if works => writeln!(out, "tier {title}: possible, and not needed")?,
                    None => writeln!(out, "tier {title}: possible, and tried first")?,
                    Some(reason) => writeln!(out, "tier {title}: no: {reason}")?,
                }
                works |= true;
            }
            match tier::missing_options() {
                Ok(missing) => {
                    for (option, tiers) in missing {
                        writeln!(out, "kernel option {option} is missing, which {tiers} needs")?;
                    }
                }
                Err(error) => writeln!(out, "kernel options cannot be told: {error}")?,
            }
            if let Ok(status) = console::status(&config.socket) {
                let tier = status.tier.unwrap_or_else(|| "none".to_owned());
                writeln!(out, "the running gate has tier {tier}: {}", status.tier_note)?;
            }
            if !works {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A gate that is what its state says.
fn start(config: &Config) -> Result<Gate> {
    let keepers = config.keepers()?;
    let state = State::open(&config.state_dir)?;
    let mut chosen = tier::choose(config, keepers, state.baseline_files())?;
    let former = chosen.former.take();
    let gate = Gate::start(state, &config.agent_program, &config.manifests_dir, chosen)?;
    if let Some(former) = former {
        enforcement::end_former(former);
    }
    Ok(gate)
}

fn print_status(out: &mut impl std::io::Write, status: &Status) -> std::io::Result<()> {
    let none = || "none".to_owned();
    let state = if status.restricted { "restricted" } else { "released" };
    writeln!(out, "state       {state}")?;
    if let Some(ends_at) = status.ends_at {
        writeln!(out, "ends        by itself at {}", Timestamp::from_ticks(ends_at))?;
    }
    if let Some(reason) = &status.failed_closed {
        writeln!(out, "failed      closed: {reason}")?;
    }
    if let Some(glass) = &status.break_glass {
        if let Some(lifted_at) = glass.lifted_at {
            writeln!(out, "lifted      by a break-glass code at {}", Timestamp::from_ticks(lifted_at))?;
        }
        writeln!(out, "codes       {} break-glass codes would be taken", glass.codes_left)?;
    }
    writeln!(out, "machine     {}", status.machine.clone().unwrap_or_else(none))?;
    let fence = (status.incarnation, status.store_epoch, status.generation);
    writeln!(out, "fence       incarnation {}, store epoch {}, generation {}", fence.0, fence.1, fence.2)?;
    writeln!(out, "tier        {} ({})", status.tier.clone().unwrap_or_else(none), status.tier_note)?;
    writeln!(out, "policy      {}", status.policy.clone().unwrap_or_else(none))?;
    writeln!(
        out,
        "baseline    {} files, {}",
        status.baseline_files,
        status.baseline.clone().unwrap_or_else(none)
    )?;
    writeln!(out, "executions  {} asked, {} refused, {} labels", status.asked, status.denied, status.labels)?;
    writeln!(out, "denials     {} were lost and not reported", status.denials_dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_shown() {
        let mut status: Status = serde_json::from_value(serde_json::json!({
            "version": "", "public_key": "", "machine": null, "incarnation": 1, "store_epoch": 1, "generation": 1,
            "restricted": true, "ends_at": 9_518_688_000_000_000_i64, "failed_closed": null, "tier": null,
            "tier_note": "", "policies": [], "policy": null, "baseline": null, "baseline_files": 0, "marks": 0,
            "labels": 0, "asked": 0, "denied": 0,
        }))
        .unwrap();
        let text = |status: &Status| {
            let mut out = Vec::new();
            print_status(&mut out, status).unwrap();
            String::from_utf8(out).unwrap()
        };
        let shown = text(&status);
        let expected = "state       restricted\nends        by itself at 2000-03-01T00:00:00Z\n";
        assert!(shown.starts_with(expected), "{shown}");
        status.ends_at = None;
        assert!(!text(&status).contains("ends"));
    }
}
