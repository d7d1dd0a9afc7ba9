//! `bench exec`: what fork + exec + wait of a small static program costs, each variant in a mount namespace of its own.
//!
//! The variants take turns, a batch each, in many rounds, because timing on shared machines drifts; a ratio compares
//! two medians of the same round. The loop that measures is this program again, started inside each namespace before
//! anything is restricted, so that between two executions it does nothing but read the clock.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::Digest as _;

use super::{Output, median, percentile, print_json, round};
use crate::command;
use crate::lab::{Lab, Machine, Namespace, Process, Show, UNLIMITED, VerdictCache, wait_until};
use crate::programs::{self, Profile};
use crate::setup;

/// Rounds, in which every variant has its turn.
const ROUNDS: usize = 300;
/// Executions in a turn.
const BATCH: usize = 20;

/// Measures and prints.
pub(super) fn run(output: Output) -> Result<()> {
    setup::require(setup::DEMO)?;
    let lab = Lab::start(&programs::build(Profile::Release)?, UNLIMITED, Show::Nothing)?;
    let program = static_program(&lab.folder)?;
    allow(&lab, &program)?;

    let bare = Namespace::start(&lab.folder, "bare", Show::Nothing)?;
    let mut unrestricted = lab.machine("unrestricted", VerdictCache::On)?;
    let mut cached = lab.machine("t3-cached", VerdictCache::On)?;
    let mut asked = lab.machine("t3-asked", VerdictCache::Off)?;
    let mut variants = vec![
        Variant::start("bare", &bare, &program)?,
        Variant::start("unrestricted", unrestricted.namespace(), &program)?,
        Variant::start("t3_cached", cached.namespace(), &program)?,
        Variant::start("t3_asked", asked.namespace(), &program)?,
    ];
    // The agents read this machine's packages first: that would be measured too.
    for machine in [&mut unrestricted, &mut cached, &mut asked] {
        machine.wait_for_baseline()?;
    }
    for machine in [&cached, &asked] {
        restrict(&lab, machine)?;
    }
    let fapolicyd = Namespace::start(&lab.folder, "fapolicyd", Show::Nothing)?;
    let mut variant = Variant::start("fapolicyd", &fapolicyd, &program)?;
    let _daemon = match start_fapolicyd(&fapolicyd, &mut variant) {
        Ok(daemon) => {
            variants.push(variant);
            Some(daemon)
        }
        Err(error) => {
            eprintln!("fapolicyd is left out: {error:#}");
            None
        }
    };

    for variant in &mut variants {
        variant.turn()?;
        variant.batches.clear();
    }
    let before = [questions(&cached)?, questions(&asked)?];
    for round in 0..ROUNDS {
        // Nobody has the same neighbor in every round.
        let first = round % variants.len();
        let (head, tail) = variants.split_at_mut(first);
        for variant in tail.iter_mut().chain(head) {
            variant.turn()?;
        }
    }
    // The figures are worth something only if the kernel asked as it was to.
    let executions = (ROUNDS * BATCH) as u64;
    let [by_cached, by_asked] = [questions(&cached)? - before[0], questions(&asked)? - before[1]];
    ensure!(by_cached < executions / 100, "the kernel kept no verdict: it asked {by_cached} times");
    ensure!(by_asked >= executions, "the kernel asked {by_asked} times only, of {executions}");
    ensure!(questions(&unrestricted)? == 0, "the kernel asked although nothing is restricted");

    let bare_medians: Vec<f64> =
        variants.first().context("no bare")?.batches.iter().map(|batch| median(batch)).collect();
    for variant in &variants {
        variant.print(&bare_medians, output);
    }
    Ok(())
}

/// The loop inside a namespace: for each line with a number it executes the program that often, and answers a line of
/// nanoseconds. Ends with its standard input, and so with its parent.
pub(crate) fn exec_loop(program: &Path) -> Result<()> {
    // Without arguments, environment or descriptors to arrange, this is posix_spawn, and thus vfork.
    let mut command = Command::new(program);
    command.env_clear();
    let mut line = String::new();
    let mut input = std::io::stdin().lock();
    let mut output = std::io::stdout().lock();
    while input.read_line(&mut line)? > 0 {
        let times: Vec<u64> = (0..line.trim().parse::<usize>()?)
            .map(|_| {
                let start = Instant::now();
                let status = command.status()?;
                let time = start.elapsed();
                ensure!(status.success(), "{} ended with {status}", program.display());
                Ok(u64::try_from(time.as_nanos())?)
            })
            .collect::<Result<_>>()?;
        line.clear();
        for time in times {
            write!(line, "{time} ")?;
        }
        writeln!(output, "{}", line.trim_end())?;
        output.flush()?;
        line.clear();
    }
    Ok(())
}

/// One way to execute, and what was measured of it.
struct Variant {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    program: PathBuf,
    /// Nanoseconds.
    batches: Vec<Vec<f64>>,
}

impl Variant {
    /// Starts the loop in a namespace, on a copy of the program of its own.
    fn start(name: &'static str, namespace: &Namespace, program: &Path) -> Result<Self> {
        let copy = namespace.folder().join("small-static-program");
        fs::copy(program, &copy)?;
        let mut command = namespace.inside(&[]);
        command.arg(std::env::current_exe()?).arg("exec-loop").arg(&copy);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut variant = Self { name, child, input, output, program: copy, batches: Vec::new() };
        variant.turn()?;
        variant.batches.clear();
        Ok(variant)
    }

