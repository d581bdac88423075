//! Tracks the phase of a connection: it waits for its client, for an answer, or for the client to read the answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The event that a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The rest of a request.
    Client,
    /// The answer. The request is complete.
    Answer,
    /// The client, which has to read the answer.
    Sending,
    /// The next request, which has not begun.
    Idle,
}

/// The progress of one connection.
#[derive(Debug)]
pub(super) struct Activity {
    /// An answer is being made.
    answering: AtomicBool,
    /// The body of the request is still on its way.
    receiving: AtomicBool,
    /// The body of the answer is still on its way.
    sending: AtomicBool,
    /// The client does not read the written bytes.
    blocked: AtomicBool,
    /// The number of requests that have begun, and of writes that have ended.
    progress: AtomicU64,
    /// The end of a request was not read, because its answer did not need it.
    unread: AtomicBool,
    /// The head of a request has begun to come.
    head: watch::Sender<bool>,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            answering: AtomicBool::default(),
            receiving: AtomicBool::default(),
            sending: AtomicBool::default(),
            blocked: AtomicBool::default(),
            progress: AtomicU64::default(),
            unread: AtomicBool::default(),
            // Time for the first head runs from the start.
            head: watch::Sender::new(true),
        }
    }
}

impl Activity {
    pub(super) fn phase(&self) -> Phase {
        if self.answering.load(Relaxed) && !self.receiving.load(Relaxed) {
            Phase::Answer
        } else if self.sending.load(Relaxed) || self.blocked.load(Relaxed) {
            Phase::Sending
        } else if self.receiving.load(Relaxed) || *self.head.borrow() {
            Phase::Client
        } else {
            Phase::Idle
        }
    }

    /// Records that an answer to this request is being made, until the returned [`Answering`] is dropped.
    pub(super) fn begin<B: Body>(
        self: &Arc<Self>,
        request: Request<B>,
    ) -> (Answering, Request<Tracked<B>>) {
        self.receiving.store(!request.body().is_end_stream(), Relaxed);
        self.answering.store(true, Relaxed);
        self.head.send_replace(false);
        self.progress.fetch_add(1, Relaxed);
        let request = request.map(|body| Tracked::new(body, self, Part::Request));
        (Answering(Arc::clone(self)), request)
    }

    /// Ends once the connection has waited only for its client for this time, or up to twice as long: for the rest of
    /// one request, whether or not some of it arrives, or for the client to read any of the answer.
    pub(super) async fn stuck(&self, limit: Duration) {
        let state = || {
            let waits = matches!(self.phase(), Phase::Client | Phase::Sending);
            (self.progress.load(Relaxed), waits)
        };
        loop {
            let before = state();
            sleep(limit).await;
            if before == state() && before.1 {
                return;
            }
        }
    }

    /// Ends once the head of a request has taken this time.
    pub(super) async fn slow_head(&self, limit: Duration) {
        let mut head = self.head.subscribe();
        loop {
            let _ = head.wait_for(|has_begun| *has_begun).await;
            if timeout(limit, head.wait_for(|has_begun| !has_begun)).await.is_err() {
                return;
            }
        }
    }

    /// Records whether the client reads the written bytes.
    fn note_write<T>(&self, written: &Poll<T>) {
        self.blocked.store(written.is_pending(), Relaxed);
        if written.is_ready() {
            self.progress.fetch_add(1, Relaxed);
        }
    }

    /// Whether the end of a request was not read.
    pub(super) fn has_unread_body(&self) -> bool {
        self.unread.load(Relaxed)
    }
}

/// An answer is being made until this is dropped.
pub(super) struct Answering(Arc<Activity>);

impl Answering {
    /// Records that the answer is made, and under way.
    pub(super) fn send<B>(self, answer: Response<B>) -> Response<Tracked<B>> {
        self.0.sending.store(true, Relaxed);
        answer.map(|body| Tracked::new(body, &self.0, Part::Answer))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.store(false, Relaxed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Request,
    Answer,
}

/// A body that is on its way until it ends, or is dropped.
#[derive(Debug)]
pub(super) struct Tracked<B> {
    body: B,
    activity: Arc<Activity>,
    part: Part,
}

impl<B> Tracked<B> {
    fn new(body: B, activity: &Arc<Activity>, part: Part) -> Self {
        Self { body, activity: Arc::clone(activity), part }
    }

    fn ended(&self) {
        match self.part {
            Part::Request => self.activity.receiving.store(false, Relaxed),
            Part::Answer => self.activity.sending.store(false, Relaxed),
        }
    }
}

impl<B: Body + Unpin> Body for Tracked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.part == Part::Request && self.body.is_end_stream() {
            self.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Tracked<B> {
    fn drop(&mut self) {
        if self.part == Part::Request && self.activity.receiving.load(Relaxed) {
            self.activity.unread.store(true, Relaxed);
        }
        self.ended();
    }
}

/// A connection that records when a request begins, and whether the client reads its answer.
pub(super) struct Watched<'a, C> {
    pub(super) connection: C,
    pub(super) activity: &'a Activity,
}

impl<C: AsyncRead + Unpin> AsyncRead for Watched<'_, C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.connection).poll_read(context, buffer));
        if buffer.filled().len() > before && self.activity.phase() == Phase::Idle {
            self.activity.head.send_replace(true);
        }
        Poll::Ready(read)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Watched<'_, C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write(context, bytes);
        self.activity.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write_vectored(context, buffers);
        self.activity.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}
