//! What the program says about itself.

use std::fmt::Write as _;

use expect_test::expect_file;

use crate::program::Program;

const COMMANDS: &[&str] = &[
    "",
    "login",
    "logout",
    "whoami",
    "machine",
    "machine list",
    "machine show",
    "machine find",
    "machine actions",
    "machine restrict",
    "machine unrestrict",
    "machine preview",
    "machine break-glass-code",
    "machine tag",
    "machine tag add",
    "machine tag remove",
    "action",
    "action list",
    "action show",
    "action cancel",
    "action wait",
    "policy",
    "policy list",
    "policy show",
    "policy apply",
    "policy revisions",
    "policy diff",
    "manifest",
    "manifest key",
    "manifest sign",
    "machine-group",
    "machine-group list",
    "machine-group show",
    "machine-group save",
    "machine-group preview",
    "machine-group delete",
    "enrollment-token",
    "enrollment-token create",
    "enrollment-token list",
    "enrollment-token revoke",
    "app",
    "app list",
    "app show",
    "app create",
    "app update",
    "app revoke",
    "app secret",
    "app secret renew",
    "app key",
    "app key add",
    "app key list",
    "app key remove",
    "user",
    "user list",
    "user show",
    "user create",
    "user update",
    "user disable",
    "user enable",
    "user reset-password",
    "user delete",
    "role",
    "role list",
    "role show",
    "role save",
    "role delete",
    "settings",
    "settings list",
    "settings set",
    "settings unset",
    "apply",
    "diff",
    "event",
    "event list",
    "audit",
    "audit list",
    "audit export",
    "completion",
];

#[test]
fn help_of_every_command() {
    let program = Program::bare();
    let mut all = String::new();
    for command in COMMANDS {
        let words: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let run = program.run(&words);
        let mut text = run.result().to_owned();
        if !command.is_empty() {
            // The same everywhere; the first one shows it.
            let (before, connection) = text.split_once("\nConnection:\n").unwrap();
            text = match connection.split_once("\n\n") {
                Some((_, after)) => format!("{before}\n{after}"),
                None => before.to_owned(),
            };
        }
        write!(all, "$ cordon {}\n{text}\n", words.join(" ")).unwrap();
    }
    expect_file!["help.txt"].assert_eq(&all);
}

#[test]
fn no_command_is_missing_above() {
    let program = Program::bare();
    for command in COMMANDS {
        let words: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let run = program.run(&words);
        let Some((_, commands)) = run.result().split_once("Commands:\n") else { continue };
        let names = commands
            .lines()
            .take_while(|line| !line.is_empty())
            // What is further in goes on with a description.
            .filter(|line| !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next());
        for name in names.filter(|name| *name != "help") {
            let full = format!("{command} {name}");
            assert!(COMMANDS.contains(&full.trim()), "{full}");
        }
    }
}

#[test]
fn help_keeps_secrets_of_the_environment() {
    let program = Program::bare().with("CORDON_CLIENT_SECRET", "s3cret");
    let run = program.run(&["machine", "list", "--help"]);
    assert!(run.result().contains("CORDON_CLIENT_SECRET") && !run.stdout.contains("s3cret"));
}

#[test]
fn every_shell_gets_a_completion_script() {
    let program = Program::bare();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(program.run(&["completion", shell]).result().contains("enrollment-token"), "{shell}");
    }
    assert_eq!(program.run(&["completion", "tcsh"]).code, 2);
}
