//! What the gate does around a switch: survival set, deadman, programs that run already, and what people read.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::policy_settings::{Notice, PolicySettings, RunningPrograms, SurvivalCheck};
use domain::restriction::Desired::{Released, Restricted};
use gate_protocol::{Denial, Reply, Request};
use nix::sys::signal::Signal::SIGKILL;
use orders::{Outcome, Receipt, sign_policy};

use crate::support::{
    AGENT, Execution, Machine, digest, edit_fence, gate_test, install, program, program_of, run, until,
};

/// A program that does nothing until it is killed.
fn waiting(name: &str) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    // again: mov eax, 34 (pause); syscall; jmp again
    let code = b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7";
    #[cfg(target_arch = "aarch64")]
    let code = b"\0\0\0\x14";
    program_of(code, name)
}

/// The same, with a child that does so too.
#[cfg(target_arch = "x86_64")]
fn forking(name: &str) -> Vec<u8> {
    // mov eax, 57 (fork); syscall; then as above
    program_of(b"\xb8\x39\0\0\0\x0f\x05\xb8\x22\0\0\0\x0f\x05\xeb\xf7", name)
}

/// Started, and killed when dropped.
struct Started(Child);

impl Started {
    fn program(path: &Path, bytes: &[u8]) -> Self {
        install(path, bytes);
        Self(Command::new(path).stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    /// Its child, once there is one.
    fn child(&self) -> i32 {
        let (pid, path) = (self.pid(), format!("/proc/{0}/task/{0}/children", self.pid()));
        until("it forks", || {
            let own = fs::read_to_string(&path).ok();
            own.and_then(|text| text.split_whitespace().next()?.parse().ok())
                .or_else(|| children_of(pid).first().copied())
        })
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn children_of(parent: i32) -> Vec<i32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{parent}"))
    })
    .collect()
}

fn is_frozen(pid: i32) -> bool {
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let group = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    let events = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .find_map(|root| fs::read_to_string(format!("{root}{group}/cgroup.events")).ok());
    events.is_some_and(|events| events.contains("frozen 1"))
}

/// Has the gate hold a policy with these settings, which lists these contents and the listed program.
fn set(machine: &mut Machine, profile: Profile, settings: PolicySettings, listed: &[Vec<u8>]) {
    let rule = |(index, bytes): (usize, &Vec<u8>)| Rule {
        id: format!("rule-{index}"),
        matcher: Matcher::Sha256(digest(bytes)),
        effect: Effect::Allow,
        comment: String::new(),
    };
    let contents = [listed, &[program("listed")]].concat();
    let rules = contents.iter().enumerate().map(rule).collect();
    let policy = AllowPolicy { name: "around".to_owned(), revision: 1, profile, settings, rules };
    let envelope = sign_policy(&policy, &machine.order_key);
    machine.policy = envelope.payload_digest().unwrap();
    let envelope = String::from_utf8(envelope.to_bytes()).unwrap();
    assert_eq!(machine.ask(&Request::StorePolicy { envelope }), Reply::Done);
}

fn order(machine: &mut Machine, desired: domain::restriction::Desired) -> Receipt {
    let order = machine.order(desired);
    machine.apply(&machine.sign(&order)).unwrap()
}

fn findings(machine: &Machine, count: usize) -> Vec<Denial> {
    let mut found = Vec::new();
    until("what runs is reported", || {
        let Reply::Denials { denials, .. } = machine.connect_as(AGENT).ask(&Request::Denials) else {
            panic!()
        };
        found.extend(denials.into_iter().filter(|denial| denial.cause == "running"));
        (found.len() >= count).then_some(())
    });
    found
}

/// Puts a program into the system that is to survive.
fn put(machine: &Machine, path: &str, bytes: &[u8]) -> PathBuf {
    let path = machine.folder.join("root").join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    install(&path, bytes);
    path
}

fn forced() -> PolicySettings {
    PolicySettings { survival_check: SurvivalCheck::Force, ..PolicySettings::default() }
}

gate_test! {
    fn row_89_a_machine_is_not_restricted_to_its_death() {
        let mut machine = Machine::new();
        let sshd = put(&machine, "usr/sbin/sshd", &program("sshd"));
        let netd = put(&machine, "usr/lib/netd", &program("netd"));
        put(&machine, "usr/lib/systemd/system/netd.service", b"[Service]\nExecStart=!/usr/lib/netd --all\n");
        put(&machine, "etc/systemd/system/multi-user.target.wants/netd.service", b"");
        // An intruder's own service is none of it.
        put(&machine, "opt/evil", &program("evil"));
        put(&machine, "etc/systemd/system/evil.service", b"[Service]\nExecStart=/opt/evil\n");
        put(&machine, "etc/systemd/system/multi-user.target.wants/evil.service", b"");
        let Outcome::Rejected(reason) = order(&mut machine, Restricted).outcome else { panic!("obeyed") };
        let named = |path: &Path| reason.contains(&format!("{} (unlisted)", path.display()));
        assert!(reason.starts_with("2 programs") && named(&sshd) && named(&netd), "{reason}");
        assert_eq!(run(&machine.programs().unlisted), Execution::Ran);
        assert!(!machine.status().restricted);
        // With all of it vouched for, by rules here, the machine is restricted.
        machine.generation -= 1;
        set(&mut machine, Profile::OsAndApproved, PolicySettings::default(), &[program("sshd"), program("netd")]);
        machine.obeyed(Restricted);
        assert_eq!(run(&sshd), Execution::Ran);
        // It counts in its place, and what is put there afterwards does not.
        let late = put(&machine, "usr/sbin/agetty", &program("late"));
        assert_eq!(run(&late), Execution::Refused);
        machine.restart();
        assert_eq!(run(&late), Execution::Refused);
        assert_eq!(run(&netd), Execution::Ran);
        machine.obeyed(Released);
    }
}

gate_test! {
    fn what_packages_vouch_for_survives_whatever_the_profile() {
        let mut machine = Machine::new();
        let sshd = put(&machine, "usr/sbin/sshd", &program("sshd"));
        let copy = machine.folder.join("copy");
        install(&copy, &program("sshd"));
        let mut builder = policy::baseline::Builder::default();
        for (path, name) in [(&sshd, "sshd"), (&machine.programs().packaged, "packaged")] {
            assert!(builder.add(digest(&program(name)), path.as_os_str().as_encoded_bytes()));
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).unwrap();
        assert_eq!(machine.send_baseline(&bytes), Reply::Done);
        set(&mut machine, Profile::SurvivalOnly, PolicySettings::default(), &[]);
        assert_eq!(order(&mut machine, Restricted).outcome, Outcome::Enforced);
        for _ in 0..2 {
            assert_eq!(run(&sshd), Execution::Ran);
            assert_eq!(run(&copy), Execution::Refused, "a copy elsewhere is not it");
            assert_eq!(run(&machine.programs().packaged), Execution::Refused);
            machine.restart();
        }
    }
}

gate_test! {
    fn what_others_than_root_can_change_does_not_survive() {
        let mut machine = Machine::new();
        let sshd = put(&machine, "usr/sbin/sshd", &program("sshd"));
        set(&mut machine, Profile::OsAndApproved, PolicySettings::default(), &[program("sshd")]);
        fs::set_permissions(&sshd, fs::Permissions::from_mode(0o777)).unwrap();
        let Outcome::Rejected(reason) = order(&mut machine, Restricted).outcome else { panic!("obeyed") };
        assert!(reason.contains("others than root can change it"), "{reason}");
    }
}

gate_test! {
    fn the_deadman_releases_a_machine_whose_root_cannot_log_in() {
        let mut machine = Machine::new();
        let shell = put(&machine, "bin/shell", &program("shell"));
        put(&machine, "etc/passwd", b"root:x:0:0::/root:/bin/shell\n");
        set(&mut machine, Profile::OsAndApproved, forced(), &[]);
        let restrict = machine.order(Restricted);
        let envelope = machine.sign(&restrict);
        let receipt = machine.apply(&envelope).unwrap();
        let Outcome::ApplyFailed(reason) = &receipt.outcome else { panic!("{receipt:?}") };
        assert!(reason.contains("released again") && reason.contains("bin/shell is refused"), "{reason}");
        // It is released, stays so after a restart, and the same order is answered and not obeyed again.
        for _ in 0..2 {
            machine.expect(Released);
            assert_eq!(run(&shell), Execution::Ran);
            assert_eq!(machine.apply(&envelope).unwrap(), receipt);
            machine.restart();
            assert_eq!(machine.status().failed_closed, None);
        }
        // With its shell listed it is restricted.
        set(&mut machine, Profile::OsAndApproved, forced(), &[program("shell")]);
        machine.obeyed(Restricted);
        machine.expect(Restricted);
    }
}

gate_test! {
    fn a_released_machine_is_not_made_by_a_line_in_the_state() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        machine.stop(SIGKILL);
        edit_fence(&machine, |fence| fence["restricted"] = false.into());
        machine.start();
        // The receipt says that it was restricted: only the gate's own word to the contrary would count.
        assert!(machine.status().failed_closed.is_some());
        assert_eq!(run(&machine.programs().unlisted), Execution::Refused);
    }
}

