//! The layout of the maps and events that the BPF programs share with us: `bpf/cordon.h`, in Rust.
//!
//! What comes from the kernel's maps may have been written by someone else, so everything is read with care.

use domain::digest::Sha256Digest;
use domain::execution_event::Hook;

/// Counts the layouts. Maps of another layout are never read.
pub(crate) const LAYOUT: u32 = 1;

/// What the programs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Void the labels of files that are opened for writing.
    Watching,
    /// Refuse what has no label, too.
    Restricting,
}

/// The mode word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    pub(crate) state: State,
    /// Which labels count.
    pub(crate) epoch: u32,
}

impl Mode {
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        let state = match self.state {
            State::Watching => 1_u32,
            State::Restricting => 2,
        };
        let mut writer = Writer::<8>::new();
        writer.put(&state.to_ne_bytes());
        writer.put(&self.epoch.to_ne_bytes());
        writer.bytes
    }

    /// Anything that is not known restricts.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let state = match (bytes.len(), Reader(bytes).u32(0)) {
            (8.., 0 | 1) => State::Watching,
            _ => State::Restricting,
        };
        Self { state, epoch: Reader(bytes).u32(4) }
    }
}

/// Which file: what the hooks see of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Key {
    pub(crate) inode: u64,
    pub(crate) volume: u64,
    pub(crate) device: u32,
    pub(crate) generation: u32,
    pub(crate) mount: u32,
}

impl Key {
    pub(crate) const BYTES: usize = 32;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut writer = Writer::<{ Self::BYTES }>::new();
        writer.put(&self.inode.to_ne_bytes());
        writer.put(&self.volume.to_ne_bytes());
        writer.put(&self.device.to_ne_bytes());
        writer.put(&self.generation.to_ne_bytes());
        writer.put(&self.mount.to_ne_bytes());
        writer.bytes
    }

    fn read(reader: Reader<'_>) -> Self {
        Self {
            inode: reader.u64(0),
            volume: reader.u64(8),
            device: reader.u32(16),
            generation: reader.u32(20),
            mount: reader.u32(24),
        }
    }
}

/// Which content, as far as the kernel tells without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Version {
    pub(crate) ctime: (i64, u32),
    pub(crate) size: i64,
}

impl Version {
    const BYTES: usize = 24;

    fn read(reader: Reader<'_>, at: usize) -> Self {
        Self {
            ctime: (reader.u64(at).cast_signed(), reader.u32(at + 8)),
            size: reader.u64(at + 16).cast_signed(),
        }
    }

    fn write<const N: usize>(self, writer: &mut Writer<N>) {
        writer.put(&self.ctime.0.to_ne_bytes());
        writer.put(&self.ctime.1.to_ne_bytes());
        writer.put(&[0; 4]);
        writer.put(&self.size.to_ne_bytes());
    }
}

/// What a program may do besides running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Classes(pub(crate) u32);

impl Classes {
    /// Its file asks for a stack that is code.
    pub(crate) const STACK: Self = Self(1);
    /// It makes code while it runs.
    pub(crate) const JIT: Self = Self(2);
    /// It is the gate's own program.
    pub(crate) const GATE: Self = Self(4);

    pub(crate) fn with(self, other: Self, wanted: bool) -> Self {
        if wanted { Self(self.0 | other.0) } else { self }
    }
}

/// What was found out about one inode version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) inode: u64,
    pub(crate) version: Version,
    /// The label counts for an epoch that stands in the place of its parity.
    pub(crate) epochs: [u32; 2],
    pub(crate) classes: Classes,
    /// Whether its file was read. Before that it only waits to be voided.
    pub(crate) settled: bool,
    pub(crate) digest: Sha256Digest,
}

impl Label {
    pub(crate) const BYTES: usize = 80;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut writer = Writer::<{ Self::BYTES }>::new();
        writer.put(&self.inode.to_ne_bytes());
        self.version.write(&mut writer);
        for epoch in self.epochs {
            writer.put(&epoch.to_ne_bytes());
        }
        writer.put(&self.classes.0.to_ne_bytes());
        writer.put(&u32::from(self.settled).to_ne_bytes());
        writer.put(self.digest.as_bytes());
        writer.bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let reader = Reader(bytes.get(..Self::BYTES)?);
        Some(Self {
            inode: reader.u64(0),
            version: Version::read(reader, 8),
            epochs: [reader.u32(32), reader.u32(36)],
            classes: Classes(reader.u32(40)),
            settled: reader.u32(44) == 1,
            digest: Sha256Digest(*bytes.get(48..)?.first_chunk()?),
        })
    }

    /// Whether it counts in this epoch.
    pub(crate) fn counts(&self, epoch: u32) -> bool {
        self.settled && self.epochs.get(parity(epoch)) == Some(&epoch)
    }

    /// The same label, which counts in `epoch` or does not, and in the one of the other parity as before.
    pub(crate) fn counting(mut self, epoch: u32, counts: bool) -> Self {
        if let Some(place) = self.epochs.get_mut(parity(epoch)) {
            *place = if counts { epoch } else { 0 };
        }
        self
    }
}

