//! What must stay possible on a restricted machine.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::gate;
use crate::lab::{Lab, MARKER, take_marker};
use crate::report::Boot;
use crate::row::{BOTH, Expected, Got, Row, Stage, Who};
use crate::tries::Try;

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row::possible("lift", "what was refused runs again", Stage::Fast, lift),
    Row::possible("login", "login at a terminal", Stage::Debian, login),
    Row::possible("sshd", "login by ssh", Stage::Debian, sshd),
    Row::possible("sudo", "sudo and su", Stage::Debian, sudo),
    Row::possible(
        "systemd-restart",
        "systemd and its services are restarted",
        Stage::Debian,
        systemd_restart,
    ),
    Row::possible("journald", "the journal goes on", Stage::Debian, journald),
    Row::possible("cron", "cron starts listed programs", Stage::Debian, cron),
    Row::possible("reboot", "the machine boots, whole and restricted", Stage::Debian, reboot),
];

/// What was refused runs again.
fn lift(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let payload = Try::exec(&path);
    lab.check(&[Try::exec(&path)])?;
    for who in BOTH {
        payload.run_now(who)?;
        let got = take_marker().map(|ran| if ran { Got::Ran } else { Got::DeniedUnseen });
        lab.record(who, "after the lift", Expected::Allowed, got);
    }
    Ok(())
}

fn account(who: Who) -> &'static str {
    match who {
        Who::User => "user",
        Who::Root => "root",
    }
}

/// Runs root's `script` for each account (`$account`), before and while restricted: it marks at its end, and nothing at
/// all may be refused meanwhile.
fn stays_possible(lab: &mut Lab, script: &str) -> Result<()> {
    let works = |who: Who| -> Result<()> {
        take_marker()?;
        shell(&format!("set -e; account={}; {script}", account(who)))?;
        ensure!(take_marker()?, "it ended well, and left no mark");
        Ok(())
    };
    for who in BOTH {
        works(who).with_context(|| format!("before the restriction, as {}", account(who)))?;
    }
    lab.restrict()?;
    lab.forget_events()?;
    for who in BOTH {
        let worked = works(who);
        let refused: Vec<_> = gate::denials()?.into_iter().map(|denial| denial.path).collect();
        let got = worked.and_then(|()| {
            ensure!(refused.is_empty(), "it worked, but these were refused: {}", refused.join(" "));
            Ok(Got::Ran)
        });
        lab.record(who, "while restricted", Expected::Allowed, got);
    }
    lab.lift()
}

/// Runs a script as root.
fn shell(script: &str) -> Result<()> {
    let output = Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} {}", output.status, said.trim().replace('\n', " | "));
    Ok(())
}

/// A line of a shell that a program is given as input.
const MARK: &str = "touch /run/cordon-marker/ran";

/// A line that comes before the shell is ready is thrown away, so it is typed until it had its effect.
fn login(lab: &mut Lab) -> Result<()> {
    stays_possible(
        lab,
        &format!(
            "(for i in $(seq 30); do sleep 1; test -e {MARKER} && break; echo {MARK}; done; echo exit) | \
             socat -t 20 - \"EXEC:'login -f $account',pty,setsid,ctty,stderr\" >/run/login.out || :; \
             test -e {MARKER} || {{ tail -c 300 /run/login.out >&2; exit 1; }}"
        ),
    )
}

fn sshd(lab: &mut Lab) -> Result<()> {
    shell(
        "test -e /root/key || ssh-keygen -q -t ed25519 -N '' -f /root/key; \
         for home in /root /home/user; do mkdir -p $home/.ssh; cp /root/key.pub $home/.ssh/authorized_keys; done; \
         chown -R user:user /home/user/.ssh; chmod 700 /root/.ssh /home/user/.ssh; systemctl start ssh",
    )?;
    stays_possible(
        lab,
        &format!(
            "ssh -i /root/key -o BatchMode=yes -o StrictHostKeyChecking=accept-new $account@127.0.0.1 '{MARK}'"
        ),
    )
}

fn sudo(lab: &mut Lab) -> Result<()> {
    fs::write("/etc/sudoers.d/matrix", "user ALL=(ALL) NOPASSWD: ALL\n")?;
    stays_possible(lab, &format!("su $account -c 'sudo -n -u root {MARK}'"))
}

fn systemd_restart(lab: &mut Lab) -> Result<()> {
    stays_possible(
        lab,
        &format!(
            "systemctl daemon-reload; systemctl daemon-reexec; \
             systemctl restart ssh cron systemd-logind systemd-udevd; \
             systemctl is-active --quiet ssh cron systemd-logind systemd-udevd; {MARK}"
        ),
    )
}

fn journald(lab: &mut Lab) -> Result<()> {
    stays_possible(
        lab,
        &format!(
            "word=matrix-$(date +%s%N); systemctl restart systemd-journald; \
             su $account -c \"logger $word\"; journalctl --sync; journalctl -b | grep -q $word; {MARK}"
        ),
    )
}

/// Cron looks at its tables each minute: the clock is set to a moment before the next one.
fn cron(lab: &mut Lab) -> Result<()> {
    let script = format!(
        "echo \"* * * * * $account touch {MARKER}\" > /etc/cron.d/matrix; \
         date -s @$(( ($(date +%s) / 60 + 1) * 60 - 2 )) > /dev/null; systemctl restart cron; \
         for i in $(seq 200); do test -e {MARKER} && break; sleep 0.1; done; rm /etc/cron.d/matrix"
    );
    let result = stays_possible(lab, &script);
    drop(fs::remove_file("/etc/cron.d/matrix"));
    result
}

/// Restricts, boots, and holds that everything came up, nothing was refused on the way, and nothing unlisted runs.
fn reboot(lab: &mut Lab) -> Result<()> {
    let failed =
        "systemctl is-system-running --wait >/dev/null; systemctl list-units --failed --plain --no-legend";
    if lab.boots() == 0 {
        lab.restrict()?;
        lab.boot_again(Boot::default());
        return Ok(());
    }
    ensure!(gate::status()?.restricted, "the machine is not restricted after the boot");
    let units = Command::new("/bin/sh").args(["-c", failed]).output()?;
    let units = String::from_utf8_lossy(&units.stdout).trim().replace('\n', ", ");
    let refused: Vec<_> = gate::denials()?.into_iter().map(|denial| denial.path).collect();
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let payload = Try::exec(&path);
    for who in BOTH {
        let whole = if units.is_empty() && refused.is_empty() {
            Ok(Got::Ran)
        } else {
            Err(anyhow::anyhow!("failed units: {units}; refused: {}", refused.join(" ")))
        };
        lab.record(who, "it came up whole", Expected::Allowed, whole);
        payload.run_now(who)?;
        let denied = take_marker().map(|ran| if ran { Got::Ran } else { Got::Denied });
        lab.record(who, "an unlisted program after the boot", Expected::Denied, denied);
    }
    lab.lift()?;
    for who in BOTH {
        payload.run_now(who)?;
        ensure!(take_marker()?, "the payload does not run after the lift");
    }
    Ok(())
}
