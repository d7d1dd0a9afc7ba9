//! The system calls that no safe library offers: fanotify marks, leases with a signal of their own, signal files.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// One event as the kernel reports it.
pub(crate) struct Event {
    /// The file that is about to run; answers name it by its number.
    pub(crate) file: OwnedFd,
    /// The process that asks.
    pub(crate) pid: i32,
}

/// The answer to an event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Response {
    Allow,
    Deny,
}

/// What a mark covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// The file itself, and nothing else.
    Inode,
    Mount,
    Filesystem,
}

impl Coverage {
    fn flag(self) -> u32 {
        match self {
            Self::Inode => libc::FAN_MARK_INODE,
            Self::Mount => libc::FAN_MARK_MOUNT,
            Self::Filesystem => libc::FAN_MARK_FILESYSTEM,
        }
    }
}

/// Bytes of `struct fanotify_event_metadata`.
pub(crate) const METADATA_BYTES: usize = 24;

/// A group for permission events. Never the pre-content class: it waives `ETXTBSY` from Linux 6.14 on.
pub(crate) fn fanotify_init() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_CONTENT
        | libc::FAN_CLOEXEC
        | libc::FAN_NONBLOCK
        | libc::FAN_UNLIMITED_QUEUE
        | libc::FAN_UNLIMITED_MARKS;
    // Non-blocking: reading an event opens the file, and any user can hold a write lease on her file and not give it
    // back for `lease-break-time`. The kernel refuses such an execution by itself.
    let event_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: plain integers in, a descriptor or -1 out.
    let fd = unsafe { libc::fanotify_init(flags, event_flags.cast_unsigned()) };
    owned(fd)
}

/// Asks for permission events of executions below `path`.
pub(crate) fn mark_executions(group: BorrowedFd<'_>, path: &CStr, coverage: Coverage) -> io::Result<()> {
    // SAFETY: `path` ends with NUL and outlives the call; the rest are integers.
    let result = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            libc::FAN_MARK_ADD | coverage.flag(),
            libc::FAN_OPEN_EXEC_PERM,
            libc::AT_FDCWD,
            path.as_ptr(),
        )
    };
    checked(result).map(drop)
}

/// Tells the kernel to ask no more about this inode, until it is written to.
pub(crate) fn ignore_executions(group: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    change_ignore_mark(group, file, libc::FAN_MARK_ADD)
}

/// Tells the kernel to ask again about this inode.
pub(crate) fn ask_about_executions(group: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    change_ignore_mark(group, file, libc::FAN_MARK_REMOVE)
}

/// Tells the kernel to ask again about every inode.
pub(crate) fn ask_about_all_executions(group: BorrowedFd<'_>) -> io::Result<()> {
    flush_marks(group, Coverage::Inode)
}

/// Tells the kernel to ask nothing more.
pub(crate) fn remove_marks(group: BorrowedFd<'_>) {
    for coverage in [Coverage::Filesystem, Coverage::Mount, Coverage::Inode] {
        // Flushing a fanotify group cannot fail; closing it would do the same, later.
        drop(flush_marks(group, coverage));
    }
}

fn flush_marks(group: BorrowedFd<'_>, coverage: Coverage) -> io::Result<()> {
    // SAFETY: no path is given and none is read; the rest are integers.
    let result = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            libc::FAN_MARK_FLUSH | coverage.flag(),
            0,
            libc::AT_FDCWD,
            std::ptr::null(),
        )
    };
    checked(result).map(drop)
}

fn change_ignore_mark(group: BorrowedFd<'_>, file: BorrowedFd<'_>, change: u32) -> io::Result<()> {
    // SAFETY: no path is given, so the mark is on the object of `file`; the rest are integers.
    let result = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            change | libc::FAN_MARK_IGNORED_MASK,
            libc::FAN_OPEN_EXEC_PERM,
            file.as_raw_fd(),
            std::ptr::null(),
        )
    };
    checked(result).map(drop)
}

