//! `bench api`: what the API answers in, with 100,000 machines and 1,000,000 actions on SQLite and default settings.
//!
//! One client on this machine, over kept-alive HTTPS connections; it shares the processors with the server. The floor is
//! a request that the server refuses before it looks at anything: what TLS and HTTP cost alone. A figure with a goal says
//! whether it is met by its median.

mod seed;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use domain::time::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::{Api, block_on};
use super::{Figure, Output, median, milliseconds};
use crate::lab::{Lab, Show, UNLIMITED};
use crate::programs::{self, Profile};
use crate::setup;
use seed::{ACTIONS, BULK, MACHINES, Seed};

/// How often each request is made.
const REQUESTS: usize = 30;
/// How often a filtered page is asked for.
const FILTERED: usize = 9;
/// How often the largest page is asked for, to see whether memory grows.
const LARGEST: usize = 100;
/// How many ask at the same time.
const CALLERS: usize = 32;
/// How long they ask, in windows of a second, after one that does not count.
const SECONDS: u64 = 10;

/// Filters of machines: of each property one that many pass, one that few pass, and one that none passes. The few are
/// the last of the list.
const MACHINE_FILTERS: &[&str] = &[
    "id gt '0'",
    "id gt 'fff'",
    "id eq 'none'",
    "startswith(computerDnsName,'large')",
    "startswith(computerDnsName,'small')",
    "computerDnsName eq 'none'",
    "contains(computerDnsName,'none')",
    "version eq 'Debian 12'",
    "version ne 'Debian 12'",
    "version eq 'none'",
    "osPlatform eq 'Linux'",
    "osPlatform ne 'Linux'",
    "osPlatform eq 'none'",
    "lastSeen gt 2020-01-01Z",
    "lastSeen lt 2020-01-01Z",
    "healthStatus eq 'Active'",
    "healthStatus eq 'Inactive'",
    "healthStatus eq 'NoSensorData'",
    "lastIpAddress ne null",
    "lastIpAddress eq '10.0.0.7'",
    "lastIpAddress eq null",
    "machineTags/any(t: t eq 'server')",
    "machineTags/any(t: t eq 'rare')",
    "machineTags/any(t: t eq 'none')",
    "rbacGroupId eq 3",
    "rbacGroupId eq 1",
    "rbacGroupId eq 77",
    "rbacGroupName eq 'large'",
    "rbacGroupName eq 'small'",
    "rbacGroupName eq 'none'",
    "onboardingStatus eq 'onboarded'",
    "onboardingStatus eq 'Unsupported'",
    "aadDeviceId eq null",
    "aadDeviceId ne null",
    "riskScore eq 'None'",
    "riskScore eq 'High'",
    "exposureLevel eq 'None'",
    "exposureLevel eq 'High'",
    "deviceValue eq 'Normal'",
    "deviceValue eq 'High'",
    "executionRestriction eq 'Released'",
    "executionRestriction eq 'Restricted'",
    "executionRestriction/desired eq 'Released'",
    "executionRestriction/desired eq 'Restricted'",
    "executionRestriction/reported eq 'Unknown'",
    "executionRestriction/generation eq 1",
    "executionRestriction/generation gt 1",
    "executionRestriction/since gt 2020-01-01Z",
    "executionRestriction/since lt 2020-01-01Z",
    "executionRestriction/policy eq 'default'",
    "executionRestriction/policy eq 'none'",
    "executionRestriction/backend eq 'fanotify'",
    "executionRestriction/backend eq 'none'",
    "executionRestriction/drift eq false",
    "executionRestriction/drift eq true",
    "executionRestriction/endsAt eq null",
    "executionRestriction/endsAt ne null",
];

/// The same of machine actions; the few are the oldest.
const ACTION_FILTERS: &[&str] = &[
    "id ne 00112233-4455-6677-8899-aabbccddeeff",
    "id eq 00112233-4455-6677-8899-aabbccddeeff",
    "status eq 'Succeeded'",
    "status ne 'Succeeded'",
    "status eq 'InProgress'",
    "machineId gt '8'",
    "machineId gt 'fff'",
    "machineId eq 'none'",
    "type eq 'RestrictCodeExecution'",
    "type ne 'RestrictCodeExecution'",
    "type eq 'Isolate'",
    "requestor ne 'alice@example.com'",
    "requestor eq 'alice@example.com'",
    "requestor gt 'z'",
    "creationDateTimeUtc gt 2020-01-01Z",
    "creationDateTimeUtc lt 2020-01-01Z",
    "lastUpdateDateTimeUtc gt 2020-01-01Z",
    "lastUpdateDateTimeUtc lt 2020-01-01Z",
    "lastUpdateDateTimeUtc lt {old}",
    "externalId eq null",
    "externalId ne null",
    "startswith(externalId,'INC-00000')",
    "externalId eq 'none'",
];

