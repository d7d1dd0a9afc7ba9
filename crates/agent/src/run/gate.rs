//! The running agent's connection to the gate, on a task of its own.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;

use agent_core::Input;
use gate_protocol::{Reply, Request, decode, encode, frame_length};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::task::Task;

/// One connection. Dropped, it says nothing more.
pub(super) struct GateConnection {
    requests: mpsc::Sender<Request>,
    pub(super) inputs: mpsc::Receiver<Input>,
    _task: Task,
}

impl GateConnection {
    pub(super) fn open(socket: PathBuf) -> Self {
        // Only one request is ever unanswered, and each has two replies at most.
        let (requests, asked) = mpsc::channel(1);
        let (told, inputs) = mpsc::channel(2);
        let task = Task::spawn(async move {
            let Err(error) = converse(socket, asked, &told).await;
            // Nobody listens any more when the agent has dropped the connection.
            drop(told.send(Input::GateLost(error.to_string())).await);
        });
        Self { requests, inputs, _task: task }
    }

    /// Sends a request. False when that is not possible: the reason comes as an input.
    pub(super) fn ask(&self, request: Request) -> bool {
        self.requests.try_send(request).is_ok()
    }
}

async fn converse(
    socket: PathBuf,
    mut requests: mpsc::Receiver<Request>,
    inputs: &mpsc::Sender<Input>,
) -> io::Result<Infallible> {
    let (mut reader, mut writer) = UnixStream::connect(&socket).await?.into_split();
    tell(inputs, Input::GateConnected).await?;
    let write = async {
        while let Some(request) = requests.recv().await {
            writer.write_all(&encode(&request)?).await?;
        }
        Err::<Infallible, io::Error>(io::ErrorKind::NotConnected.into())
    };
    let read = async {
        loop {
            let reply = read_reply(&mut reader).await?;
            tell(inputs, Input::GateReplied(Box::new(reply))).await?;
        }
    };
    tokio::select! { ended = write => ended, ended = read => ended }
}

async fn tell(inputs: &mpsc::Sender<Input>, input: Input) -> io::Result<()> {
    inputs.send(input).await.map_err(|_closed| io::ErrorKind::NotConnected.into())
}

/// Memory grows with what arrives, not with what the length claims.
async fn read_reply(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Reply> {
    let mut prefix = [0; 4];
    reader.read_exact(&mut prefix).await?;
    let length = frame_length(prefix)?;
    let mut bytes = Vec::new();
    reader.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    decode(&bytes)
}
