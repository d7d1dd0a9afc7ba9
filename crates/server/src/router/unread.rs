//! Bodies that no handler reads to their end, because the request was refused before.
//!
//! Many clients read no answer before they have sent everything, and take a connection that is closed on them for a
//! failure of the network. So the rest of a body is thrown away while the answer is on its way, up to a limit.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::runtime::Handle;

/// The most bytes of one body that are thrown away. The listener limits the time.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// A body whose rest is thrown away when it is dropped.
pub(super) struct Unread(Body);

impl Unread {
    pub(super) fn new(body: Body) -> Self {
        Self(body)
    }
}

impl HttpBody for Unread {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            // At its end, or beyond repair.
            self.0 = Body::empty();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let rest = std::mem::take(&mut self.0);
        if !rest.is_end_stream()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(throw_away(rest));
        }
    }
}

async fn throw_away(mut rest: Body) {
    let mut bytes: usize = 0;
    while let Some(Ok(frame)) = rest.frame().await {
        bytes = bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if bytes > BYTES_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream;

    use super::*;

    /// A body of kilobytes that counts how many were taken.
    fn counted(kilobytes: usize) -> (Body, Arc<AtomicUsize>) {
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&taken);
        let chunks = (0..kilobytes).map(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1024]))
        });
        (Body::from_stream(stream::iter(chunks)), taken)
    }

    async fn taken_after_drop(kilobytes: usize) -> usize {
        let (body, taken) = counted(kilobytes);
        drop(Unread::new(body));
        let mut before = usize::MAX;
        while before != taken.load(Ordering::Relaxed) {
            before = taken.load(Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
        before
    }

    #[tokio::test]
    async fn the_rest_is_taken_up_to_the_limit() {
        assert_eq!(taken_after_drop(10).await, 10);
        assert_eq!(taken_after_drop(100 * 1024).await, BYTES_MAX / 1024 + 1);
    }
}