/// Measures and prints.
pub(super) fn run(output: Output) -> Result<()> {
    setup::require(setup::DEMO)?;
    let lab = Lab::start(&programs::build(Profile::Release)?, UNLIMITED, Show::Nothing)?;
    block_on(async {
        let now = Timestamp::from(std::time::SystemTime::now());
        eprintln!("Writing {MACHINES} machines and {ACTIONS} actions ...");
        let start = Instant::now();
        let seed = seed::fill(&lab.folder.join("server/cordon.db"), now).await?;
        eprintln!("... in {} s", start.elapsed().as_secs());
        let api = Api::connect(&lab).await?;
        gets(&api, &seed, output).await?;
        filters(&api, now, output).await?;
        throughput(&lab, &api, &seed, output).await?;
        large_pages(&lab, &api, output).await?;
        bulk(&api, output).await
    })
}

/// A figure, beside its goal: a most for times, a least for rates.
fn print(figure: &Figure, goal: f64, output: Output) {
    figure.print(output);
    let is_rate = figure.unit.ends_with("/s");
    let met = if is_rate { median(&figure.values) >= goal } else { median(&figure.values) <= goal };
    let (verdict, side) = (if met { "met" } else { "NOT MET" }, if is_rate { "at least" } else { "at most" });
    eprintln!("{:<28} goal: {side} {goal} {}: {verdict}", "", figure.unit);
}

async fn timed(api: &Api, route: &str, times: usize) -> Result<Vec<f64>> {
    // Once before it counts, so that the pages of the file are in memory.
    api.get_body(route).await?;
    let mut values = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        api.get_body(route).await?;
        values.push(milliseconds(start.elapsed()));
    }
    Ok(values)
}

async fn gets(api: &Api, seed: &Seed, output: Output) -> Result<()> {
    let mut floor = Figure::new("http_floor_401", "ms");
    for _ in 0..REQUESTS {
        let start = Instant::now();
        let status = api.status_without_token("/api/machines").await?;
        ensure!(status == 401, "a request without a token was answered with {status}");
        floor.values.push(milliseconds(start.elapsed()));
    }
    floor.print(output);
    let Seed { machine, action } = seed;
    for (name, route) in [
        ("get_machine", format!("/api/machines/{machine}")),
        ("get_machine_action", format!("/api/machineactions/{action}")),
    ] {
        print(&Figure { name, unit: "ms", values: timed(api, &route, REQUESTS).await? }, 2.0, output);
    }
    Ok(())
}

/// The figure is made of the medians of the filters; the slowest is named.
async fn filters(api: &Api, now: Timestamp, output: Output) -> Result<()> {
    let old = now.minus(Duration::from_secs(80 * 24 * 3600)).to_string();
    for (name, set, filters) in [
        ("page_of_machines", "machines", MACHINE_FILTERS),
        ("page_of_machine_actions", "machineactions", ACTION_FILTERS),
    ] {
        let (mut figure, mut slowest) = (Figure::new(name, "ms"), Vec::new());
        for filter in filters {
            let filter = filter.replace("{old}", &old);
            let route = format!("/api/{set}?$top=100&$filter={}", filter.replace(' ', "%20"));
            let time = median(&timed(api, &route, FILTERED).await?);
            figure.values.push(time);
            slowest.push((time, filter));
        }
        print(&figure, 10.0, output);
        slowest.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (time, filter) in slowest.iter().take(3) {
            eprintln!("{:<28} {time:.1} ms: {filter}", "");
        }
        let over = slowest.iter().filter(|(time, _)| *time > 10.0).count();
        eprintln!("{:<28} {over} of {} filters take more than 10 ms", "", slowest.len());
    }
    Ok(())
}

