//! The gate's socket: who may ask what, and how much of it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::decision::DecisionCause;
use domain::digest::Sha256Digest;
use domain::execution_event::container_of;
use gate_protocol::{
    CHUNK_BYTES_MAX, Denial, FRAME_BYTES_MAX, Reply, Request, read_frame_within, write_frame,
};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use sha2::Digest as _;

use crate::gate::{Denied, Gate, PolicyRevision, ReceivedBaseline, explain};
use crate::preview::{Previews, Subject};
use crate::text::{escaped, escaped_within};

/// How many connections of each kind of peer there may be at once: enough for its work, too few to exhaust the gate,
/// even when each holds a frame of the greatest length. Each kind has its own, so that none can shut out another.
const CONNECTIONS_MAX: [(Peer, usize); 3] = [(Peer::Other, 4), (Peer::Agent, 4), (Peer::Root, 8)];
/// How long a peer may take over one frame, or stay silent.
const SILENCE_MAX: Duration = Duration::from_secs(600);
/// How long a foreign user may stay silent.
const FOREIGN_SILENCE_MAX: Duration = Duration::from_secs(5);
/// The longest frame of a foreign user, in bytes: room for the one question that it may ask.
const FOREIGN_FRAME_BYTES_MAX: usize = 1024;

/// The longest control group and interpreter in a denial, in bytes with escapes: longer ones are nobody's but an
/// attacker's.
const CGROUP_BYTES_MAX: usize = 1024;

/// What a peer may ask, from least to most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    /// Any local user: the status.
    Other,
    /// The agent: orders, policies, baselines, explanations. Not everyone: the gate reads files as root.
    Agent,
    /// Root: enrollment and break-glass too.
    Root,
}

/// Serves the socket until the process ends.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(path: &Path, agent_uid: u32, gate: Gate) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Anyone may connect; the peer's user decides what it may ask.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    notify_ready();
    let gate = Arc::new(Mutex::new(gate));
    watch_end(&gate)?;
    lock(&gate).warm_up();
    let counts = Arc::new(CONNECTIONS_MAX.map(|_| AtomicUsize::new(0)));
    let is_receiving = Arc::new(AtomicBool::new(false));
    let previews = Arc::new(Previews::default());
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors, say: others may free some.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let Ok(credentials) = getsockopt(&stream, PeerCredentials) else { continue };
        let peer = match credentials.uid() {
            0 => Peer::Root,
            uid if uid == agent_uid => Peer::Agent,
            _ => Peer::Other,
        };
        let Some(place) = Place::take(&counts, peer) else { continue };
        let (gate, is_receiving) = (Arc::clone(&gate), Arc::clone(&is_receiving));
        let previews = Arc::clone(&previews);
        // A thread that cannot be started drops the connection, and with it the place.
        let _started =
            std::thread::Builder::new().name("peer".to_owned()).stack_size(512 * 1024).spawn(move || {
                let _place = place;
                // A peer that misbehaves or goes away ends its own connection, nothing else.
                drop(Connection { stream, peer, gate, is_receiving, previews, incoming: None }.serve());
            });
    }
    Ok(())
}

