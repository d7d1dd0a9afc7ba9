//! Rows 60 to 67: injecting into what is already allowed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use domain::policy_settings::RunningPrograms;

use crate::lab::{Lab, helper, take_marker};
use crate::row::Expected::{Denied, Detected, NotStopped, OutOfReach};
use crate::row::{BOTH, Gap, Got, Row, Tier, Who};
use crate::tries::{Seen, Try};

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row::fast(60, "another process is traced", traced),
    Row::fast(61, "another process's memory is written", memory_of_others),
    Row::fast(62, "one's own memory is written, past its protection", own_memory),
    Row::fast(63, "an unlisted program runs at the switch", running),
    Row::fast(64, "a running program forks", forking),
    Row::fast(65, "the kernel is told to start a program", by_kernel),
];

/// A way into a process, which a guard watches over at tiers T1 and T2.
fn guarded(name: &str, words: &[&str]) -> Try {
    Try::run(name, words, Path::new("")).seen(Seen::Cause("guard")).on(Tier::T3, NotStopped(Gap::Guards))
}

fn injected(how: &str) -> Try {
    guarded(how, &[&helper("inject").to_string_lossy(), how])
}

fn traced(lab: &mut Lab) -> Result<()> {
    lab.check(&["attach", "seize", "traceme", "writev"].map(injected))
}

fn memory_of_others(lab: &mut Lab) -> Result<()> {
    lab.check(&["memory", "thread-memory"].map(injected))
}

/// By a listed program on purpose, and by a shell: it reads where it is in the C library, and has `dd` write code there
/// through a descriptor of the shell's own memory.
fn own_memory(lab: &mut Lab) -> Result<()> {
    let code = lab.disk()?.join("code");
    let output = Command::new(helper("inject")).arg("code").output()?;
    ensure!(!output.stdout.is_empty(), "no code");
    fs::write(&code, &output.stdout)?;
    let script = format!(
        "read -a call < /proc/self/syscall; exec 3>/proc/self/mem || exit; \
         dd if={} bs=1 seek=$((call[8])) conv=notrunc >&3; read line < /dev/null",
        code.display()
    );
    lab.check(&[injected("own-memory"), guarded("a shell", &["/bin/bash", "-c", &script])])
}

/// An unlisted program that waits for a line since before the switch.
struct Waiting(Child);

impl Waiting {
    fn start(program: &Path, argument: Option<&str>, who: Who) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(argument).uid(who.id()).gid(who.id());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        let mut byte = [0];
        child.stdout.as_mut().context("no output")?.read_exact(&mut byte)?;
        Ok(Self(child))
    }

    /// Lets it act. Who is gone does not read.
    fn go(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            drop(input.write_all(b"go\n"));
        }
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }

    /// Whether the group that it is in is frozen.
    fn is_frozen(&self) -> Result<bool> {
        let group = fs::read_to_string(format!("/proc/{}/cgroup", self.0.id()))?;
        let group = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let events = Path::new("/sys/fs/cgroup").join(group).join("cgroup.events");
        Ok(fs::read_to_string(events).is_ok_and(|events| events.lines().any(|line| line == "frozen 1")))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Usually it has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits for a state.
pub(super) fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < Duration::from_secs(30), "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn running(lab: &mut Lab) -> Result<()> {
    runs_at_the_switch(lab, None)
}

fn forking(lab: &mut Lab) -> Result<()> {
    runs_at_the_switch(lab, Some("fork"))
}

fn runs_at_the_switch(lab: &mut Lab, argument: Option<&str>) -> Result<()> {
    for (setting, name, expected) in [
        (RunningPrograms::Report, "reported", Detected),
        (RunningPrograms::Freeze, "frozen", Denied),
        (RunningPrograms::Kill, "killed", Denied),
    ] {
        lab.with_policy(|policy| policy.settings.running_programs = setting)?;
        for who in BOTH {
            let path = lab.disk()?.join("waiting");
            lab.payload("waiting", &path)?;
            let got = runs_on(lab, setting, &path, argument, who);
            lab.lift_if_restricted()?;
            lab.record(who, name, expected, got);
        }
    }
    Ok(())
}

