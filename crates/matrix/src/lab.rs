//! The machine as a row sees it: places to put programs, a switch, and the events that the gate wrote.

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use domain::allow_policy::{AllowPolicy, Effect, Matcher, Rule};
use domain::restriction::Desired;
use gate_protocol::Denial;

use crate::gate::{self, ControlPlane, Gate};
use crate::guest::FOLDER;
use crate::peer::Peer;
use crate::report::Boot;
use crate::row::{BOTH, Expected, Got, Id, Tier, Who};
use crate::tries::Seen;

/// What every payload writes when it runs. Its folder is open to all users.
pub const MARKER: &str = "/run/cordon-marker/ran";
/// How long an event that is expected may take to come.
const EVENT_PATIENCE: Duration = Duration::from_secs(5);

/// What came of one try of a row.
pub struct Outcome {
    /// Who tried.
    pub who: Who,
    /// The try's name.
    pub name: String,
    /// What was to come.
    pub expected: Expected,
    /// The error when nothing can be said.
    pub got: Result<Got, String>,
}

/// The machine.
pub struct Lab {
    tier: Tier,
    control_plane: ControlPlane,
    policy: AllowPolicy,
    /// Whether the gate holds a row's own policy.
    has_own_policy: bool,
    gate: Option<Gate>,
    /// In the gate's place, when it is fapolicyd that the rows are run against.
    peer: Option<Peer>,
    row: Id,
    folder_count: u32,
    copies: u32,
    outcomes: Vec<Outcome>,
    /// How many times the row that runs had the machine booted again.
    boots: u32,
    /// Set by the row that wants it.
    again: Option<Boot>,
    restricted: bool,
}

impl Lab {
    /// The machine of `tier`, whose gate holds `policy`; `gate` is none when systemd started it.
    pub fn new(
        tier: Tier,
        control_plane: ControlPlane,
        policy: AllowPolicy,
        gate: Option<Gate>,
        peer: Option<Peer>,
    ) -> Result<Self> {
        fs::create_dir_all(Path::new(MARKER).parent().unwrap_or(Path::new("/")))?;
        fs::set_permissions("/run/cordon-marker", Permissions::from_mode(0o777))?;
        Ok(Self {
            tier,
            control_plane,
            policy,
            has_own_policy: false,
            gate,
            peer,
            row: Id::Vector(0),
            folder_count: 0,
            copies: 0,
            outcomes: Vec::new(),
            boots: 0,
            again: None,
            restricted: false,
        })
    }

    /// Begins a row, which had the machine booted `boots` times already.
    ///
    /// # Errors
    /// When the gate does not take the usual policy again.
    pub fn begin(&mut self, row: Id, boots: u32) -> Result<()> {
        self.row = row;
        self.boots = boots;
        self.outcomes.clear();
        if std::mem::take(&mut self.has_own_policy) && self.peer.is_none() {
            self.control_plane.give_policy(&self.policy)?;
        }
        Ok(())
    }

    /// Ends it: what came of it, and how the machine is to be booted when the row wants that.
    pub fn end(&mut self) -> (Vec<Outcome>, Option<Boot>) {
        (std::mem::take(&mut self.outcomes), self.again.take())
    }

    /// What holds the restriction.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The control plane, for rows about orders.
    pub fn control_plane(&mut self) -> &mut ControlPlane {
        &mut self.control_plane
    }

    /// The gate that this program started: only in the fast stage.
    pub fn gate(&mut self) -> Result<&mut Gate> {
        self.gate.as_mut().context("the gate is systemd's")
    }

    /// Another gate in place of the one before, which was killed.
    pub fn replace_gate(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }

    // --- Places and programs

    /// A new folder of the user's on ext4.
    pub fn disk(&mut self) -> Result<PathBuf> {
        self.folder(Path::new("/home/user"))
    }

    /// A new folder of the user's on tmpfs.
    pub fn memory(&mut self) -> Result<PathBuf> {
        self.folder(Path::new("/dev/shm"))
    }

    fn folder(&mut self, below: &Path) -> Result<PathBuf> {
        self.folder_count += 1;
        let folder = below.join(format!("row-{}-{}", self.row, self.folder_count));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        give_to_user(&folder, 0o755)?;
        Ok(folder)
    }

    /// A payload (`payloads/NAME.c`) as a file of the user's that anyone may execute. Each copy has content of its own,
    /// so that no verdict about one counts for another.
    pub fn payload(&mut self, name: &str, at: &Path) -> Result<PathBuf> {
        let mut bytes = payload_bytes(name)?;
        self.copies += 1;
        // What follows an ELF file's segments is never loaded.
        bytes.extend_from_slice(format!("\ncopy {} of row {}\n", self.copies, self.row).as_bytes());
        write_program(at, &bytes)?;
        Ok(at.to_owned())
    }

    /// A program with this content as a file of the user's that anyone may execute: for scripts.
    pub fn program(&mut self, at: &Path, text: &str) -> Result<PathBuf> {
        self.copies += 1;
        write_program(at, format!("{text}\n# copy {} of row {}\n", self.copies, self.row).as_bytes())?;
        Ok(at.to_owned())
    }

