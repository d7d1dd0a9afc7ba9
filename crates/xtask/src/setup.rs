//! What the machine needs beyond Rust and a C compiler: installed by apt as root, named otherwise.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;

/// A Debian package, known to be there by a file of it.
pub(crate) struct Package {
    /// Its name.
    name: &'static str,
    /// A file that it installs; a bare name for a program anywhere on the `PATH`.
    file: &'static str,
}

impl Package {
    fn is_installed(&self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // An absolute name replaces the folder.
        std::env::split_paths(&path).any(|folder| folder.join(self.file).exists())
    }
}

/// What the demo runs, and what compiling needs besides: the gate brings BPF programs and their loader.
pub(crate) const DEMO: &[Package] = &[
    Package { name: "clang", file: "clang" },
    Package { name: "libelf-dev", file: "/usr/include/libelf.h" },
    Package { name: "llvm", file: "llvm-strip" },
    Package { name: "make", file: "make" },
    Package { name: "pkg-config", file: "pkg-config" },
    Package { name: "zlib1g-dev", file: "/usr/include/zlib.h" },
    Package { name: "curl", file: "/usr/bin/curl" },
    Package { name: "hostname", file: "/bin/hostname" },
    Package { name: "libc6-dev", file: "/usr/include/stdio.h" },
    Package { name: "util-linux", file: "/usr/bin/setpriv" },
];

/// What the tests run besides.
pub(crate) const TEST: &[Package] = &[
    // They run the `OpenID` provider that the server is tested against.
    Package { name: "nodejs", file: "node" },
    Package { name: "npm", file: "npm" },
    Package { name: "openssl", file: "/usr/bin/openssl" },
    Package { name: "python3", file: "/usr/bin/python3" },
    Package { name: "python3-venv", file: "/usr/share/doc/python3-venv" },
    // Its database is one that the inventory reads.
    Package { name: "rpm", file: "/usr/bin/rpmbuild" },
    // They sign, and check, the repository that the trust in updates is tested with.
    Package { name: "gpg", file: "/usr/bin/gpg" },
    Package { name: "gpg-agent", file: "/usr/bin/gpg-agent" },
    Package { name: "gpgv", file: "/usr/bin/gpgv" },
];

/// What makes guests and boots them.
pub(crate) const VM: &[Package] = &[
    Package { name: "busybox-static", file: "/bin/busybox" },
    Package { name: "cpio", file: "/usr/bin/cpio" },
    Package { name: "e2fsprogs", file: "/sbin/mke2fs" },
    Package { name: "gcc", file: "cc" },
    Package { name: "kmod", file: "/sbin/depmod" },
    Package { name: "libc6-dev", file: "/usr/include/stdio.h" },
    Package { name: "mmdebstrap", file: "/usr/bin/mmdebstrap" },
    Package { name: "qemu-system-x86", file: "/usr/bin/qemu-system-x86_64" },
    Package { name: "qemu-utils", file: "/usr/bin/qemu-img" },
];

/// The peer that `bench exec` is measured beside.
const FAPOLICYD: &[Package] = &[Package { name: "fapolicyd", file: "/usr/sbin/fapolicyd" }];

/// Makes sure that we are root and that the packages are there.
pub(crate) fn require(packages: &[Package]) -> Result<()> {
    let missing: Vec<_> =
        packages.iter().filter(|package| !package.is_installed()).map(|package| package.name).collect();
    if !nix::unistd::geteuid().is_root() {
        let install = if missing.is_empty() {
            String::new()
        } else {
            format!(", and these packages: apt-get install {}", missing.join(" "))
        };
        bail!("this needs root (for private mount namespaces and the kernel's permission events){install}");
    }
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("Installing what is missing: apt-get install {}", missing.join(" "));
    let apt = |arguments: &[&str]| {
        // Standard output belongs to figures.
        command::output(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments))
    };
    let install = [&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat();
    if apt(&install).is_err() {
        // A fresh machine has no package lists, or old ones.
        apt(&["update"])?;
        apt(&install)?;
    }
    Ok(())
}

/// Installs fapolicyd without ever letting it start by itself: its package enables a service that denies everything
/// but what it was told to trust, which is nothing.
pub(crate) fn require_fapolicyd() -> Result<()> {
    if Path::new("/usr/sbin/fapolicyd").exists() {
        return Ok(());
    }
    let mask = Path::new("/etc/systemd/system/fapolicyd.service");
    std::fs::create_dir_all(mask.parent().unwrap_or(mask))?;
    if mask.symlink_metadata().is_err() {
        eprintln!("Masking fapolicyd.service: ln -s /dev/null {}", mask.display());
        std::os::unix::fs::symlink("/dev/null", mask).with_context(|| mask.display().to_string())?;
    }
    require(FAPOLICYD)
}
