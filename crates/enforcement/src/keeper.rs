//! The keeper: a small process that has what the gate must not lose when it dies.
//!
//! As long as anyone has a fanotify group, its marks stand, and who executes what the group does not know waits. The
//! keeper has each group of the gate, and each file whose verdict the kernel keeps: the lease on it belongs to the open
//! file, so it stands as well. When the gate is gone, or does not look at its questions, they wait for it. When it does
//! not come back in time, the keeper refuses them: what is known runs on, nothing else does, and nobody hangs. It judges
//! nothing and opens nothing.
//!
//! It believes root alone. It is one thread, which never waits for the gate, nor for a disk.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket,
    sockopt::PeerCredentials,
};

use crate::fanotify::raise_descriptor_limit;
use crate::sys;
use crate::verdicts::GRACE;

/// How long questions wait for a gate that is gone or does nothing, before they are refused: ten times what a restart
/// takes, a twentieth of what a kernel reports as a hung task.
const WAIT: Duration = Duration::from_secs(2);
/// How often the gate is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// How often leases are looked at while no gate does.
const LEASE_INTERVAL: Duration = Duration::from_millis(100);
/// How often questions are refused while no gate answers.
const REFUSE_INTERVAL: Duration = Duration::from_millis(20);
/// Questions of one group that are refused in one turn.
const REFUSED_AT_ONCE: u64 = 4_096;
/// Messages that are taken in one turn.
const MESSAGES_AT_ONCE: usize = 1_024;

/// The version of the messages. Another one is not understood: the gate then goes without a keeper.
pub(crate) const VERSION: u64 = 1;

/// What gate and keeper tell each other: one byte and a number, with descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// The keeper's first word: its version, with the group that it has of an earlier gate, if any.
    Hello(u64),
    /// A restriction begins, with its group and an event file for signs of life. 1: the group is the one that the
    /// keeper has already. What was kept before is former.
    Begin(u64),
    /// A further group, by a number of the gate's.
    Group(u64),
    /// A file whose verdict is kept, by a number of the gate's.
    File(u64),
    /// A program that starts the gate again, by a number of the gate's; in the place of an earlier one of that number.
    Program(u64),
    /// This group is not needed any more.
    DropGroup(u64),
    /// This file's verdict is not kept any more.
    DropFile(u64),
    /// All is marked anew: former groups may go.
    Marked,
    /// Nothing is restricted any more.
    End,
}

/// Bytes of a message.
pub(crate) const MESSAGE_BYTES: usize = 9;

impl Message {
    pub(crate) fn bytes(self) -> [u8; MESSAGE_BYTES] {
        let (kind, number) = match self {
            Self::Hello(version) => (1, version),
            Self::Begin(known) => (2, known),
            Self::Group(number) => (3, number),
            Self::File(number) => (4, number),
            Self::DropGroup(number) => (5, number),
            Self::DropFile(number) => (6, number),
            Self::Marked => (7, 0),
            Self::End => (8, 0),
            Self::Program(number) => (9, number),
        };
        let mut bytes = [kind; MESSAGE_BYTES];
        let (_, tail) = bytes.split_at_mut(1);
        tail.copy_from_slice(&number.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, number) = bytes.split_first()?;
        let number = u64::from_le_bytes(number.try_into().ok()?);
        Some(match kind {
            1 => Self::Hello(number),
            2 => Self::Begin(number),
            3 => Self::Group(number),
            4 => Self::File(number),
            5 => Self::DropGroup(number),
            6 => Self::DropFile(number),
            7 => Self::Marked,
            8 => Self::End,
            9 => Self::Program(number),
            _ => return None,
        })
    }
}

/// A file whose verdict the kernel keeps, for as long as its lease stands.
struct Lent {
    file: OwnedFd,
    /// When its verdict was taken from the kernel, because somebody wants to write to it.
    forgotten: Option<Instant>,
}

/// A restriction's group, and the event file that its gate empties as long as it looks at its questions.
struct Restriction {
    group: OwnedFd,
    ping: OwnedFd,
}

/// What is kept.
#[derive(Default)]
struct Kept {
    restriction: Option<Restriction>,
    groups: HashMap<u64, OwnedFd>,
    files: HashMap<u64, Lent>,
    /// What is to run even before the next gate is there: it starts it.
    programs: HashMap<u64, Lent>,
    /// Groups of an earlier gate, until the present one has marked everything anew.
    former: Vec<OwnedFd>,
}

