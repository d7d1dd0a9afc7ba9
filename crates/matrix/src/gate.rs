//! The real gate of the guest, and a control plane that signs for it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::allow_policy::AllowPolicy;
use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::machine_action::MachineActionId;
use domain::restriction::{Desired, Fence};
use domain::time::Timestamp;
use gate_protocol::{CHUNK_BYTES_MAX, Denial, Reply, Request, Status, read_frame, write_frame};
use orders::{Order, Outcome, Receipt, SigningKey, VerifiedReceipt, sign_policy};
use sha2::Digest as _;

use crate::row::Tier;

/// Where the gate is.
const PROGRAM: &str = "/usr/bin/cordon-gate";
/// Its settings.
const CONFIG: &str = "/etc/cordon/gate.toml";
/// Its socket, as it is by default.
const SOCKET: &str = "/run/cordon/gate.sock";
/// What it writes to its standard error.
pub const LOG: &str = "/var/log/cordon-gate.log";
/// How long the gate may take for anything: the processor is emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// The control plane of this one machine.
pub struct ControlPlane {
    key: SigningKey,
    machine: MachineId,
    generation: u64,
    policy: Option<Sha256Digest>,
}

impl ControlPlane {
    /// A new one, or the one of the boot before: with this seed, and having signed so many orders.
    pub fn new(seed: [u8; 32], generation: u64) -> Self {
        Self { key: SigningKey::from_seed(&seed), machine: MachineId([7; 20]), generation, policy: None }
    }

    /// How many orders it signed.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Binds the gate to this control plane.
    pub fn enroll(&self) -> Result<()> {
        done(&Request::Enroll {
            machine: self.machine.to_string(),
            incarnation: 1,
            order_keys: vec![self.key.public_key().to_string()],
        })
    }

    /// Signs a policy, which the next restriction is about, and gives it to the gate.
    pub fn give_policy(&mut self, policy: &AllowPolicy) -> Result<()> {
        let envelope = sign_policy(policy, &self.key);
        self.policy = Some(envelope.payload_digest()?);
        done(&Request::StorePolicy { envelope: String::from_utf8(envelope.to_bytes())? })
    }

    /// The next order, signed.
    pub fn order(&mut self, desired: Desired) -> String {
        self.order_with(desired, |_| {})
    }

    /// The next order, with something changed before it is signed.
    pub fn order_with(&mut self, desired: Desired, change: impl FnOnce(&mut Order)) -> String {
        self.generation += 1;
        let now = Timestamp::from(SystemTime::now());
        let mut order = Order {
            machine: self.machine,
            fence: Fence { store_epoch: 1, incarnation: 1, generation: self.generation },
            action: MachineActionId(uuid::Uuid::new_v4()),
            desired,
            policy: self.policy.filter(|_| desired == Desired::Restricted),
            issued_at: now,
            not_after: now.plus(Duration::from_secs(3600)),
            ends_at: None,
        };
        change(&mut order);
        String::from_utf8_lossy(&order.sign(&self.key).to_bytes()).into_owned()
    }

    /// Gives a signed order to the gate; its verified receipt.
    pub fn apply(&self, envelope: &str) -> Result<Receipt> {
        let key = status()?.public_key.parse()?;
        let mut stream = connect()?;
        write_frame(&mut stream, &Request::Apply { envelope: envelope.to_owned() })?;
        let mut reply = next(&mut stream)?;
        if matches!(reply, Reply::Accepted { .. }) {
            reply = next(&mut stream)?;
        }
        let Reply::Receipt { envelope } = reply else { bail!("the gate answered an order with {reply:?}") };
        Ok(VerifiedReceipt::verify(envelope.as_bytes(), key, self.machine)?.receipt().clone())
    }

    /// Switches the machine, and holds that the gate proved it.
    pub fn switch(&mut self, desired: Desired) -> Result<Receipt> {
        let envelope = self.order(desired);
        let receipt = self.apply(&envelope)?;
        ensure!(receipt.outcome == Outcome::Enforced, "{desired:?} was not proved: {:?}", receipt.outcome);
        Ok(receipt)
    }
}

/// A gate that this program started.
pub struct Gate(Child);

impl Gate {
    /// Writes the settings and starts it; it answers when this returns.
    pub fn start(tier: Tier, settings: &str) -> Result<Self> {
        configure(tier, settings)?;
        Self::start_as_configured()
    }

    /// Starts it with the settings that are there.
    pub fn start_as_configured() -> Result<Self> {
        fs::create_dir_all("/run/cordon")?;
        fs::create_dir_all("/var/lib/cordon/gate")?;
        let log = File::options().create(true).append(true).open(LOG)?;
        let mut command = Command::new(PROGRAM);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut gate = Self(command.spawn().context(PROGRAM)?);
        let start = Instant::now();
        while status().is_err() {
            if let Some(status) = gate.0.try_wait()? {
                bail!("the gate ended with {status}: {}", log_end());
            }
            ensure!(start.elapsed() < PATIENCE, "the gate does not answer: {}", log_end());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(gate)
    }

    /// The gate's process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Kills it, as root does who wants to be rid of it.
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

/// Writes the gate's settings.
pub fn configure(tier: Tier, settings: &str) -> Result<()> {
    fs::create_dir_all("/etc/cordon")?;
    fs::write(CONFIG, format!("tier = {:?}\n{settings}", tier.name()))?;
    Ok(())
}

/// The last lines of its log.
pub fn log_end() -> String {
    let text = fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join(" | ")
}

fn connect() -> Result<UnixStream> {
    let stream = UnixStream::connect(SOCKET).context(SOCKET)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request, one reply.
pub fn ask(request: &Request) -> Result<Reply> {
    let mut stream = connect()?;
    write_frame(&mut stream, request)?;
    next(&mut stream)
}

fn next(stream: &mut UnixStream) -> Result<Reply> {
    read_frame(stream)?.context("the gate closed the connection")
}

/// A request that is answered with [`Reply::Done`].
pub fn done(request: &Request) -> Result<()> {
    let reply = ask(request)?;
    ensure!(reply == Reply::Done, "the gate answered {reply:?}");
    Ok(())
}

/// The gate's state.
pub fn status() -> Result<Status> {
    let reply = ask(&Request::Status)?;
    let Reply::Status(status) = reply else { bail!("the gate answered {reply:?}") };
    Ok(*status)
}

/// The denials that were not yet taken.
pub fn denials() -> Result<Vec<Denial>> {
    let reply = ask(&Request::Denials)?;
    let Reply::Denials { denials, .. } = reply else { bail!("the gate answered {reply:?}") };
    Ok(denials)
}

/// Gives the gate a package baseline.
pub fn give_baseline(path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
    let mut stream = connect()?;
    let mut ask = |request: Request| -> Result<()> {
        write_frame(&mut stream, &request)?;
        stream.flush()?;
        let reply: Option<Reply> = read_frame(&mut stream)?;
        ensure!(reply == Some(Reply::Done), "the gate answered the baseline with {reply:?}");
        Ok(())
    };
    let sha256 = digest(&bytes).to_string();
    ask(Request::BaselineBegin { bytes: u64::try_from(bytes.len())?, sha256 })?;
    for piece in bytes.chunks(CHUNK_BYTES_MAX) {
        ask(Request::BaselineChunk { data: STANDARD.encode(piece) })?;
    }
    ask(Request::BaselineEnd)
}

/// SHA-256.
pub fn digest(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(sha2::Sha256::digest(bytes).into())
}
