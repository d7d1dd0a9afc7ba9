//! Rows 68 to 82: attacking the agent or its limits.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use domain::machine::MachineId;
use domain::restriction::Desired;
use domain::time::Timestamp;
use gate_protocol::{Reply, Request};
use orders::Outcome;

use super::inject::wait_for;
use crate::gate::{self, ControlPlane, Gate};
use crate::lab::{Lab, helper, payload_bytes, take_marker, write_program};
use crate::row::Expected::{Allowed, Denied, DeniedUnseen, NotStopped, OutOfReach};
use crate::row::{BOTH, Expected, Gap, Got, Row, Tier, Who};
use crate::tries::{Seen, Try};

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row::fast(68, "the gate is killed, again and again", killed),
    Row::fast(69, "the gate is stopped, frozen or traced", frozen),
    Row::fast(70, "no descriptors, no room on the disk", exhausted),
    Row::fast(71, "the BPF programs are taken away", unpinned),
    Row::fast(72, "the BPF maps are written", maps_written),
    Row::fast(73, "Cordon's files are replaced", files_replaced),
    Row::fast(75, "more questions than a queue holds", queue_overflow),
    Row::fast(76, "more refusals than are told of", events_overflow),
    Row::fast(79, "names that are long or strange", names),
    Row::fast(80, "the clock is set", clock),
    Row::fast(81, "another listener permits", listener),
    Row::fast(82, "forged and repeated orders", forged),
];

/// What an attack on Cordon itself came to, while the machine is restricted: `script` ends well when it got through.
/// Who would have to be root for it is out of reach. A payload that runs after it is an error.
fn attack(lab: &mut Lab, name: &str, script: &str, at_t3: Expected) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let payload = Try::exec(&path);
    for who in BOTH {
        lab.forget_events()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", script]).uid(who.id()).gid(who.id()).stdin(Stdio::null());
        let output = command.output()?;
        // There are no guards at T3, and maybe no gate to ask any more.
        let event = match lab.tier() {
            Tier::T3 => None,
            Tier::T1 | Tier::T2 | Tier::Fapolicyd => {
                lab.event(who, &Seen::Cause("guard"), who == Who::Root)?
            }
        };
        let got = match (output.status.success(), event) {
            (true, None) => Got::Ran,
            (true, Some(_)) => Got::Detected,
            (false, Some(_)) => Got::Denied,
            (false, None) => Got::OutOfReach,
        };
        let expected = match (who, lab.tier()) {
            (Who::User, _) => OutOfReach,
            (Who::Root, Tier::T3) => at_t3,
            (Who::Root, _) => Denied,
        };
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
        let got = if got == Got::OutOfReach && expected != OutOfReach {
            Err(anyhow::anyhow!("it failed without an event: {said}"))
        } else {
            Ok(got)
        };
        lab.record(who, name, expected, got);
        payload.run_now(who)?;
        ensure!(!take_marker()?, "an unlisted program runs after: {name}, which said {said}");
    }
    Ok(())
}

/// An unlisted program, tried by both users in a loop beside something else; how often it was tried, and ran.
pub(super) struct Loop {
    over: AtomicBool,
    tries: AtomicU32,
}