fn parity(epoch: u32) -> usize {
    usize::from(epoch & 1 == 1)
}

/// What the gate's own open of a file showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) key: Key,
    pub(crate) version: Version,
    /// The filesystem's magic number.
    pub(crate) magic: u64,
    /// Whether someone has it open for writing.
    pub(crate) writers: bool,
    /// Whether its filesystem was mounted by an ordinary user, in a user namespace.
    pub(crate) foreign: bool,
}

impl Sight {
    pub(crate) const BYTES: usize = Key::BYTES + Version::BYTES + 16;

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let reader = Reader(bytes.get(..Self::BYTES)?);
        Some(Self {
            key: Key::read(reader),
            version: Version::read(reader, 32),
            magic: reader.u64(56),
            writers: reader.u32(64) != 0,
            foreign: reader.u32(68) != 0,
        })
    }
}

/// What the programs read besides the mode word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Control {
    /// The running gate's process id; 0 for none.
    pub(crate) gate: u32,
    /// The superblock that holds the pins; 0 for none.
    pub(crate) pins_device: u32,
    /// How each guard is set, by its number.
    pub(crate) guards: [u8; 16],
    /// Names the judge whose labels are those of the mode word's epoch; zeros when it has no name.
    pub(crate) judge: [u8; 32],
}

impl Control {
    pub(crate) const BYTES: usize = 56;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut writer = Writer::<{ Self::BYTES }>::new();
        writer.put(&self.gate.to_ne_bytes());
        writer.put(&self.pins_device.to_ne_bytes());
        writer.put(&self.guards);
        writer.put(&self.judge);
        writer.bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let reader = Reader(bytes);
        let mut control = Self { gate: reader.u32(0), pins_device: reader.u32(4), ..Self::default() };
        if let Some(guards) = bytes.get(8..).and_then(|rest| rest.first_chunk()) {
            control.guards = *guards;
        }
        if let Some(judge) = bytes.get(24..).and_then(|rest| rest.first_chunk()) {
            control.judge = *judge;
        }
        control
    }
}

/// Why something was refused, or would have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Unlisted,
    Changed,
    BeingWritten,
    Stale,
    Anonymous,
    Stack,
    Guard(u32),
}

/// What the programs told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) key: Key,
    /// Nanoseconds since the boot, without suspension (`CLOCK_MONOTONIC`).
    pub(crate) at: u64,
    pub(crate) hook: Hook,
    pub(crate) reason: Reason,
    /// Whether it was refused.
    pub(crate) refused: bool,
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) user: u32,
    /// The control group of who tried, as its inode.
    pub(crate) cgroup: u64,
    /// What it was about; empty when it is no file. A path whose beginning was cut off begins with `...`.
    pub(crate) path: Vec<u8>,
    /// The program of who tried.
    pub(crate) program: Vec<u8>,
}

impl Event {
    pub(crate) const BYTES: usize = 2136;
    const PATH: (usize, usize) = (88, 1280);
    const PROGRAM: (usize, usize) = (1368, 768);

    /// Reads an event; none when it is not of the known layout.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let reader = Reader(bytes.get(..Self::BYTES)?);
        let hook = match reader.u32(48) {
            1 => Hook::Execute,
            2 => Hook::Map,
            3 => Hook::Protect,
            4 => Hook::Open,
            5 => Hook::Change,
            6 => Hook::ReadKernelFile,
            7 => Hook::LoadKernelData,
            8 => Hook::Trace,
            9 => Hook::Signal,
            10 => Hook::Unmount,
            11 => Hook::Bpf,
            _ => return None,
        };
        let reason = match reader.u32(52) {
            1 => Reason::Unlisted,
            2 => Reason::Changed,
            3 => Reason::BeingWritten,
            4 => Reason::Stale,
            5 => Reason::Anonymous,
            6 => Reason::Stack,
            7 => Reason::Guard(reader.u32(56)),
            _ => return None,
        };
        let cut = reader.u32(84) != 0;
        Some(Self {
            key: Key::read(reader),
            at: reader.u64(32),
            cgroup: reader.u64(40),
            hook,
            reason,
            refused: reader.u32(60) != 0,
            pid: reader.u32(64).cast_signed(),
            parent: reader.u32(68).cast_signed(),
            user: reader.u32(72),
            path: path(bytes, Self::PATH, reader.u32(76), cut),
            program: path(bytes, Self::PROGRAM, reader.u32(80), false),
        })
    }
}

