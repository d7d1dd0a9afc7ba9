//! Which programs keep this machine alive and reachable: found where they are, before anything is said of them.
//!
//! They are those of a list, those that the units of the distribution start, and what the services that run now have
//! mapped. Units that were made on this machine (`/etc`, `/run`) are not asked: were they, an intruder's own service
//! would keep the machine from being restricted, or become part of what always runs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::survival::loader_of;
use crate::unit_file::{UnitFile, is_name};

/// Programs by their usual places; what is not there is not missed.
const PROGRAMS: &[&str] = &[
    // PID 1, and what it is told by.
    "/sbin/init",
    "/usr/lib/systemd/systemd",
    "/usr/bin/systemctl",
    "/usr/bin/loginctl",
    "/usr/bin/journalctl",
    "/usr/bin/systemd-tmpfiles",
    "/usr/bin/systemd-sysusers",
    // Devices, kernel modules.
    "/usr/bin/udevadm",
    "/usr/bin/kmod",
    "/sbin/modprobe",
    // Messages between programs, and records.
    "/usr/bin/dbus-daemon",
    "/usr/bin/dbus-broker",
    "/usr/bin/dbus-broker-launch",
    "/usr/lib/dbus-1.0/dbus-daemon-launch-helper",
    "/usr/sbin/auditd",
    "/usr/sbin/rsyslogd",
    // Network and names.
    "/usr/sbin/NetworkManager",
    "/usr/bin/nmcli",
    "/usr/sbin/wpa_supplicant",
    "/usr/sbin/dhclient",
    "/usr/sbin/dhcpcd",
    "/usr/sbin/ifup",
    "/usr/sbin/ip",
    "/usr/bin/ip",
    "/usr/sbin/nscd",
    "/usr/sbin/sssd",
    "/usr/sbin/chronyd",
    // Mounts and checks of filesystems.
    "/usr/bin/mount",
    "/usr/bin/umount",
    "/usr/sbin/swapon",
    "/usr/sbin/fsck",
    "/usr/sbin/e2fsck",
    "/usr/sbin/fsck.ext4",
    "/usr/sbin/fsck.xfs",
    "/usr/sbin/fsck.vfat",
    // Login.
    "/usr/bin/login",
    "/usr/sbin/agetty",
    "/usr/sbin/sulogin",
    "/usr/bin/su",
    "/usr/bin/sudo",
    "/usr/bin/passwd",
    "/usr/sbin/unix_chkpwd",
    "/usr/sbin/sshd",
    "/usr/lib/openssh/sshd-session",
    "/usr/lib/openssh/sshd-auth",
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sshd-session",
    "/usr/libexec/openssh/sshd-auth",
    "/usr/libexec/openssh/sftp-server",
    "/usr/bin/sh",
    "/usr/bin/bash",
    // The way down.
    "/usr/sbin/shutdown",
    "/usr/sbin/reboot",
    "/usr/sbin/poweroff",
];

/// Folders of which every program counts: helpers, generators, and what udev's rules call.
const FOLDERS: &[&str] = &[
    "/usr/lib/systemd",
    "/usr/lib/systemd/system-generators",
    "/usr/lib/systemd/system-shutdown",
    "/usr/lib/udev",
];

