//! Time limits inside one connection: for progress on the socket, and for the body of a request.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use axum::body::Bytes;
use axum::body::HttpBody;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// How long, and for how many bytes, a client may go on sending after our last word.
const LINGER_TIME_MAX: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A socket that fails once it has moved no byte in either direction for a while. Holds `slot` as long as it lives.
pub(super) struct Progress<S> {
    socket: TcpStream,
    _slot: S,
    silence_max: Duration,
    last: Instant,
    timer: Pin<Box<Sleep>>,
    linger: Option<Linger>,
}

/// The end of a connection.
struct Linger {
    timer: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl<S> Progress<S> {
    pub(super) fn new(socket: TcpStream, silence_max: Duration, slot: S) -> Self {
        let last = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(last + silence_max));
        Self { socket, _slot: slot, silence_max, last, timer, linger: None }
    }

    /// Takes what the client still sends, and drops it, until the client has closed too. To close on unread bytes would
    /// reset the connection, and a client that was refused in the middle of its request would never hear why.
    fn linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| Linger {
            timer: Box::pin(tokio::time::sleep(LINGER_TIME_MAX)),
            bytes_left: LINGER_BYTES_MAX,
        });
        let mut bytes = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.socket).poll_read(context, &mut buffer) {
                Poll::Pending => return linger.timer.as_mut().poll(context),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {
                    let length = buffer.filled().len();
                    linger.bytes_left = linger.bytes_left.saturating_sub(length);
                    if length == 0 || linger.bytes_left == 0 {
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    /// What an operation on the socket came to: progress, or an error once it has been silent for too long.
    fn note<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.last = Instant::now();
            return polled;
        }
        loop {
            ready!(self.timer.as_mut().poll(context));
            let end = self.last + self.silence_max;
            if end <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // The timer is set anew only when it fires, not with each byte.
            self.timer.as_mut().reset(end);
        }
    }
}

impl<S: Unpin> AsyncRead for Progress<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.socket).poll_read(context, buffer);
        self.note(context, polled)
    }
}

impl<S: Unpin> AsyncWrite for Progress<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.note(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write_vectored(context, buffers);
        self.note(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
        }
        self.linger(context).map(Ok)
    }
}

/// A body that fails when it has not come to its end in time, however steadily it drips.
pub(super) struct DeadlineBody {
    body: Incoming,
    deadline: Instant,
    /// Made when there is something to wait for: most bodies are there already.
    timer: Option<Pin<Box<Sleep>>>,
}

impl DeadlineBody {
    pub(super) fn new(body: Incoming, time_max: Duration) -> Self {
        Self { body, deadline: Instant::now() + time_max, timer: None }
    }
}

impl HttpBody for DeadlineBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|result| result.map_err(BoxError::from)));
        }
        let deadline = self.deadline;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Some(Err("the body did not come in time".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(silence_max: Duration) -> (Progress<()>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        (Progress::new(socket, silence_max, ()), client)
    }

    #[tokio::test]
    async fn a_silent_peer_is_dropped() {
        let (mut server, _client) = pair(Duration::from_millis(50)).await;
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_dropped() {
        let (mut server, _client) = pair(Duration::from_millis(50)).await;
        let error = server.write_all(&vec![0; 64 * 1024 * 1024]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_is_cut_off_hears_the_last_word() {
        let (mut server, mut client) = pair(Duration::from_secs(10)).await;
        let cut_off = async {
            server.read_u8().await.unwrap();
            server.write_all(b"too long").await.unwrap();
            server.shutdown().await.unwrap();
            drop(server);
        };
        let mut heard = Vec::new();
        let send_and_hear = async {
            client.write_all(&vec![0; 1024 * 1024]).await.unwrap();
            client.read_to_end(&mut heard).await.unwrap();
            drop(client);
        };
        tokio::join!(cut_off, send_and_hear);
        assert_eq!(heard, b"too long");
    }

    #[tokio::test]
    async fn a_client_that_never_closes_is_not_waited_for() {
        let (mut server, _client) = pair(Duration::from_secs(60)).await;
        let ended = tokio::time::timeout(LINGER_TIME_MAX * 10, server.shutdown()).await;
        ended.unwrap().unwrap();
    }

    #[tokio::test]
    async fn progress_renews_the_time() {
        let (mut server, mut client) = pair(Duration::from_millis(400)).await;
        let start = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while start.elapsed() < Duration::from_millis(900) {
            ticks.tick().await;
            client.write_u8(7).await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), 7);
        }
    }
}
