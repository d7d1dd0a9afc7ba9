//! The running agent's connection to its server: a WebSocket over mutual TLS, on a task of its own.

use std::convert::Infallible;
use std::sync::Arc;

use agent_core::Input;
use agent_protocol::{FROM_SERVER_BYTES_MAX, FromAgent, FromServer, LINK_PATH, decode, encode};
use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use reqwest::Url;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use super::task::Task;
use crate::system;

/// The library's default of 128 KiB for each would be most of an idle connection's memory.
const BUFFER_BYTES: usize = 4096;
/// The most frames that wait to be sent: more means that the server does not read.
const WAITING_MAX: usize = 64;

/// One connection. Dropped, it says nothing more.
pub(super) struct LinkConnection {
    outgoing: mpsc::Sender<Message>,
    pub(super) inputs: mpsc::Receiver<Input>,
    _task: Task,
}

impl LinkConnection {
    pub(super) fn open(server: Url, tls: Arc<ClientConfig>) -> Self {
        let (outgoing, to_send) = mpsc::channel(WAITING_MAX);
        // Frames that the agent does not want yet stay on the wire.
        let (told, inputs) = mpsc::channel(1);
        let task = Task::spawn(async move {
            let Err(error) = converse(&server, tls, to_send, &told).await;
            // Nobody listens any more when the agent has dropped the connection.
            drop(told.send(Input::LinkLost(format!("{error:#}"))).await);
        });
        Self { outgoing, inputs, _task: task }
    }

    /// Sends a frame. False when too many wait, or the connection is gone.
    pub(super) fn send(&self, frame: &FromAgent) -> bool {
        self.outgoing.try_send(Message::text(encode(frame))).is_ok()
    }

    /// Asks for a sign of life. False as with [`LinkConnection::send`].
    pub(super) fn ping(&self) -> bool {
        self.outgoing.try_send(Message::Ping(Bytes::new())).is_ok()
    }
}

async fn converse(
    server: &Url,
    tls: Arc<ClientConfig>,
    to_send: mpsc::Receiver<Message>,
    inputs: &mpsc::Sender<Input>,
) -> Result<Infallible> {
    let host = server.host_str().context("the server's URL has no host")?.trim_matches(['[', ']']).to_owned();
    let port = server.port_or_known_default().context("the server's URL has no port")?;
    let stream = TcpStream::connect((host.as_str(), port)).await.with_context(|| format!("{host}:{port}"))?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(host).context("the server's URL")?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.context("TLS")?;
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(FROM_SERVER_BYTES_MAX))
        .max_frame_size(Some(FROM_SERVER_BYTES_MAX));
    let mut url = server.join(LINK_PATH)?;
    url.set_scheme("wss").map_err(|()| anyhow!("the server's URL"))?;
    let opened = client_async_with_config(url.as_str(), stream, Some(config)).await;
    let (sink, stream) = opened.context("the server does not open the connection")?.0.split();
    tell(inputs, Input::LinkConnected(Box::new(system::facts()))).await?;
    tokio::select! { ended = write(sink, to_send) => ended, ended = read(stream, inputs) => ended }
}

async fn write(
    mut sink: impl Sink<Message, Error = Error> + Unpin,
    mut to_send: mpsc::Receiver<Message>,
) -> Result<Infallible> {
    while let Some(message) = to_send.recv().await {
        sink.send(message).await?;
    }
    bail!("the agent has closed the connection")
}

async fn read(
    mut stream: impl Stream<Item = Result<Message, Error>> + Unpin,
    inputs: &mpsc::Sender<Input>,
) -> Result<Infallible> {
    loop {
        let input = match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                let frame: FromServer = decode(text.as_bytes(), FROM_SERVER_BYTES_MAX)?;
                Input::FrameReceived(Box::new(frame))
            }
            // The library answers pings by itself.
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Input::ServerHeard,
            Some(Ok(Message::Binary(_) | Message::Frame(_))) => bail!("frames are text"),
            Some(Ok(Message::Close(_))) | None => bail!("the server has closed the connection"),
            Some(Err(error)) => return Err(error.into()),
        };
        tell(inputs, input).await?;
    }
}

async fn tell(inputs: &mpsc::Sender<Input>, input: Input) -> Result<()> {
    inputs.send(input).await.context("the agent has closed the connection")
}