/// Reads the events that wait; none when there are none.
pub(crate) fn read_events(group: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Vec<Event>> {
    let length = match nix::unistd::read(group, buffer) {
        Ok(length) => length,
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => 0,
        Err(error) => return Err(error.into()),
    };
    Ok(parse_events(buffer.get(..length).unwrap_or_default()))
}

/// Finds the descriptors in a buffer of events. Stops at the first event that is not of the known layout, which no
/// kernel has sent yet: whoever asked then waits until the group is closed.
fn parse_events(buffer: &[u8]) -> Vec<Event> {
    descriptors(buffer)
        .into_iter()
        // SAFETY: the kernel made this descriptor for this read, and nothing else owns it.
        .map(|(fd, pid)| Event { file: unsafe { OwnedFd::from_raw_fd(fd) }, pid })
        .collect()
}

fn descriptors(mut buffer: &[u8]) -> Vec<(RawFd, i32)> {
    let mut found = Vec::new();
    while let Some(metadata) = buffer.first_chunk::<METADATA_BYTES>() {
        let word = |at: usize| -> i32 {
            let bytes = metadata.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            i32::from_ne_bytes(bytes.unwrap_or_default())
        };
        let length = usize::try_from(word(0)).unwrap_or(0);
        let known = metadata.get(4) == Some(&libc::FANOTIFY_METADATA_VERSION);
        if !known || length < METADATA_BYTES {
            break;
        }
        let fd = word(16);
        // A queue overflow carries no descriptor.
        if fd >= 0 {
            found.push((fd, word(20)));
        }
        buffer = buffer.get(length..).unwrap_or_default();
    }
    found
}

/// Answers an event. A caller that was killed while it waited is no error.
pub(crate) fn respond(group: BorrowedFd<'_>, file: RawFd, response: Response) -> io::Result<()> {
    let answer = match response {
        Response::Allow => libc::FAN_ALLOW,
        Response::Deny => libc::FAN_DENY,
    };
    let mut bytes = [0_u8; 8];
    let (head, tail) = bytes.split_at_mut(4);
    head.copy_from_slice(&file.to_ne_bytes());
    tail.copy_from_slice(&answer.to_ne_bytes());
    loop {
        match nix::unistd::write(group, &bytes) {
            Ok(_) | Err(nix::errno::Errno::ENOENT) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes a child die when this process does, even before it executes its program.
///
/// Until then the child holds this process's fanotify groups too. Were this process killed while the child waits for an
/// answer, nobody could give it, and the whole machine would wait with it.
pub(crate) fn die_with_us(command: &mut std::process::Command) {
    let parent = nix::unistd::getpid();
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        // It may have died before the signal was asked for.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: between fork and exec, `prepare` makes two system calls and allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, prepare) };
}

/// Maps the beginning of a file as code, privately, and unmaps it. Nothing of it is executed.
pub(crate) fn map_as_code(file: BorrowedFd<'_>) -> io::Result<()> {
    Mapping::new(file, libc::PROT_READ | libc::PROT_EXEC).map(drop)
}

/// Maps the beginning of a file for reading, makes the mapping code, and unmaps it. Nothing of it is executed.
pub(crate) fn make_code(file: BorrowedFd<'_>) -> io::Result<()> {
    let mapping = Mapping::new(file, libc::PROT_READ)?;
    // SAFETY: changes the protection of a mapping that is owned here and that nothing points into.
    checked(unsafe { libc::mprotect(mapping.0, MAPPING_BYTES, libc::PROT_READ | libc::PROT_EXEC) }).map(drop)
}

/// How much is mapped: within one page whatever its size.
const MAPPING_BYTES: usize = 64;

/// A mapping that nothing points into.
struct Mapping(*mut libc::c_void);

impl Mapping {
    fn new(file: BorrowedFd<'_>, protection: i32) -> io::Result<Self> {
        // SAFETY: the kernel chooses the place, so nothing that is mapped is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAPPING_BYTES,
                protection,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(address)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned here, and nothing points into it.
        unsafe { libc::munmap(self.0, MAPPING_BYTES) };
    }
}

/// Takes a read lease, whose break is told to the thread `owner` by the signal [`lease_signal`].
///
/// Fails with `EAGAIN` when anyone has the file open for writing, which is exactly the question that matters before
/// its content is believed.
pub(crate) fn take_lease(file: BorrowedFd<'_>, owner: i32) -> io::Result<()> {
    let fd = file.as_raw_fd();
    let owner = FOwnerEx { kind: F_OWNER_TID, pid: owner };
    // SAFETY: the kernel reads one `struct f_owner_ex`, which `FOwnerEx` is, and which outlives the call.
    checked(unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) })?;
    // SAFETY: plain integers.
    checked(unsafe { libc::fcntl(fd, F_SETSIG, lease_signal()) })?;
    // SAFETY: plain integers.
    checked(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) }).map(drop)
}

/// Whether someone waits for this lease, or the kernel took it away. Tells a signal of this lease from a late one of
/// another file that had the same descriptor.
pub(crate) fn is_lease_broken(file: BorrowedFd<'_>) -> bool {
    // SAFETY: plain integers.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) != libc::F_RDLCK }
}

/// Gives a lease back: whoever waits for writing goes on.
pub(crate) fn release_lease(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain integers.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) }).map(drop)
}

