//! Follows what a connection waits for: its client, an answer, or that the answer is taken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use hyper::{Request, Response};
use tokio::time::sleep;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// A request, or the rest of one.
    Client,
    /// The answer, for which all is there.
    Answer,
    /// The client to take the answer.
    Sending,
}

/// How far one connection is.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// An answer is being made.
    answering: AtomicBool,
    /// The body of the request is still on its way.
    receiving: AtomicBool,
    /// The body of the answer is still on its way.
    sending: AtomicBool,
    /// How many answers, and pieces of them, there were.
    progress: AtomicU64,
}

impl Activity {
    pub(super) fn phase(&self) -> Phase {
        if self.answering.load(Relaxed) && !self.receiving.load(Relaxed) {
            Phase::Answer
        } else if self.sending.load(Relaxed) {
            Phase::Sending
        } else {
            Phase::Client
        }
    }

    /// Notes that an answer to this request is being made, for as long as the first of these is there.
    pub(super) fn begin<B: Body>(
        self: &Arc<Self>,
        request: Request<B>,
    ) -> (Answering, Request<Tracked<B>>) {
        self.receiving.store(!request.body().is_end_stream(), Relaxed);
        self.answering.store(true, Relaxed);
        self.progress.fetch_add(1, Relaxed);
        let request = request.map(|body| Tracked::new(body, self, Part::Request));
        (Answering(Arc::clone(self)), request)
    }

    /// Ends once the client has neither asked nor taken anything for that long.
    pub(super) async fn stuck(&self, limit: Duration) {
        loop {
            let before = (self.progress.load(Relaxed), self.phase() == Phase::Answer);
            sleep(limit).await;
            let after = (self.progress.load(Relaxed), self.phase() == Phase::Answer);
            if before == after && !after.1 {
                return;
            }
        }
    }
}

/// An answer is being made for as long as this is there.
pub(super) struct Answering(Arc<Activity>);

impl Answering {
    /// Notes that the answer is made, and on its way.
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
        if self.part == Part::Answer {
            self.activity.progress.fetch_add(1, Relaxed);
        }
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
        self.ended();
    }
}
