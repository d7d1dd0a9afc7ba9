//! How an interpreter may start. What it is (its class, whether it is listed) is decided before; here it is only how.
//!
//! Whether code on a command line or in the environment is harmless cannot be known, so a level either does not look
//! or refuses. What is below a system unit is left alone: it was configured by root, and the machine needs it.

use domain::policy_settings::Interpreters;
use domain::program_class::{ProgramClass, ProgramClasses};
use domain::program_start::{ProgramStart, Starter};

use crate::classes::ProgramTable;

/// What decides about a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    starter: Starter,
    /// Its arguments hold code or name it ([`names_code`]).
    code_in_arguments: bool,
    /// A variable of its environment makes it run other code ([`is_hostile_environment`]).
    hostile_environment: bool,
}

/// Whether every start of such a program is to be looked at: because of what it is, or because a script may have it
/// start an interpreter (`#!/usr/bin/env python3`).
pub fn is_looked_at(level: Interpreters, classes: ProgramClasses) -> bool {
    depends_on_start(level, classes)
        || level != Interpreters::Open && classes.contains(ProgramClass::Launcher)
}

/// Whether a listed program of these classes may start in this way. What could not be read speaks against it.
pub fn may_start(level: Interpreters, classes: ProgramClasses, seen: &ProgramStart) -> bool {
    fn all(lines: &[Vec<u8>]) -> impl Iterator<Item = &[u8]> {
        lines.iter().map(Vec::as_slice)
    }
    let start = Start {
        starter: seen.starter,
        code_in_arguments: seen.arguments.as_ref().is_none_or(|arguments| names_code(all(arguments))),
        hostile_environment: seen.environment.as_ref().is_none_or(|lines| is_hostile_environment(all(lines))),
    };
    admits(level, classes, start)
}

fn depends_on_start(level: Interpreters, classes: ProgramClasses) -> bool {
    match level {
        Interpreters::Open => false,
        Interpreters::Default => classes.contains(ProgramClass::Interpreter),
        Interpreters::Strict => {
            classes.contains(ProgramClass::Interpreter) || classes.contains(ProgramClass::Shell)
        }
    }
}

fn admits(level: Interpreters, classes: ProgramClasses, start: Start) -> bool {
    if !depends_on_start(level, classes) || start.starter == Starter::SystemUnit {
        return true;
    }
    if level == Interpreters::Strict && start.hostile_environment {
        return false;
    }
    // Of the shells only `strict` asks; one that people type into starts without code.
    start.starter == Starter::ListedScript
        || !classes.contains(ProgramClass::Interpreter) && !start.code_in_arguments
}

/// Whether a shell's arguments, the first being its own name, hold code (`-c`), name it, or let it come from a pipe.
fn names_code<'a>(arguments: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut arguments = arguments.into_iter().skip(1);
    while let Some(argument) = arguments.next() {
        match argument {
            b"--" => return arguments.next().is_some(),
            // With a value: an option of the shell by its name.
            b"-o" | b"+o" | b"-O" | b"+O" => drop(arguments.next()),
            b"--login" | b"--noprofile" | b"--norc" | b"--posix" | b"--restricted" | b"--verbose" => {}
            option if is_short(option) => {}
            _operand_or_other_option => return true,
        }
    }
    false
}

/// Short options that neither take code nor read it from a pipe.
fn is_short(option: &[u8]) -> bool {
    match option.split_first() {
        Some((b'-' | b'+', letters)) if !letters.is_empty() => {
            letters.iter().all(|letter| letter.is_ascii_alphabetic() && !b"csoO".contains(letter))
        }
        Some(_) | None => false,
    }
}