/// The digest against which fs-verity checks the file's content, when it is a SHA-256. None too when the kernel or the
/// filesystem has no fs-verity: the file is then known by its content alone.
pub(crate) fn measure_verity(file: BorrowedFd<'_>) -> Option<[u8; 32]> {
    let mut measured = FsVerityDigest { algorithm: 0, size: 32, digest: [0; 32] };
    // SAFETY: the kernel writes one `struct fsverity_digest` and at most `size` bytes of digest behind it, all of which
    // `FsVerityDigest` has and which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_MEASURE_VERITY, &raw mut measured) };
    let is_sha256 = (measured.algorithm, measured.size) == (FS_VERITY_HASH_ALG_SHA256, 32);
    (result == 0 && is_sha256).then_some(measured.digest)
}

/// `_IOWR('f', 134, struct fsverity_digest)` of `linux/fsverity.h`, Linux 5.4.
const FS_IOC_MEASURE_VERITY: libc::Ioctl = 0xc004_6686_u32 as libc::Ioctl;
const FS_VERITY_HASH_ALG_SHA256: u16 = 1;

/// `struct fsverity_digest` with room for the longest digest that is asked for.
#[repr(C)]
struct FsVerityDigest {
    algorithm: u16,
    /// Before the call the room for the digest, after it the digest's length, in bytes.
    size: u16,
    digest: [u8; 32],
}

const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const F_OWNER_TID: i32 = 0;

/// `struct f_owner_ex` of `fcntl(2)`.
#[repr(C)]
struct FOwnerEx {
    kind: i32,
    pid: i32,
}

/// The signal that tells of a broken lease.
fn lease_signal() -> i32 {
    libc::SIGRTMIN() + 4
}

/// What a signal file told.
pub(crate) enum LeaseBreak {
    /// Someone waits to open this file for writing.
    Of(RawFd),
    /// More leases broke than the kernel could queue signals for.
    Unknown,
}

/// The calling thread's id, for [`take_lease`].
pub(crate) fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// The clock that the BPF programs date events by (`CLOCK_MONOTONIC`).
pub(crate) fn monotonic() -> std::time::Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(std::time::Duration::ZERO, Into::into)
}

