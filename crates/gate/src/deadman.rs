//! The deadman: whether a machine that was just restricted can still be reached, by its agent and by people.
//!
//! Asked before and after the switch: what worked before must work after it. Anything else would release a machine that
//! never had a login, or whose agent was not running.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::vital;

/// Programs that let people in, besides servers of SSH: they wait at a console.
const CONSOLES: &[&str] =
    &["agetty", "getty", "mingetty", "login", "gdm", "gdm3", "gdm-session-worker", "lightdm", "sddm"];
/// Programs that let people in when they listen.
const SERVERS: &[&str] = &["sshd", "dropbear"];
/// Where a service manager listens for SSH.
const SSH_PORT: u16 = 22;
/// The most processes, and files of a process, that are looked at.
const ENTRIES_MAX: usize = 32_768;
/// The longest table of sockets, in bytes: some 50,000.
const SOCKETS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a login shell may take to end.
const SHELL_TIME_MAX: Duration = Duration::from_secs(5);
/// What a login shell is told to end with.
const EXIT_STATUS: i32 = 42;

/// By which ways a machine is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vitals {
    /// The agent runs.
    pub agent: bool,
    /// Someone can log in: a server of SSH listens, or a console waits.
    pub login: bool,
}

impl Vitals {
    /// Looks at the machine whose system is below `root`.
    pub fn look(root: &Path, agent_program: &Path) -> Self {
        let mut vitals = Self::default();
        let Ok(entries) = fs::read_dir("/proc") else { return vitals };
        let agent = fs::metadata(agent_program).ok().map(|agent| (agent.dev(), agent.ino()));
        // Containers have logins of their own, which lead nowhere else.
        let own = fs::read_link("/proc/self/ns/pid").ok();
        let listening = Sockets::listening();
        for entry in entries.flatten().take(ENTRIES_MAX) {
            let folder = entry.path();
            let Ok(program) = fs::read_link(folder.join("exe")) else { continue };
            let is_agent = !vitals.agent && agent.is_some() && identity(&folder.join("exe")) == agent;
            let name = program.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
            // So does a program that was replaced since it started.
            let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
            let is_one =
                |names: &[&str]| program.starts_with(root) && names.iter().any(|one| one.as_bytes() == name);
            let lets_in = !vitals.login
                && (is_one(CONSOLES)
                    || (is_one(SERVERS) && listening.any_of(&folder))
                    || (folder.ends_with("1") && listening.ssh_of(&folder)));
            if (is_agent || lets_in) && runs(&folder) && fs::read_link(folder.join("ns/pid")).ok() == own {
                vitals.agent |= is_agent;
                vitals.login |= lets_in;
            }
            if vitals.agent && vitals.login {
                break;
            }
        }
        vitals
    }

    /// What `before` had and this has not, for people.
    pub fn lost(&self, before: &Self) -> Vec<&'static str> {
        let mut lost = Vec::new();
        if before.agent && !self.agent {
            lost.push("the agent does not run any more");
        }
        if before.login && !self.login {
            lost.push("nobody can log in any more: no SSH server listens, and no console waits");
        }
        lost
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether a process is neither dead nor stopped nor frozen.
fn runs(folder: &Path) -> bool {
    let stat = fs::read(folder.join("stat")).unwrap_or_default();
    let after_name = stat.iter().rposition(|byte| *byte == b')').and_then(|at| stat.get(at + 2));
    let group = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
    let is_frozen = group.lines().any(|line| line.starts_with("0::/cordon-frozen"));
    after_name.is_some_and(|state| !b"ZXTt".contains(state)) && !is_frozen
}

/// The sockets on which connections are waited for, by inode number, with their ports.
struct Sockets(Vec<(u64, u16)>);

impl Sockets {
    /// Those of PID 1's network: the gate itself has none.
    fn listening() -> Self {
        let tables = ["/proc/1/net/tcp", "/proc/1/net/tcp6"].map(|path| fs::read(path).unwrap_or_default());
        Self(tables.iter().flat_map(|table| listening(table)).collect())
    }