    /// Copies of a helper, `PATH-user` and `PATH-root`, that the policy lists in this row: for
    /// [`crate::tries::Try::own_program`].
    pub fn listed_copies(&mut self, name: &str, paths: &[PathBuf]) -> Result<()> {
        let bytes = fs::read(helper(name))?;
        let mut rules = Vec::new();
        for path in paths {
            for who in BOTH {
                let copy = who.own(path);
                write_program(&copy, &bytes)?;
                rules.push(Rule {
                    id: format!("copy-{}", copy.display()),
                    matcher: Matcher::PathSha256(
                        copy.as_os_str().as_encoded_bytes().to_vec(),
                        gate::digest(&bytes),
                    ),
                    effect: Effect::Allow,
                    comment: String::new(),
                });
            }
        }
        self.with_policy(|policy| policy.rules.extend(rules))
    }

    // --- The switch

    /// Changes the policy for the next restrictions of this row: packages, this program and the helpers are listed
    /// before, and all settings are the default ones.
    pub fn with_policy(&mut self, change: impl FnOnce(&mut AllowPolicy)) -> Result<()> {
        let mut policy = self.policy.clone();
        change(&mut policy);
        self.has_own_policy = true;
        if self.peer.is_some() {
            return Ok(());
        }
        self.control_plane.give_policy(&policy)
    }

    /// Restricts; the gate proved it when this returns.
    pub fn restrict(&mut self) -> Result<()> {
        if let Some(peer) = &mut self.peer {
            return peer.restrict();
        }
        self.control_plane.switch(Desired::Restricted).context("restrict")?;
        self.restricted = true;
        Ok(())
    }

    /// Lifts the restriction; the gate proved it when this returns.
    pub fn lift(&mut self) -> Result<()> {
        if let Some(peer) = &mut self.peer {
            return peer.lift();
        }
        self.control_plane.switch(Desired::Released).context("lift")?;
        self.restricted = false;
        Ok(())
    }

    /// Lifts when a row left the machine restricted.
    pub fn lift_if_restricted(&mut self) -> Result<()> {
        if let Some(peer) = &mut self.peer {
            return peer.lift();
        }
        if self.restricted || gate::status().is_ok_and(|status| status.restricted) {
            self.lift()?;
        }
        Ok(())
    }

    // --- Events

    /// Forgets the events so far.
    pub fn forget_events(&mut self) -> Result<()> {
        while !self.denials()?.is_empty() {}
        Ok(())
    }

    /// The event about `seen` that `who` caused since the last [`Self::forget_events`] or the last look. `wait`: it is
    /// expected, and may still be on its way.
    pub fn event(&mut self, who: Who, seen: &Seen, wait: bool) -> Result<Option<Denial>> {
        let start = Instant::now();
        loop {
            let denials = self.denials()?;
            let by_who = |denial: &Denial| denial.uid.is_none_or(|uid| uid == who.id());
            if let Some(found) = denials.into_iter().find(|denial| by_who(denial) && seen.is(denial)) {
                return Ok(Some(found));
            }
            if !wait || start.elapsed() > EVENT_PATIENCE {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The events that were not yet looked at.
    pub fn denials(&mut self) -> Result<Vec<Denial>> {
        match &mut self.peer {
            Some(peer) => peer.denials(),
            None => gate::denials(),
        }
    }

    // --- What came of it

    /// Records what came of a try that the row made by itself.
    pub fn record(&mut self, who: Who, name: &str, expected: Expected, got: Result<Got>) {
        let got = got.map_err(|error| format!("{error:#}"));
        self.outcomes.push(Outcome { who, name: name.to_owned(), expected, got });
    }

    // --- Booting again (debian stage)

    /// How many times this row had the machine booted again: 0 when it begins.
    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Has the machine booted again. The row returns then, and is called once more after the boot, with all outcomes
    /// that it recorded so far forgotten.
    pub fn boot_again(&mut self, boot: Boot) {
        self.again = Some(boot);
    }
}

/// The content of a payload.
pub fn payload_bytes(name: &str) -> Result<Vec<u8>> {
    let path = Path::new(FOLDER).join("payloads").join(name);
    fs::read(&path).with_context(|| path.display().to_string())
}

/// A helper (`helpers/NAME.c`): a program that the policy lists.
pub fn helper(name: &str) -> PathBuf {
    Path::new(FOLDER).join("helpers").join(name)
}

/// Writes a file of the user's that anyone may execute.
pub fn write_program(at: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        File::create(at)?.write_all(bytes)?;
        Ok(())
    };
    write().with_context(|| at.display().to_string())?;
    give_to_user(at, 0o755)
}

/// Makes the user the owner.
pub fn give_to_user(at: &Path, mode: u32) -> Result<()> {
    let user = Some(Who::User.id());
    chown(at, user, user).with_context(|| at.display().to_string())?;
    fs::set_permissions(at, Permissions::from_mode(mode)).with_context(|| at.display().to_string())
}

/// Takes the marker away; whether there was one.
pub fn take_marker() -> Result<bool> {
    match fs::remove_file(MARKER) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context(MARKER),
    }
}

/// The kernel's version, as far as rows need it: 6.1 is `(6, 1)`.
pub fn kernel() -> Result<(u32, u32)> {
    let mut text = String::new();
    File::open("/proc/sys/kernel/osrelease")?.read_to_string(&mut text)?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("/proc/sys/kernel/osrelease is {text:?}"),
    }
}