/// Puts components that come from the last to the first into the usual order.
fn path(bytes: &[u8], (start, room): (usize, usize), length: u32, cut: bool) -> Vec<u8> {
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(room);
    let components = bytes.get(start..start + length).unwrap_or_default();
    let Some(components) = components.strip_suffix(&[0]) else { return Vec::new() };
    let mut path = if cut { b"...".to_vec() } else { Vec::new() };
    for component in components.rsplit(|byte| *byte == 0) {
        path.push(b'/');
        path.extend_from_slice(component);
    }
    path
}

/// Reads numbers; 0 beyond the end.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u32(self, at: usize) -> u32 {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_ne_bytes)
    }

    fn u64(self, at: usize) -> u64 {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u64::from_ne_bytes)
    }
}

/// Fills bytes from the beginning; what is not written is zero.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put(&mut self, part: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + part.len()) {
            place.copy_from_slice(part);
        }
        self.at += part.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_label_counts_for_two_epochs_at_most() {
        let label = Label {
            inode: 7,
            version: Version { ctime: (1, 2), size: 3 },
            epochs: [0, 0],
            classes: Classes::default(),
            settled: true,
            digest: Sha256Digest([9; 32]),
        };
        let both = label.counting(4, true).counting(5, true);
        assert!(both.counts(4) && both.counts(5) && !both.counts(6) && !both.counts(0));
        let later = both.counting(6, true);
        assert!(!later.counts(4) && later.counts(5) && later.counts(6));
        assert!(!later.counting(6, false).counts(6));
        assert!(!Label { settled: false, ..both }.counts(4));
        assert_eq!(Label::from_bytes(&both.to_bytes()), Some(both));
        assert_eq!(Label::from_bytes(&both.to_bytes()[..79]), None);
    }

    #[test]
    fn what_is_written_reads_back() {
        let control = Control { gate: 1, pins_device: 2, guards: [3; 16], judge: [4; 32] };
        assert_eq!(Control::from_bytes(&control.to_bytes()), control);
        for state in [State::Watching, State::Restricting] {
            let mode = Mode { state, epoch: u32::MAX };
            assert_eq!(Mode::from_bytes(&mode.to_bytes()), mode);
        }
        let unknown = Mode::from_bytes(&[77, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(unknown, Mode { state: State::Restricting, epoch: 1 });
        assert_eq!(Mode::from_bytes(&[1, 0, 0, 0]).state, State::Restricting, "cut off");
    }

    #[test]
    fn paths_are_put_together() {
        let mut bytes = vec![0; Event::BYTES];
        bytes[48] = 1;
        bytes[52] = 7;
        bytes[56] = 3;
        bytes[88..97].copy_from_slice(b"ls\0bin\0a\0");
        bytes[76] = 9;
        let event = Event::from_bytes(&bytes).unwrap();
        assert_eq!((event.path.as_slice(), event.program.as_slice()), (&b"/a/bin/ls"[..], &b""[..]));
        assert_eq!((event.hook, event.reason), (Hook::Execute, Reason::Guard(3)));
        bytes[84] = 1;
        assert_eq!(Event::from_bytes(&bytes).unwrap().path, b".../a/bin/ls");
        bytes[76..80].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(Event::from_bytes(&bytes).unwrap().path.len() <= 2 * 1280, "more than there is");
        bytes[48] = 99;
        assert_eq!(Event::from_bytes(&bytes), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let _ = (Label::from_bytes(&bytes), Sight::from_bytes(&bytes), Control::from_bytes(&bytes));
            let _ = (Event::from_bytes(&bytes), Mode::from_bytes(&bytes));
            // As far as the layout is known, so that the paths are read too.
            for (at, value) in [(48, 1), (49, 0), (50, 0), (51, 0), (52, 1), (53, 0), (54, 0), (55, 0)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            prop_assert_eq!(Event::from_bytes(&bytes).is_some(), bytes.len() >= Event::BYTES);
        }
    }
}