impl Kept {
    fn all_groups(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let main = self.restriction.iter().map(|restriction| &restriction.group);
        main.chain(self.groups.values()).chain(&self.former).map(|group| group.as_fd())
    }

    /// Does what a message says; nothing when it makes no sense.
    fn obey(&mut self, message: Message, files: Vec<OwnedFd>) -> Option<()> {
        let mut files = files.into_iter();
        match message {
            Message::Hello(_) => return None,
            Message::Begin(known) => {
                let group = files.next()?;
                let ping = files.next()?;
                let before = self.restriction.replace(Restriction { group, ping });
                if known == 0 {
                    self.former.extend(before.map(|before| before.group));
                }
                self.former.extend(self.groups.drain().map(|(_, group)| group));
                self.files.clear();
            }
            Message::Group(number) => drop(self.groups.insert(number, files.next()?)),
            Message::File(number) => {
                drop(self.files.insert(number, Lent { file: files.next()?, forgotten: None }));
            }
            Message::Program(number) => {
                drop(self.programs.insert(number, Lent { file: files.next()?, forgotten: None }));
            }
            Message::DropGroup(number) => drop(self.groups.remove(&number)),
            Message::DropFile(number) => drop(self.files.remove(&number)),
            Message::Marked => {
                for group in self.former.drain(..) {
                    sys::remove_marks(group.as_fd());
                    refuse_all(group.as_fd());
                }
            }
            Message::End => *self = Self::default(),
        }
        Some(())
    }

    /// Takes the verdict of each file from the kernel that somebody wants to write to. `let_go` lets the writer go on
    /// once what was let through before has locked out writers by itself.
    fn look_at_leases(&mut self, let_go: bool) {
        let Some(restriction) = &self.restriction else { return };
        let look = |lent: &mut Lent| {
            if lent.forgotten.is_none() && sys::is_lease_broken(lent.file.as_fd()) {
                drop(sys::ask_about_executions(restriction.group.as_fd(), lent.file.as_fd()));
                lent.forgotten = Some(Instant::now());
            }
            let is_over = let_go && lent.forgotten.is_some_and(|at| at.elapsed() >= GRACE);
            if is_over {
                drop(sys::release_lease(lent.file.as_fd()));
            }
            !is_over
        };
        self.files.retain(|_, lent| look(lent));
        self.programs.retain(|_, lent| look(lent));
    }

    /// Lets the programs run that start the gate: they are what was judged, as long as their leases stand.
    fn let_start(&self) {
        let Some(restriction) = &self.restriction else { return };
        for lent in self.programs.values() {
            if lent.forgotten.is_none() && !sys::is_lease_broken(lent.file.as_fd()) {
                drop(sys::ignore_executions(restriction.group.as_fd(), lent.file.as_fd()));
            }
        }
    }
}

/// Refuses whatever of a group has no answer, read or not.
fn refuse_all(group: BorrowedFd<'_>) {
    drop(sys::refuse_unread(group, REFUSED_AT_ONCE));
    sys::answer_what_was_read(group, sys::Response::Deny);
}

/// Makes this process outlive the gate that started it.
///
/// # Errors
/// From the kernel.
pub fn stay() -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(None)?;
    // Where there are no control groups, nobody kills by them.
    drop(std::fs::write("/sys/fs/cgroup/cgroup.procs", "0"));
    Ok(())
}

/// Serves one gate after the other until the process ends. `log` gets a line about each change for the worse.
///
/// # Errors
/// When the socket cannot be made. Not for a process with other threads.
pub fn serve(path: &Path, log: &mut dyn FnMut(&str)) -> io::Result<std::convert::Infallible> {
    raise_descriptor_limit();
    let listener = listener(path)?;
    let mut keeper = Keeper {
        kept: Kept::default(),
        gate: None,
        life: Instant::now(),
        pinged: Instant::now(),
        refusing: false,
        refused: 0,
    };
    loop {
        keeper.wait(listener.as_fd());
        keeper.take_messages(listener.as_fd(), log);
        keeper.look_after(log);
    }
}

fn listener(path: &Path) -> io::Result<OwnedFd> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}

struct Keeper {
    kept: Kept,
    /// The connection of the gate that is there. Another one waits until it ends: two may not answer for one group.
    gate: Option<OwnedFd>,
    /// When the gate last gave a sign of life, or when it went.
    life: Instant,
    /// When it was last asked for one.
    pinged: Instant,
    /// Whether questions are refused here.
    refusing: bool,
    refused: u64,
}

