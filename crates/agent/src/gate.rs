//! The gate, asked by a command or by the inventory, one request after the other.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::digest::Sha256Digest;
use gate_protocol::{CHUNK_BYTES_MAX, Reply, Request, Status, read_frame, write_frame};

/// The gate reads a whole baseline before it answers the end of its transfer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);
/// The piece of a baseline in one frame: small, because it is in memory several times.
const PIECE_BYTES: usize = CHUNK_BYTES_MAX / 4;

/// A connection to the gate.
pub(crate) struct Gate {
    stream: UnixStream,
}

impl Gate {
    /// Connects.
    ///
    /// # Errors
    /// When no gate listens there.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("the gate is not running: nothing answers on {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
        Ok(Self { stream })
    }

    /// One request, one reply.
    ///
    /// # Errors
    /// When the gate goes away, or refuses: its reason.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply> {
        write_frame(&mut self.stream, request).context("the gate went away")?;
        match read_frame(&mut self.stream).context("the gate does not answer")? {
            Some(Reply::Refused { reason }) => bail!("the gate refuses: {reason}"),
            Some(reply) => Ok(reply),
            // It closes connections that are too many, without a word.
            None => bail!("the gate closed the connection"),
        }
    }

    /// The gate's state.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn status(&mut self) -> Result<Status> {
        let reply = self.ask(&Request::Status)?;
        let Reply::Status(status) = reply else { bail!("the gate answered {reply:?}") };
        Ok(*status)
    }

    /// A request that is answered with [`Reply::Done`].
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn do_it(&mut self, request: &Request) -> Result<()> {
        let reply = self.ask(request)?;
        ensure!(reply == Reply::Done, "the gate answered {reply:?}");
        Ok(())
    }

    /// Gives the gate a baseline of this length and digest, piece by piece.
    ///
    /// # Errors
    /// When it cannot be read, or the gate refuses it.
    pub(crate) fn give_baseline(
        &mut self,
        mut from: impl io::Read,
        bytes: u64,
        sha256: Sha256Digest,
    ) -> Result<()> {
        self.do_it(&Request::BaselineBegin { bytes, sha256: sha256.to_string() })?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = from.read(&mut piece).context("cannot read the baseline back")?;
            let Some(piece) = piece.get(..count).filter(|piece| !piece.is_empty()) else { break };
            self.do_it(&Request::BaselineChunk { data: STANDARD.encode(piece) })?;
        }
        self.do_it(&Request::BaselineEnd)
    }
}
