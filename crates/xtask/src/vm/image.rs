//! What a guest boots from: Debian's kernel, a Debian on a disk image, and a small part of it on another.
//!
//! Made once and kept below the target folder, by the digest of what they are made from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::Digest as _;

use crate::command;
use crate::programs;

/// The user that tries as an ordinary user: as `Who::User` in crate `matrix`.
const USER: u32 = 1000;
/// Modules that the first program in the memory file system loads, in this order.
pub(crate) const BOOT_MODULES: &[&str] =
    &["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];
/// To be raised when the images are made otherwise of the same packages.
const RECIPE: u32 = 1;
/// What the Debian has besides what is essential.
const DEBIAN_PACKAGES: &[&str] = &[
    "at",
    "attr",
    "bpftool",
    "busybox-static",
    "cpio",
    "cron",
    "dbus",
    "e2fsprogs",
    "fapolicyd",
    "fuse3",
    "iproute2",
    "kmod",
    "libcap2-bin",
    "login",
    "lua5.4",
    "openssh-client",
    "openssh-server",
    "perl-base",
    "procps",
    "python3",
    "rpm",
    "socat",
    "strace",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tcc",
    "udev",
    "util-linux",
    "xfsprogs",
];
/// What the small part has, with what these depend on.
const FAST_PACKAGES: &[&str] = &[
    "attr",
    "base-files",
    "bash",
    "bpftool",
    "busybox-static",
    "coreutils",
    "dash",
    "e2fsprogs",
    "fapolicyd",
    "findutils",
    "fuse3",
    "grep",
    "kmod",
    "libcap2-bin",
    "lua5.4",
    "mawk",
    "mount",
    "perl-base",
    "python3",
    "sed",
    "tar",
    "util-linux",
];

/// A disk image with the package baseline of what is on it.
#[derive(Clone)]
pub(crate) struct Disk {
    /// ext4, raw.
    pub(crate) image: PathBuf,
    /// In the bytes of `policy::baseline`, made by the inventory of crate `trust`.
    pub(crate) baseline: PathBuf,
}

/// Everything that guests boot from.
pub(crate) struct Images {
    /// `vmlinuz` of Debian's cloud kernel.
    pub(crate) kernel: PathBuf,
    /// Its modules: the folder `lib/modules/VERSION`.
    modules: PathBuf,
    /// A small part of the Debian: no systemd.
    pub(crate) fast: Disk,
    /// The Debian.
    pub(crate) debian: Disk,
}

impl Images {
    /// Makes what is not there yet.
    pub(crate) fn get() -> Result<Self> {
        ensure!(cfg!(target_arch = "x86_64"), "guests are built for x86-64 only so far");
        let cache = programs::target_folder()?.join("vm");
        fs::create_dir_all(&cache)?;
        let (kernel, modules) = kernel(&cache)?;
        let recipe = format!("{RECIPE} {DEBIAN_PACKAGES:?} {FAST_PACKAGES:?} {}", modules.display());
        let name = hex::encode(sha2::Sha256::digest(recipe).get(..6).unwrap_or_default());
        let folder = cache.join(format!("images-{name}"));
        let disk = |name: &str| Disk {
            image: folder.join(format!("{name}.ext4")),
            baseline: folder.join(format!("{name}.baseline")),
        };
        let images = Self { kernel, modules, fast: disk("fast"), debian: disk("debian") };
        if !folder.exists() {
            eprintln!("Making the guests' disks: a few minutes, once");
            let building = cache.join(format!("building-{}", std::process::id()));
            let result = images.build(&building).and_then(|()| Ok(fs::rename(&building, &folder)?));
            // Half of it is of no use.
            drop(fs::remove_dir_all(&building));
            result?;
        }
        Ok(images)
    }

    /// A module's file.
    pub(crate) fn module(&self, name: &str) -> Result<PathBuf> {
        find(&self.modules, &format!("{name}.ko"))?
            .with_context(|| format!("Debian's kernel has no module {name}"))
    }

    fn build(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let (debian, fast) = (folder.join("debian"), folder.join("fast"));
        bootstrap(&debian)?;
        self.furnish(&debian)?;
        take_part(&debian, &fast)?;
        self.furnish(&fast)?;
        for (tree, megabytes) in [(&debian, 2048), (&fast, 512)] {
            write_baseline(tree, folder)?;
            write_image(tree, megabytes)?;
            fs::remove_dir_all(tree)?;
        }
        Ok(())
    }

    /// Puts in what every guest has: modules, the user, places.
    fn furnish(&self, tree: &Path) -> Result<()> {
        let version = self.modules.file_name().context("modules without a version")?;
        let modules = tree.join("usr/lib/modules").join(version);
        if !modules.exists() {
            fs::create_dir_all(tree.join("usr/lib/modules"))?;
            command::run(Command::new("cp").arg("-a").arg(&self.modules).arg(&modules))?;
            command::run(Command::new("depmod").arg("-b").arg(tree.join("usr")).arg(version))?;
        }
        for place in ["dev", "proc", "sys", "run", "tmp", "mnt", "root", "home/user", "var/log", "var/tmp"] {
            fs::create_dir_all(tree.join(place)).with_context(|| place.to_owned())?;
        }
        let home = tree.join("home/user");
        chown(&home, Some(USER), Some(USER))?;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        for (file, line) in [
            ("passwd", format!("user:x:{USER}:{USER}::/home/user:/bin/bash\n")),
            ("group", format!("user:x:{USER}:\n")),
            ("shadow", "user:*:20000:0:99999:7:::\n".to_owned()),
        ] {
            let path = tree.join("etc").join(file);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            if !text.contains("\nuser:") {
                fs::write(&path, text + &line)?;
            }
        }
        fs::write(tree.join("etc/hostname"), "guest\n")?;
        // It would refuse everything, and be the one that did.
        let mask = tree.join("etc/systemd/system/fapolicyd.service");
        if mask.symlink_metadata().is_err() {
            fs::create_dir_all(tree.join("etc/systemd/system"))?;
            symlink("/dev/null", mask)?;
        }
        Ok(())
    }
}

/// Debian's cloud kernel, by apt: `vmlinuz` and the folder of its modules.
fn kernel(cache: &Path) -> Result<(PathBuf, PathBuf)> {
    let depends = command::output(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let name = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .context("apt knows no linux-image-cloud-amd64")?;
    let version = name.strip_prefix("linux-image-").unwrap_or(name);
    let folder = cache.join(name);
    if !folder.exists() {
        eprintln!("Fetching the guests' kernel: apt-get download {name}");
        let building = cache.join(format!("building-{}", std::process::id()));
        fs::create_dir_all(&building)?;
        // apt gives its downloads to a user of its own, who cannot write here; that is no matter for root.
        let mut download = Command::new("apt-get");
        download.args(["-o", "APT::Sandbox::User=root", "download", name]).current_dir(&building);
        command::output(&mut download)?;
        let package = find_by(&building, |file| file.ends_with(".deb"))?.context("apt downloaded nothing")?;
        command::run(Command::new("dpkg").arg("-x").arg(&package).arg(&building))?;
        fs::remove_file(&package)?;
        fs::rename(&building, &folder)?;
    }
    let modules = ["lib/modules", "usr/lib/modules"].map(|place| folder.join(place).join(version));
    let modules = modules.into_iter().find(|place| place.is_dir()).context("a kernel without modules")?;
    Ok((folder.join("boot").join(format!("vmlinuz-{version}")), modules))
}

/// The same Debian as this machine's, so that programs that were built here run there.
fn bootstrap(tree: &Path) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no Debian release")?;
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let sources = sources.iter().find(|file| Path::new(file).exists()).context("apt has no sources")?;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={}", DEBIAN_PACKAGES.join(",")))
        .arg(suite)
        .arg(tree)
        .arg(sources);
    command::run(mmdebstrap.stdout(Stdio::null()))
}

/// Copies some packages with all that they depend on, and what dpkg knows of them: a small machine, and a real one.
fn take_part(debian: &Path, fast: &Path) -> Result<()> {
    let status = fs::read_to_string(debian.join("var/lib/dpkg/status"))?;
    let stanzas = stanzas(&status);
    let mut wanted: Vec<&str> = FAST_PACKAGES.to_vec();
    let mut chosen = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        let Some(stanza) = stanzas.get(name) else { continue };
        if chosen.insert(name) {
            wanted.extend(dependencies(stanza));
        }
    }
    let info = fast.join("var/lib/dpkg/info");
    fs::create_dir_all(&info)?;
    for link in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(fast.join("usr").join(link))?;
        symlink(format!("usr/{link}"), fast.join(link))?;
    }
    let mut part = String::new();
    let mut files = String::new();
    for name in &chosen {
        part.push_str(stanzas.get(name).copied().unwrap_or_default());
        part.push_str("\n\n");
        for entry in fs::read_dir(debian.join("var/lib/dpkg/info"))? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            let (key, kind) = file.rsplit_once('.').unwrap_or_default();
            if key.split(':').next() != Some(name) {
                continue;
            }
            fs::copy(entry.path(), info.join(&file))?;
            if kind == "list" {
                files.push_str(&fs::read_to_string(entry.path())?);
            }
        }
    }
    fs::write(fast.join("var/lib/dpkg/status"), part)?;
    // The merged folders are links in both trees; what is documentation has no place in a small machine.
    let is_taken = |path: &&str| {
        !["/.", "/bin", "/sbin", "/lib", "/lib64"].contains(path) && !path.starts_with("/usr/share/doc")
    };
    copy(debian, fast, &files.lines().filter(is_taken).map(str::to_owned).collect::<Vec<_>>())?;
    copy_tree(debian, fast, "etc")?;
    let mut alternatives = Vec::new();
    for entry in fs::read_dir(debian.join("usr/bin"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|target| target.starts_with("/etc/alternatives")) {
            alternatives.push(format!("/{}", path.strip_prefix(debian)?.display()));
        }
    }
    copy(debian, fast, &alternatives)
}