gate_test! {
    fn the_deadman_releases_a_machine_whose_console_is_gone() {
        let mut machine = Machine::new();
        let getty = machine.folder.join("root/sbin/agetty");
        fs::create_dir_all(getty.parent().unwrap()).unwrap();
        let mut console = Started::program(&getty, &waiting("agetty"));
        let settings = PolicySettings { running_programs: RunningPrograms::Kill, ..forced() };
        set(&mut machine, Profile::OsAndApproved, settings.clone(), &[]);
        let receipt = order(&mut machine, Restricted);
        let Outcome::ApplyFailed(reason) = &receipt.outcome else { panic!("{receipt:?}") };
        assert!(reason.contains("nobody can log in any more"), "{reason}");
        assert!(!console.runs());
        machine.expect(Released);
        // A console that is listed stays.
        let mut console = Started::program(&getty, &waiting("agetty"));
        set(&mut machine, Profile::OsAndApproved, settings, &[waiting("agetty")]);
        machine.obeyed(Restricted);
        assert!(console.runs());
    }
}

gate_test! {
    fn row_63_what_runs_at_the_switch_and_is_not_listed_is_reported() {
        let mut machine = Machine::new();
        let path = machine.folder.join("pay\x1bload");
        let mut payload = Started::program(&path, &waiting("payload"));
        let mut listed = Started::program(&machine.folder.join("fine"), &waiting("fine"));
        set(&mut machine, Profile::OsAndApproved, PolicySettings::default(), &[waiting("fine")]);
        machine.obeyed(Restricted);
        let found = findings(&machine, 1);
        assert_eq!(found.len(), 1, "{found:?}");
        let payload_found = &found[0];
        assert!(payload_found.path.ends_with("pay\\u{1b}load"), "{payload_found:?}");
        assert_eq!((payload_found.pid, payload_found.uid), (payload.pid(), Some(0)));
        assert_eq!(payload_found.sha256, Some(digest(&waiting("payload")).to_string()));
        assert_eq!((payload_found.hook.as_str(), payload_found.audited), ("execute", true));
        assert!(payload.runs() && listed.runs());
        machine.obeyed(Released);
    }
}