/// Where a distribution keeps its units.
const UNIT_FOLDERS: &[&str] = &["/usr/lib/systemd/system", "/lib/systemd/system"];
/// Where links say which units are enabled.
const ENABLING_FOLDERS: &[&str] = &["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// Where a program that is named without a folder is looked for, as systemd does.
const PROGRAM_FOLDERS: &[&str] = &["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Programs elsewhere are not the distribution's: `/etc` holds settings, `/opt` and `/usr/local` what was added.
const SYSTEM_FOLDERS: &[&str] = &["usr", "bin", "sbin", "lib", "lib64"];

/// The longest unit file that is read, in bytes; systemd itself stops at a line of 1 MiB.
const UNIT_BYTES_MAX: u64 = 256 * 1024;
/// The most entries of a folder, units and programs that are looked at.
const ENTRIES_MAX: usize = 8192;
/// The most processes that are looked at.
const PROCESSES_MAX: usize = 32_768;
/// The most of one process's maps that is read, in bytes.
const MAPS_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Something that keeps the machine alive and reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A library: needed where mappings are judged too.
    Mapped,
    /// A program.
    Executed,
}

/// Everything that is found below `root`, by its real path. Reads a few hundred small files.
pub fn look(root: &Path) -> BTreeMap<PathBuf, Need> {
    let mut found = Found { root, real_root: real(root), needs: BTreeMap::new() };
    let in_folders = FOLDERS.iter().flat_map(|folder| entries(&found.at(folder))).collect::<Vec<_>>();
    for path in in_folders {
        found.add_executable(&path);
    }
    for path in PROGRAMS {
        found.add(&found.at(path), Need::Executed);
    }
    for shell in root_shells(root) {
        found.add(&shell, Need::Executed);
    }
    for unit in enabled_units(root) {
        found.add_unit(&unit);
    }
    if root == Path::new("/") {
        found.add_running();
    }
    let loaders: Vec<_> = found
        .needs
        .keys()
        .filter_map(|program| loader_of(program))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    for loader in loaders {
        found.add(&loader, Need::Executed);
    }
    found.needs
}

/// Whether root alone can change what is at `path`, below `root`: the file, and every folder on the way.
pub fn is_roots_alone(path: &Path, root: &Path) -> bool {
    path.ancestors()
        .take_while(|at| at.starts_with(root))
        .all(|at| fs::symlink_metadata(at).is_ok_and(|metadata| at == root || is_roots(&metadata)))
}

fn is_roots(metadata: &Metadata) -> bool {
    metadata.uid() == 0 && (metadata.is_symlink() || metadata.mode() & 0o022 == 0)
}

/// The login shells of the users with root's number.
pub fn root_shells(root: &Path) -> Vec<PathBuf> {
    let text = read_capped(&below(root, "/etc/passwd")).unwrap_or_default();
    let shells = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let is_root = fields.nth(2)? == b"0";
        let shell = Path::new(OsStr::from_bytes(fields.nth(3)?));
        (is_root && shell.is_absolute()).then(|| below(root, shell))
    });
    shells.take(16).collect()
}

struct Found<'a> {
    root: &'a Path,
    real_root: PathBuf,
    needs: BTreeMap<PathBuf, Need>,
}

impl Found<'_> {
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        below(self.root, path)
    }

    /// Adds what is really at `path`.
    fn add(&mut self, path: &Path, need: Need) {
        let path = real(path);
        let is_file = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if is_file && self.needs.len() < ENTRIES_MAX {
            let known = self.needs.entry(path).or_insert(need);
            *known = need.max(*known);
        }
    }

    fn add_executable(&mut self, path: &Path) {
        if fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0) {
            self.add(path, Need::Executed);
        }
    }

    /// Adds what a unit of the distribution starts.
    fn add_unit(&mut self, name: &str) {
        let Some(mut unit) = self.unit(name) else { return };
        if let Some(stem) = name.strip_suffix(".socket") {
            let service = match unit.service.take() {
                Some(service) => service,
                None if unit.accepts => format!("{stem}@.service"),
                None => format!("{stem}.service"),
            };
            match self.unit(&service) {
                Some(started) => unit = started,
                None => return,
            }
        }
        for program in unit.programs {
            let program = Path::new(OsStr::from_bytes(&program));
            if program.is_absolute() {
                self.add_of_system(&self.at(program));
            } else if let Some(path) =
                PROGRAM_FOLDERS.iter().map(|folder| self.at(folder).join(program)).find(|path| path.is_file())
            {
                self.add_of_system(&path);
            }
        }
    }

    fn add_of_system(&mut self, path: &Path) {
        let first = path.strip_prefix(self.root).ok().and_then(|rest| rest.components().next());
        let is_local = path.starts_with(self.at("/usr/local"));
        if !is_local
            && first.is_some_and(|first| SYSTEM_FOLDERS.iter().any(|folder| first.as_os_str() == *folder))
        {
            self.add(path, Need::Executed);
        }
    }

    /// A unit of the distribution, unless one that was made on this machine takes its place.
    fn unit(&self, name: &str) -> Option<UnitFile> {
        if !is_name(name) {
            return None;
        }
        // `getty@tty1.service` is made from `getty@.service`.
        let template = name
            .split_once('@')
            .and_then(|(stem, rest)| rest.rsplit_once('.').map(|(_, kind)| format!("{stem}@.{kind}")));
        for name in std::iter::once(name.to_owned()).chain(template) {
            for made_here in ["/etc/systemd/system", "/run/systemd/system"] {
                // A link leads to a unit that is enabled under another name, or nowhere (`mask`).
                match fs::symlink_metadata(self.at(made_here).join(&name)) {
                    Ok(metadata) if !metadata.is_symlink() => return None,
                    Ok(_) if real(&self.at(made_here).join(&name)) == Path::new("/dev/null") => return None,
                    Ok(_) | Err(_) => {}
                }
            }
            for folder in UNIT_FOLDERS {
                let path = self.at(folder).join(&name);
                let Some(text) = self.read_unit(&path) else { continue };
                let mut drop_in = path.into_os_string();
                drop_in.push(".d");
                let mut drop_ins = entries(Path::new(&drop_in));
                drop_ins.retain(|path| path.extension() == Some(OsStr::new("conf")));
                let drop_ins: Vec<_> = drop_ins.iter().filter_map(|path| self.read_unit(path)).collect();
                let texts = std::iter::once(&text).chain(&drop_ins);
                return Some(UnitFile::read(texts.map(Vec::as_slice)));
            }
        }
        None
    }

    /// The text of a unit that root alone can change.
    fn read_unit(&self, path: &Path) -> Option<Vec<u8>> {
        let path = fs::canonicalize(path).ok()?;
        is_roots_alone(&path, &self.real_root).then(|| read_capped(&path)).flatten()
    }

    /// Adds what PID 1 and the system's services execute and have mapped now, as far as their units are the
    /// distribution's.
    fn add_running(&mut self) {
        let Ok(processes) = fs::read_dir("/proc") else { return };
        let own = fs::read_link("/proc/self/ns/mnt").ok();
        let mut known = BTreeMap::new();
        for entry in processes.flatten().take(PROCESSES_MAX) {
            let folder = entry.path();
            let Some(unit) = fs::read(folder.join("cgroup")).ok().and_then(|text| unit_of(&text)) else {
                continue;
            };
            let is_ours = unit == "init.scope"
                || *known.entry(unit.clone()).or_insert_with_key(|unit| self.unit(unit).is_some());
            // Another view of the filesystems gives paths another meaning.
            if !is_ours || fs::read_link(folder.join("ns/mnt")).ok() != own {
                continue;
            }
            if let Ok(program) = fs::read_link(folder.join("exe")) {
                self.add_of_system(&program);
            }
            for path in mapped(&folder.join("maps")) {
                self.add(&path, Need::Mapped);
            }
        }
    }
}

