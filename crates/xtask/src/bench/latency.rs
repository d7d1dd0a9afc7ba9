//! `bench latency`: from the API call to the 201, and to the proof, as a client sees it.
//!
//! A real server, a real agent and a real gate in namespaces of their own, all on this machine. The client polls the
//! action over its kept-alive connection, 1 ms after each answer, and "proved" is when it holds the answer that says
//! `Succeeded`: the network, the poll and the client's own work count.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::client::{Api, Call, block_on};
use super::{Figure, Output, milliseconds};
use crate::lab::{Lab, Show, UNLIMITED, VerdictCache, text};
use crate::programs::{self, Profile};
use crate::setup;

/// Restricted and released again.
const CYCLES: usize = 200;
/// Between an action's end and the next call: a machine that talks faster than this for long is slowed by its server.
const PAUSE: Duration = Duration::from_millis(100);
/// Between an answer and the next question.
const POLL: Duration = Duration::from_millis(1);
/// The longest that one action may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Measures and prints.
pub(super) fn run(output: Output) -> Result<()> {
    setup::require(setup::DEMO)?;
    let lab = Lab::start(&programs::build(Profile::Release)?, UNLIMITED, Show::Nothing)?;
    let mut machine = lab.machine("bench-machine", VerdictCache::On)?;
    machine.wait_for_baseline()?;
    let mut disk = std::fs::File::create(lab.folder.join("fsync"))?;
    let mut fsync = Figure::new("fsync", "ms");
    let mut created = Figure::new("call_to_201", "ms");
    let mut proved = Figure::new("call_to_proved", "ms");
    block_on(async {
        let api = Api::connect(&lab).await?;
        for cycle in 0..=CYCLES {
            for call in [Call::Restrict, Call::Unrestrict] {
                let start = Instant::now();
                let action = text(&api.act(machine.name(), call).await?, "id")?;
                let to_201 = start.elapsed();
                while !api.succeeded(&action).await? {
                    ensure!(start.elapsed() < DEADLINE, "action {action} takes more than {DEADLINE:?}");
                    tokio::time::sleep(POLL).await;
                }
                let to_proof = start.elapsed();
                tokio::time::sleep(PAUSE).await;
                // The first cycle warms connections and caches.
                if cycle > 0 {
                    created.values.push(milliseconds(to_201));
                    proved.values.push(milliseconds(to_proof));
                }
            }
            let start = Instant::now();
            disk.write_all(&[0x5a; 4096])?;
            disk.sync_data()?;
            fsync.values.push(milliseconds(start.elapsed()));
        }
        Ok(())
    })?;
    for figure in [created, proved, fsync] {
        figure.print(output);
    }
    Ok(())
}
