//! The guest around the rows: what the first process of a machine has to do, and that this is a guest at all.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};

/// What `cargo xtask vm` puts on the kernel's command line.
const MARK: &str = "cordon.guest";

/// Where the harness put this program, the programs that it runs, and what it is told.
pub const FOLDER: &str = "/usr/lib/cordon-matrix";

/// Refuses to go on anywhere but in a guest: the rows would take another machine apart.
pub fn require() -> Result<()> {
    let line = fs::read_to_string("/proc/cmdline").or_else(|_| {
        // The first process finds nothing mounted.
        mount_one("proc", "/proc", MsFlags::empty(), None)?;
        fs::read_to_string("/proc/cmdline").context("/proc/cmdline")
    })?;
    ensure!(
        line.split_whitespace().any(|word| word == MARK),
        "this is not a guest of `cargo xtask vm`: rows never run anywhere else"
    );
    Ok(())
}

/// Sets the machine up, runs, and switches it off.
pub fn init(run: fn() -> Result<()>) -> Result<()> {
    ensure!(std::process::id() == 1, "only the first process does this");
    let none = MsFlags::empty();
    for (kind, place, flags, options) in [
        ("sysfs", "/sys", none, None),
        ("tmpfs", "/run", MsFlags::MS_NOSUID, Some("mode=755")),
        ("tmpfs", "/tmp", none, Some("mode=1777")),
        ("tmpfs", "/dev/shm", none, Some("mode=1777")),
        ("devpts", "/dev/pts", none, None),
        ("securityfs", "/sys/kernel/security", none, None),
        ("bpf", "/sys/fs/bpf", none, None),
        ("cgroup2", "/sys/fs/cgroup", none, None),
        ("tracefs", "/sys/kernel/tracing", none, None),
    ] {
        mount_one(kind, place, flags, options)?;
    }
    // Loopback, for rows with sockets.
    drop(Command::new("/bin/busybox").args(["ip", "link", "set", "lo", "up"]).status());
    let result = run();
    nix::unistd::sync();
    nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF)?;
    result
}

/// Has systemd boot the machine again, and waits for its own end.
pub(crate) fn reboot() -> Result<()> {
    let status = Command::new("/usr/bin/systemctl").arg("reboot").status()?;
    ensure!(status.success(), "systemctl reboot ended with {status}");
    loop {
        std::thread::park();
    }
}

fn mount_one(kind: &str, place: &str, flags: MsFlags, options: Option<&str>) -> Result<()> {
    if !Path::new(place).exists() {
        fs::create_dir_all(place).with_context(|| place.to_owned())?;
    }
    mount(Some(kind), place, Some(kind), flags, options).with_context(|| format!("cannot mount {place}"))
}
