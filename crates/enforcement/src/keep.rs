//! What the gate gives away, so that its restriction outlives it: its groups and the files whose verdicts are kept, to
//! the [keeper](crate::keeper), and its group also to the service manager's descriptor store (`sd_notify(3)`).
//!
//! A keeper that is gone takes nothing from a gate that is there: it gets everything again when it comes back.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, socket,
    sockopt::PeerCredentials,
};

use crate::fanotify::{Shared, event_fd, let_go};
use crate::keeper::{MESSAGE_BYTES, Message, VERSION};
use crate::{Error, sys};

/// How long the keeper may take over its first word, or over making room for ours.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it may take to make room for a file, which holds up whoever executes it.
const SHORT_PATIENCE: Duration = Duration::from_millis(20);
/// How often a lost keeper is looked for.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// The name of the group in the service manager's store.
const STORED_NAME: &str = "cordon-fanotify";

/// Who keeps what the gate must not lose.
#[derive(Debug, Default)]
pub struct Keepers {
    /// The keeper's socket; none to go without.
    pub socket: Option<PathBuf>,
    /// How to start a keeper when none listens there: program and arguments. None when somebody else starts it.
    pub start: Option<Vec<OsString>>,
    /// The group that the service manager kept of an earlier gate: see [`inherited_group`].
    pub inherited: Option<OwnedFd>,
    /// Programs that start the gate again when it is gone. They are read when a restriction begins, and run without a
    /// gate if they may run with it. The gate itself and its loader are to be among them.
    pub programs: Vec<PathBuf>,
}

/// The group that the service manager kept of an earlier gate. To be called once, before this process opens anything.
pub fn inherited_group() -> Option<OwnedFd> {
    sys::inherited().into_iter().find(|(name, _)| name == STORED_NAME).map(|(_, group)| group)
}

/// Ends what an earlier gate has left with its keepers, for a gate that restricts by other means: whoever waits goes on.
/// To be called once the other means hold.
pub fn end_former(keepers: Keepers) {
    let found = keepers.socket.as_deref().map(reach_keeper);
    let (keeper, kept) = found.and_then(Result::ok).unzip();
    for group in keepers.inherited.into_iter().chain(kept.flatten()) {
        let_go(group.as_fd());
    }
    if let Some(keeper) = keeper {
        // One that does not take it in time has nothing any more that asks.
        drop(sys::send_message(keeper.as_fd(), &Message::End.bytes(), &[]));
    }
    forget_group();
}

/// The connection to a keeper, for as long as the backend lives.
pub(crate) struct Keep {
    socket: PathBuf,
    start: Option<Vec<OsString>>,
    state: Mutex<State>,
    /// Readable forever once the backend is gone.
    stop: EventFd,
}

#[derive(Default)]
struct State {
    connection: Option<OwnedFd>,
    /// The restriction that is kept.
    restriction: Weak<Shared>,
}

impl Keep {
    /// Finds or starts the keeper. Answers with it the group that it has of an earlier gate, if any.
    pub(crate) fn reach(
        socket: PathBuf,
        start: Option<Vec<OsString>>,
    ) -> Result<(Arc<Self>, Option<OwnedFd>), Error> {
        let keep = Arc::new(Self { socket, start, state: Mutex::default(), stop: event_fd()? });
        let mut child = None;
        let begin = Instant::now();
        let group = loop {
            match reach_keeper(&keep.socket) {
                Ok((connection, group)) => {
                    keep.lock().connection = Some(connection);
                    break group;
                }
                Err(_) if begin.elapsed() < PATIENCE => {
                    keep.start(&mut child);
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => break None,
            }
        };
        let own = Arc::clone(&keep);
        std::thread::Builder::new()
            .name("keeper".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || own.hold_connection(child))
            .map_err(|error| Error::new("starting the thread keeper", error))?;
        Ok((keep, group))
    }

    /// Whether there is a keeper.
    pub(crate) fn is_there(&self) -> bool {
        self.lock().connection.is_some()
    }

    /// Gives a restriction's group away. `known`: the keeper has it already.
    pub(crate) fn begin(&self, shared: &Arc<Shared>, known: bool) {
        let mut state = self.lock();
        state.restriction = Arc::downgrade(shared);
        state.send(Message::Begin(known.into()), &[shared.group.as_fd(), shared.ping.as_fd()], PATIENCE);
    }

    /// Gives a program away that starts the gate again.
    pub(crate) fn lend_program(&self, number: u64, file: BorrowedFd<'_>) {
        self.lock().send_of_restriction(Message::Program(number), &[file], PATIENCE);
    }

    /// Says that everything is marked anew.
    pub(crate) fn marked(&self) {
        self.lock().send(Message::Marked, &[], PATIENCE);
    }

    /// Takes everything back.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.send(Message::End, &[], PATIENCE);
        state.restriction = Weak::new();
    }

    /// Gives a group away until the loan is dropped.
    pub(crate) fn lend_group(self: &Arc<Self>, group: BorrowedFd<'_>) -> Loan {
        let number = number(group);
        self.lock().send_of_restriction(Message::Group(number), &[group], PATIENCE);
        Loan { keep: Arc::clone(self), end: Message::DropGroup(number) }
    }

    /// Gives a file whose verdict is kept away until the loan is dropped.
    pub(crate) fn lend_file(self: &Arc<Self>, file: BorrowedFd<'_>) -> Loan {
        let number = number(file);
        self.lock().send_of_restriction(Message::File(number), &[file], SHORT_PATIENCE);
        Loan { keep: Arc::clone(self), end: Message::DropFile(number) }
    }