    fn turn(&mut self) -> Result<()> {
        writeln!(self.input, "{BATCH}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let batch: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(batch.len() == BATCH, "the loop of {} ended", self.name);
        self.batches.push(batch);
        Ok(())
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few thousand executions of less than a second"
    )]
    fn print(&self, bare_medians: &[f64], output: Output) {
        let ratios: Vec<f64> =
            self.batches.iter().zip(bare_medians).map(|(batch, bare)| median(batch) / bare).collect();
        let all: Vec<f64> = self.batches.iter().flatten().copied().collect();
        let (median_ns, mean_ns) =
            (median(&all).round(), (all.iter().sum::<f64>() / all.len() as f64).round());
        let [low, ratio, high] = [0.25, 0.5, 0.75].map(|share| round(percentile(&ratios, share)));
        let (name, n) = (self.name, all.len());
        if output.json {
            let [median_ns, mean_ns] = [median_ns, mean_ns].map(|ns| ns as u64);
            print_json(&ExecLine { name: "exec", variant: name, median_ns, mean_ns, ratio, n });
        } else {
            println!(
                "{name:<13} median {:>6.1} us, mean {:>6.1} us, {ratio:.3} x bare (middle half of the rounds: \
                 {low:.3} to {high:.3}, n = {n})",
                median_ns / 1000.0,
                mean_ns / 1000.0
            );
        }
    }
}

/// A variant's figures as a line of JSON.
#[derive(Serialize)]
struct ExecLine<'a> {
    name: &'a str,
    variant: &'a str,
    median_ns: u64,
    mean_ns: u64,
    ratio: f64,
    n: usize,
}

impl Drop for Variant {
    fn drop(&mut self) {
        // It ends with its input in any case.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn static_program(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("small.c"), folder.join("small"));
    fs::write(&source, "int main(void) { return 0; }\n")?;
    command::run(Command::new("cc").args(["-static", "-O2", "-o"]).arg(&program).arg(&source))?;
    Ok(program)
}

/// Adds the program to the predefined set, by its content.
fn allow(lab: &Lab, program: &Path) -> Result<()> {
    let digest = hex::encode(sha2::Sha256::digest(fs::read(program)?));
    let policy = json!({
        "name": "default",
        "profile": "os+approved",
        "rules": [{"id": "bench", "effect": "allow", "sha256": digest}],
    });
    let file = lab.folder.join("policy.json");
    fs::write(&file, policy.to_string())?;
    command::output(lab.cordon().args(["policy", "apply", "-f"]).arg(&file)).map(drop)
}

fn restrict(lab: &Lab, machine: &Machine) -> Result<()> {
    let arguments = ["machine", "restrict", machine.name(), "--comment", "bench", "--wait"];
    command::output(lab.cordon().args(arguments)).map(drop)
}

/// How often the kernel has asked the machine's gate since it was restricted.
fn questions(machine: &Machine) -> Result<u64> {
    machine
        .gate_status()?
        .get("asked")
        .and_then(Value::as_u64)
        .context("the gate does not say how often it was asked")
}

/// Starts fapolicyd in a namespace, permissive, with the rules that its package recommends and one trusted program.
///
/// It sees folders of its own there and marks mounts, so that it watches this namespace only.
fn start_fapolicyd(namespace: &Namespace, variant: &mut Variant) -> Result<Process> {
    const CONFIG: &str = "permissive = 1\nuid = root\ngid = root\ntrust = file\nintegrity = none\nq_size = 640\n\
        watch_fs = ext2,ext3,ext4,tmpfs,xfs,vfat,iso9660,btrfs,overlay\ndb_max_size = 50\nsubj_cache_size = 1549\n\
        obj_cache_size = 8191\nallow_filesystem_mark = 0\n\
        syslog_format = rule,dec,perm,auid,pid,exe,:,path,ftype,trust\n";
    const RULES: [&str; 11] = ["10", "20", "21", "30", "40", "41", "42", "70", "72", "90", "95"];

    setup::require_fapolicyd()?;
    let settings = namespace.folder().join("fapolicyd");
    fs::create_dir_all(&settings)?;
    fs::write(settings.join("fapolicyd.conf"), CONFIG)?;
    let program = fs::read(&variant.program)?;
    let digest = hex::encode(sha2::Sha256::digest(&program));
    let trusted = format!("{} {} {digest}\n", variant.program.display(), program.len());
    fs::write(settings.join("fapolicyd.trust"), trusted)?;
    let mut rules: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir("/usr/share/fapolicyd/sample-rules")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|end| end == "rules")
            && RULES.iter().any(|rule| name.starts_with(rule))
        {
            rules.push(path);
        }
    }
    rules.sort();
    let rules: String = rules.iter().map(fs::read_to_string).collect::<Result<_, _>>()?;
    fs::write(settings.join("compiled.rules"), rules)?;
    // fapolicyd takes no other paths than these.
    let script = "mount --bind \"$0\" /etc/fapolicyd && mount -t tmpfs tmpfs /var/lib/fapolicyd && \
        mkdir -p /run/fapolicyd && mount -t tmpfs tmpfs /run/fapolicyd && exec fapolicyd --debug-deny --permissive";
    let log = namespace.folder().join("fapolicyd.log");
    let mut daemon =
        Process::start(namespace.lasting(&["sh", "-c", script]).arg(&settings), &log, Show::Nothing)?;
    wait_until("fapolicyd listens", || {
        daemon.require_alive(&log)?;
        Ok(fs::read_to_string(&log)?.contains("Starting to listen for events"))
    })?;
    variant.turn()?;
    ensure!(!fs::read_to_string(&log)?.contains("small-static-program"), "it would refuse the program");
    Ok(daemon)
}
