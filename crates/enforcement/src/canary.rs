//! Canaries: executions whose outcome is known ahead, so that a switch is proved and not believed.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use domain::digest::Sha256Digest;
use domain::restriction::{CanaryOutcome, MappingProbe, Probe, Tier};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::Digest as _;

use crate::sys;

/// What a canary that runs ends with.
const EXIT_STATUS: i32 = 42;
/// The name of the canary that exists in memory only.
const MEMORY_FILE: &str = "cordon-canary";
/// How long a canary may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The canaries of one folder, which must lie on a filesystem that the restriction covers and programs may run on.
#[derive(Debug)]
pub struct Canaries {
    folder: PathBuf,
}

impl Canaries {
    /// The canaries of `folder`, which exists; they are written when they are run.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Writes the listed canary if it is not there. The same file each time: its verdict is kept.
    fn prepare_listed(&self) -> io::Result<()> {
        let program = program(b"listed");
        if fs::read(self.listed()).is_ok_and(|bytes| bytes == program) {
            return Ok(());
        }
        write_program(&self.listed(), &program)
    }

    /// Content of the listed canary: whoever judges must allow it.
    pub fn listed_digest() -> Sha256Digest {
        Sha256Digest(sha2::Sha256::digest(program(b"listed")).into())
    }

    /// Runs the canaries that a tier must answer for. `nonce` makes the unlisted ones programs that nobody has ever
    /// seen.
    pub fn run(&self, nonce: [u8; 16], tier: Tier) -> Probe {
        let path = self.folder.join("unlisted");
        let bytes = program(&nonce);
        let written = write_program(&path, &bytes);
        let unlisted = if written.is_ok() { execute(&path) } else { CanaryOutcome::Failed };
        let mappings = tier.sees_mappings().then(|| MappingProbe {
            mapping: outcome(fs::File::open(&path).and_then(|file| sys::map_as_code(file.as_fd()))),
            protection: outcome(fs::File::open(&path).and_then(|file| sys::make_code(file.as_fd()))),
            memory_file: execute_from_memory(&bytes).unwrap_or(CanaryOutcome::Failed),
        });
        // It is written anew each time.
        drop(fs::remove_file(&path));
        let listed = match self.prepare_listed() {
            Ok(()) => execute(&self.listed()),
            Err(_) => CanaryOutcome::Failed,
        };
        Probe { unlisted, listed, mappings }
    }

    /// Whether a denial of this path is that of a canary. Who gives a file the name of the one in memory hides its
    /// denial, not its refusal.
    pub fn is_own(&self, path: &[u8]) -> bool {
        Path::new(std::ffi::OsStr::from_bytes(path)).starts_with(&self.folder)
            || path.windows(MEMORY_FILE.len()).any(|part| part == MEMORY_FILE.as_bytes())
    }

    /// Writes the listed canary, so that it can be labelled ahead of a switch.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn prepare(&self) -> io::Result<PathBuf> {
        self.prepare_listed()?;
        Ok(self.listed())
    }

    fn listed(&self) -> PathBuf {
        self.folder.join("listed")
    }
}

fn write_program(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(path)?.write_all(bytes)
}

/// Of a mapping that needs the kernel's leave.
fn outcome(mapped: io::Result<()>) -> CanaryOutcome {
    match mapped {
        Ok(()) => CanaryOutcome::Ran,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => CanaryOutcome::Refused,
        Err(_) => CanaryOutcome::Failed,
    }
}

/// Executes a program from a file that exists in memory only.
fn execute_from_memory(bytes: &[u8]) -> io::Result<CanaryOutcome> {
    let mut file = fs::File::from(memfd_create(MEMORY_FILE, MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    // Opened anew for reading: what is open for writing is busy.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let program = fs::File::open(path)?;
    drop(file);
    Ok(execute(Path::new(&format!("/proc/self/fd/{}", program.as_raw_fd()))))
}

fn execute(path: &Path) -> CanaryOutcome {
    let mut command = Command::new(path);
    sys::die_with_us(&mut command);
    let mut child = match command.env_clear().stdin(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return CanaryOutcome::Refused,
        Err(_) => return CanaryOutcome::Failed,
    };
    let start = Instant::now();
    let ran = |status: ExitStatus| {
        if status.code() == Some(EXIT_STATUS) { CanaryOutcome::Ran } else { CanaryOutcome::Failed }
    };
    while start.elapsed() < DEADLINE {
        match child.try_wait() {
            Ok(Some(status)) => return ran(status),
            Ok(None) => std::thread::sleep(Duration::from_micros(200)),
            Err(_) => return CanaryOutcome::Failed,
        }
    }
    drop(child.kill());
    drop(child.wait());
    CanaryOutcome::Failed
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
/// `exit(42)`: mov edi, 42; mov eax, 60; syscall.
#[cfg(target_arch = "x86_64")]
const CODE: [u8; 12] = [0xbf, 42, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];

#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;
/// `exit(42)`: mov x0, 42; mov x8, 93; svc 0.
#[cfg(target_arch = "aarch64")]
const CODE: [u8; 12] = [0x40, 0x05, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];

/// A static ELF program of one segment that exits with [`EXIT_STATUS`], followed by `tail`.
fn program(tail: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + CODE.len() as u64 + tail.len() as u64;
    let mut bytes = Vec::new();
    // e_ident: 64 bit, little endian, version 1, System V.
    bytes.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    bytes.extend(2_u16.to_le_bytes()); // e_type: executable
    bytes.extend(MACHINE.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes()); // e_version
    bytes.extend((BASE + HEADERS).to_le_bytes()); // e_entry
    bytes.extend(64_u64.to_le_bytes()); // e_phoff
    bytes.extend(0_u64.to_le_bytes()); // e_shoff
    bytes.extend(0_u32.to_le_bytes()); // e_flags
    for half in [64_u16, 56, 1, 0, 0, 0] {
        bytes.extend(half.to_le_bytes()); // e_ehsize, e_phentsize, e_phnum, no sections
    }
    bytes.extend(1_u32.to_le_bytes()); // p_type: load
    bytes.extend(5_u32.to_le_bytes()); // p_flags: read, execute
    for word in [0, BASE, BASE, size, size, 0x1000] {
        bytes.extend(word.to_le_bytes()); // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    }
    bytes.extend(CODE);
    bytes.extend(tail);
    bytes
}

#[cfg(test)]
mod tests {
    use domain::restriction::Desired;

    use super::*;

    #[test]
    fn canaries_run_where_nothing_restricts() {
        let folder = tempfile::tempdir().unwrap();
        let canaries = Canaries::new(folder.path());
        for tier in [Tier::BpfLsm, Tier::Fanotify] {
            let probe = canaries.run([7; 16], tier);
            assert!(probe.proves(Desired::Released, tier), "{probe:?}");
        }
    }

    #[test]
    fn a_folder_that_holds_no_program_proves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let probe = Canaries::new(&folder.path().join("missing")).run([7; 16], Tier::Fanotify);
        let failed = CanaryOutcome::Failed;
        assert_eq!(probe, Probe { unlisted: failed, listed: failed, mappings: None });
    }

    #[test]
    fn canaries_are_known_by_their_names() {
        let canaries = Canaries::new(Path::new("/var/lib/c"));
        for (path, own) in [
            ("/var/lib/c/unlisted", true),
            ("/memfd:cordon-canary (deleted)", true),
            ("/var/lib/cc/x", false),
        ] {
            assert_eq!(canaries.is_own(path.as_bytes()), own, "{path}");
        }
    }
}