pub(super) fn beside<T>(path: &Path, what: impl FnOnce(&Loop) -> Result<T>) -> Result<(T, u32)> {
    let state = Loop { over: AtomicBool::new(false), tries: AtomicU32::new(0) };
    let result = std::thread::scope(|scope| {
        for who in BOTH {
            let state = &state;
            scope.spawn(move || {
                while !state.over.load(Ordering::Relaxed) {
                    let mut command = Command::new(path);
                    command.uid(who.id()).gid(who.id()).stdin(Stdio::null());
                    // What is refused does not start. The marker tells.
                    if let Ok(mut child) = command.spawn() {
                        drop(child.wait());
                    }
                    state.tries.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let result = what(&state);
        state.over.store(true, Ordering::Relaxed);
        result
    });
    Ok((result?, state.tries.load(Ordering::Relaxed)))
}

impl Loop {
    /// Waits until it was tried so many times more.
    pub(super) fn goes_on(&self, times: u32) -> Result<()> {
        let goal = self.tries.load(Ordering::Relaxed) + times;
        wait_for("more tries", || Ok(self.tries.load(Ordering::Relaxed) >= goal))
    }
}

/// How often the gate is killed while an unlisted program is tried, and how many tries there are before, while there is
/// none, and after.
const KILLS: u32 = 12;
const TRIES: u32 = 10;

fn killed(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    lab.check(&[Try::exec(&path)])?;
    lab.restrict()?;
    let by_root = format!("kill -9 {}", lab.gate()?.id());
    attack(lab, "kill -9", &by_root, NotStopped(Gap::Guards))?;
    if lab.tier() == Tier::T3 {
        // Its end is waited for here, and another takes its place.
        lab.gate()?.kill()?;
        let gate = Gate::start_as_configured()?;
        lab.replace_gate(gate);
    }
    lab.forget_events()?;
    take_marker()?;
    let ((), tries) = beside(&path, |tried| {
        for _ in 0..KILLS {
            tried.goes_on(TRIES)?;
            lab.gate()?.kill()?;
            tried.goes_on(2)?;
            let gate = Gate::start_as_configured()?;
            lab.replace_gate(gate);
            tried.goes_on(TRIES)?;
        }
        Ok(())
    })?;
    ensure!(tries >= KILLS * TRIES * 2, "only {tries} tries");
    ensure!(gate::status()?.restricted, "the gate came back without the restriction");
    let ran = take_marker()?;
    for who in BOTH {
        // Those of the last gate.
        Try::exec(&path).run_now(who)?;
        let event = lab.event(who, &Seen::At(path.clone()), true)?;
        let got = match (ran || take_marker()?, event) {
            (true, _) => Got::Ran,
            (false, Some(_)) => Got::Denied,
            (false, None) => Got::DeniedUnseen,
        };
        lab.record(who, &format!("{tries} tries over {KILLS} gates"), Denied, Ok(got));
    }
    lab.lift()
}

/// A control group that is frozen, with the gate in it.
struct Frost(PathBuf);

impl Frost {
    fn on(process: u32) -> Result<Self> {
        let group = Path::new("/sys/fs/cgroup/matrix-frost");
        if !group.exists() {
            fs::create_dir(group)?;
        }
        fs::write(group.join("cgroup.procs"), process.to_string()).context("cgroup.procs")?;
        fs::write(group.join("cgroup.freeze"), "1")?;
        let frost = Self(group.to_owned());
        wait_for("the frost", || {
            Ok(fs::read_to_string(group.join("cgroup.events"))?.lines().any(|line| line == "frozen 1"))
        })?;
        Ok(frost)
    }
}

impl Drop for Frost {
    fn drop(&mut self) {
        // A gate that stays frozen fails the row.
        drop(fs::write(self.0.join("cgroup.freeze"), "0"));
    }
}

fn frozen(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    lab.check(&[Try::exec(&path)])?;
    lab.restrict()?;
    let gate = lab.gate()?.id();
    attack(lab, "SIGSTOP", &format!("kill -STOP {gate}; kill -CONT {gate}"), NotStopped(Gap::Guards))?;
    let known = Try::run("a listed program", [helper("mark")], &path);
    // It is known before.
    known.run_now(Who::Root)?;
    ensure!(take_marker()?, "a listed program does not run");
    lab.forget_events()?;
    let frost = Frost::on(gate)?;
    let mut found = Vec::new();
    for who in BOTH {
        Try::exec(&path).run_now(who)?;
        let payload = take_marker()?;
        for _ in 0..20 {
            known.run_now(who)?;
            ensure!(take_marker()?, "a listed program does not run while the gate is frozen");
        }
        found.push((who, payload));
    }
    drop(frost);
    // The keeper refuses in a frozen gate's place, and tells its log only.
    let is_told = lab.tier() != Tier::T3;
    let mut told = Vec::new();
    if is_told {
        wait_for("both users' events", || {
            told.extend(lab.denials()?.into_iter().filter(|denial| Seen::At(path.clone()).is(denial)));
            Ok(BOTH.iter().all(|who| told.iter().any(|denial| denial.uid == Some(who.id()))))
        })?;
    }
    for (who, ran) in found {
        let got = match (ran, is_told) {
            (true, _) => Got::Ran,
            (false, true) => Got::Denied,
            (false, false) => Got::DeniedUnseen,
        };
        lab.record(who, "a frozen gate", if is_told { Denied } else { DeniedUnseen }, Ok(got));
        lab.record(who, "listed programs beside a frozen gate", Allowed, Ok(Got::Ran));
    }
    lab.lift()
}

/// Neither descriptors nor room on the disk.
fn exhausted(lab: &mut Lab) -> Result<()> {
    let memory = lab.memory()?;
    let mut paths = Vec::new();
    for name in ["before", "descriptors", "disk"] {
        let path = memory.join(name);
        lab.payload("static", &path)?;
        paths.push(path);
    }
    let tries: Vec<_> = paths.iter().map(|path| Try::exec(path)).collect();
    lab.check(&tries)?;
    lab.restrict()?;
    let gate = lab.gate()?.id();
    let limit = |limit: &str| -> Result<()> {
        let status = Command::new("/usr/bin/prlimit")
            .args([format!("--pid={gate}"), format!("--nofile={limit}")])
            .status()?;
        ensure!(status.success(), "prlimit ended with {status}");
        Ok(())
    };
    let tried =
        |lab: &mut Lab, name: &str, path: &PathBuf, what: &dyn Fn(bool) -> Result<()>| -> Result<()> {
            lab.forget_events()?;
            what(true)?;
            let ran: Vec<_> = BOTH
                .map(|who| {
                    Try::exec(path).run_now(who)?;
                    take_marker()
                })
                .into_iter()
                .collect();
            what(false)?;
            for (who, ran) in BOTH.into_iter().zip(ran) {
                // Whether it can be told of in such a state is another matter.
                let got = ran.map(|ran| if ran { Got::Ran } else { Got::DeniedUnseen });
                lab.record(who, name, DeniedUnseen, got);
            }
            ensure!(gate::status()?.restricted, "the machine is not restricted after: {name}");
            Ok(())
        };
    let [_, descriptors, disk] = paths.as_slice() else { bail!("three payloads") };
    let few = |on: bool| limit(if on { "16:4096" } else { "4096:4096" });
    tried(lab, "a gate that may open no more files", descriptors, &few)?;
    let full = |on: bool| -> Result<()> {
        let path = Path::new("/var/lib/full");
        if on {
            // It is to fail: that is when the disk is full.
            let _fails =
                Command::new("/bin/sh").args(["-c", "cat /dev/zero > /var/lib/full 2>/dev/null"]).status()?;
        } else {
            fs::remove_file(path)?;
        }
        Ok(())
    };
    tried(lab, "a full disk", disk, &full)?;
    lab.lift()
}

/// There are pins at tiers T1 and T2 only. What was taken away could not be put back, so nothing is proved before.
fn unpinned(lab: &mut Lab) -> Result<()> {
    lab.restrict()?;
    for (name, script) in [
        ("the pins are removed", "test -d /sys/fs/bpf/cordon; rm -r /sys/fs/bpf/cordon"),
        ("a pin is removed", "set -- $(find /sys/fs/bpf/cordon ! -type d); rm $1"),
        ("a pin is renamed", "set -- $(find /sys/fs/bpf/cordon ! -type d); mv $1 ${1}_gone"),
        ("their filesystem is unmounted", "test -d /sys/fs/bpf/cordon; umount -l /sys/fs/bpf"),
        (
            "a link is detached",
            "ids=$(/usr/sbin/bpftool link show | sed -n 's/^\\([0-9]*\\): .*/\\1/p'); test \"$ids\"; \
             for id in $ids; do /usr/sbin/bpftool link detach id $id && exit; done; false",
        ),
    ] {
        attack(lab, name, script, OutOfReach)?;
    }
    lab.lift()
}

fn maps_written(lab: &mut Lab) -> Result<()> {
    lab.restrict()?;
    for (name, script) in
        [("the mode", "cordon_mode key 0 0 0 0 value"), ("the settings", "cordon_control key 0 0 0 0 value")]
    {
        // The number of bytes is looked at only when the map was opened.
        attack(lab, name, &format!("/usr/sbin/bpftool map update name {script} 0"), OutOfReach)?;
    }
    lab.lift()
}

/// Each file is replaced by one with the same content, so that nothing is lost where it works.
fn files_replaced(lab: &mut Lab) -> Result<()> {
    let replace = |file: &str| format!("cp -p {file} {file}.new; mv {file}.new {file}");
    lab.restrict()?;
    attack(lab, "the gate's program", &replace("/usr/bin/cordon-gate"), NotStopped(Gap::Guards))?;
    attack(
        lab,
        "the gate's state",
        "for file in /var/lib/cordon/gate/*; do test -f $file || continue; \
         cp -p $file /run/copy; mv /run/copy $file; done",
        NotStopped(Gap::Guards),
    )?;
    attack(
        lab,
        "a written state",
        "for file in /var/lib/cordon/gate/*; do test -f $file || continue; : >> $file; done",
        NotStopped(Gap::Guards),
    )?;
    lab.lift()
}

/// How many processes execute at once, and how often each.
const FLOOD: [&str; 2] = ["48", "12"];

fn flood(path: &Path, who: Who, [processes, times]: [&str; 2]) -> Command {
    let mut command = Command::new(helper("flood"));
    command.arg(path).args([processes, times]).uid(who.id()).gid(who.id()).stdin(Stdio::null());
    command
}

fn queue_overflow(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    lab.check(&[Try::exec(&path)])?;
    lab.restrict()?;
    for who in BOTH {
        lab.forget_events()?;
        take_marker()?;
        let status = flood(&path, who, FLOOD).status()?;
        ensure!(status.success(), "flood ended with {status}");
        let event = lab.event(who, &Seen::At(path.clone()), true)?;
        let got = match (take_marker()?, event) {
            (true, _) => Got::Ran,
            (false, Some(_)) => Got::Denied,
            (false, None) => Got::DeniedUnseen,
        };
        lab.record(who, "576 executions by 48 processes", Denied, Ok(got));
    }
    lab.lift()
}

/// More refusals than are kept for the gate, or by it: what is lost is counted, and nothing runs.
fn events_overflow(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    lab.check(&[Try::exec(&path)])?;
    lab.restrict()?;
    let gate = lab.gate()?.id();
    for who in BOTH {
        lab.forget_events()?;
        take_marker()?;
        let before = gate::status()?.denials_dropped;
        // At T3 a frozen gate answers nobody; there is no buffer in the kernel that could overflow.
        let is_kernel = lab.tier() != Tier::T3;
        let frost = is_kernel.then(|| Frost::on(gate)).transpose()?;
        let status = flood(&path, who, ["8", "200"]).status()?;
        drop(frost);
        ensure!(status.success(), "flood ended with {status}");
        let ran = take_marker()?;
        if is_kernel {
            wait_for("lost events", || Ok(gate::status()?.denials_dropped > before))?;
        }
        let event = lab.event(who, &Seen::At(path.clone()), true)?;
        let got = match (ran, event) {
            (true, _) => Got::Ran,
            (false, Some(_)) => Got::Denied,
            (false, None) => Got::DeniedUnseen,
        };
        lab.record(who, "1,600 executions", Denied, Ok(got));
    }
    lab.lift()
}

fn names(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let mut tries = Vec::new();
    for (name, shown) in [
        (&b"row79 line\nbreak"[..], "row79 line"),
        (&b"row79-\xff-\xfe-bytes"[..], "row79-"),
        (&b"row79\x1b[31mcolor"[..], "row79"),
    ] {
        let path = folder.join(OsStr::from_bytes(name));
        lab.payload("static", &path)?;
        tries.push(Try::exec(&path).seen(Seen::Containing(shown)));
    }
    let long = folder.join(format!("row79-{}", "x".repeat(249)));
    lab.payload("static", &long)?;
    tries.push(Try::exec(&long));
    let deep = lab.disk()?.join("payload-of-79");
    lab.payload("static", &deep)?;
    tries.push(Try::run("a path longer than PATH_MAX", [&helper("deep"), &deep], &deep).seen(
        // Where the kernel cannot say it, an event has none.
        if lab.tier() == Tier::T3 { Seen::At(PathBuf::new()) } else { Seen::Containing("payload-of-79") },
    ));
    lab.check(&tries)
}

/// Sets the wall clock, so far from what it is.
fn shift_clock(seconds: i64) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let then = i64::try_from(now)? + seconds;
    let status =
        Command::new("/bin/date").arg("-s").arg(format!("@{then}")).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "date ended with {status}");
    Ok(())
}

/// Ten years.
const YEARS: i64 = 10 * 365 * 86_400;
/// How long the restriction of this row lasts.
const LASTS: Duration = Duration::from_secs(15);

fn clock(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let payload = Try::exec(&path);
    lab.check(&[Try::exec(&path)])?;
    for who in BOTH {
        let start = Instant::now();
        let order = lab.control_plane().order_with(Desired::Restricted, |order| {
            order.ends_at = Some(Timestamp::from(SystemTime::now()).plus(LASTS));
        });
        let receipt = lab.control_plane().apply(&order)?;
        ensure!(receipt.outcome == Outcome::Enforced, "restrict: {:?}", receipt.outcome);
        for (name, shift) in [("ten years on", YEARS), ("ten years back", -2 * YEARS)] {
            lab.forget_events()?;
            shift_clock(shift)?;
            payload.run_now(who)?;
            let ran = take_marker()?;
            let event = lab.event(who, &Seen::At(path.clone()), true)?;
            ensure!(start.elapsed() < LASTS, "the guest is too slow for this row");
            let got = match (ran, event) {
                (true, _) => Got::Ran,
                (false, Some(_)) => Got::Denied,
                (false, None) => Got::DeniedUnseen,
            };
            lab.record(who, name, Denied, Ok(got));
        }
        wait_for("the end", || Ok(!gate::status()?.restricted))?;
        ensure!(start.elapsed() >= LASTS - Duration::from_secs(2), "it ended after {:?}", start.elapsed());
        shift_clock(YEARS)?;
        payload.run_now(who)?;
        let got = take_marker().map(|ran| if ran { Got::Ran } else { Got::DeniedUnseen });
        lab.record(who, "after the end", Allowed, got);
    }
    changed_at_another_time(lab)
}

/// A listed program is overwritten, and all its times are made what they were: the change time by the clock.
fn changed_at_another_time(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("copy");
    lab.listed_copies("mark", std::slice::from_ref(&path))?;
    let bytes = payload_bytes("static")?;
    for who in BOTH {
        let own = who.own(&path);
        let run = Try::exec(&own);
        lab.restrict()?;
        run.run_now(who)?;
        let ran_before = take_marker()?;
        lab.forget_events()?;
        let times = fs::metadata(&own)?.modified()?;
        shift_clock(-60)?;
        write_program(&own, &bytes)?;
        fs::File::options().write(true).open(&own)?.set_modified(times)?;
        run.run_now(who)?;
        let ran = take_marker()?;
        shift_clock(60)?;
        let event = lab.event(who, &Seen::At(own.clone()), true)?;
        let got = match (ran_before, ran, event) {
            (false, ..) => Err(anyhow::anyhow!("the listed program does not run")),
            (true, true, _) => Ok(Got::Ran),
            (true, false, Some(_)) => Ok(Got::Denied),
            (true, false, None) => Ok(Got::DeniedUnseen),
        };
        lab.record(who, "overwritten at a forged time", Denied, got);
        lab.lift()?;
    }
    Ok(())
}

/// A process of root's that is ended with the row.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn listener(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let mut tries = Vec::new();
    for name in ["before", "after"] {
        let path = folder.join(name);
        lab.payload("static", &path)?;
        tries.push(path);
    }
    let start = || -> Result<Beside> {
        let mut child = Command::new(helper("permit")).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut byte = [0];
        child.stdout.as_mut().context("no output")?.read_exact(&mut byte).context("permit")?;
        Ok(Beside(child))
    };
    let [before, after] = tries.as_slice() else { bail!("two payloads") };
    {
        let _permits = start()?;
        lab.check(&[Try::exec(before)])?;
    }
    // Begun after the switch.
    let after_switch = Try::exec(after).before(move |_| Ok(()));
    for who in BOTH {
        after_switch.run_now(who)?;
        ensure!(take_marker()?, "it does not run while nothing restricts");
    }
    lab.restrict()?;
    let _permits = start()?;
    for who in BOTH {
        lab.forget_events()?;
        after_switch.run_now(who)?;
        let ran = take_marker()?;
        let event = lab.event(who, &Seen::At(after.clone()), true)?;
        let got = match (ran, event) {
            (true, _) => Got::Ran,
            (false, Some(_)) => Got::Denied,
            (false, None) => Got::DeniedUnseen,
        };
        lab.record(who, "a listener that began after the switch", Denied, Ok(got));
    }
    lab.lift()
}

/// What is not signed by the control plane for this machine, or was obeyed already, changes nothing.
fn forged(lab: &mut Lab) -> Result<()> {
    lab.restrict()?;
    let lifted = lab.control_plane().order(Desired::Released);
    lab.control_plane().apply(&lifted)?;
    lab.restrict()?;
    let another_key =
        ControlPlane::new([1; 32], lab.control_plane().generation() + 5).order(Desired::Released);
    let another_machine =
        lab.control_plane().order_with(Desired::Released, |order| order.machine = MachineId([8; 20]));
    let expired = lab.control_plane().order_with(Desired::Released, |order| {
        order.issued_at = Timestamp::from(SystemTime::now() - Duration::from_secs(7200));
        order.not_after = order.issued_at.plus(Duration::from_secs(60));
    });
    let mut cut = lab.control_plane().order(Desired::Released);
    cut.truncate(cut.len() / 2);
    for (name, envelope) in [
        ("an order that was obeyed before", lifted),
        ("another key", another_key),
        ("another machine", another_machine),
        ("an order that expired", expired),
        ("half an order", cut),
    ] {
        let answer = gate::ask(&Request::Apply { envelope })?;
        let is_restricted = gate::status()?.restricted;
        // A receipt says what became of it; what it is now is asked for.
        let refused = matches!(answer, Reply::Refused { .. } | Reply::Receipt { .. });
        let got = match (is_restricted, refused) {
            (false, _) => Ok(Got::Ran),
            (true, true) => Ok(Got::DeniedUnseen),
            (true, false) => Err(anyhow::anyhow!("the gate answered {answer:?}")),
        };
        lab.record(Who::Root, name, DeniedUnseen, got);
    }
    let policy = gate::ask(&Request::StorePolicy { envelope: "{\"payload\":".to_owned() })?;
    let got = if matches!(policy, Reply::Refused { .. }) {
        Ok(Got::DeniedUnseen)
    } else {
        Err(anyhow::anyhow!("the gate answered {policy:?}"))
    };
    lab.record(Who::Root, "half a policy", DeniedUnseen, got);
    // An ordinary user may ask for the state, and no more: not even a lift that is signed as it should be.
    let folder = lab.disk()?;
    let path = folder.join("payload");
    lab.payload("static", &path)?;
    let request = folder.join("request");
    let envelope = lab.control_plane().order(Desired::Released);
    fs::write(&request, gate_protocol::encode(&Request::Apply { envelope })?)?;
    let output = Command::new(helper("connect"))
        .arg("/run/cordon/gate.sock")
        .arg(&request)
        .uid(Who::User.id())
        .gid(Who::User.id())
        .output()?;
    let answer: Option<Reply> = gate_protocol::read_frame(&mut output.stdout.as_slice())?;
    let got = match (gate::status()?.restricted, answer) {
        (false, _) => Ok(Got::Ran),
        (true, Some(Reply::Refused { .. })) => Ok(Got::DeniedUnseen),
        (true, other) => Err(anyhow::anyhow!("the gate answered the user {other:?}")),
    };
    lab.record(Who::User, "a signed lift", DeniedUnseen, got);
    for who in BOTH {
        Try::exec(&path).run_now(who)?;
        ensure!(!take_marker()?, "an unlisted program runs after a forged order");
    }
    lab.lift()
}
