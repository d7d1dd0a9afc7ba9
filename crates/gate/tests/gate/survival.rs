//! What always runs on a restricted machine, what people are told of the rest, and which denials the agent hears of.

use domain::restriction::Desired::{Released, Restricted};
use gate_protocol::{Explanation, Reply, Request};
use nix::sys::signal::Signal::SIGKILL;

use crate::support::*;

gate_test! {
    fn a_program_put_in_the_agents_place_does_not_count() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        let agent = machine.programs().agent;
        install(&agent, &program("put in its place"));
        assert_eq!(run(&agent), Execution::Refused);
        // Nor after a start, nor after another restriction.
        machine.restart();
        assert_eq!(run(&agent), Execution::Refused);
        let order = machine.order(Restricted);
        machine.apply(&machine.sign(&order)).unwrap();
        assert_eq!(run(&agent), Execution::Refused);
        machine.stop(SIGKILL);
        std::fs::remove_file(machine.state("baseline")).unwrap();
        machine.start();
        assert_eq!(run(&agent), Execution::Refused);
        // The one from before still runs, and while released the new one may become it.
        install(&agent, &program("agent"));
        assert_eq!(run(&agent), Execution::Ran);
        let order = machine.order(Released);
        machine.apply(&machine.sign(&order)).unwrap();
        install(&agent, &program("an update"));
        assert_eq!(machine.send_baseline(&machine.baseline()), Reply::Done);
        machine.obeyed(Restricted);
    }
}

gate_test! {
    fn a_packaged_file_counts_only_in_its_place() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        let packaged = machine.programs().packaged;
        let copy = machine.folder.join("copy");
        install(&copy, &program("packaged"));
        assert_eq!(run(&copy), Execution::Refused);
        // The same file under another name is the same file.
        let link = machine.folder.join("link");
        std::fs::hard_link(&packaged, &link).unwrap();
        assert_eq!(run(&link), Execution::Ran);
        install(&packaged, &program("something else"));
        assert_eq!(run(&packaged), Execution::Refused);
        std::fs::rename(&copy, &packaged).unwrap();
        assert_eq!(run(&packaged), Execution::Ran, "in its place it is the packaged one");
    }
}

fn explained(machine: &Machine, path: &std::path::Path) -> Explanation {
    let path = path.to_str().unwrap().to_owned();
    match machine.connect_as(AGENT).ask(&Request::Explain { path }) {
        Reply::Explanation(explanation) => explanation,
        other => panic!("{other:?}"),
    }
}

gate_test! {
    fn an_explanation_is_what_would_happen() {
        let mut machine = Machine::new();
        let programs = machine.programs();
        for desired in [Released, Restricted, Released] {
            for (path, name, allowed, cause) in [
                (&programs.unlisted, "unlisted", false, "unlisted"),
                (&programs.listed, "listed", true, "rule"),
                (&programs.packaged, "packaged", true, "package-database"),
                (&programs.agent, "agent", true, "survival-set"),
            ] {
                let explanation = explained(&machine, path);
                assert_eq!((explanation.allowed, explanation.cause.as_str()), (allowed, cause), "{name}");
                assert_eq!(explanation.sha256, Some(digest(&program(name)).to_string()));
                assert_eq!(explanation.rule.as_deref(), allowed.then_some("listed").filter(|_| cause == "rule"));
            }
            // Asking changed nothing: what is in force is what the order said.
            machine.obeyed(desired);
            assert_eq!(machine.status().policy.is_some(), desired == Restricted);
        }
        let fifo = machine.folder.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), &machine.folder, &machine.folder.join("missing")] {
            let explanation = explained(&machine, path);
            assert_eq!((explanation.allowed, explanation.cause.as_str()), (false, "unreadable"));
        }
    }
}

gate_test! {
    fn denials_reach_the_agent() {
        let mut machine = Machine::new();
        machine.obeyed(Restricted);
        let mut agent = machine.connect_as(AGENT);
        let mut taken = Vec::new();
        let mut take = |agent: &mut Client| match agent.ask(&Request::Denials) {
            Reply::Denials { denials, dropped } => {
                assert_eq!(dropped, 0);
                taken.extend(denials);
                taken.clone()
            }
            other => panic!("{other:?}"),
        };
        // A name that a terminal would obey.
        let evil = machine.folder.join("evil\x1b[2J\n");
        install(&evil, &program("evil"));
        assert_eq!(run(&evil), Execution::Refused);
        let denial = until("the denial is told", || {
            take(&mut agent).into_iter().find(|denial| denial.path.contains("evil"))
        });
        assert!(denial.path.ends_with("evil\\u{1b}[2J\\n"), "{}", denial.path);
        assert_eq!((denial.cause.as_str(), denial.rule), ("unlisted", None));
        assert_eq!(denial.sha256, Some(digest(&program("evil")).to_string()));
        let others: Vec<_> = taken.iter().map(|denial| &denial.path).collect();
        // Nobody needs to hear of the canary, which must be refused.
        assert!(!others.iter().any(|path| path.contains("canaries")), "{others:?}");
    }
}

gate_test! {
    fn names_that_are_long_and_hostile_do_not_keep_denials_from_the_agent() {
        let mut machine = Machine::new();
        let mut folder = machine.folder.clone();
        while folder.as_os_str().len() < 3_700 {
            folder.push("\x1b".repeat(200));
            std::fs::create_dir(&folder).unwrap();
        }
        let paths: Vec<_> = (0..300).map(|i| folder.join(format!("{i}"))).collect();
        std::fs::write(&paths[0], program("hostile")).unwrap();
        install(&paths[0], &program("hostile"));
        paths[1..].iter().for_each(|path| std::fs::hard_link(&paths[0], path).unwrap());
        machine.obeyed(Restricted);
        for path in &paths {
            assert_eq!(run(path), Execution::Refused);
        }
        let mut agent = machine.connect_as(AGENT);
        let mut told = 0;
        until("all are told", || {
            let Reply::Denials { denials, .. } = agent.ask(&Request::Denials) else { panic!("no denials") };
            told += denials.iter().filter(|denial| denial.path.contains("u{1b}")).count();
            (told == paths.len()).then_some(())
        });
    }
}
