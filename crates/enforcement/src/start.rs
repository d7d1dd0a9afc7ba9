//! How an interpreter starts: looked at while the kernel holds the `execve(2)` that starts it.
//!
//! fanotify says which file is about to run, and not why. The caller is held inside its system call, so the call's
//! arguments tell: when it names another file than the interpreter, the kernel has come to the interpreter by the `#!`
//! line of that file, about which it asked before. The arguments lie in the caller's memory: a program of several
//! threads, or one that shares that memory, can change them in this very moment, and is then believed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use domain::decision::{Decision, DecisionCause};
use domain::program_class::ProgramClass;
use domain::program_start::{ProgramStart, Starter};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::Error;
use crate::denial::Process;
use crate::fanotify::{self, Shared};
use crate::label::{InodeVersion, Label};
use crate::responder::Answer;

/// How many threads look.
const THREADS: usize = 4;
/// How often a process is looked at whose caller is not asleep yet, a millisecond apart.
const LOOKS_MAX: u32 = 20;
/// The most threads of one process that are looked at.
const THREADS_MAX: usize = 1024;
/// The most arguments, and bytes of each: what is longer is not looked at, which speaks against it.
const ARGUMENTS_MAX: usize = 1024;
const ARGUMENT_BYTES_MAX: usize = 4096;
/// The most variables, and bytes of each that are read: names are short.
const VARIABLES_MAX: usize = 4096;
const VARIABLE_BYTES: usize = 256;
/// Programs that a script had started and that start another one in their place. They do so at once.
const LAUNCHED_MAX: usize = 1024;
/// How often, a millisecond apart, a name is looked up that the kernel has just looked up.
const LOOKUPS_MAX: usize = 20;

/// A listed program whose start is to be looked at.
pub(crate) struct StartJob {
    pub(crate) fd: RawFd,
    /// Keeps the descriptor's number taken until the kernel has its answer.
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) pid: i32,
    pub(crate) version: InodeVersion,
    pub(crate) label: Arc<Label>,
    pub(crate) deadline: Instant,
}

/// Looks at starts until the session ends. A caller's memory may be slow to read, so one thread is not enough.
pub(crate) fn begin(shared: &Arc<Shared>) -> Result<(), Error> {
    let launched = Arc::new(Mutex::new(Launched::default()));
    for _ in 0..THREADS {
        let launched = Arc::clone(&launched);
        fanotify::spawn("start", shared, move |shared| run(shared, &launched))?;
    }
    Ok(())
}

fn run(shared: &Shared, launched: &Mutex<Launched>) {
    while let Some(job) = shared.starts.wait(shared) {
        if job.deadline <= Instant::now() {
            continue;
        }
        let start = look(&job, launched);
        let may = shared.verdicts.judge().may_start(job.label.classes, &start);
        let label = if may {
            Arc::clone(&job.label)
        } else {
            let decision = Decision::failure(DecisionCause::Interpreter);
            Arc::new(Label { decision, ..Label::clone(&job.label) })
        };
        // While it waits, it is there to be looked at.
        let process = (!may).then(|| Process::of(job.pid)).flatten();
        shared.send(Answer::Started { fd: job.fd, file: job.file, label, process });
    }
}

/// Programs that a listed script had started, and that are about to start another one in their place.
#[derive(Default)]
struct Launched(HashMap<i32, Incarnation>);

/// One process while it runs one program.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Incarnation {
    /// When the process began, in ticks since the boot.
    began: u64,
    program: (u64, u64),
}

fn look(job: &StartJob, launched: &Mutex<Launched>) -> ProgramStart {
    let unit = is_below_unit_now(job.pid).then_some(Starter::SystemUnit);
    let Some(call) = Call::of(job.pid) else {
        return ProgramStart { starter: unit.unwrap_or_default(), ..ProgramStart::default() };
    };
    let file = (job.version.device, job.version.inode);
    let launched = || launched.lock().unwrap_or_else(PoisonError::into_inner);
    let by_script = match call.named(job.pid) {
        Some(named) if named != file => true,
        Some(_) | None => launched().knows(job.pid),
    };
    if by_script && job.label.classes.contains(ProgramClass::Launcher) {
        launched().remember(job.pid, file);
    }
    let starter = unit.unwrap_or(if by_script { Starter::ListedScript } else { Starter::Anyone });
    ProgramStart { starter, arguments: call.arguments(), environment: call.environment() }
}