    fn any_of(&self, process: &Path) -> bool {
        self.ports_of(process).next().is_some()
    }

    fn ssh_of(&self, process: &Path) -> bool {
        self.ports_of(process).any(|port| port == SSH_PORT)
    }

    fn ports_of(&self, process: &Path) -> impl Iterator<Item = u16> {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().take(ENTRIES_MAX);
        files.filter_map(|file| {
            let link = fs::read_link(file.path()).ok()?;
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()?;
            self.0.iter().find(|(known, _)| *known == inode).map(|(_, port)| *port)
        })
    }
}

/// The listening sockets of a table of the kernel (`proc_pid_net(5)`): inode number and port.
fn listening(table: &[u8]) -> Vec<(u64, u16)> {
    /// `TCP_LISTEN` of `include/net/tcp_states.h`.
    const LISTEN: &str = "0A";
    let table = table.get(..table.len().min(SOCKETS_BYTES_MAX)).unwrap_or_default();
    let lines = table.split(|byte| *byte == b'\n').skip(1);
    let sockets = lines.filter_map(|line| {
        let fields: Vec<_> = std::str::from_utf8(line).ok()?.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let inode = fields.get(9)?.parse().ok()?;
        (*fields.get(3)? == LISTEN).then_some((inode, port))
    });
    sockets.collect()
}

/// What came of root's login shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shell {
    /// It runs, or there is none to speak of.
    Fine,
    /// The kernel refuses it.
    Refused(PathBuf),
}

/// Executes the login shells of root that are there.
pub fn try_shells(root: &Path) -> Shell {
    let shells: BTreeSet<_> = vital::root_shells(root).into_iter().filter(|shell| shell.is_file()).collect();
    for shell in shells {
        // Another failure, or one that never ends, is none of the restriction's.
        if is_refused(&shell) {
            return Shell::Refused(shell);
        }
    }
    Shell::Fine
}

fn is_refused(shell: &Path) -> bool {
    let mut command = Command::new(shell);
    command.arg("-c").arg(format!("exit {EXIT_STATUS}")).env_clear().current_dir("/");
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return error.raw_os_error() == Some(nix::libc::EPERM),
    };
    let start = Instant::now();
    while start.elapsed() < SHELL_TIME_MAX {
        match child.try_wait() {
            Ok(Some(_)) => return false,
            Ok(None) => std::thread::sleep(Duration::from_micros(500)),
            Err(_) => break,
        }
    }
    drop(child.kill());
    drop(child.wait());
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_read() {
        let table = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0\n\
            1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0\n\
            2: 00000000000000000000000000000000:0050 0:0 0A 0:0 00:0 0     0        0 4713 1 0 100 0\n\
            rubbish\n3: x:y 0 0A 0 0 0 0 0 z\n";
        assert_eq!(listening(table), [(4711, 22), (4713, 80)]);
        assert_eq!(listening(b""), []);
    }

    #[test]
    fn a_server_of_ones_own_is_seen_to_listen() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let tables =
            ["tcp", "tcp6"].map(|name| fs::read(format!("/proc/self/net/{name}")).unwrap_or_default());
        let sockets = Sockets(tables.iter().flat_map(|table| listening(table)).collect());
        assert!(sockets.ports_of(Path::new("/proc/self")).any(|found| found == port));
        drop(listener);
        assert!(!sockets.ports_of(Path::new("/proc/self")).any(|found| found == port));
    }

    #[test]
    fn only_what_was_there_before_can_be_lost() {
        let all = Vitals { agent: true, login: true };
        let none = Vitals::default();
        assert!(none.lost(&none).is_empty() && all.lost(&all).is_empty() && all.lost(&none).is_empty());
        assert_eq!(none.lost(&all).len(), 2);
        assert_eq!(none.lost(&Vitals { agent: true, login: false }), ["the agent does not run any more"]);
    }

    #[test]
    fn shells_that_run_are_fine_and_those_that_are_not_there_too() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(try_shells(root.path()), Shell::Fine);
        assert_eq!(try_shells(Path::new("/")), Shell::Fine);
    }
}