    /// Starts a keeper unless one was started that still runs.
    fn start(&self, child: &mut Option<Child>) {
        if child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return;
        }
        let Some((program, arguments)) = self.start.as_ref().and_then(|words| words.split_first()) else {
            return;
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        sys::detach(&mut command);
        *child = command.spawn().ok();
    }

    /// Finds the keeper again whenever it is lost, and gives it everything again.
    fn hold_connection(&self, mut child: Option<Child>) {
        loop {
            let stopped = self.wait_for_loss();
            if stopped {
                return;
            }
            match reach_keeper(&self.socket) {
                // What it has is ours, or of a gate before us that this one has replaced.
                Ok((connection, _group)) => self.give_again(connection),
                Err(_) => self.start(&mut child),
            }
        }
    }

    /// Waits until there is no keeper, or a moment when there was none before. Answers whether the backend is gone.
    fn wait_for_loss(&self) -> bool {
        let connection = self.lock().connection.as_ref().and_then(|connection| connection.try_clone().ok());
        let mut polled = vec![PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        let timeout = match &connection {
            // The keeper says nothing after its first word, so this is its end.
            Some(connection) => {
                polled.push(PollFd::new(connection.as_fd(), PollFlags::POLLIN | PollFlags::POLLHUP));
                // A connection that was given up is noticed too.
                PATIENCE
            }
            None => RETRY_INTERVAL,
        };
        let ready = poll(&mut polled, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        let is_ready = |index: usize| polled.get(index).is_some_and(|polled| polled.any() == Some(true));
        if ready.is_err() {
            std::thread::sleep(Duration::from_millis(1));
        } else if is_ready(0) {
            return true;
        } else if is_ready(1) {
            self.lock().connection = None;
        }
        false
    }

    fn give_again(&self, connection: OwnedFd) {
        let mut state = self.lock();
        state.connection = Some(connection);
        let restriction = state.restriction.upgrade();
        match &restriction {
            Some(shared) => {
                state.send(Message::Begin(1), &[shared.group.as_fd(), shared.ping.as_fd()], PATIENCE);
            }
            None => state.send(Message::End, &[], PATIENCE),
        }
        drop(state);
        if let Some(shared) = restriction {
            shared.foreign.lend_again(self);
            shared.verdicts.lend_again(self);
            shared.programs.lend_again(self);
            self.marked();
        }
    }

    pub(crate) fn lend_group_again(&self, group: BorrowedFd<'_>) {
        self.lock().send_of_restriction(Message::Group(number(group)), &[group], PATIENCE);
    }

    pub(crate) fn lend_file_again(&self, file: BorrowedFd<'_>) {
        self.lock().send_of_restriction(Message::File(number(file)), &[file], PATIENCE);
    }

    pub(crate) fn stop(&self) {
        let _ = self.stop.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sends a message. A keeper that does not take it in time is given up, and gets everything again when it is back.
    fn send(&mut self, message: Message, files: &[BorrowedFd<'_>], patience: Duration) {
        let Some(connection) = &self.connection else { return };
        let send = || sys::send_message(connection.as_fd(), &message.bytes(), files);
        let sent = match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_for(connection, PollFlags::POLLOUT, patience).and_then(|()| send())
            }
            sent => sent,
        };
        if sent.is_err() {
            self.connection = None;
        }
    }

    fn send_of_restriction(&mut self, message: Message, files: &[BorrowedFd<'_>], patience: Duration) {
        if self.restriction.strong_count() > 0 {
            self.send(message, files, patience);
        }
    }
}

/// Something that the keeper has; it gives it back when this is dropped, which must be before its descriptor is closed:
/// the descriptor's number is its name.
pub(crate) struct Loan {
    keep: Arc<Keep>,
    end: Message,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.keep.lock().send_of_restriction(self.end, &[], SHORT_PATIENCE);
    }
}

/// Connects to the keeper that listens at `path`. Answers with it the group that it has, if any.
fn reach_keeper(path: &Path) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let connection = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    if getsockopt(&connection, PeerCredentials)?.uid() != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    wait_for(&connection, PollFlags::POLLIN, PATIENCE)?;
    let mut buffer = [0; MESSAGE_BYTES];
    let (length, files) = sys::receive_message(connection.as_fd(), &mut buffer, MsgFlags::empty())?;
    match Message::parse(buffer.get(..length).unwrap_or_default()) {
        Some(Message::Hello(VERSION)) => Ok((connection, files.into_iter().next())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn number(file: BorrowedFd<'_>) -> u64 {
    u64::try_from(file.as_raw_fd()).unwrap_or(u64::MAX)
}

fn wait_for(connection: &OwnedFd, what: PollFlags, patience: Duration) -> io::Result<()> {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(connection.as_fd(), what)], timeout)? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Gives the group to the service manager, which gives it to the next gate. Without one it does nothing.
pub(crate) fn store_group(group: BorrowedFd<'_>) {
    // It is not to look whether the descriptor has an error: a group never has.
    notify(&format!("FDSTORE=1\nFDNAME={STORED_NAME}\nFDPOLL=0"), &[group]);
}

/// Takes the group back from the service manager.
pub(crate) fn forget_group() {
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={STORED_NAME}"), &[]);
}

fn notify(text: &str, files: &[BorrowedFd<'_>]) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name),
        None => UnixAddr::new(name.as_bytes()),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without the store the keeper is there, and the other way round.
    if let (Ok(address), Ok(datagrams)) =
        (address, socket(AddressFamily::Unix, SockType::Datagram, flags, None))
        && connect(datagrams.as_raw_fd(), &address).is_ok()
    {
        drop(sys::send_message(datagrams.as_fd(), text.as_bytes(), files));
    }
}
