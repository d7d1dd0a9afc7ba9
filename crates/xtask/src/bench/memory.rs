//! `bench memory`: resident memory of the gate and the agent once this machine's packages are read, and of the server.

use anyhow::{Context as _, Result};

use super::{Figure, Output};
use crate::command;
use crate::lab::{Lab, Show, UNLIMITED, VerdictCache};
use crate::programs::{self, Profile};
use crate::setup;

/// Measures and prints.
pub(super) fn run(output: Output) -> Result<()> {
    setup::require(setup::DEMO)?;
    let lab = Lab::start(&programs::build(Profile::Release)?, UNLIMITED, Show::Nothing)?;
    let mut machine = lab.machine("bench-machine", VerdictCache::On)?;
    machine.wait_for_baseline()?;
    let (gate, agent) = machine.program_ids()?;
    let print = |name, kilobytes: f64| Figure::of(name, "MiB", kilobytes / 1024.0).print(output);
    let released = kilobytes(gate, "VmRSS")? + kilobytes(agent, "VmRSS")?;
    print("gate_and_agent_released", released);
    command::output(lab.cordon().args([
        "machine",
        "restrict",
        machine.name(),
        "--comment",
        "bench",
        "--wait",
    ]))?;
    // The session's threads and the first labels.
    for program in ["/bin/true", "/usr/bin/id", "/bin/ls"] {
        command::output(&mut machine.inside(&[program]))?;
    }
    print("gate_restricted", kilobytes(gate, "VmRSS")?);
    print("agent_restricted", kilobytes(agent, "VmRSS")?);
    print("gate_and_agent_restricted", kilobytes(gate, "VmRSS")? + kilobytes(agent, "VmRSS")?);
    print("gate_and_agent_most", kilobytes(gate, "VmHWM")? + kilobytes(agent, "VmHWM")?);
    print("server_idle", kilobytes(lab.server_id(), "VmRSS")?);
    Ok(())
}

/// A field of `/proc/PID/status`.
fn kilobytes(process: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB")).context("no such field")?;
    Ok(value.parse()?)
}