/// Ends restrictions that end by themselves, whoever asks what meanwhile.
fn watch_end(gate: &Arc<Mutex<Gate>>) -> io::Result<()> {
    let (gate, alarm) = (Arc::clone(gate), lock(gate).alarm());
    let watch = move || {
        loop {
            match alarm.wait() {
                Ok(()) => lock(&gate).end_if_due(),
                Err(error) => {
                    log!("the alarm for the end of a restriction cannot be waited for: {error}");
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        }
    };
    std::thread::Builder::new().name("end".to_owned()).stack_size(512 * 1024).spawn(watch).map(drop)
}

/// One of a limited number of connections.
struct Place(Arc<[AtomicUsize; 3]>, usize);

impl Place {
    fn take(counts: &Arc<[AtomicUsize; 3]>, peer: Peer) -> Option<Self> {
        let kind = CONNECTIONS_MAX.iter().position(|(kind, _)| *kind == peer)?;
        let before = counts.get(kind)?.fetch_add(1, Ordering::AcqRel);
        let place = Self(Arc::clone(counts), kind);
        (before < CONNECTIONS_MAX.get(kind)?.1).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(count) = self.0.get(self.1) {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

struct Connection {
    stream: UnixStream,
    peer: Peer,
    gate: Arc<Mutex<Gate>>,
    /// Whether some connection is sending a baseline.
    is_receiving: Arc<AtomicBool>,
    previews: Arc<Previews>,
    incoming: Option<Incoming>,
}

/// A baseline on its way in; one at a time.
struct Incoming {
    /// Its place; given up last.
    transfer: Transfer,
    file: File,
    expected: Sha256Digest,
    bytes_left: u64,
    hasher: sha2::Sha256,
}

/// The right to send a baseline, and the file in which it is gathered.
struct Transfer {
    is_receiving: Arc<AtomicBool>,
    path: PathBuf,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // When it was put in place there is nothing to remove.
        drop(fs::remove_file(&self.path));
        self.is_receiving.store(false, Ordering::Release);
    }
}

impl Connection {
    fn serve(mut self) -> io::Result<()> {
        let (silence, frame_bytes_max) = match self.peer {
            Peer::Other => (FOREIGN_SILENCE_MAX, FOREIGN_FRAME_BYTES_MAX),
            Peer::Agent | Peer::Root => (SILENCE_MAX, FRAME_BYTES_MAX),
        };
        self.stream.set_read_timeout(Some(silence))?;
        self.stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        loop {
            let request = match read_frame_within::<Request>(&mut self.stream, frame_bytes_max) {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(()),
                Err(error) => {
                    let reason = format!("not a frame of this protocol: {error}");
                    return write_frame(&mut self.stream, &Reply::Refused { reason });
                }
            };
            self.answer(request)?;
        }
    }

    fn answer(&mut self, request: Request) -> io::Result<()> {
        let needed = match request {
            Request::Status => Peer::Other,
            Request::Enroll { .. } | Request::BreakGlass { .. } => Peer::Root,
            Request::Explain { .. }
            | Request::Preview { .. }
            | Request::StorePolicy { .. }
            | Request::StoreBreakGlass { .. }
            | Request::BaselineBegin { .. }
            | Request::BaselineChunk { .. }
            | Request::BaselineEnd
            | Request::Apply { .. }
            | Request::LastReceipt
            | Request::Denials => Peer::Agent,
        };
        if self.peer < needed {
            let reason = "this user may not ask that of the gate".to_owned();
            return write_frame(&mut self.stream, &Reply::Refused { reason });
        }
        let reply = match request {
            Request::Status => Reply::Status(Box::new(lock(&self.gate).status())),
            Request::Explain { path } => {
                let judge = lock(&self.gate).judge_of(None).map(|(_, judge)| judge);
                let explained = judge.and_then(|judge| {
                    let work = move || explain(&judge, &path);
                    let thread = std::thread::Builder::new().name("explain".to_owned()).spawn(work)?;
                    thread.join().map_err(|_panic| anyhow::anyhow!("the file could not be judged"))
                });
                match explained {
                    Ok(explanation) => Reply::Explanation(explanation),
                    Err(error) => Reply::Refused { reason: format!("{error:#}") },
                }
            }
            Request::Preview { policy, age_seconds_max } => {
                self.preview(policy.as_deref(), Duration::from_secs(age_seconds_max))
            }
            Request::Enroll { machine, incarnation, order_keys } => {
                done(lock(&self.gate).enroll(&machine, incarnation, &order_keys))
            }
            Request::StorePolicy { envelope } => done(lock(&self.gate).store_policy(&envelope)),
            Request::StoreBreakGlass { envelope } => done(lock(&self.gate).store_break_glass(&envelope)),
            Request::BreakGlass { code } => match lock(&self.gate).break_glass(&code) {
                Ok(proof) => Reply::Lifted { proof },
                Err(error) => Reply::Refused { reason: format!("{error:#}") },
            },
            Request::BaselineBegin { bytes, sha256 } => done(self.begin(bytes, &sha256)),
            Request::BaselineChunk { data } => done(self.chunk(&data)),
            Request::BaselineEnd => done(self.end()),
            Request::LastReceipt => match lock(&self.gate).last_receipt() {
                Some(envelope) => Reply::Receipt { envelope },
                None => Reply::Refused { reason: "no order was carried out yet".to_owned() },
            },
            Request::Denials => {
                let (denials, dropped) = lock(&self.gate).take_denials();
                let reply = Reply::Denials { denials: denials.iter().map(wire).collect(), dropped };
                let sent = write_frame(&mut self.stream, &reply);
                if sent.is_err() {
                    lock(&self.gate).count_lost(&denials);
                }
                return sent;
            }
            Request::Apply { envelope } => {
                let mut sent = Ok(());
                let stream = &mut self.stream;
                lock(&self.gate).apply(&envelope, &mut |reply| {
                    if sent.is_ok() {
                        sent = write_frame(stream, &reply);
                    }
                });
                return sent;
            }
        };
        write_frame(&mut self.stream, &reply)
    }

    fn preview(&self, policy: Option<&str>, age_max: Duration) -> Reply {
        let mut gate = lock(&self.gate);
        let meant = policy.map(|policy| gate.policy_meant(policy)).transpose();
        let found = meant.and_then(|policy| gate.judge_of(policy));
        let baseline = gate.baseline_digest();
        drop(gate);
        match found {
            Ok((policy, judge)) => self.previews.ask(Subject { policy, baseline }, age_max, judge),
            Err(error) => Reply::Refused { reason: format!("{error:#}") },
        }
    }

    fn begin(&mut self, bytes: u64, sha256: &str) -> anyhow::Result<()> {
        anyhow::ensure!(bytes <= policy::baseline::BYTES_MAX, "a baseline of {bytes} bytes is not possible");
        let expected = sha256.parse()?;
        // What this connection began before is given up.
        self.incoming = None;
        let gate = lock(&self.gate);
        gate.baseline_may_change()?;
        let is_other_receiving = self.is_receiving.swap(true, Ordering::AcqRel);
        anyhow::ensure!(!is_other_receiving, "another connection is sending a baseline");
        let mut transfer =
            Transfer { is_receiving: Arc::clone(&self.is_receiving), path: PathBuf::default() };
        let (path, file) = gate.state().baseline_incoming()?;
        transfer.path = path;
        self.incoming =
            Some(Incoming { transfer, file, expected, bytes_left: bytes, hasher: sha2::Sha256::new() });
        Ok(())
    }

    fn chunk(&mut self, data: &str) -> anyhow::Result<()> {
        let incoming = self.incoming.as_mut().ok_or_else(|| anyhow::anyhow!("no baseline was begun"))?;
        let piece = STANDARD.decode(data)?;
        anyhow::ensure!(piece.len() <= CHUNK_BYTES_MAX, "a piece of {} bytes is too long", piece.len());
        let left = incoming.bytes_left.checked_sub(piece.len() as u64);
        incoming.bytes_left = left.ok_or_else(|| anyhow::anyhow!("more bytes than were announced"))?;
        incoming.hasher.update(&piece);
        Ok(incoming.file.write_all(&piece)?)
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let incoming = self.incoming.take().ok_or_else(|| anyhow::anyhow!("no baseline was begun"))?;
        anyhow::ensure!(incoming.bytes_left == 0, "{} bytes are missing", incoming.bytes_left);
        let Incoming { transfer, file, expected, hasher, .. } = incoming;
        let digest = Sha256Digest(hasher.finalize().into());
        anyhow::ensure!(digest == expected, "its SHA-256 is not the one that was announced");
        let received = ReceivedBaseline::verify(&transfer.path, file, digest)?;
        lock(&self.gate).store_baseline(received)
    }
}

fn done(result: anyhow::Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Refused { reason: format!("{error:#}") },
    }
}

fn lock(gate: &Mutex<Gate>) -> MutexGuard<'_, Gate> {
    // A request that panicked left no half-written state: every write is whole or not there.
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wire(Denied(denial, policy): &Denied) -> Denial {
    let rule = if let DecisionCause::Rule(id) | DecisionCause::Guard(id) = &denial.cause {
        Some(id.clone())
    } else {
        None
    };
    Denial {
        at: denial.at.ticks(),
        hook: denial.hook.name().to_owned(),
        path: escaped(&denial.path),
        sha256: denial.digest.map(|digest| digest.to_string()),
        cause: denial.cause.code().to_owned(),
        rule,
        pid: denial.pid,
        ppid: denial.ppid,
        uid: denial.uid,
        parent_program: escaped(&denial.parent_program),
        cgroup: (!denial.cgroup.is_empty()).then(|| escaped_within(&denial.cgroup, CGROUP_BYTES_MAX)),
        container: std::str::from_utf8(&denial.cgroup).ok().and_then(container_of).map(str::to_owned),
        interpreter: denial.interpreter.as_deref().map(|path| escaped_within(path, CGROUP_BYTES_MAX)),
        script: denial.script.as_deref().map(escaped),
        policy: policy.as_ref().map(|PolicyRevision(name, _)| name.clone()),
        policy_revision: policy.as_ref().map(|PolicyRevision(_, revision)| *revision),
        audited: denial.audited,
        count: denial.count,
    }
}

/// Tells systemd that the socket is there (`sd_notify(3)`), when it asked to be told.
fn notify_ready() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let name = std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str());
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::new(&*String::from_utf8_lossy(name)))),
    };
    // Without the message systemd waits until its own deadline, and says so.
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        drop(socket.send_to_addr(b"READY=1", &address));
    }
}