impl Keeper {
    fn wait(&self, listener: BorrowedFd<'_>) {
        let timeout = match (&self.kept.restriction, &self.gate) {
            (None, _) => None,
            (Some(_), _) if self.refusing => Some(REFUSE_INTERVAL),
            (Some(_), None) => Some(LEASE_INTERVAL),
            (Some(_), Some(_)) => Some(PING_INTERVAL),
        };
        let timeout = timeout
            .map_or(PollTimeout::NONE, |timeout| PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        let from = self.gate.as_ref().map_or(listener, |gate| gate.as_fd());
        if poll(&mut [PollFd::new(from, PollFlags::POLLIN)], timeout).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Welcomes a gate, or takes what the present one says.
    fn take_messages(&mut self, listener: BorrowedFd<'_>, log: &mut dyn FnMut(&str)) {
        let Some(gate) = &self.gate else {
            if let Ok(gate) = sys::accept(listener)
                && getsockopt(&gate, PeerCredentials).is_ok_and(|peer| peer.uid() == 0)
                && self.greet(gate.as_fd()).is_ok()
            {
                (self.gate, self.life, self.refusing) = (Some(gate), Instant::now(), false);
            }
            return;
        };
        for _ in 0..MESSAGES_AT_ONCE {
            let mut buffer = [0; MESSAGE_BYTES];
            let (length, files) = match sys::receive_message(gate.as_fd(), &mut buffer, MsgFlags::empty()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => (0, Vec::new()),
                Ok(received) => received,
            };
            let message = Message::parse(buffer.get(..length).unwrap_or_default());
            if matches!(message, Some(Message::Begin(_))) {
                (self.life, self.refusing) = (Instant::now(), false);
            }
            if message.and_then(|message| self.kept.obey(message, files)).is_none() {
                if self.kept.restriction.is_some() {
                    self.kept.let_start();
                    log("the gate is gone while the machine is restricted: what asks now waits for it");
                }
                (self.gate, self.life) = (None, Instant::now());
                return;
            }
        }
    }

    fn greet(&self, gate: BorrowedFd<'_>) -> io::Result<()> {
        let group = self.kept.restriction.as_ref().map(|restriction| restriction.group.as_fd());
        sys::send_message(gate, &Message::Hello(VERSION).bytes(), group.as_slice())
    }

    /// Does the gate's work as far as it goes while there is none that does it.
    fn look_after(&mut self, log: &mut dyn FnMut(&str)) {
        let Some(restriction) = &self.kept.restriction else { return };
        if self.gate.is_some() && self.pinged.elapsed() >= PING_INTERVAL {
            self.pinged = Instant::now();
            if is_answered(&restriction.ping) {
                self.life = self.pinged;
            }
        }
        if self.life.elapsed() < WAIT {
            if self.refusing {
                log(&format!("the gate is back; {} executions were refused in its place", self.refused));
            }
            self.refusing = false;
        } else if self.refusing {
            let refused: u64 = self
                .kept
                .all_groups()
                .map(|group| sys::refuse_unread(group, REFUSED_AT_ONCE).unwrap_or(0))
                .sum();
            self.refused += refused;
        } else {
            log("no gate answers: what it had not decided about is refused until it does");
            (self.refusing, self.refused) = (true, 0);
            self.kept.all_groups().for_each(refuse_all);
        }
        if self.gate.is_none() || self.refusing {
            self.kept.look_at_leases(self.gate.is_none());
        }
    }
}

/// Whether the gate has taken the last ping; gives it the next.
fn is_answered(ping: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(ping.as_fd(), PollFlags::POLLIN)];
    let answered = poll(&mut polled, PollTimeout::ZERO) == Ok(0);
    if answered {
        // It has room: it is empty.
        let _ = nix::unistd::write(ping, &1_u64.to_ne_bytes());
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_come_back_and_any_bytes_are_survived(kind in 0_u8..12, number: u64, bytes: Vec<u8>) {
            let mut sent = [kind; MESSAGE_BYTES];
            sent[1..].copy_from_slice(&number.to_le_bytes());
            if let Some(message) = Message::parse(&sent) {
                prop_assert_eq!(Message::parse(&message.bytes()), Some(message));
            }
            let _ = Message::parse(&bytes);
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_obeyed() {
        let mut kept = Kept::default();
        for message in [
            Message::Begin(0),
            Message::Group(1),
            Message::File(1),
            Message::Program(1),
            Message::Hello(VERSION),
        ] {
            assert_eq!(kept.obey(message, Vec::new()), None, "{message:?}");
        }
        assert_eq!(kept.obey(Message::DropFile(7), Vec::new()), Some(()));
    }
}