impl Launched {
    fn remember(&mut self, pid: i32, program: (u64, u64)) {
        if self.0.len() >= LAUNCHED_MAX {
            self.0.retain(|pid, launched| Incarnation::of(*pid) == Some(*launched));
        }
        if let Some(began) = began(pid)
            && self.0.len() < LAUNCHED_MAX
        {
            self.0.insert(pid, Incarnation { began, program });
        }
    }

    /// Whether the process is a launcher that a script had started.
    fn knows(&self, pid: i32) -> bool {
        self.0.get(&pid).is_some_and(|launched| Incarnation::of(pid) == Some(*launched))
    }
}

impl Incarnation {
    fn of(pid: i32) -> Option<Self> {
        let program = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some(Self { began: began(pid)?, program: (program.dev(), program.ino()) })
    }
}

fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The `execve(2)` or `execveat(2)` that a process waits in.
struct Call {
    memory: File,
    /// The folder that the name is relative to; none for the working folder.
    folder: Option<i32>,
    name: Vec<u8>,
    arguments: u64,
    environment: u64,
}

impl Call {
    /// The one such call of a process; none when there are several, so that nobody knows which is asked about.
    fn of(pid: i32) -> Option<Self> {
        let mut looks = 0;
        let calls = loop {
            let (calls, is_any_running) = calls_of(pid)?;
            looks += 1;
            if !calls.is_empty() || !is_any_running || looks == LOOKS_MAX {
                break calls;
            }
            // The question was read before the thread that asks it went to sleep: most often on a single processor.
            std::thread::sleep(Duration::from_millis(1));
        };
        let [Pointers { folder, name, arguments, environment }] = *calls.as_slice() else { return None };
        let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
        let name = text(&memory, name, ARGUMENT_BYTES_MAX)?;
        Some(Self { memory, folder, name, arguments, environment })
    }

    /// Device and inode number of the file that the call names, as far as it can be found without asking any disk or
    /// server: the kernel has just found it.
    fn named(&self, pid: i32) -> Option<(u64, u64)> {
        let folder = match self.folder {
            Some(fd) => format!("/proc/{pid}/fd/{fd}"),
            None => format!("/proc/{pid}/cwd"),
        };
        let only_seen = |path: &Path| File::options().read(true).custom_flags(libc::O_PATH).open(path).ok();
        if self.name.is_empty() {
            let metadata = only_seen(Path::new(&folder))?.metadata().ok()?;
            return Some((metadata.dev(), metadata.ino()));
        }
        let root = format!("/proc/{pid}/root");
        let is_here =
            is_same(&format!("/proc/{pid}/ns/mnt"), "/proc/self/ns/mnt") && is_same(&root, "/proc/self/root");
        let (from, rules) = if self.name.starts_with(b"/") {
            (&root, ResolveFlag::RESOLVE_IN_ROOT)
        } else if is_here {
            (&folder, ResolveFlag::empty())
        } else {
            // What leads out of the folder leads elsewhere there than here.
            (&folder, ResolveFlag::RESOLVE_BENEATH)
        };
        let from = only_seen(Path::new(from))?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(self.name.clone()));
        let cached = ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED);
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(rules | cached);
        for _ in 0..LOOKUPS_MAX {
            match openat2(from.as_fd(), &path, how) {
                Ok(found) => {
                    let stat = nix::sys::stat::fstat(found.as_fd()).ok()?;
                    return Some((stat.st_dev, stat.st_ino));
                }
                Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
                // Before Linux 5.12.
                Err(Errno::ENOSYS | Errno::EINVAL) if is_here => {
                    let metadata = only_seen(&Path::new(&folder).join(&path))?.metadata().ok()?;
                    return Some((metadata.dev(), metadata.ino()));
                }
                Err(_) => return None,
            }
        }
        None
    }

    fn arguments(&self) -> Option<Vec<Vec<u8>>> {
        let arguments = self.texts(self.arguments, ARGUMENTS_MAX, ARGUMENT_BYTES_MAX)?;
        arguments.iter().all(|argument| argument.len() < ARGUMENT_BYTES_MAX).then_some(arguments)
    }

    fn environment(&self) -> Option<Vec<Vec<u8>>> {
        self.texts(self.environment, VARIABLES_MAX, VARIABLE_BYTES)
    }

    /// The texts of a list that ends with a null pointer; none when there are more, or it cannot be read.
    fn texts(&self, list: u64, count_max: usize, bytes_max: usize) -> Option<Vec<Vec<u8>>> {
        let mut texts = Vec::new();
        if list == 0 {
            // No list at all is an empty one.
            return Some(texts);
        }
        while texts.len() <= count_max {
            let mut pointer = [0; 8];
            let place = list.checked_add(8 * texts.len() as u64)?;
            self.memory.read_exact_at(&mut pointer, place).ok()?;
            match u64::from_ne_bytes(pointer) {
                0 => return Some(texts),
                pointer => texts.push(text(&self.memory, pointer, bytes_max)?),
            }
        }
        None
    }
}

