//! `cargo xtask test`: everything that must hold before a change lands.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::command::{self, cargo};
use crate::programs::{Programs, workspace};
use crate::{cli_test, client_test, demo, programs, schemathesis, setup, tidy};

/// Runs every check and every test. Nothing is skipped: what cannot run fails.
///
/// The last line is `N passed, N failed` and counts the tests and the steps.
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let mut report = Report::default();
    report.step("what the tests need is installed", || {
        setup::require(setup::DEMO)?;
        setup::require(setup::TEST)
    });
    report.step("the code has the format", || command::run(in_workspace("fmt").args(["--all", "--check"])));
    report.step("the rules of the workspace hold", tidy::run);
    if let Some(programs) =
        report.step("everything builds, the gate as a static file", programs::build_everything)
    {
        report.step("the kernel can hold a restriction", || doctor(&programs));
        for (name, arguments) in [
            ("no test of any crate fails or is ignored", &["--workspace"]),
            ("no seed of the fuzzer breaks a promise", &["--manifest-path=fuzz/Cargo.toml"]),
        ] {
            let mut tests = Tests::default();
            report.step(name, || run_tests(arguments, &mut tests));
            report.passed += tests.passed;
            report.failed += tests.failed;
        }
        report.step("the command line works against a real server and machine", || cli_test::run(&programs));
        report
            .step("an ordinary client of the vendor's API works by two URLs", || client_test::run(&programs));
        report.step("schemathesis finds nothing in the API that its document does not say", || {
            schemathesis::run(&programs)
        });
        report.step("the demo holds, end to end", || demo::show(demo::Keep::No, &programs));
    }
    report.step("the lints are content", || {
        command::run(in_workspace("clippy").args([
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "--deny=warnings",
        ]))
    });
    report.step("the documentation builds, and every link in it leads somewhere", || {
        let arguments = ["--workspace", "--no-deps", "--document-private-items", "--locked"];
        command::run(in_workspace("doc").args(arguments).env("RUSTDOCFLAGS", "--deny=warnings"))
    });
    println!(
        "\n{} in {:.0?}",
        if report.failed == 0 { "All passed" } else { "Not all passed" },
        start.elapsed()
    );
    println!("{} passed, {} failed", report.passed, report.failed);
    ensure!(report.failed == 0, "{} failed", report.failed);
    Ok(())
}

/// What was found so far.
#[derive(Default)]
struct Report {
    passed: u64,
    failed: u64,
}

impl Report {
    /// Runs a step; its result when it passed.
    fn step<T>(&mut self, name: &str, run: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n==> {name}");
        let start = Instant::now();
        match run() {
            Ok(result) => {
                println!("==> {name}: yes, {:.0?}", start.elapsed());
                self.passed += 1;
                Some(result)
            }
            Err(error) => {
                println!("==> {name}: NO, {:.0?}: {error:#}", start.elapsed());
                self.failed += 1;
                None
            }
        }
    }
}

/// Numbers of `cargo test`'s own closing lines.
#[derive(Default)]
struct Tests {
    passed: u64,
    failed: u64,
    ignored: u64,
}

fn in_workspace(subcommand: &str) -> Command {
    let mut command = cargo();
    command.current_dir(workspace()).arg(subcommand);
    command
}

fn doctor(programs: &Programs) -> Result<()> {
    command::run(Command::new(&programs.gate).arg("--config").arg(Path::new("/dev/null")).arg("doctor"))
}

fn run_tests(arguments: &[&str], tests: &mut Tests) -> Result<()> {
    let mut command = in_workspace("test");
    command
        .args(arguments)
        .args(["--locked", "--no-fail-fast", "--target-dir"])
        .arg(programs::target_folder()?);
    command.stdout(Stdio::piped());
    let mut child = command.spawn()?;
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        tests.read(&line);
    }
    let status = child.wait()?;
    ensure!(status.success(), "{} ended with {status}", command::line(&command));
    ensure!(tests.ignored == 0, "{} tests are ignored", tests.ignored);
    ensure!(tests.passed > 0, "no test ran");
    Ok(())
}

impl Tests {
    /// Reads a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; ...`.
    ///
    /// A test that must be alone in its process runs itself again, filtered to itself: that is no further test.
    fn read(&mut self, line: &str) {
        let result = line.strip_prefix("test result: ").filter(|result| result.contains("; 0 filtered out"));
        let Some((_, counts)) = result.and_then(|result| result.split_once(". ")) else { return };
        for count in counts.split("; ") {
            let Some((number, word)) = count.split_once(' ') else { continue };
            let number: u64 = number.parse().unwrap_or_default();
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tests;

    #[test]
    fn closing_lines_are_counted() {
        let mut tests = Tests::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test a::test ... ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 32 filtered out; finished in 0.18s",
            "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            tests.read(line);
        }
        assert_eq!((tests.passed, tests.failed, tests.ignored), (5, 4, 1));
    }
}
