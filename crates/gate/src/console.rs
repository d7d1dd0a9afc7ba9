//! What people and packages do with the gate on the machine itself.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use gate_protocol::{Reply, Request, Status, read_frame, write_frame};

use crate::config::Config;
use crate::gate::Gate;
use crate::state;

/// How long the gate may take to answer: a switch with its canaries takes less than a second.
const REPLY_MAX: Duration = Duration::from_secs(30);
/// The longest line that is read as a code, in bytes.
const LINE_BYTES_MAX: u64 = 1024;

/// The running gate's state.
///
/// # Errors
/// When no gate answers.
pub fn status(socket: &Path) -> Result<Status> {
    let stream = connect(socket).with_context(|| format!("no gate answers on {}", socket.display()))?;
    let reply = ask(stream, &Request::Status)?;
    if let Reply::Status(status) = reply {
        return Ok(*status);
    }
    bail!("the gate on {} answered {reply:?}", socket.display())
}

/// Asks for a break-glass code and gives it to the gate: to the one that runs, else to one that `start` makes of the
/// state on disk. What proves the lift.
///
/// # Errors
/// Why the restriction is not lifted, in one sentence.
pub fn break_glass(
    socket: &Path,
    out: &mut impl Write,
    start: impl FnOnce() -> Result<Gate>,
) -> Result<String> {
    if std::io::stdin().is_terminal() {
        write!(out, "Break-glass code: ")?;
        out.flush()?;
    }
    let mut code = String::new();
    std::io::stdin().lock().take(LINE_BYTES_MAX).read_line(&mut code).context("no code can be read")?;
    let stream = match connect(socket) {
        Ok(stream) => stream,
        Err(error) => {
            writeln!(
                out,
                "No gate answers on {} ({error}): its state is used without it.",
                socket.display()
            )?;
            return start()?.break_glass(&code);
        }
    };
    let reply = ask(stream, &Request::BreakGlass { code })?;
    if let Reply::Lifted { proof } = reply {
        return Ok(proof);
    }
    if let Reply::Refused { reason } = reply {
        bail!(reason);
    }
    bail!("the gate on {} answered {reply:?}", socket.display())
}

/// Why Cordon must not be removed from this machine now; none when it may be.
pub fn why_restricted(config: &Config) -> Option<String> {
    match status(&config.socket) {
        Ok(status) if status.restricted => {
            Some(status.failed_closed.unwrap_or_else(|| "the restriction is in force".to_owned()))
        }
        Ok(_) => None,
        // A gate that does not run lifts nothing: what it keeps counts.
        Err(_) => state::why_restricted(&config.state_dir),
    }
}

fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(REPLY_MAX))?;
    stream.set_write_timeout(Some(REPLY_MAX))?;
    Ok(stream)
}

fn ask(mut stream: UnixStream, request: &Request) -> Result<Reply> {
    write_frame(&mut stream, request)?;
    read_frame(&mut stream).context("the gate does not answer")?.context("the gate hung up")
}
