//! `bench inventory`: reading what packages shipped, on one core.
//!
//! Generated: 1,000 packages of 100 files whose sizes are those of a Debian 12 machine (4.9 GB in all). Cold means
//! that nothing is known of any file and none is in memory. Incremental means that one package was upgraded since.
//! This machine's own packages come after, from the disk or from memory, as it happens to be.
//!
//! It measures the crate `trust` in this very program; the workspace's profile optimizes it as a release.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use md5::Digest as _;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use trust::{Inventory, ScanReport};

use super::{Figure, Output, round};
use crate::lab;

const PACKAGES: usize = 1000;
/// Mean size of each twentieth of the files that the packages of a Debian 12 machine shipped, in bytes.
const SIZES: [usize; 20] = [
    96, 339, 520, 656, 810, 976, 1104, 1247, 1425, 1629, 1918, 2354, 2960, 3828, 5301, 7858, 12_271, 19_177,
    36_736, 874_049,
];
/// Files of a package: five of each size.
const FILES: usize = SIZES.len() * 5;
/// Incremental scans.
const REPEATS: u8 = 5;

/// Measures and prints.
pub(super) fn run(output: Output) -> Result<()> {
    use_one_core()?;
    let folder = lab::folder()?;
    let root = folder.join("root");
    eprintln!("Writing {} files below {} ...", PACKAGES * FILES, root.display());
    generate(&root)?;
    forget_pages(&root)?;
    let inventory = Inventory::new(&root, &folder.join("state"));
    let (seconds, report) = scan(&inventory)?;
    ensure!(report.vouched == (PACKAGES * FILES) as u64, "not every file was vouched for: {report:?}");
    Figure::of("inventory_cold", "s", seconds).print(output);
    note(&report);
    let mut incremental = Figure::new("inventory_incremental", "s");
    for version in 1..=REPEATS {
        write_package(&root, 0, version)?;
        let (seconds, report) = scan(&inventory)?;
        // Files younger than the scan that read them are read once more by the next one.
        ensure!(
            report.vouched == (PACKAGES * FILES) as u64
                && (FILES as u64..=2 * FILES as u64).contains(&report.hashed),
            "not an incremental scan: {report:?}"
        );
        incremental.values.push(seconds);
    }
    incremental.print(output);
    let machine = Inventory::new(Path::new("/"), &folder.join("machine-state"));
    for name in ["inventory_machine_first", "inventory_machine_again"] {
        let (seconds, report) = scan(&machine)?;
        Figure::of(name, "s", seconds).print(output);
        note(&report);
    }
    Ok(())
}

fn scan(inventory: &Inventory) -> Result<(f64, ScanReport)> {
    let start = Instant::now();
    let report = inventory.scan(&mut |_| {}, &AtomicBool::new(false))?;
    inventory.write_baseline(&mut std::io::sink())?;
    Ok((start.elapsed().as_secs_f64(), report))
}

#[expect(clippy::cast_precision_loss, reason = "bytes as gigabytes")]
fn note(report: &ScanReport) {
    let gigabytes = round(report.bytes_hashed as f64 / 1e9);
    eprintln!(
        "  {} packages, {} files: {} read ({gigabytes} GB), {} vouched for, {} modified, {} missing, {} unreadable",
        report.packages,
        report.files,
        report.hashed,
        report.vouched,
        report.modified,
        report.missing,
        report.unreadable
    );
}

/// The agent scans on one thread; this keeps the system from moving it about.
fn use_one_core() -> Result<()> {
    let mut core = CpuSet::new();
    core.set(0)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &core)?)
}

fn generate(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("var/lib/dpkg/info"))?;
    let mut status = String::new();
    for package in 0..PACKAGES {
        write!(
            status,
            "Package: generated-{package}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n"
        )?;
        write_package(root, package, 0)?;
    }
    fs::write(root.join("var/lib/dpkg/status"), status)?;
    Ok(())
}

/// Writes a package's files, of content that no other package and version has, and what dpkg knows of them.
fn write_package(root: &Path, package: usize, version: u8) -> Result<()> {
    let folder = format!("usr/lib/generated-{package}");
    fs::create_dir_all(root.join(&folder))?;
    let mut sums = String::new();
    for file in 0..FILES {
        let size = *SIZES.get(file % SIZES.len()).context("no size")?;
        let mut content = format!("{package} {file} {version}\n").into_bytes();
        content.resize(size, version);
        let path = format!("{folder}/file-{file}");
        // As dpkg does: a file of its own, renamed over the old one.
        let beside = root.join(format!("{path}.dpkg-new"));
        fs::write(&beside, &content)?;
        fs::rename(&beside, root.join(&path))?;
        writeln!(sums, "{}  {path}", hex::encode(md5::Md5::digest(&content)))?;
    }
    fs::write(root.join(format!("var/lib/dpkg/info/generated-{package}.md5sums")), sums)?;
    Ok(())
}

/// Makes the system read every file from the disk again.
fn forget_pages(root: &Path) -> Result<()> {
    for package in 0..PACKAGES {
        for file in fs::read_dir(root.join(format!("usr/lib/generated-{package}")))? {
            let file = fs::File::open(file?.path())?;
            file.sync_data()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}
