//! Impact previews, and explanations: the same answer as the kernel would get.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::digest::Sha256Digest;
use domain::policy_settings::PolicySettings;
use domain::restriction::Desired::{Released, Restricted};
use gate_protocol::{Explanation, ImpactPreview, RefusedFile, Reply, Request};
use orders::sign_policy;

use crate::support::{AGENT, Execution, Machine, digest, gate_test, install, program, run, until};

/// A program that runs until it is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start(path: &Path) -> Self {
        fs::copy("/bin/sleep", path).unwrap();
        Self(Command::new(path).arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A fresh preview.
fn preview(machine: &Machine, policy: Option<&str>) -> ImpactPreview {
    let mut age_seconds_max = 0;
    let mut agent = machine.connect_as(AGENT);
    until("the preview is there", || {
        let request = Request::Preview { policy: policy.map(str::to_owned), age_seconds_max };
        age_seconds_max = 3600;
        match agent.ask(&request) {
            Reply::Preview(preview) => Some(*preview),
            Reply::PreviewUnderway { files_done, files_total } => {
                assert!(files_done <= files_total);
                None
            }
            other => panic!("{other:?}"),
        }
    })
}

fn of<'a>(preview: &'a ImpactPreview, path: &Path) -> Option<&'a RefusedFile> {
    preview.refused.iter().find(|file| file.path == path.to_str().unwrap())
}

/// Has the gate hold a policy of this name that allows these contents.
fn store(machine: &Machine, name: &str, profile: Profile, listed: &[Sha256Digest]) -> Sha256Digest {
    let rule = |digest: &Sha256Digest| Rule {
        id: digest.to_string(),
        matcher: Matcher::Sha256(*digest),
        effect: Effect::Allow,
        comment: String::new(),
    };
    let rules = listed.iter().map(rule).collect();
    let policy = AllowPolicy {
        name: name.to_owned(),
        revision: 1,
        profile,
        settings: PolicySettings::default(),
        rules,
    };
    let envelope = sign_policy(&policy, &machine.order_key);
    let digest = envelope.payload_digest().unwrap();
    let envelope = String::from_utf8(envelope.to_bytes()).unwrap();
    assert_eq!(machine.ask(&Request::StorePolicy { envelope }), Reply::Done);
    digest
}

gate_test! {
    fn what_runs_and_is_not_listed_would_be_refused() {
        let mut machine = Machine::new();
        let path = machine.folder.join("sleeper");
        let (one, two) = (Sleeper::start(&path), Sleeper::start(&machine.folder.join("other")));
        let three = Command::new(&path).arg("600").spawn().map(Sleeper).unwrap();
        let found = preview(&machine, None);
        assert_eq!(found.policy, Some(machine.policy.to_string()));
        assert!(found.processes >= 5 && found.files >= 3 && !found.is_cut, "{found:?}");
        assert_eq!(found.history_days, None);
        assert_eq!(found.refused_files, found.refused.len() as u64);
        let sleeper = of(&found, &path).expect("the sleeper");
        assert_eq!((sleeper.cause.as_str(), sleeper.mapped_only, sleeper.processes), ("unlisted", false, 2));
        let mut pids = sleeper.pids.clone();
        pids.sort_unstable();
        assert_eq!(pids, [one.pid(), three.pid()]);
        assert_eq!(sleeper.sha256, Some(digest(&fs::read("/bin/sleep").unwrap()).to_string()));
        assert_eq!(of(&found, &machine.folder.join("other")).unwrap().pids, [two.pid()]);
        // Programs come before what is only mapped: the C library is nobody's program.
        let first_mapped = found.refused.iter().position(|file| file.mapped_only).expect("a library");
        assert!(found.refused[..first_mapped].iter().any(|file| file.path == sleeper.path));
        assert!(found.refused[first_mapped..].iter().all(|file| file.mapped_only));
        // And it is the truth.
        machine.obeyed(Restricted);
        assert!(Command::new(&path).arg("0").status().is_err());
        machine.obeyed(Released);
    }
}

gate_test! {
    fn a_policy_that_is_held_and_not_obeyed_can_be_previewed() {
        let mut machine = Machine::new();
        let path = machine.folder.join("sleeper");
        let _sleeper = Sleeper::start(&path);
        let sleep = digest(&fs::read("/bin/sleep").unwrap());
        let wide = store(&machine, "wide", Profile::OsAndApproved, &[sleep]);
        for restricted in [false, true] {
            if restricted {
                machine.obeyed(Restricted);
                assert_eq!(preview(&machine, None).policy, Some(machine.policy.to_string()));
            }
            for meant in [wide.to_string(), "wide".to_owned()] {
                let found = preview(&machine, Some(&meant));
                assert_eq!(found.policy, Some(wide.to_string()));
                assert_eq!(of(&found, &path), None);
            }
            assert!(of(&preview(&machine, Some("default")), &path).is_some());
        }
        let mut agent = machine.connect_as(AGENT);
        for unknown in ["f".repeat(64), "unheard-of".to_owned(), "\u{1b}".repeat(10_000)] {
            let reason = agent.refusal(&Request::Preview { policy: Some(unknown), age_seconds_max: 0 });
            assert!(reason.contains("does not hold") || reason.contains("holds no policy"), "{reason}");
        }
        machine.obeyed(Released);
    }
}