/// Whether one of these `NAME=value` makes an interpreter run other code.
fn is_hostile_environment<'a>(environment: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let table = ProgramTable::built_in();
    environment.into_iter().any(|variable| {
        let name = variable.split(|byte| *byte == b'=').next().unwrap_or_default();
        table.is_hostile(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: &[ProgramClass] = &[ProgramClass::Shell];
    const INTERPRETER: &[ProgramClass] = &[ProgramClass::Interpreter];
    const OTHER: &[ProgramClass] = &[ProgramClass::Jit, ProgramClass::DualUse, ProgramClass::Launcher];

    fn classes(of: &[ProgramClass]) -> ProgramClasses {
        of.iter().copied().collect()
    }

    /// A start in short: by a `s`cript or a `u`nit, `c`ode in arguments, hostile `e`nvironment.
    fn start(text: &str) -> Start {
        Start {
            starter: match (text.contains('u'), text.contains('s')) {
                (true, _) => Starter::SystemUnit,
                (false, true) => Starter::ListedScript,
                (false, false) => Starter::Anyone,
            },
            code_in_arguments: text.contains('c'),
            hostile_environment: text.contains('e'),
        }
    }

    /// Every start, as [`start`] reads it.
    fn all_starts() -> Vec<String> {
        let letter = |bits: u8, bit: u8, letter: char| (bits & bit != 0).then_some(letter);
        let text = |bits: u8| {
            [letter(bits, 1, 's'), letter(bits, 2, 'u'), letter(bits, 4, 'c'), letter(bits, 8, 'e')]
                .into_iter()
                .flatten()
                .collect()
        };
        (0..16).map(text).collect()
    }

    #[test]
    fn the_table_of_levels() {
        use Interpreters::{Default, Open, Strict};
        for (level, of, refused) in [
            (Open, SHELL, &[][..]),
            (Open, INTERPRETER, &[]),
            (Default, SHELL, &[]),
            (Default, INTERPRETER, &["", "c", "e", "ce"]),
            (Strict, SHELL, &["c", "e", "ce", "se", "sce"]),
            (Strict, INTERPRETER, &["", "c", "e", "ce", "se", "sce"]),
        ] {
            for text in all_starts() {
                let may = admits(level, classes(of), start(&text));
                assert_eq!(may, !refused.contains(&text.as_str()), "{level} {of:?} {text:?}");
            }
        }
    }

    #[test]
    fn other_programs_start_in_every_way_and_are_not_looked_at() {
        for level in Interpreters::ALL {
            assert!(!depends_on_start(*level, classes(OTHER)));
            assert!(all_starts().iter().all(|text| admits(*level, classes(OTHER), start(text))));
        }
    }

    #[test]
    fn what_is_seen_is_what_decides() {
        use Interpreters::{Default, Open, Strict};
        let lines = |text: &str| Some(text.split(' ').map(|line| line.as_bytes().to_vec()).collect());
        let seen = |starter, arguments: &str, environment: &str| ProgramStart {
            starter,
            arguments: lines(arguments),
            environment: lines(environment),
        };
        let unread = |starter| ProgramStart { starter, arguments: None, environment: None };
        for (level, of, start, may) in [
            (Strict, SHELL, seen(Starter::Anyone, "bash -l", "PATH=/bin"), true),
            (Strict, SHELL, seen(Starter::Anyone, "bash -c id", "PATH=/bin"), false),
            (Strict, SHELL, seen(Starter::Anyone, "bash", "BASH_ENV=x"), false),
            (Strict, SHELL, seen(Starter::ListedScript, "sh /usr/bin/x", "PATH=/bin"), true),
            (Strict, SHELL, unread(Starter::ListedScript), false),
            (Strict, SHELL, unread(Starter::SystemUnit), true),
            (Default, INTERPRETER, unread(Starter::ListedScript), true),
            (Default, INTERPRETER, unread(Starter::Anyone), false),
            (Open, INTERPRETER, unread(Starter::Anyone), true),
        ] {
            assert_eq!(may_start(level, classes(of), &start), may, "{level} {of:?} {start:?}");
        }
    }

    #[test]
    fn launchers_are_looked_at_and_never_refused() {
        let env = classes(&[ProgramClass::Launcher]);
        let looked_at = Interpreters::ALL.iter().map(|level| is_looked_at(*level, env)).collect::<Vec<_>>();
        assert_eq!(looked_at, [false, true, true]);
    }

    #[test]
    fn a_higher_level_and_a_worse_start_never_allow_more() {
        for of in [SHELL, INTERPRETER, OTHER, &ProgramClass::ALL] {
            for text in all_starts() {
                let may = |level: &Interpreters, text: &str| admits(*level, classes(of), start(text));
                let by_level: Vec<_> = Interpreters::ALL.iter().map(|level| may(level, &text)).collect();
                assert!(by_level.is_sorted_by(|lower, higher| lower >= higher), "{of:?} {text:?}");
                for level in Interpreters::ALL {
                    assert!(may(level, &text) || !may(level, &format!("{text}ce")), "{of:?} {text:?}");
                    assert!(may(level, &text) || !may(level, &text.replace(['s', 'u'], "")));
                }
                assert!(
                    Interpreters::ALL
                        .iter()
                        .all(|level| { may(level, &text) || depends_on_start(*level, classes(of)) })
                );
            }
        }
    }

    #[test]
    fn code_in_a_shells_arguments_is_seen() {
        let names = |line: &str| names_code(line.split(' ').map(str::as_bytes));
        for line in [
            "bash x.sh",
            "bash -c id",
            "bash -ec id",
            "bash -x -c id",
            "sh -s",
            "sh -es",
            "sh -",
            "bash -- x.sh",
            "bash --rcfile x",
            "bash --init-file x",
            "bash -o posix x.sh",
            "bash +x x.sh",
            "bash -i x",
            "sh -é",
        ] {
            assert!(names(line), "{line}");
        }
        for line in
            ["-bash", "bash", "bash -l", "bash -il", "bash --login -i", "bash -o posix", "sh -x", "sh --"]
        {
            assert!(!names(line), "{line}");
        }
        assert!(!names_code([]));
    }

    #[test]
    fn hostile_environments_are_seen_by_name() {
        let is_hostile = |all: &[&str]| is_hostile_environment(all.iter().map(|one| one.as_bytes()));
        assert!(is_hostile(&["PATH=/bin", "LD_PRELOAD=/tmp/x.so"]) && is_hostile(&["PYTHONPATH"]));
        assert!(!is_hostile(&["PATH=LD_PRELOAD=x", "=", ""]) && !is_hostile(&[]));
    }
}