fn runs_on(
    lab: &mut Lab,
    setting: RunningPrograms,
    path: &Path,
    argument: Option<&str>,
    who: Who,
) -> Result<Got> {
    take_marker()?;
    let mut proof = Waiting::start(path, argument, who)?;
    proof.go();
    wait_for("its end", || proof.has_ended())?;
    ensure!(take_marker()?, "it does not run while nothing restricts");
    lab.forget_events()?;
    let mut waiting = Waiting::start(path, argument, who)?;
    lab.restrict()?;
    let event = lab.event(who, &Seen::At(path.to_owned()), true)?;
    ensure!(event.is_none_or(|event| event.cause == "running"), "the event has another cause");
    match setting {
        RunningPrograms::Report => {
            waiting.go();
            wait_for("its end", || waiting.has_ended())?;
            Ok(if take_marker()? { Got::Detected } else { Got::Denied })
        }
        RunningPrograms::Kill => {
            wait_for("its end", || waiting.has_ended())?;
            Ok(if take_marker()? { Got::Detected } else { Got::Denied })
        }
        RunningPrograms::Freeze => {
            wait_for("the frost", || waiting.is_frozen())?;
            waiting.go();
            let ran = take_marker()?;
            lab.lift()?;
            wait_for("its end", || waiting.has_ended())?;
            ensure!(take_marker()?, "it does not go on after the lift");
            Ok(if ran { Got::Detected } else { Got::Denied })
        }
    }
}

/// Programs that somebody else starts for who tries, and as somebody else: each script makes it happen, and has the
/// payload's path as `$1` and the account as `$2`. `by` is who is said to have tried.
pub(super) fn started_for(
    lab: &mut Lab,
    by: impl Fn(Who) -> Who,
    ways: &[(&str, &str, &[Who])],
) -> Result<()> {
    let mut tries = Vec::new();
    for (name, script, users) in ways {
        for who in BOTH {
            let path = lab.disk()?.join("payload");
            lab.payload("static", &path)?;
            let proof =
                users.contains(&who).then(|| trigger(script, &path, who).and_then(|()| take_marker()));
            tries.push((*name, *script, who, path, proof));
        }
    }
    lab.restrict()?;
    for (name, script, who, path, proof) in tries {
        let Some(proof) = proof else {
            lab.record(who, name, OutOfReach, Ok(Got::OutOfReach));
            continue;
        };
        let restricted = || -> Result<Got> {
            ensure!(proof?, "it does not run while nothing restricts");
            lab.forget_events()?;
            trigger(script, &path, who)?;
            let event = lab.event(by(who), &Seen::At(path.clone()), true)?;
            Ok(match (take_marker()?, event) {
                (false, Some(_)) => Got::Denied,
                (false, None) => Got::DeniedUnseen,
                (true, _) => Got::Ran,
            })
        };
        let got = restricted();
        lab.record(who, name, Denied, got);
    }
    lab.lift()
}

fn trigger(script: &str, path: &Path, who: Who) -> Result<()> {
    take_marker()?;
    let account = if who == Who::User { "user" } else { "root" };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(path).arg(account).stdin(Stdio::null());
    // A program that is refused makes the script fail, which says nothing.
    let output = command.output()?;
    fs::write("/run/cordon-marker/output", output.stderr)?;
    Ok(())
}

/// Root says which program; either user makes the kernel start it, as root.
fn by_kernel(lab: &mut Lab) -> Result<()> {
    let before: Vec<(PathBuf, String)> = ["core_pattern", "core_pipe_limit", "modprobe"]
        .iter()
        .map(|name| {
            let path = Path::new("/proc/sys/kernel").join(name);
            let value = fs::read_to_string(&path)?;
            Ok((path, value))
        })
        .collect::<Result<_>>()?;
    let inject = helper("inject");
    let module = format!(
        "echo \"$1\" > /proc/sys/kernel/modprobe; id=0; test $2 = root || id=1000; \
         setpriv --reuid=$id --regid=$id --clear-groups {} module",
        inject.display()
    );
    // With the limit the kernel waits for the end of who takes the dump.
    let core = "echo 1 > /proc/sys/kernel/core_pipe_limit; echo \"|$1\" > /proc/sys/kernel/core_pattern; \
                id=0; test $2 = root || id=1000; ulimit -c unlimited; \
                setpriv --reuid=$id --regid=$id --clear-groups /bin/sh -c 'kill -SEGV $$'";
    let result =
        started_for(lab, |_| Who::Root, &[("core_pattern", core, &BOTH), ("modprobe", &module, &BOTH)]);
    for (path, value) in before {
        fs::write(path, value)?;
    }
    result?;
    if !Path::new("/sys/kernel/uevent_helper").exists() {
        for who in BOTH {
            lab.record(who, "uevent_helper, which Debian's kernel lacks", OutOfReach, Ok(Got::OutOfReach));
        }
    }
    Ok(())
}
