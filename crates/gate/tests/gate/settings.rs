//! The settings of a policy, as they act on a machine.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::policy_settings::{Interpreters, PolicySettings};
use domain::restriction::Desired::Restricted;
use gate_protocol::{Reply, Request};
use orders::sign_policy;
use policy::baseline::Builder;

use crate::support::*;

/// Executes a program with arguments, in a folder; whether it was refused, or its own start of another one.
fn start(machine: &Machine, line: &[&str], variable: Option<&str>) -> Execution {
    let mut command = Command::new(line[0]);
    command
        .args(&line[1..])
        .current_dir(&machine.folder)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    if let Some(name) = variable {
        command.env(name, "/nonexistent");
    }
    match command.status().map(|status| status.code()) {
        Ok(Some(42)) => Execution::Ran,
        Ok(Some(126)) => Execution::Refused,
        Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => Execution::Refused,
        other => panic!("{line:?}: {other:?}"),
    }
}

/// Has the gate hold a policy of this level that lists these files' contents.
fn store_level(machine: &mut Machine, level: Interpreters, listed: &[&Path]) {
    let contents = listed.iter().map(|path| fs::read(path).unwrap()).chain([program("listed")]);
    let rule = |(index, content): (usize, Vec<u8>)| Rule {
        id: format!("r{index}"),
        matcher: Matcher::Sha256(digest(&content)),
        effect: Effect::Allow,
        comment: String::new(),
    };
    let policy = AllowPolicy {
        name: "default".to_owned(),
        revision: 1,
        profile: Profile::OsAndApproved,
        settings: PolicySettings { interpreters: level, ..PolicySettings::default() },
        rules: contents.enumerate().map(rule).collect(),
    };
    let envelope = sign_policy(&policy, &machine.order_key);
    machine.policy = envelope.payload_digest().unwrap();
    let envelope = String::from_utf8(envelope.to_bytes()).unwrap();
    assert_eq!(machine.ask(&Request::StorePolicy { envelope }), Reply::Done);
}

