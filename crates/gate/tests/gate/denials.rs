//! What the gate tells of each denial.

use std::process::{Command, Stdio};

use domain::restriction::Desired::{Released, Restricted};
use gate_protocol::{Denial, Reply, Request};

use crate::support::{Execution, Machine, gate_test, install, program, run, until};

/// The denial of this path, as soon as it is there.
fn denial(machine: &Machine, path: &std::path::Path) -> Denial {
    until("the denial is there", || {
        let Reply::Denials { denials, .. } = machine.ask(&Request::Denials) else { panic!() };
        denials.into_iter().find(|denial| denial.path == path.to_str().unwrap())
    })
}

gate_test! {
    fn a_denial_says_what_was_asked_by_whom_and_which_policy_refused() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        let unlisted = machine.programs().unlisted;
        assert_eq!(run(&unlisted), Execution::Refused);
        let found = denial(&machine, &unlisted);
        assert_eq!((found.hook.as_str(), found.cause.as_str(), found.audited), ("execute", "unlisted", false));
        assert_eq!((found.policy.as_deref(), found.policy_revision), (Some("default"), Some(1)));
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| *path != "/");
        assert!(own.is_none() || found.cgroup.as_deref() == own, "{found:?}");
        assert_eq!((found.interpreter, found.script), (None, None));
        let script = machine.folder.join("script");
        install(&script, b"#! /bin/sh -e\nexit 42\n");
        let refused = Command::new(&script).stdin(Stdio::null()).status().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::EPERM));
        let found = denial(&machine, &script);
        assert_eq!(found.interpreter.as_deref(), Some("/bin/sh"));
        assert_eq!(found.script.as_deref(), script.to_str());
        machine.obeyed(Released);
    }
}

gate_test! {
    fn a_denial_names_the_policy_that_refused_when_another_one_has_come_or_none_is_left() {
        let mut machine = Machine::new();
        let programs = ["first", "second"].map(|name| machine.folder.join(name));
        for path in &programs {
            install(path, &program(path.file_name().unwrap().to_str().unwrap()));
        }
        machine.obeyed(Restricted);
        assert_eq!(run(&programs[0]), Execution::Refused);
        assert_eq!(denial(&machine, &programs[0]).policy_revision, Some(1));
        machine.store_revision(2);
        machine.obeyed(Restricted);
        assert_eq!(run(&programs[1]), Execution::Refused);
        machine.obeyed(Released);
        assert_eq!(denial(&machine, &programs[1]).policy_revision, Some(2));
    }
}
