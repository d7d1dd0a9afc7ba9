//! What tier T3 does not stop. Each test holds what really happens, so that docs/limitations.md stays true.

use std::fs;

use crate::support::*;

kernel_test! {
    fn row_5_a_program_in_memory_runs() {
        let mut lab = Lab::new();
        let path = lab.disk.join("payload");
        install(&path, &payload());
        lab.restrict();
        for who in BOTH {
            assert_eq!(lab.act(who, &[&"run", &path]), Outcome::Refused);
            assert_eq!(lab.act(who, &[&"memory", &path]), Outcome::Ran, "fanotify marks do not reach memfd");
        }
    }
}

kernel_test! {
    fn row_2_a_program_started_by_the_loader_runs() {
        let mut lab = Lab::new();
        let (path, target) = (lab.disk.join("unlisted-actor"), lab.disk.join("payload"));
        let mut bytes = fs::read(lab.actor_path()).unwrap();
        bytes.extend(b"unlisted");
        install(&path, &bytes);
        install(&target, &payload());
        let loader = loader_of(&bytes);
        lab.restrict();
        assert_eq!(run(&path), Outcome::Refused);
        let status = std::process::Command::new(loader).arg(&path).status().unwrap();
        assert_eq!(status.code(), Some(98), "a mapping is not an execution: the actor ran, and missed its arguments");
    }
}

/// The interpreter that a dynamic ELF program names.
fn loader_of(bytes: &[u8]) -> String {
    let start = bytes.windows(4).position(|window| window == b"/lib").unwrap();
    let length = bytes[start..].iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(bytes[start..start + length].to_vec()).unwrap()
}

kernel_test! {
    fn row_23_a_shell_reads_any_script() {
        let mut lab = Lab::new();
        let path = lab.disk.join("script");
        install(&path, format!("exit {RAN}\n").as_bytes());
        lab.restrict();
        assert_eq!(std::process::Command::new("/bin/sh").arg(&path).status().unwrap().code(), Some(i32::from(RAN)));
    }
}