/// Blocks the lease signals in the calling thread and opens a file that tells of them, to be read by this thread.
pub(crate) fn lease_signals() -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initializes the set.
    checked(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // The kernel falls back to SIGIO when its queue of signals is full.
    for signal in [lease_signal(), libc::SIGIO] {
        // SAFETY: the set is initialized.
        checked(unsafe { libc::sigaddset(set.as_mut_ptr(), signal) })?;
    }
    // SAFETY: the set is initialized; the old mask is not asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: the set is initialized.
    owned(unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

/// Reads one told break; none when there is none.
pub(crate) fn read_lease_break(signals: BorrowedFd<'_>) -> io::Result<Option<LeaseBreak>> {
    // `struct signalfd_siginfo`: 128 bytes, the signal's number at 0, the descriptor at 20.
    let mut bytes = [0_u8; 128];
    match nix::unistd::read(signals, &mut bytes) {
        Ok(128) => {}
        Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let word = |at: usize| {
        let word = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        i32::from_ne_bytes(word.unwrap_or_default())
    };
    Ok(Some(if word(0) == lease_signal() { LeaseBreak::Of(word(20)) } else { LeaseBreak::Unknown }))
}

/// No event's descriptor has a greater number: a gate has at most this many open.
pub(crate) const DESCRIPTORS: u16 = u16::MAX;

/// Answers every event that was read from a group and not answered, for a reader that is gone or does nothing.
///
/// An answer names its event by the descriptor that the reader got. That is not known here, so all are tried: 12 ms.
pub(crate) fn answer_what_was_read(group: BorrowedFd<'_>, response: Response) {
    for number in 0..DESCRIPTORS {
        drop(respond(group, number.into(), response));
    }
}

/// Refuses the events that nobody has read, at most `max` of them, and answers how many there were.
///
/// Reading an event makes a descriptor. When there is no room for one, the kernel refuses by itself, and neither opens
/// the file nor waits for an answer, so that nothing here can be held up. Not for a process with other threads.
pub(crate) fn refuse_unread(group: BorrowedFd<'_>, max: u64) -> io::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let lowest_free = nix::unistd::dup(group)?.as_raw_fd();
    setrlimit(Resource::RLIMIT_NOFILE, u64::try_from(lowest_free).unwrap_or(0), hard)?;
    let mut buffer = [0; METADATA_BYTES];
    let mut refused = 0;
    let result = loop {
        match nix::unistd::read(group, &mut buffer) {
            Err(nix::errno::Errno::EMFILE) => refused += 1,
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) => break Ok(refused),
            Err(error) => break Err(error.into()),
            // An overflow, which is nobody's question; or an event, if there was room after all.
            Ok(length) => {
                for event in parse_events(buffer.get(..length).unwrap_or_default()) {
                    drop(respond(group, event.file.as_raw_fd(), Response::Deny));
                    refused += 1;
                }
            }
        }
        if refused >= max {
            break Ok(refused);
        }
    };
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    result
}

/// The most descriptors in one message.
const MESSAGE_DESCRIPTORS_MAX: usize = 2;

/// Sends a message with descriptors, whole or not at all. Waits only as long as the socket says.
pub(crate) fn send_message(socket: BorrowedFd<'_>, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let files: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let rights = if files.is_empty() { &[][..] } else { &rights[..] };
    let slices = [io::IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &slices, rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives a message with its descriptors; of length 0 when the other side is gone.
pub(crate) fn receive_message(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: nix::sys::socket::MsgFlags,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut control = nix::cmsg_space!([RawFd; MESSAGE_DESCRIPTORS_MAX]);
    let mut slices = [io::IoSliceMut::new(buffer)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel made these descriptors for this message, and nothing else owns them.
            files.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    Ok((message.bytes, files))
}

/// Takes a connection that waits. It does not wait for reads and writes.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (nobody, flags) = (std::ptr::null_mut(), libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    // SAFETY: no address is asked for, so none is written.
    owned(unsafe { libc::accept4(listener.as_raw_fd(), nobody, std::ptr::null_mut(), flags) })
}

/// The descriptors that the service manager kept (`sd_listen_fds(3)`), by name. To be called once, before this process
/// opens anything of its own.
pub(crate) fn inherited() -> Vec<(String, OwnedFd)> {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    if text("LISTEN_PID").parse() != Ok(nix::unistd::getpid().as_raw()) {
        return Vec::new();
    }
    let count = text("LISTEN_FDS").parse::<i32>().unwrap_or(0).clamp(0, 4096);
    let names = text("LISTEN_FDNAMES");
    let mut names = names.split(':');
    let mut found = Vec::new();
    for number in 3..3 + count {
        let name = names.next().unwrap_or_default().to_owned();
        // SAFETY: plain integers; fails for a descriptor that is not open.
        if checked(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }).is_ok() {
            // SAFETY: it is open, and the service manager made it for this process, in which nothing owns it yet.
            found.push((name, unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    found
}

/// Makes a child the leader of a session of its own, and makes it die with this process until it says otherwise.
pub(crate) fn detach(command: &mut std::process::Command) {
    die_with_us(command);
    let prepare = || Ok(nix::unistd::setsid().map(drop)?);
    // SAFETY: between fork and exec, `prepare` makes one system call and allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, prepare) };
}

/// `NS_GET_USERNS` of `ioctl_ns(2)`.
const NS_GET_USERNS: libc::Ioctl = 0xb701;

/// The user namespace that a namespace belongs to.
pub(crate) fn owner_of_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request has no argument, and answers a descriptor or -1.
    owned(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) })
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    checked(fd)?;
    // SAFETY: the kernel made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd as _;

    /// Without fs-verity, and without a file, the kernel has no digest to give: `ENODATA`, `ENOTTY` or `EOPNOTSUPP`.
    #[test]
    fn what_has_no_fs_verity_has_no_digest() {
        let program = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let (pipe, _writer) = io::pipe().unwrap();
        let in_memory = std::fs::File::open("/proc/self/status").unwrap();
        for file in [program.as_fd(), pipe.as_fd(), in_memory.as_fd()] {
            assert_eq!(measure_verity(file), None);
        }
    }

    fn event(length: u32, version: u8, fd: i32) -> Vec<u8> {
        let mut bytes = vec![0; METADATA_BYTES];
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4] = version;
        bytes[16..20].copy_from_slice(&fd.to_ne_bytes());
        bytes[20..24].copy_from_slice(&77_i32.to_ne_bytes());
        bytes
    }

    #[test]
    fn events_are_found_and_foreign_layouts_end_the_search() {
        let good = event(24, libc::FANOTIFY_METADATA_VERSION, 5);
        let overflow = event(24, libc::FANOTIFY_METADATA_VERSION, -1);
        let foreign = event(24, 99, 6);
        let short = event(8, libc::FANOTIFY_METADATA_VERSION, 7);
        assert_eq!(descriptors(&[good.clone(), overflow, good.clone()].concat()), [(5, 77), (5, 77)]);
        assert_eq!(descriptors(&[foreign, good.clone()].concat()), []);
        assert_eq!(descriptors(&[short, good.clone()].concat()), []);
        assert_eq!(descriptors(&good[..23]), []);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = descriptors(&bytes);
        }
    }
}
