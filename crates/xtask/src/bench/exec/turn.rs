//! What a variant does in a turn, inside its namespace: a loop that between two measurements does nothing but read the
//! clock. It is this program again, started before anything is restricted.

use std::convert::Infallible;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

/// Opens of a file that are timed together: one takes little longer than reading the clock.
const OPENS: u32 = 200;
/// Files of the C project: with its last link that makes 405 executions, and 10,125 in 25 rounds.
pub(super) const SOURCES: usize = 134;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum What {
    /// fork + exec + wait of a small static program.
    Exec,
    /// open and close of a file.
    Open,
    /// An execution that ends with `ENOENT`, without a fork.
    Missing,
    /// The same of an unlisted program, which is refused.
    Refused,
    /// Compiling and linking a small C project, one file at a time.
    Compile,
}

impl What {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Open => "open",
            Self::Missing => "missing",
            Self::Refused => "refused",
            Self::Compile => "compile",
        }
    }

    /// Measurements in a turn.
    pub(super) fn count(self) -> usize {
        match self {
            Self::Exec | Self::Open | Self::Missing | Self::Refused => 20,
            Self::Compile => 1,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Exec, Self::Open, Self::Missing, Self::Refused, Self::Compile]
            .into_iter()
            .find(|what| what.name() == name)
    }
}

/// What is executed, opened and compiled, in a folder of the variant.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Fills a variant's folder. `program` is a small static one.
    pub(super) fn fill(folder: &Path, program: &Path) -> Result<Self> {
        let folder = Self(folder.join("measured"));
        fs::create_dir_all(folder.project())?;
        fs::copy(program, folder.program())?;
        fs::copy(program, folder.refused())?;
        let mut refused = fs::File::options().append(true).open(folder.refused())?;
        refused.write_all(b"nobody lists this one")?;
        fs::write(folder.opened(), "opened and closed\n")?;
        for number in 0..SOURCES {
            let main = if number == 0 { "int main(void) { return f1(1) == 0; }\n" } else { "" };
            let text = format!(
                "#include <stdio.h>\n#include <string.h>\nint f1(int);\nint f{number}(int x) {{\n    char text[64];\n    \
                 snprintf(text, sizeof text, \"%d\", x + {number});\n    return (int)strlen(text);\n}}\n{main}"
            );
            fs::write(folder.source(number), text)?;
        }
        Ok(folder)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn program(&self) -> PathBuf {
        self.0.join("small-static-program")
    }

    fn refused(&self) -> PathBuf {
        self.0.join("refused")
    }

    fn opened(&self) -> PathBuf {
        self.0.join("opened")
    }

    fn project(&self) -> PathBuf {
        self.0.join("project")
    }

    fn source(&self, number: usize) -> PathBuf {
        self.project().join(format!("f{number}.c"))
    }

    fn measure(&self, what: What, command: &mut Command) -> Result<Duration> {
        match what {
            What::Exec => {
                let start = Instant::now();
                let status = command.status()?;
                let time = start.elapsed();
                ensure!(status.success(), "{} ended with {status}", self.program().display());
                Ok(time)
            }
            What::Open => {
                let path = self.opened();
                let start = Instant::now();
                for _ in 0..OPENS {
                    drop(fs::File::open(&path)?);
                }
                Ok(start.elapsed() / OPENS)
            }
            What::Missing => fail_to_execute(&self.0.join("missing"), Errno::ENOENT),
            What::Refused => fail_to_execute(&self.refused(), Errno::EPERM),
            What::Compile => self.compile(),
        }
    }

    fn compile(&self) -> Result<Duration> {
        let cc = |arguments: &[String]| -> Result<()> {
            let mut command = Command::new("/usr/bin/cc");
            command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(self.project()).stdin(Stdio::null());
            let status = command.args(arguments).status()?;
            ensure!(status.success(), "cc ended with {status}");
            Ok(())
        };
        let start = Instant::now();
        for number in 0..SOURCES {
            cc(&["-O1".to_owned(), "-c".to_owned(), format!("f{number}.c")])?;
        }
        let objects = (0..SOURCES).map(|number| format!("f{number}.o"));
        cc(&["-o".to_owned(), "project".to_owned()].into_iter().chain(objects).collect::<Vec<_>>())?;
        Ok(start.elapsed())
    }
}

/// Fails to execute a file, in this very process, and holds that it fails as expected.
fn fail_to_execute(path: &Path, expected: Errno) -> Result<Duration> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let nothing: [CString; 0] = [];
    let start = Instant::now();
    // When it succeeds there is nobody here any more, and the turn has no answer.
    let failed: nix::Result<Infallible> = nix::unistd::execve(&path, &[&path], &nothing);
    let time = start.elapsed();
    ensure!(failed == Err(expected), "{path:?}: {failed:?}");
    Ok(time)
}

/// For each line with what to measure it measures as often as a turn has it, and answers a line of nanoseconds. Ends
/// with its standard input, and so with its parent.
pub(crate) fn exec_loop(folder: &Path) -> Result<()> {
    let folder = Folder(folder.to_owned());
    // Without arguments, environment or descriptors to arrange, this is posix_spawn, and thus vfork.
    let mut command = Command::new(folder.program());
    command.env_clear();
    let mut line = String::new();
    let mut input = std::io::stdin().lock();
    let mut output = std::io::stdout().lock();
    while input.read_line(&mut line)? > 0 {
        let what = What::parse(line.trim()).context("nothing that can be measured")?;
        let times: Vec<Duration> =
            (0..what.count()).map(|_| folder.measure(what, &mut command)).collect::<Result<_>>()?;
        line.clear();
        for time in times {
            write!(line, "{} ", time.as_nanos())?;
        }
        writeln!(output, "{}", line.trim_end())?;
        output.flush()?;
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_measures_what_it_is_told_to() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::fill(place.path(), Path::new("/bin/true")).unwrap();
        let mut command = Command::new(folder.program());
        for what in [What::Exec, What::Open, What::Missing] {
            assert_eq!(What::parse(what.name()), Some(what));
            assert!(folder.measure(what, &mut command).unwrap() > Duration::ZERO, "{what:?}");
        }
        // Nothing is restricted, so a file that is not even a program stands for one that is refused.
        fs::write(folder.refused(), "").unwrap();
        let error = folder.measure(What::Refused, &mut command).unwrap_err().to_string();
        assert!(error.contains("ENOEXEC"), "{error}");
    }
}