/// The system's service, or `init.scope`, that a process belongs to by its `cgroup` file.
fn unit_of(text: &[u8]) -> Option<String> {
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let path = std::str::from_utf8(line.splitn(3, |byte| *byte == b':').nth(2)?).ok()?;
        let unit = match path.strip_prefix("/system.slice/") {
            // Templates have a slice of their own below it.
            Some(rest) => rest.split('/').find(|part| part.ends_with(".service"))?,
            None => path.strip_prefix('/').filter(|path| *path == "init.scope")?,
        };
        Some(unit.to_owned())
    })
}

/// The files that a process has mapped to be executed, by the names that are plain.
fn mapped(maps: &Path) -> BTreeSet<PathBuf> {
    let mut text = Vec::new();
    let read = File::open(maps).and_then(|file| file.take(MAPS_BYTES_MAX).read_to_end(&mut text));
    if read.is_err() {
        return BTreeSet::new();
    }
    let lines = text.split(|byte| *byte == b'\n');
    let paths = lines.filter_map(|line| {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let is_executable = fields.nth(1)?.get(2) == Some(&b'x');
        let name = fields.nth(3)?.trim_ascii_start();
        let is_plain = name.starts_with(b"/") && !name.contains(&b'\\') && !name.ends_with(b" (deleted)");
        (is_executable && is_plain).then(|| PathBuf::from(OsStr::from_bytes(name)))
    });
    paths.take(ENTRIES_MAX).collect()
}

/// The names of the units that are enabled: what `.wants` and `.requires` hold.
fn enabled_units(root: &Path) -> BTreeSet<String> {
    let folders = ENABLING_FOLDERS.iter().flat_map(|folder| entries(&below(root, folder)));
    let wanted = folders.filter(|path| {
        path.extension().is_some_and(|kind| kind == OsStr::new("wants") || kind == OsStr::new("requires"))
    });
    let links = wanted.flat_map(|folder| entries(&folder));
    let names = links.filter_map(|link| link.file_name()?.to_str().map(str::to_owned));
    names.filter(|name| name.ends_with(".service") || name.ends_with(".socket")).take(ENTRIES_MAX).collect()
}

/// What is in a folder, sorted; nothing when there is none.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.take(ENTRIES_MAX).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// A file of at most [`UNIT_BYTES_MAX`]; none when it is longer, or no file.
fn read_capped(path: &Path) -> Option<Vec<u8>> {
    // A pipe would wait for a writer.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(UNIT_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= UNIT_BYTES_MAX).then_some(bytes)
}

fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn put(&self, path: &str, text: &str) -> PathBuf {
            let path = below(self.0.path(), path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        }

        fn enable(&self, name: &str, unit: &str) {
            let link = below(self.0.path(), format!("/etc/systemd/system/multi-user.target.wants/{name}"));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(below(self.0.path(), format!("/usr/lib/systemd/system/{unit}")), link).unwrap();
        }

        fn look(&self) -> BTreeSet<String> {
            let root = real(self.0.path());
            let found = look(self.0.path());
            found.keys().map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect()
        }
    }

    #[test]
    fn enabled_units_of_the_distribution_count_and_nobody_elses() {
        let root = Root::new();
        for name in ["sshd", "netd", "tty", "evil", "activated", "each", "masked", "own"] {
            root.put(&format!("/usr/lib/{name}"), "");
            let unit = format!("[Service]\nExecStart=-/usr/lib/{name} --run\n");
            root.put(&format!("/usr/lib/systemd/system/{name}.service"), &unit);
        }
        root.put("/usr/lib/systemd/system/getty@.service", "[Service]\nExecStart=/usr/lib/tty\n");
        root.put("/usr/lib/systemd/system/activated.socket", "[Socket]\nListenStream=22\n");
        root.put("/usr/lib/systemd/system/any.socket", "[Socket]\nAccept=yes\n");
        root.put("/usr/lib/systemd/system/any@.service", "[Service]\nExecStart=/usr/lib/each\n");
        root.enable("netd.service", "netd.service");
        root.enable("getty@tty1.service", "getty@.service");
        root.enable("activated.socket", "activated.socket");
        root.enable("any.socket", "any.socket");
        // Made on this machine, in place of the distribution's, or beside it.
        root.enable("own.service", "own.service");
        root.put("/etc/systemd/system/own.service", "[Service]\nExecStart=/usr/lib/evil\n");
        root.enable("masked.service", "masked.service");
        symlink("/dev/null", below(root.0.path(), "/etc/systemd/system/masked.service")).unwrap();
        root.put("/etc/systemd/system/evil.service", "[Service]\nExecStart=/usr/lib/evil\n");
        root.enable("evil.service", "evil.service");
        // Not where a distribution has programs.
        root.put("/opt/x", "");
        root.put("/usr/local/x", "");
        for (name, path) in [("opt", "/opt/x"), ("local", "/usr/local/x"), ("up", "/usr/lib/../../opt/x")] {
            root.put(
                &format!("/usr/lib/systemd/system/{name}.service"),
                &format!("[Service]\nExecStart={path}\n"),
            );
            root.enable(&format!("{name}.service"), &format!("{name}.service"));
        }
        let expected = ["usr/lib/activated", "usr/lib/each", "usr/lib/netd", "usr/lib/tty"];
        assert_eq!(root.look(), BTreeSet::from(expected.map(str::to_owned)));
    }

    #[test]
    fn programs_of_the_list_and_roots_shell_count_when_they_are_there() {
        let root = Root::new();
        root.put("/usr/sbin/sshd", "");
        root.put("/usr/lib/systemd/systemd-x", "");
        root.put("/opt/shell", "");
        root.put("/opt/other", "");
        root.put(
            "/etc/passwd",
            "root:x:0:0::/root:/opt/shell\nme:x:1000:1000::/:/opt/other\n:::\nx:x:0:0::/:\n",
        );
        let expected = ["opt/shell", "usr/lib/systemd/systemd-x", "usr/sbin/sshd"];
        assert_eq!(root.look(), BTreeSet::from(expected.map(str::to_owned)));
    }

    #[test]
    fn a_unit_that_others_can_change_says_nothing() {
        let root = Root::new();
        root.put("/usr/lib/a", "");
        let unit = root.put("/usr/lib/systemd/system/a.service", "[Service]\nExecStart=/usr/lib/a\n");
        root.enable("a.service", "a.service");
        assert_eq!(root.look().len(), 1);
        fs::set_permissions(&unit, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(root.look().is_empty());
        fs::set_permissions(&unit, fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(unit.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(root.look().is_empty());
        // Neither does one that cannot be read in finite time, or memory.
        fs::set_permissions(unit.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_file(&unit).unwrap();
        nix::unistd::mkfifo(&unit, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(root.look().is_empty());
        fs::remove_file(&unit).unwrap();
        root.put("/usr/lib/systemd/system/a.service", &" ".repeat(300 * 1024));
        assert!(root.look().is_empty());
    }

    #[test]
    fn services_are_told_by_their_control_group() {
        for (text, unit) in [
            ("0::/init.scope\n", Some("init.scope")),
            ("0::/system.slice/ssh.service\n", Some("ssh.service")),
            (
                "1:name=systemd:/x\n0::/system.slice/system-getty.slice/getty@tty1.service\n",
                Some("getty@tty1.service"),
            ),
            ("0::/system.slice/docker-abc.scope\n", None),
            ("0::/user.slice/user-0.slice/system.slice/x.service\n", None),
            ("0::/\n", None),
            ("rubbish", None),
        ] {
            assert_eq!(unit_of(text.as_bytes()).as_deref(), unit, "{text}");
        }
    }
}