#[cfg(target_arch = "x86_64")]
gate_test! {
    fn row_64_what_runs_at_the_switch_is_killed_with_its_children() {
        let mut machine = Machine::new();
        let mut payload = Started::program(&machine.folder.join("payload"), &forking("payload"));
        let child = payload.child();
        let mut listed = Started::program(&machine.folder.join("fine"), &waiting("fine"));
        let settings =
            PolicySettings { running_programs: RunningPrograms::Kill, ..PolicySettings::default() };
        set(&mut machine, Profile::OsAndApproved, settings, &[waiting("fine")]);
        machine.obeyed(Restricted);
        assert_eq!(payload.0.wait().unwrap().signal(), Some(nix::libc::SIGKILL));
        let gone = |pid: i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        until("its child is gone", || gone(child).then_some(()));
        assert!(listed.runs());
        let mut pids: Vec<_> = findings(&machine, 2).iter().map(|found| found.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [payload.pid(), child]);
    }
}

#[cfg(target_arch = "x86_64")]
gate_test! {
    fn row_64_what_runs_at_the_switch_is_frozen_with_its_children_until_the_lift() {
        let mut machine = Machine::new();
        let group = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        for restarted in [false, true] {
            let mut payload = Started::program(&machine.folder.join("payload"), &forking("payload"));
            let mut listed = Started::program(&machine.folder.join("fine"), &waiting("fine"));
            let pids = [payload.pid(), payload.child()];
            let before = group(pids[0]);
            let settings =
                PolicySettings { running_programs: RunningPrograms::Freeze, ..PolicySettings::default() };
            set(&mut machine, Profile::OsAndApproved, settings, &[waiting("fine")]);
            machine.obeyed(Restricted);
            until("both are frozen", || pids.iter().all(|pid| is_frozen(*pid)).then_some(()));
            assert!(!is_frozen(listed.pid()) && listed.runs());
            if restarted {
                machine.restart();
                assert!(pids.iter().all(|pid| is_frozen(*pid)));
            }
            machine.obeyed(Released);
            for pid in pids {
                assert!(!is_frozen(pid));
                assert_eq!(group(pid), before, "where it came from");
            }
            assert!(payload.runs());
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pids[1]), SIGKILL).unwrap();
        }
    }
}

gate_test! {
    fn whoever_logs_in_reads_that_the_machine_is_restricted() {
        let mut machine = Machine::new();
        let motd = machine.folder.join("root/run/motd.d/cordon");
        let notice = Notice { text: "Call us.".to_owned(), contact: "4711".to_owned(), silent: false };
        let settings = PolicySettings { notice: notice.clone(), ..PolicySettings::default() };
        set(&mut machine, Profile::OsAndApproved, settings, &[]);
        machine.obeyed(Restricted);
        let text = fs::read_to_string(&motd).unwrap();
        assert!(text.contains("Call us.") && text.contains("4711"), "{text}");
        assert_eq!(fs::metadata(&motd).unwrap().permissions().mode() & 0o777, 0o644);
        fs::remove_file(&motd).unwrap();
        machine.restart();
        assert!(motd.exists(), "it comes back with the gate");
        machine.obeyed(Released);
        assert!(!motd.exists());
        let settings = PolicySettings { notice: Notice { silent: true, ..notice }, ..PolicySettings::default() };
        set(&mut machine, Profile::OsAndApproved, settings, &[]);
        machine.obeyed(Restricted);
        assert!(!motd.exists());
    }
}
