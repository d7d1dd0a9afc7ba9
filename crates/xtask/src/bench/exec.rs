//! `bench exec`: what a restriction costs, each variant in a mount namespace of its own.
//!
//! The variants take turns, a batch each, in many rounds, because timing on shared machines drifts; a ratio compares
//! two medians of the same round, and a rank test says whether the medians of all rounds differ at all.

mod turn;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::Digest as _;

use super::{Output, median, percentile, print_json, rank, round};
use crate::command;
use crate::lab::{Lab, Machine, Namespace, Process, Show, UNLIMITED, VerdictCache, wait_until};
use crate::programs::{self, Profile};
use crate::setup;
pub(crate) use turn::exec_loop;
use turn::{Folder, What};

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

    // The figures are worth something only if the kernel asked as it was to.
    let before = [questions(&cached)?, questions(&asked)?];
    let executions = measure(&mut variants, What::Exec, 300, &[], output)?;
    let [by_cached, by_asked] = [questions(&cached)? - before[0], questions(&asked)? - before[1]];
    ensure!(by_cached < executions / 100, "the kernel kept no verdict: it asked {by_cached} times");
    ensure!(by_asked >= executions, "the kernel asked {by_asked} times only, of {executions}");
    measure(&mut variants, What::Open, 100, &[], output)?;
    measure(&mut variants, What::Missing, 100, &[], output)?;
    let before = questions(&cached)?;
    measure(&mut variants, What::Refused, 100, &["bare", "t3_cached", "t3_asked"], output)?;
    ensure!(questions(&cached)? - before >= 100, "nothing was refused");
    measure(&mut variants, What::Compile, 25, &["bare", "t3_cached", "fapolicyd"], output)?;
    ensure!(questions(&unrestricted)? == 0, "the kernel asked although nothing is restricted");
    Ok(())
}

/// Measures in turns and prints; all variants unless some are named. Answers how many measurements each made.
fn measure(
    variants: &mut [Variant],
    what: What,
    rounds: usize,
    only: &[&str],
    output: Output,
) -> Result<u64> {
    let mut taking: Vec<&mut Variant> =
        variants.iter_mut().filter(|variant| only.is_empty() || only.contains(&variant.name)).collect();
    for variant in &mut taking {
        variant.turn(what)?;
        variant.batches.clear();
    }
    for round in 0..rounds {
        // Nobody has the same neighbor in every round.
        let first = round % taking.len();
        let (head, tail) = taking.split_at_mut(first);
        for variant in tail.iter_mut().chain(head) {
            variant.turn(what)?;
        }
    }
    let bare: Vec<f64> = taking.first().context("no bare")?.medians();
    for variant in &taking {
        variant.print(what, &bare, output);
    }
    Ok((rounds * what.count()) as u64)
}

/// One way to execute, and what was measured of it.
struct Variant {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    folder: Folder,
    /// Nanoseconds, a batch for each round.
    batches: Vec<Vec<f64>>,
}

impl Variant {
    /// Starts the loop in a namespace, on files of its own.
    fn start(name: &'static str, namespace: &Namespace, program: &Path) -> Result<Self> {
        let folder = Folder::fill(namespace.folder(), program)?;
        let mut command = namespace.inside(&[]);
        command.arg(std::env::current_exe()?).arg("exec-loop").arg(folder.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut variant = Self { name, child, input, output, folder, batches: Vec::new() };
        variant.turn(What::Exec)?;
        variant.batches.clear();
        Ok(variant)
    }

    fn turn(&mut self, what: What) -> Result<()> {
        // Without a restriction an unlisted program would run: what fails there is the anchor.
        let here = if what == What::Refused && self.name == "bare" { What::Missing } else { what };
        writeln!(self.input, "{}", here.name())?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let batch: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(batch.len() == what.count(), "the loop of {} ended", self.name);
        self.batches.push(batch);
        Ok(())
    }

    fn medians(&self) -> Vec<f64> {
        self.batches.iter().map(|batch| median(batch)).collect()
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few thousand measurements of less than a minute"
    )]
    fn print(&self, what: What, bare: &[f64], output: Output) {
        let medians = self.medians();
        let ratios: Vec<f64> = medians.iter().zip(bare).map(|(own, bare)| own / bare).collect();
        let all: Vec<f64> = self.batches.iter().flatten().copied().collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let [median_ns, p99_ns, mean_ns] =
            [median(&all), percentile(&all, 0.99), mean].map(|ns| ns.round() as u64);
        let [low, ratio, high] = [0.25, 0.5, 0.75].map(|share| round(percentile(&ratios, share)));
        let rank_p = rank::probability(&medians, bare);
        let (name, variant, rounds, n) = (what.name(), self.name, medians.len(), all.len());
        if output.json {
            print_json(&ExecLine {
                name,
                variant,
                median_ns,
                p99_ns,
                mean_ns,
                ratio,
                low,
                high,
                rank_p,
                rounds,
                n,
            });
        } else {
            let micro = |ns: u64| ns as f64 / 1000.0;
            println!(
                "{name:<8} {variant:<13} median {:>9.1} us, p99 {:>9.1} us, {ratio:.3} x bare (middle half of the \
                 {rounds} rounds: {low:.3} to {high:.3}; by chance: {rank_p:.1e}; n = {n})",
                micro(median_ns),
                micro(p99_ns)
            );
        }
    }
}

/// A variant's figures as a line of JSON.
#[derive(Serialize)]
struct ExecLine<'a> {
    /// What was measured. Of `refused`, the variant `bare` is an execution that fails with `ENOENT`.
    name: &'a str,
    variant: &'a str,
    median_ns: u64,
    p99_ns: u64,
    mean_ns: u64,
    /// The median over the rounds of this variant's median by that of `bare`, with their middle half.
    ratio: f64,
    low: f64,
    high: f64,
    /// How likely its rounds differ as much from those of `bare` by chance, by their ranks.
    rank_p: f64,
    rounds: usize,
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
    let program = fs::read(variant.folder.program())?;
    let digest = hex::encode(sha2::Sha256::digest(&program));
    let trusted = format!("{} {} {digest}\n", variant.folder.program().display(), program.len());
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
    variant.turn(What::Exec)?;
    ensure!(!fs::read_to_string(&log)?.contains("small-static-program"), "it would refuse the program");
    Ok(daemon)
}
