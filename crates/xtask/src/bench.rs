//! `cargo xtask bench`: what to measure, and how figures are printed.
//!
//! Benches measure release builds of the real programs, and say their spread. With `--json` a figure is one object
//! on one line of standard output; everything else goes to standard error.

mod accept;
mod api;
mod client;
mod exec;
mod fleet;
mod inventory;
mod latency;
mod memory;
mod rank;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

pub(crate) use exec::exec_loop;

/// What to measure.
#[derive(Clone, Copy, Subcommand)]
pub(crate) enum What {
    /// From the API call to the 201, and to the proof: 200 cycles on a real machine
    Latency(Output),
    /// What a restriction costs executions, opens and a compilation, beside bare and beside fapolicyd
    Exec(Output),
    /// Reading what packages shipped: 100,000 generated files, and this machine's own
    Inventory(Output),
    /// How many machine actions a second the server accepts from 64 callers
    Accept(Output),
    /// What the API answers in: 100,000 machines and 1,000,000 actions on SQLite
    Api(Output),
    /// Memory of the gate, the agent and the server
    Memory(Output),
}

/// How the figures are printed.
#[derive(Clone, Copy, Args)]
pub(crate) struct Output {
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
}

/// Runs one bench.
pub(crate) fn run(what: What) -> Result<()> {
    match what {
        What::Latency(output) => latency::run(output),
        What::Exec(output) => exec::run(output),
        What::Inventory(output) => inventory::run(output),
        What::Accept(output) => accept::run(output),
        What::Api(output) => api::run(output),
        What::Memory(output) => memory::run(output),
    }
}

/// One thing, measured `n` times.
struct Figure {
    name: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

impl Figure {
    fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, values: Vec::new() }
    }

    fn of(name: &'static str, unit: &'static str, value: f64) -> Self {
        Self { name, unit, values: vec![value] }
    }

    fn print(&self, output: Output) {
        let [p50, p90, p99] = [0.50, 0.90, 0.99].map(|share| round(percentile(&self.values, share)));
        let (name, unit, n) = (self.name, self.unit, self.values.len());
        if output.json {
            print_json(&FigureLine { name, unit, p50, p90, p99, n });
        } else if n == 1 {
            println!("{name:<28} {p50} {unit}");
        } else {
            let most = round(percentile(&self.values, 1.0));
            println!("{name:<28} p50 {p50} {unit}, p90 {p90}, p99 {p99}, most {most} (n = {n})");
        }
    }
}

/// A figure as a line of JSON.
#[derive(Serialize)]
struct FigureLine<'a> {
    name: &'a str,
    unit: &'a str,
    p50: f64,
    p90: f64,
    p99: f64,
    n: usize,
}

fn print_json(line: &impl Serialize) {
    // Plain numbers and names: serialization has no way to fail.
    println!("{}", serde_json::to_string(line).unwrap_or_default());
}

/// The value below which this share of all lies (nearest rank); 0 of nothing.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rank among a few thousand"
)]
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or_default()
}

fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// Three places are more than any of these figures is worth.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values = [3.0, 1.0, 2.0, 4.0];
        assert_eq!(
            [0.0, 0.25, 0.5, 0.51, 0.99, 1.0].map(|share| percentile(&values, share)),
            [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]
        );
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