/// Single gets of many callers at once.
async fn throughput(lab: &Lab, api: &Api, seed: &Seed, output: Output) -> Result<()> {
    for (name, route, goal) in [
        ("floor_401_per_second", None, None),
        ("gets_per_second", Some(format!("/api/machines/{}", seed.machine)), Some(5000.0)),
    ] {
        let start = Instant::now() + Duration::from_secs(1);
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(call(api.beside(lab)?, route.clone(), start));
        }
        let mut windows = vec![0_f64; usize::try_from(SECONDS)?];
        while let Some(ends) = callers.join_next().await {
            for end in ends?? {
                if let Some(window) = windows.get_mut(usize::try_from(end.as_secs())?) {
                    *window += 1.0;
                }
            }
        }
        let figure = Figure { name, unit: "1/s", values: windows };
        match goal {
            Some(goal) => print(&figure, goal, output),
            None => figure.print(output),
        }
    }
    Ok(())
}

async fn call(api: Api, route: Option<String>, start: Instant) -> Result<Vec<Duration>> {
    let mut ends = Vec::new();
    loop {
        match &route {
            Some(route) => drop(api.get_body(route).await?),
            None => drop(api.status_without_token("/api/machines").await?),
        }
        if let Some(end) = Instant::now().checked_duration_since(start) {
            if end >= Duration::from_secs(SECONDS) {
                return Ok(ends);
            }
            ends.push(end);
        }
    }
}

async fn large_pages(lab: &Lab, api: &Api, output: Output) -> Result<()> {
    let largest = "/api/machineactions?$top=10000";
    let mut figure = Figure::new("top_10000", "ms");
    let (mut early, mut most) = (0.0, 0.0_f64);
    for number in 0..LARGEST {
        figure.values.extend(timed_once(api, largest).await?);
        let memory = resident_mebibytes(lab.server_id())?;
        most = most.max(memory);
        if number == LARGEST / 10 {
            early = memory;
        }
    }
    print(&figure, 250.0, output);
    Figure::of("server_memory_early", "MiB", early).print(output);
    Figure::of("server_memory_most", "MiB", most).print(output);

    let mut route = "/api/machineactions".to_owned();
    let (start, mut rows, mut rates) = (Instant::now(), 0_u32, Vec::new());
    loop {
        let page = Instant::now();
        let body = api.get_body(&route).await?;
        // Not read in whole: a client's way of reading is its own.
        let text = std::str::from_utf8(&body)?;
        let in_page = u32::try_from(text.matches("\"creationDateTimeUtc\":").count())?;
        rows += in_page;
        rates.push(f64::from(in_page) / page.elapsed().as_secs_f64());
        let Some((_, link)) = text.rsplit_once("\"@odata.nextLink\":\"") else { break };
        let link = link.split('"').next().context("a next link without an end")?;
        route =
            link.find("/api/").and_then(|at| link.get(at..)).context("a next link without path")?.to_owned();
    }
    ensure!(rows == ACTIONS, "paging found {rows} actions");
    print(&Figure { name: "paging_rows_per_second", unit: "1/s", values: rates }, 50_000.0, output);
    let all = f64::from(rows) / start.elapsed().as_secs_f64();
    Figure::of("paging_rows_overall", "1/s", all).print(output);
    Ok(())
}

async fn timed_once(api: &Api, route: &str) -> Result<Option<f64>> {
    let start = Instant::now();
    api.get_body(route).await?;
    Ok(Some(milliseconds(start.elapsed())))
}

fn resident_mebibytes(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1024.0)
}

/// The reply to one call about many machines.
async fn bulk(api: &Api, output: Output) -> Result<()> {
    let mut figure = Figure::new("bulk_restrict_10000", "ms");
    for (verb, comment) in [("restrict", "bench"), ("unrestrict", "bench"), ("restrict", "again")] {
        let body = json!({ "Filter": "machineTags/any(t: t eq 'bulk')", "Comment": comment });
        let start = Instant::now();
        let reply = api.post_json(&format!("/api/cordon/v1/machines/{verb}CodeExecution"), &body).await?;
        if verb == "restrict" {
            figure.values.push(milliseconds(start.elapsed()));
        }
        let reply: Value = serde_json::from_slice(&reply)?;
        let results = reply.get("results").and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(results == BULK as usize, "{results} results of a bulk call");
    }
    print(&figure, 1000.0, output);
    Ok(())
}
