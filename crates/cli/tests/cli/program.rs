//! The program as a person runs it: with a home folder of its own and nothing else in the environment.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use crate::stand_in::{CLIENT_ID, SECRET, StandIn};

pub(crate) struct Program {
    home: tempfile::TempDir,
    environment: Vec<(&'static str, String)>,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Program {
    /// Nothing is known about any server.
    pub(crate) fn bare() -> Self {
        Self { home: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    /// The server and an app's credentials are in the environment.
    pub(crate) fn of(server: &StandIn) -> Self {
        let mut program = Self::bare();
        let ca_file = program.file("ca.pem", &server.ca_certificate);
        program.environment = vec![
            ("CORDON_SERVER", server.url.clone()),
            ("CORDON_CLIENT_ID", CLIENT_ID.to_owned()),
            ("CORDON_CLIENT_SECRET", SECRET.to_owned()),
            ("CORDON_CA_FILE", ca_file.to_str().unwrap().to_owned()),
        ];
        program
    }

    /// Sets, or replaces, an environment variable.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Writes a file in the home folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn profile_file(&self) -> PathBuf {
        self.home.path().join(".config/cordon/profile.toml")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cordon"));
        command.env_clear().env("HOME", self.home.path()).envs(self.environment.iter().cloned());
        command.args(arguments).current_dir(self.home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        self.command(arguments).output().unwrap().into()
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Run {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    }
}

impl Run {
    /// The error: one line on standard error, and nothing on standard output.
    pub(crate) fn error(&self, code: i32) -> &str {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{self:?}");
        let line = self.stderr.strip_suffix('\n').unwrap();
        assert!(!line.contains('\n'), "{line}");
        line.strip_prefix("cordon: ").unwrap()
    }

    /// Standard output of a run that ended well.
    pub(crate) fn result(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.stdout
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Sends SIGINT, as Ctrl-C does.
pub(crate) fn interrupt(child: &Child) {
    let script = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
}

/// Reads lines until one contains `text`.
pub(crate) fn read_until(stream: impl std::io::Read, text: &str) -> impl std::io::Read {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "no line with {text}");
        if line.contains(text) {
            return reader;
        }
    }
}

/// Reads the rest.
pub(crate) fn rest(mut stream: impl std::io::Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Waits for a state, at most half a minute.
pub(crate) fn poll_until(state: &str, reached: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !reached() {
        assert!(start.elapsed().as_secs() < 30, "waited in vain until {state}");
        std::thread::yield_now();
    }
}