gate_test! {
    fn a_program_that_was_deleted_or_replaced_is_judged_by_what_runs() {
        let machine = Machine::new();
        let (deleted, replaced) = (machine.folder.join("deleted"), machine.folder.join("replaced"));
        let sleepers = (Sleeper::start(&deleted), Sleeper::start(&replaced));
        fs::remove_file(&deleted).unwrap();
        // By rename: the one that runs keeps its inode.
        install(&replaced, &program("listed"));
        let found = preview(&machine, None);
        for (path, pid) in [(&deleted, sleepers.0.pid()), (&replaced, sleepers.1.pid())] {
            let name = PathBuf::from(format!("{} (deleted)", path.display()));
            let file = of(&found, &name).unwrap_or_else(|| panic!("{} in {found:?}", name.display()));
            assert_eq!((file.pids.as_slice(), file.cause.as_str()), (&[pid][..], "unlisted"));
        }
    }
}

gate_test! {
    fn a_preview_is_kept_and_made_anew_when_it_is_too_old_or_the_packages_change() {
        let machine = Machine::new();
        let first = preview(&machine, None);
        let again = |age_seconds_max| {
            machine.connect_as(AGENT).ask(&Request::Preview { policy: None, age_seconds_max })
        };
        assert_eq!(again(3600), Reply::Preview(Box::new(first.clone())));
        assert!(matches!(again(0), Reply::PreviewUnderway { .. }));
        let second = until("the second one is there", || match again(3600) {
            Reply::Preview(preview) => Some(preview),
            _ => None,
        });
        assert!(second.at > first.at);
        assert_eq!(machine.send_baseline(&policy_free_baseline()), Reply::Done);
        assert!(matches!(again(3600), Reply::PreviewUnderway { .. }));
    }
}

fn policy_free_baseline() -> Vec<u8> {
    let mut bytes = Vec::new();
    policy::baseline::Builder::default().finish(&mut bytes).unwrap();
    bytes
}

gate_test! {
    fn only_root_and_the_agent_may_ask() {
        let machine = Machine::new();
        let request = Request::Preview { policy: None, age_seconds_max: 0 };
        let reason = machine.connect_as(crate::support::STRANGER).refusal(&request);
        assert!(reason.contains("may not ask"), "{reason}");
    }
}

fn explained(machine: &Machine, path: &Path) -> Explanation {
    match machine.ask(&Request::Explain { path: path.to_str().unwrap().to_owned() }) {
        Reply::Explanation(explanation) => explanation,
        other => panic!("{other:?}"),
    }
}

gate_test! {
    fn an_explanation_names_the_cause_that_a_denial_then_has() {
        let mut machine = Machine::new();
        let programs = machine.programs();
        let denied = {
            let rule = Rule {
                id: "no-denied".to_owned(),
                matcher: Matcher::Sha256(digest(&program("denied"))),
                effect: Effect::Deny,
                comment: String::new(),
            };
            let allow = Rule {
                id: "listed".to_owned(),
                matcher: Matcher::Sha256(digest(&program("listed"))),
                effect: Effect::Allow,
                ..rule.clone()
            };
            let rules = vec![rule, allow];
            let policy =
                AllowPolicy { name: "default".to_owned(), revision: 2, profile: Profile::OsAndApproved, settings: PolicySettings::default(), rules };
            let envelope = sign_policy(&policy, &machine.order_key);
            machine.policy = envelope.payload_digest().unwrap();
            let envelope = String::from_utf8(envelope.to_bytes()).unwrap();
            assert_eq!(machine.ask(&Request::StorePolicy { envelope }), Reply::Done);
            machine.folder.join("denied")
        };
        install(&denied, &program("denied"));
        let written = machine.folder.join("written");
        install(&written, &program("listed"));
        // A hole needs no disk.
        let huge = machine.folder.join("huge");
        install(&huge, &program("huge"));
        fs::File::options().write(true).open(&huge).unwrap().set_len((512 << 20) + 1).unwrap();
        let table = [
            (&programs.listed, "rule", true),
            (&programs.packaged, "package-database", true),
            (&programs.agent, "survival-set", true),
            (&programs.unlisted, "unlisted", false),
            (&denied, "rule", false),
            (&written, "being-written", false),
            (&huge, "too-large", false),
        ];
        // Open for reading and writing: it could be executed if nobody had opened it before.
        let writer = fs::File::options().read(true).write(true).open(&written).unwrap();
        let before = table.map(|(path, ..)| explained(&machine, path));
        for ((path, cause, allowed), explanation) in table.iter().zip(&before) {
            assert_eq!((explanation.cause.as_str(), explanation.allowed), (*cause, *allowed), "{path:?}");
        }
        machine.obeyed(Restricted);
        for ((path, cause, allowed), before) in table.iter().zip(&before) {
            assert_eq!(&explained(&machine, path), before, "the same while restricted");
            if *cause == "being-written" {
                // The kernel itself answers ETXTBSY before anybody is asked.
                continue;
            }
            let expected = if *allowed { Execution::Ran } else { Execution::Refused };
            assert_eq!(run(path), expected, "{path:?}");
            if !allowed {
                let denial = until("the denial is there", || {
                    let Reply::Denials { denials, .. } = machine.ask(&Request::Denials) else { panic!() };
                    denials.into_iter().find(|denial| denial.path == path.to_str().unwrap())
                });
                assert_eq!((&denial.cause, &denial.rule, &denial.sha256), (&before.cause, &before.rule, &before.sha256));
            }
        }
        drop(writer);
        machine.obeyed(Released);
        let missing = explained(&machine, &machine.folder.join("missing"));
        assert_eq!((missing.cause.as_str(), missing.allowed), ("unreadable", false));
        let folder = explained(&machine, &machine.folder);
        assert!(folder.message.contains("not a regular file"), "{folder:?}");
    }
}
