//! `cargo xtask vm`: the bypass matrix in guests with a real kernel, on each tier, as a user and as root.
//!
//! The rows are in crate `matrix`, which runs inside. Here is what surrounds them: what guests boot from, one guest a
//! tier and stage, and the table.

mod guest;
mod image;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{command, lab, programs, setup};
use guest::Plan;

/// How many rows the bypass matrix has.
const VECTORS: u64 = 90;
/// What must stay possible on a restricted machine.
const POSSIBLE: &[&str] = &[
    "reboot",
    "login",
    "sshd",
    "sudo",
    "systemd-restart",
    "journald",
    "cron",
    "package-manager",
    "upgrade",
    "lift",
];

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these rows, by number or word
    #[arg(long = "row", value_name = "ROW")]
    rows: Vec<String>,
    /// Only these tiers
    #[arg(long = "tier", value_enum)]
    tiers: Vec<Tier>,
    /// Only the rows of this stage
    #[arg(long, value_enum)]
    stage: Option<Stage>,
    /// Print one JSON object a line: row, tier, as, expected, got
    #[arg(long)]
    json: bool,
    /// List the rows that there are, and run none
    #[arg(long)]
    list: bool,
}

/// What holds the restriction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tier {
    /// BPF LSM
    T1,
    /// BPF where the kernel was booted without bpf among the security modules
    T2,
    /// fanotify
    T3,
    /// fapolicyd in our place, to compare with: shown, never a failure
    Fapolicyd,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::T1 => "t1",
            Self::T2 => "t2",
            Self::T3 => "t3",
            Self::Fapolicyd => "fapolicyd",
        }
    }

    /// As the gate's settings spell it.
    fn gate_name(self) -> &'static str {
        match self {
            Self::T1 => "bpf-lsm",
            Self::T2 => "fmod-ret",
            Self::T3 => "fanotify",
            // Where no gate is to restrict.
            Self::Fapolicyd => "auto",
        }
    }

    /// The security modules that its guest's kernel has.
    fn lsm(self) -> &'static str {
        match self {
            Self::T1 => "landlock,lockdown,yama,bpf",
            Self::T2 | Self::T3 | Self::Fapolicyd => "landlock,lockdown,yama",
        }
    }
}

/// Which guest a row needs.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// A kernel and some packages
    Fast,
    /// A Debian with systemd
    Debian,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Debian => "debian",
        }
    }
}

/// One line of the table.
struct Cell {
    expected: String,
    got: String,
    holds: bool,
}

/// By row (as a number, where it is one), its word, tier, and user.
type Table = BTreeMap<(u64, String, Tier, String), Cell>;

/// Runs the matrix.
pub(crate) fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    setup::require(setup::VM)?;
    let mut programs = programs::build_for_guests()?;
    let rows = list(&programs)?;
    if options.list {
        return print_list(&rows);
    }
    guest::compile(&programs.compiled)?;
    let images = image::Images::get()?;
    let plans = plans(options, &rows)?;
    if plans.iter().any(|plan| plan.stage == Stage::Debian) {
        programs.build_agent()?;
    }
    let folder = lab::folder()?;
    let table: Mutex<Table> = Mutex::default();
    let failures: Mutex<Vec<String>> = Mutex::default();
    let (queue, hands) = (Mutex::new(plans.iter()), std::thread::available_parallelism()?.get());
    std::thread::scope(|scope| {
        for _ in 0..hands {
            scope.spawn(|| {
                while let Some(plan) = take(&queue) {
                    let place = guest::folder_of(&folder, plan);
                    let mut current = String::new();
                    let result = guest::run(&images, &programs, plan, &place, |line| {
                        hear(line, plan.tier, options, &table, &mut current);
                    });
                    if let Err(error) = result
                        && plan.tier != Tier::Fapolicyd
                        && let Ok(mut failures) = failures.lock()
                    {
                        let (stage, tier) = (plan.stage.name(), plan.tier.name());
                        failures.push(format!("{stage} {tier}, row {current}: {error:#}"));
                    }
                }
            });
        }
    });
    let table = table.into_inner().unwrap_or_default();
    let mut failures = failures.into_inner().unwrap_or_default();
    judge(options, &rows, &plans, &table, &mut failures);
    if !options.json {
        print_table(&table)?;
    }
    eprintln!("{} results in {:.0?}", table.len(), start.elapsed());
    for failure in &failures {
        eprintln!("vm: {failure}");
    }
    ensure!(failures.is_empty(), "{} failures", failures.len());
    Ok(())
}

fn take<'a>(queue: &Mutex<std::slice::Iter<'a, Plan>>) -> Option<&'a Plan> {
    queue.lock().ok()?.next()
}