gate_test! {
    fn interpreters_start_only_as_their_level_says() {
        // Whoever runs this test may be a service of the system, and is none after a login.
        if Path::new("/proc/thread-self/loginuid").exists() {
            fs::write("/proc/thread-self/loginuid", "54321").unwrap();
        }
        let mut machine = Machine::new();
        for (name, text) in [
            ("script", "#!/usr/bin/perl\nexit 42;\n"),
            ("env-script", "#!/usr/bin/env perl\nexit 42;\n"),
            ("sh-script", "#!/bin/sh\nexit 42\n"),
        ] {
            install(&machine.folder.join(name), text.as_bytes());
        }
        let folder = machine.folder.clone();
        let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        std::os::unix::fs::symlink("script", at("link")).unwrap();
        std::os::unix::fs::symlink(at("script"), at("absolute-link")).unwrap();
        // A package shipped it, so it is known by its content.
        fs::copy("/usr/bin/perl", at("harmless")).unwrap();
        let mut builder = Builder::default();
        assert!(builder.add(digest(&fs::read("/usr/bin/perl").unwrap()), b"/usr/bin/perl"));
        assert!(builder.add(digest(&program("packaged")), at("packaged").as_bytes()));
        let mut baseline = Vec::new();
        builder.finish(&mut baseline).unwrap();
        assert_eq!(machine.send_baseline(&baseline), Reply::Done);
        let scripts = ["script", "env-script", "sh-script"].map(|name| folder.join(name));
        let system = ["/usr/bin/perl", "/bin/sh", "/usr/bin/env", "/lib64/ld-linux-x86-64.so.2"].map(Path::new);
        let listed: Vec<_> = scripts.iter().map(std::path::PathBuf::as_path).chain(system).collect();
        let (script, env_script, sh_script, harmless) =
            (at("script"), at("env-script"), at("sh-script"), at("harmless"));
        let through_link = at("absolute-link");
        // What is executed, with which variable; then whether it runs at `open`, `default` and `strict`.
        let table: &[(&[&str], Option<&str>, [bool; 3])] = &[
            (&[&script], None, [true, true, true]),
            (&["./script", "x"], None, [true, true, true]),
            (&["./link"], None, [true, true, true]),
            (&[&through_link], None, [true, true, true]),
            (&[&env_script], None, [true, true, true]),
            (&[&sh_script, "-c", "exit 1"], None, [true, true, true]),
            (&["/usr/bin/perl", "-e", "exit 42"], None, [true, false, false]),
            (&["/usr/bin/perl", &script], None, [true, false, false]),
            (&[&harmless, "-e", "exit 42"], None, [true, false, false]),
            (&["/usr/bin/env", "perl", "-e", "exit 42"], None, [true, false, false]),
            (&["/usr/bin/env", "perl", &script], None, [true, false, false]),
            (&["/bin/sh", "-c", "exit 42"], None, [true, true, false]),
            (&["/bin/sh", &sh_script], None, [true, true, false]),
            (&["/bin/sh", "-c", "exec /usr/bin/perl -e 'exit 42'"], None, [true, false, false]),
            (&[&script], Some("PERL5LIB"), [true, true, false]),
            (&[&sh_script], Some("BASH_ENV"), [true, true, false]),
        ];
        for (level, column) in [Interpreters::Open, Interpreters::Default, Interpreters::Strict].into_iter().zip(0..) {
            store_level(&mut machine, level, &listed);
            machine.obeyed(Restricted);
            // Again, when verdicts are kept.
            for round in 0..2 {
                for (line, variable, expected) in table {
                    let expected = if expected[column] { Execution::Ran } else { Execution::Refused };
                    assert_eq!(start(&machine, line, *variable), expected, "{level} {line:?} {variable:?} {round}");
                }
            }
        }
        let denial = until("the denial is there", || {
            let Reply::Denials { denials, .. } = machine.ask(&Request::Denials) else { panic!() };
            denials.into_iter().find(|denial| denial.path == harmless)
        });
        assert_eq!(denial.cause, "interpreter");
    }
}

gate_test! {
    fn dual_use_programs_of_packages_run_unless_they_are_removed() {
        let mut machine = Machine::new();
        let programs = machine.programs();
        // Known by the name that the package gave it, whatever it is called where it is executed.
        let (gdb, link) = (machine.folder.join("gdb"), machine.folder.join("harmless"));
        install(&gdb, &program("gdb"));
        fs::hard_link(&gdb, &link).unwrap();
        let mut builder = Builder::default();
        assert!(builder.add(digest(&program("gdb")), gdb.as_os_str().as_encoded_bytes()));
        assert!(builder.add(digest(&program("packaged")), programs.packaged.as_os_str().as_encoded_bytes()));
        let mut baseline = Vec::new();
        builder.finish(&mut baseline).unwrap();
        assert_eq!(machine.send_baseline(&baseline), Reply::Done);
        machine.obeyed(Restricted);
        assert_eq!((run(&gdb), run(&link)), (Execution::Ran, Execution::Ran));
        machine.store_policy_with(&[("dualUse", "remove")]);
        machine.obeyed(Restricted);
        assert_eq!((run(&link), run(&gdb)), (Execution::Refused, Execution::Refused));
        let denial = until("the denial is there", || {
            let Reply::Denials { denials, .. } = machine.ask(&Request::Denials) else { panic!() };
            denials.into_iter().find(|denial| denial.path == gdb.to_str().unwrap())
        });
        assert_eq!(denial.cause, "dual-use");
        let path = gdb.to_str().unwrap().to_owned();
        let Reply::Explanation(explanation) = machine.ask(&Request::Explain { path }) else { panic!() };
        assert_eq!((explanation.cause.as_str(), explanation.allowed), ("dual-use", false));
    }
}