/// The text at a place, without its NUL, cut off after `bytes_max` bytes.
fn text(memory: &File, mut place: u64, bytes_max: usize) -> Option<Vec<u8>> {
    const PAGE: u64 = 4096;
    let mut text = Vec::new();
    while text.len() < bytes_max {
        // What lies beyond the page may not be there.
        let to_end = usize::try_from(PAGE - place % PAGE).ok()?;
        let mut buffer = vec![0; to_end.min(bytes_max - text.len())];
        memory.read_exact_at(&mut buffer, place).ok()?;
        if let Some(end) = buffer.iter().position(|byte| *byte == 0) {
            buffer.truncate(end);
            text.append(&mut buffer);
            return Some(text);
        }
        place = place.checked_add(buffer.len() as u64)?;
        text.append(&mut buffer);
    }
    Some(text)
}

/// What a call was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pointers {
    folder: Option<i32>,
    name: u64,
    arguments: u64,
    environment: u64,
}

/// The calls that the threads of a process wait in, and whether any thread waits in none because it runs.
fn calls_of(pid: i32) -> Option<(Vec<Pointers>, bool)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let (mut calls, mut is_any_running) = (Vec::new(), false);
    for (index, thread) in threads.enumerate() {
        let call = fs::read_to_string(thread.ok()?.path().join("syscall")).unwrap_or_default();
        is_any_running |= call.trim_ascii() == "running";
        calls.extend(parse(&call));
        if index >= THREADS_MAX {
            return None;
        }
    }
    Some((calls, is_any_running))
}

/// Reads `/proc/PID/task/TID/syscall`: the call's number and its six arguments, when it is one that executes.
fn parse(line: &str) -> Option<Pointers> {
    let mut words = line.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let values: Vec<u64> =
        words.map_while(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()).collect();
    match (number, values.as_slice()) {
        (libc::SYS_execve, [name, arguments, environment, ..]) => {
            Some(Pointers { folder: None, name: *name, arguments: *arguments, environment: *environment })
        }
        (libc::SYS_execveat, [folder, name, arguments, environment, ..]) => {
            // The kernel reads an `int`.
            let folder = i32::from_ne_bytes(u32::try_from(folder & u64::from(u32::MAX)).ok()?.to_ne_bytes());
            Some(Pointers {
                folder: (folder != libc::AT_FDCWD).then_some(folder),
                name: *name,
                arguments: *arguments,
                environment: *environment,
            })
        }
        _ => None,
    }
}