/// The rows that there are, as the program in the guest lists them.
fn list(programs: &programs::GuestPrograms) -> Result<Vec<Value>> {
    let lines = command::output(Command::new(&programs.matrix).arg("list"))?;
    lines.lines().map(|line| serde_json::from_str(line).context("cordon-matrix list")).collect()
}

/// A row's number or word, as text.
fn id_of(row: &Value) -> String {
    match row.get("row") {
        Some(Value::String(word)) => word.clone(),
        other => other.map(Value::to_string).unwrap_or_default(),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// One guest a tier and stage, the longest first.
fn plans(options: &Options, rows: &[Value]) -> Result<Vec<Plan>> {
    for row in &options.rows {
        ensure!(rows.iter().any(|known| id_of(known) == *row), "there is no row {row}: see --list");
    }
    let is_wanted = |row: &&Value| options.rows.is_empty() || options.rows.contains(&id_of(row));
    let mut plans = Vec::new();
    for stage in [Stage::Debian, Stage::Fast] {
        if options.stage.is_some_and(|only| only != stage) {
            continue;
        }
        let of_stage = rows.iter().filter(is_wanted).filter(|row| text(row, "stage") == stage.name());
        let of_stage: Vec<_> = of_stage.map(id_of).collect();
        if of_stage.is_empty() {
            continue;
        }
        for tier in [Tier::T1, Tier::T2, Tier::T3, Tier::Fapolicyd] {
            // The rows of the other stage are about our own services.
            if tier == Tier::Fapolicyd && stage == Stage::Debian {
                continue;
            }
            if options.tiers.is_empty() || options.tiers.contains(&tier) {
                plans.push(Plan { tier, stage, rows: of_stage.clone() });
            }
        }
    }
    ensure!(!plans.is_empty(), "none of the rows is in the stage that you chose");
    Ok(plans)
}

/// Takes a line of a guest in.
fn hear(line: &Value, tier: Tier, options: &Options, table: &Mutex<Table>, current: &mut String) {
    *current = id_of(line);
    if text(line, "type") != "result" {
        return;
    }
    let cell = Cell {
        expected: text(line, "expected").to_owned(),
        got: text(line, "got").to_owned(),
        holds: line.get("holds").and_then(Value::as_bool).unwrap_or(false),
    };
    let r#as = text(line, "as").to_owned();
    if options.json {
        let row = line.get("row");
        println!(
            "{}",
            json!({"row": row, "tier": tier, "as": r#as, "expected": cell.expected, "got": cell.got})
        );
    }
    let deviations = line.get("deviations").and_then(Value::as_array);
    for deviation in deviations.into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("row {current} on {} as {as}: {deviation}", tier.name(), r#as = r#as);
    }
    let key = (line.get("row").and_then(Value::as_u64).unwrap_or(VECTORS + 1), current.clone(), tier, r#as);
    if let Ok(mut table) = table.lock() {
        table.insert(key, cell);
    }
}

/// What must hold besides the rows' own expectations: each was run, and each exists.
fn judge(options: &Options, rows: &[Value], plans: &[Plan], table: &Table, failures: &mut Vec<String>) {
    let deviating = table.values().filter(|cell| !cell.holds).count();
    if deviating > 0 {
        failures.push(format!("{deviating} results are not as expected"));
    }
    for plan in plans.iter().filter(|plan| plan.tier != Tier::Fapolicyd) {
        for row in &plan.rows {
            for r#as in ["user", "root"] {
                let ran = table.keys().any(|(_, id, tier, by)| id == row && *tier == plan.tier && by == r#as);
                if !ran {
                    failures.push(format!(
                        "row {row} has no result on {} as {as}",
                        plan.tier.name(),
                        r#as = r#as
                    ));
                }
            }
        }
    }
    if !options.rows.is_empty() || options.stage.is_some() {
        return;
    }
    let is_written = |id: &String| rows.iter().any(|row| id_of(row) == *id);
    let all = (1..=VECTORS).map(|number| number.to_string());
    let all = all.chain(POSSIBLE.iter().map(|word| (*word).to_owned()));
    let missing: Vec<_> = all.filter(|id| !is_written(id)).collect();
    if !missing.is_empty() {
        failures.push(format!("rows that are not written yet: {}", missing.join(" ")));
    }
}

fn print_list(rows: &[Value]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for row in rows {
        writeln!(out, "{:>16}  {:<7} {}", id_of(row), text(row, "stage"), text(row, "name"))?;
    }
    Ok(())
}

fn print_table(table: &Table) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:>16}  {:<9}  as    {:<40} got", "row", "tier", "expected")?;
    for ((_, row, tier, by), cell) in table {
        let mark = if cell.holds { "" } else { "   <-- not as expected" };
        writeln!(out, "{row:>16}  {:<9}  {by:<4}  {:<40} {}{mark}", tier.name(), cell.expected, cell.got)?;
    }
    Ok(())
}
