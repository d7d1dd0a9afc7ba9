//! Builds the programs: all in one profile and one target folder, the gate once more as a static file.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::{self, cargo};

/// The target whose standard library can be linked statically without another toolchain.
#[cfg(target_arch = "x86_64")]
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";
#[cfg(target_arch = "aarch64")]
const STATIC_TARGET: &str = "aarch64-unknown-linux-gnu";

/// How the programs are compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What the demo and the tests share.
    Dev,
    /// What users install and the benches measure.
    Release,
}

/// Where the built programs are.
#[derive(Clone)]
pub(crate) struct Programs {
    /// `cordon-server`.
    pub(crate) server: PathBuf,
    /// `cordon-agent`.
    pub(crate) agent: PathBuf,
    /// `cordon-gate`, static.
    pub(crate) gate: PathBuf,
    /// `cordon`.
    pub(crate) cli: PathBuf,
}

/// What runs inside of guests.
pub(crate) struct GuestPrograms {
    /// `cordon-gate`, static.
    pub(crate) gate: PathBuf,
    /// `cordon-matrix`, static.
    pub(crate) matrix: PathBuf,
    /// The folder of the matrix's C programs.
    pub(crate) compiled: PathBuf,
    /// `cordon-agent`, when it was built: dynamic, for a guest whose Debian is this machine's.
    pub(crate) agent: Option<PathBuf>,
}

impl GuestPrograms {
    /// Builds the agent too.
    pub(crate) fn build_agent(&mut self) -> Result<()> {
        command::run(cargo().current_dir(workspace()).args(["build", "--locked", "-p", "agent"]))?;
        let stripped = self.compiled.join("cordon-agent");
        let built = target_folder()?.join("debug").join("cordon-agent");
        command::run(Command::new("strip").arg("-o").arg(&stripped).arg(built))?;
        self.agent = Some(stripped);
        Ok(())
    }
}

/// The workspace's folder.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// Builds the programs.
pub(crate) fn build(profile: Profile) -> Result<Programs> {
    build_packages(profile, &["-p", "server", "-p", "agent", "-p", "cli"])
}

/// Builds the programs and all tests: with the same choice of features as `cargo test --workspace`, so that nothing is
/// compiled twice.
pub(crate) fn build_everything() -> Result<Programs> {
    build_packages(Profile::Dev, &["--workspace", "--all-targets"])
}

fn build_packages(profile: Profile, packages: &[&str]) -> Result<Programs> {
    let (flags, folder): (&[&str], _) = match profile {
        Profile::Dev => (&[], "debug"),
        Profile::Release => (&["--release"], "release"),
    };
    let build = ["build", "--locked"];
    command::run(cargo().current_dir(workspace()).args(build).args(packages).args(flags))?;
    let gate = build_static(profile, &["-p", "gate"])?.join("cordon-gate");
    require_static(&gate)?;
    let built = target_folder()?.join(folder);
    Ok(Programs {
        server: built.join("cordon-server"),
        agent: built.join("cordon-agent"),
        gate,
        cli: built.join("cordon"),
    })
}

/// Builds what runs inside of guests, without what only debuggers need.
pub(crate) fn build_for_guests() -> Result<GuestPrograms> {
    let built = build_static(Profile::Dev, &["-p", "gate", "-p", "matrix"])?;
    let folder = target_folder()?.join("vm").join("programs");
    std::fs::create_dir_all(&folder)?;
    let [gate, matrix] = ["cordon-gate", "cordon-matrix"].map(|name| (built.join(name), folder.join(name)));
    for (program, stripped) in [&gate, &matrix] {
        require_static(program)?;
        command::run(Command::new("strip").arg("-o").arg(stripped).arg(program))?;
    }
    Ok(GuestPrograms { gate: gate.1, matrix: matrix.1, compiled: folder, agent: None })
}

/// Builds static programs; the folder that they are in.
fn build_static(profile: Profile, packages: &[&str]) -> Result<PathBuf> {
    let (flags, folder): (&[&str], _) = match profile {
        Profile::Dev => (&[], "debug"),
        Profile::Release => (&["--release"], "release"),
    };
    // Whatever flags are set already stay: these would otherwise be ignored beside them.
    let flags_set = std::env::var("RUSTFLAGS").unwrap_or_default();
    command::run(
        cargo()
            .current_dir(workspace())
            .env("RUSTFLAGS", format!("{flags_set} -C target-feature=+crt-static"))
            .args(["build", "--locked"])
            .args(packages)
            .args(["--target", STATIC_TARGET])
            .args(flags),
    )?;
    Ok(target_folder()?.join(STATIC_TARGET).join(folder))
}

/// What `cargo metadata` says of the workspace.
pub(crate) fn metadata() -> Result<Value> {
    let arguments = ["metadata", "--format-version=1", "--locked", "--no-deps"];
    let metadata = command::output(cargo().current_dir(workspace()).args(arguments))?;
    serde_json::from_str(&metadata).context("output of cargo metadata")
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let metadata = metadata()?;
    let folder = metadata.get("target_directory").and_then(Value::as_str);
    folder.map(PathBuf::from).context("no target directory in the output of cargo metadata")
}

/// A static program names no loader: its ELF file has no `PT_INTERP` (type 3) header.
fn require_static(program: &Path) -> Result<()> {
    let bytes = std::fs::read(program).with_context(|| program.display().to_string())?;
    let field = |offset: usize, size: usize| -> Option<usize> {
        let bytes = bytes.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
    };
    let headers = || -> Option<Vec<usize>> {
        let (start, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
        (0..count).map(|i| field(start + i * size, 4)).collect()
    };
    match headers() {
        Some(types) if !types.contains(&3) => Ok(()),
        Some(_) => bail!("{} is not static: it names a loader", program.display()),
        None => bail!("{} is not an ELF file", program.display()),
    }
}
