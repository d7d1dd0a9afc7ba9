//! `bench accept`: how many machine actions a second the server accepts on SQLite, durable before each 201.
//!
//! 64 callers, each with a connection of its own, call restrict and unrestrict in turns on eight machines of their own.
//! A machine has one open action at a time and these machines are not connected, so from the second round on each
//! call also cancels the action before it: more work for the store than a fresh action. The callers share this
//! machine's processors with the server.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::client::{Api, Call, block_on};
use super::{Figure, Output, fleet, milliseconds};
use crate::lab::{Lab, Show, UNLIMITED};
use crate::programs::{self, Profile};
use crate::setup;

const CALLERS: u32 = 64;
const MACHINES_EACH: usize = 8;
/// Before anything counts.
const WARM_UP: Duration = Duration::from_secs(1);
/// What counts, in windows of a second.
const SECONDS: u32 = 15;

/// Measures and prints.
pub(super) fn run(output: Output) -> Result<()> {
    setup::require(setup::DEMO)?;
    let lab = Lab::start(&programs::build(Profile::Release)?, UNLIMITED, Show::Nothing)?;
    let calls = block_on(async {
        let api = Api::connect(&lab).await?;
        let count = CALLERS * u32::try_from(MACHINES_EACH)?;
        eprintln!("Enrolling {count} machines ...");
        let machines = fleet::enroll(&lab, &api, count).await?;
        let start = Instant::now() + WARM_UP;
        let mut callers = JoinSet::new();
        for own in machines.chunks(MACHINES_EACH) {
            callers.spawn(call_in_turns(api.beside(&lab)?, own.to_vec(), start));
        }
        let mut calls = Vec::new();
        while let Some(caller) = callers.join_next().await {
            calls.extend(caller??);
        }
        Ok(calls)
    })?;
    let mut windows = vec![0_f64; usize::try_from(SECONDS)?];
    let mut latency = Figure::new("accept_call", "ms");
    for (end, duration) in calls {
        if let Some(window) = windows.get_mut(usize::try_from(end.as_secs())?) {
            *window += 1.0;
            latency.values.push(milliseconds(duration));
        }
    }
    Figure { name: "accepted_actions", unit: "1/s", values: windows }.print(output);
    latency.print(output);
    Ok(())
}

/// Calls until the time is over. Of each call: when it ended, counted from `start`, and how long it took.
async fn call_in_turns(api: Api, machines: Vec<String>, start: Instant) -> Result<Vec<(Duration, Duration)>> {
    let mut calls = Vec::new();
    let mut turns = [Call::Restrict, Call::Unrestrict].into_iter().cycle();
    loop {
        let call = turns.next().context("no turn")?;
        for machine in &machines {
            let called = Instant::now();
            api.act(machine, call).await?;
            let now = Instant::now();
            if let Some(end) = now.checked_duration_since(start) {
                if end >= Duration::from_secs(SECONDS.into()) {
                    return Ok(calls);
                }
                calls.push((end, now - called));
            }
        }
    }
}