fn is_same(a: &str, b: &str) -> bool {
    let identity = |path: &str| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    identity(a).is_some_and(|a| Some(a) == identity(b))
}

/// Whether a process runs below a system unit.
fn is_below_unit_now(pid: i32) -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    is_below_unit(&read("cgroup"), &read("loginuid"))
}

/// By `/proc/PID/cgroup`, as the service manager keeps it (`systemd.slice(5)`), and by `/proc/PID/loginuid`, which a
/// login sets (`pam_loginuid(8)`) and all that come of it inherit. A kernel without audit has none: nobody is believed.
fn is_below_unit(cgroup: &str, login: &str) -> bool {
    let below = |controllers: &str| {
        cgroup.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(controllers)?.strip_prefix(':'))
    };
    let path = below("name=systemd").or_else(|| below("")).unwrap_or_default();
    let of_system = path == "/init.scope" || path.starts_with("/system.slice/");
    of_system && login.trim() == u32::MAX.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_as_the_kernel_writes_them() {
        let pointers =
            |folder, name| Pointers { folder, name, arguments: 2, environment: 0xffff_8000_0000_0003 };
        let rest = "0x2 0xffff800000000003 0x0 0x0 0x0 0x7ffd 0x7f00";
        let execve = format!("{} 0x1 {rest}\n", libc::SYS_execve);
        assert_eq!(parse(&execve), Some(pointers(None, 1)));
        let at = |folder: &str| parse(&format!("{} {folder} 0x1 {rest}\n", libc::SYS_execveat));
        assert_eq!(at("0xffffffffffffff9c"), Some(pointers(None, 1)));
        assert_eq!(at("0xffffff9c"), Some(pointers(None, 1)));
        assert_eq!(at("0x5"), Some(pointers(Some(5), 1)));
        for other in
            ["running\n", "-1 0x7ffd 0x7f00\n", "", "0 0x1 0x2 0x3 0x4\n", "99999999999999999999 0x1"]
        {
            assert_eq!(parse(other), None, "{other:?}");
        }
        assert_eq!(parse(&format!("{} 0x1 zz\n", libc::SYS_execve)), None);
    }

    #[test]
    fn units_of_the_system_are_told_from_sessions() {
        let none = "4294967295";
        for (cgroup, login, expected) in [
            ("0::/system.slice/cron.service\n", none, true),
            ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "4294967295\n", true),
            ("0::/init.scope\n", none, true),
            ("12:pids:/x\n1:name=systemd:/system.slice/a.service\n0::/\n", none, true),
            ("1:name=systemd:/user.slice\n0::/system.slice/a.service\n", none, false),
            ("0::/system.slice/cron.service\n", "1000", false),
            ("0::/system.slice/cron.service\n", "0", false),
            ("0::/user.slice/user-1000.slice/session-4.scope\n", none, false),
            ("0::/system.slicer/a.service\n", none, false),
            ("0::/machine.slice/x.scope\n", none, false),
            ("0::/\n", none, false),
            ("", none, false),
            ("0::/system.slice/a.service\n", "", false),
        ] {
            assert_eq!(is_below_unit(cgroup, login), expected, "{cgroup:?} {login:?}");
        }
    }

    #[test]
    fn this_process_is_read_by_its_memory() {
        let memory = File::open("/proc/self/mem").unwrap();
        let place = |bytes: &[u8]| bytes.as_ptr() as u64;
        let long = [vec![b'x'; 9000], vec![0]].concat();
        assert_eq!(text(&memory, place(&long), 20_000).unwrap(), &long[..9000]);
        assert_eq!(text(&memory, place(&long), 5000).unwrap(), &long[..5000]);
        assert_eq!(text(&memory, place(b"abc\0"), 3).unwrap(), b"abc");
        assert_eq!(text(&memory, 1, 10), None);
        assert_eq!(text(&memory, u64::MAX, 10), None);
        assert!(began(std::process::id().cast_signed()).unwrap() > 0);
    }
}