/// The stanzas of a dpkg database by package.
fn stanzas(status: &str) -> BTreeMap<&str, &str> {
    status
        .split("\n\n")
        .map(str::trim_end)
        .filter_map(|stanza| Some((stanza.lines().find_map(|line| line.strip_prefix("Package: "))?, stanza)))
        .collect()
}

/// What a package depends on: of alternatives the first.
fn dependencies(stanza: &str) -> impl Iterator<Item = &str> {
    stanza
        .lines()
        .filter_map(|line| line.strip_prefix("Depends: ").or_else(|| line.strip_prefix("Pre-Depends: ")))
        .flat_map(|line| line.split(", "))
        .filter_map(|dependency| dependency.split([' ', ':', '|']).next())
}

/// Copies these files, links and folders from one tree to the other.
fn copy(from: &Path, to: &Path, paths: &[String]) -> Result<()> {
    let present =
        paths.iter().filter(|path| from.join(path.trim_start_matches('/')).symlink_metadata().is_ok());
    let list: String = present.map(|path| format!("{}\n", path.trim_start_matches('/'))).collect();
    let mut cpio = Command::new("cpio");
    cpio.args([
        "--pass-through",
        "--make-directories",
        "--preserve-modification-time",
        "--unconditional",
        "--quiet",
    ])
    .arg(to)
    .current_dir(from)
    .stdin(Stdio::piped());
    let mut child = cpio.spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("no input")?, list.as_bytes())?;
    ensure!(child.wait()?.success(), "cpio cannot copy from {}", from.display());
    Ok(())
}

fn copy_tree(from: &Path, to: &Path, name: &str) -> Result<()> {
    command::run(Command::new("cp").arg("-a").arg(from.join(name)).arg(to))
}

/// The real inventory over the tree, as the agent makes it.
fn write_baseline(tree: &Path, folder: &Path) -> Result<()> {
    let name = tree.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let inventory = trust::Inventory::new(tree, &folder.join(format!("{name}.inventory")));
    let report = inventory.scan(&mut |_| {}, &AtomicBool::new(false))?;
    ensure!(report.vouched > 100, "the inventory of {name} found {} files", report.vouched);
    let mut out = std::io::BufWriter::new(fs::File::create(folder.join(format!("{name}.baseline")))?);
    inventory.write_baseline(&mut out)?;
    std::io::Write::flush(&mut out)?;
    Ok(())
}

fn write_image(tree: &Path, megabytes: u64) -> Result<()> {
    let image = tree.with_extension("ext4");
    // Sparse: what nobody wrote takes no room.
    fs::File::create(&image)?.set_len(megabytes << 20)?;
    command::output(Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(tree).arg(&image))?;
    Ok(())
}

fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|file| file == name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn find_by(folder: &Path, is_it: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_str().is_some_and(&is_it) {
            return Ok(Some(path));
        }
    }
    if !folder.is_dir() {
        bail!("{} is no folder", folder.display());
    }
    Ok(None)
}
