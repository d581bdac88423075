//! What a connection is about, as far as it matters to those who keep the connections few.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::time::sleep;

/// What a connection is about.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// An answer is being made.
    answering: AtomicBool,
    /// The body of what is to be answered is still on its way.
    arriving: AtomicBool,
    /// How many answers have been begun.
    answers: AtomicU64,
}

impl Activity {
    /// An answer is being made for as long as the first of these is there. That does not make the
    /// connection busy before the body has come: as long as it likes, a client could send nothing.
    pub(super) fn begin<B: Body>(self: &Arc<Self>, body: B) -> (Answering, Arriving<B>) {
        self.arriving.store(!body.is_end_stream(), Ordering::Relaxed);
        self.answering.store(true, Ordering::Relaxed);
        self.answers.fetch_add(1, Ordering::Relaxed);
        (Answering(Arc::clone(self)), Arriving { body, activity: Arc::clone(self) })
    }

    /// Whether an answer is being made, and all is there that it takes.
    pub(super) fn is_busy(&self) -> bool {
        self.answering.load(Ordering::Relaxed) && !self.arriving.load(Ordering::Relaxed)
    }

    /// Ends once no answer was made for that long.
    pub(super) async fn stuck(&self, limit: Duration) {
        loop {
            let before = self.answers.load(Ordering::Relaxed);
            let busy = self.is_busy();
            sleep(limit).await;
            if !busy && !self.is_busy() && self.answers.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// An answer is being made for as long as this is there.
#[derive(Debug)]
pub(super) struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.store(false, Ordering::Relaxed);
    }
}

/// A body that is on its way until it has ended, or nobody wants it any more.
#[derive(Debug)]
pub(super) struct Arriving<B> {
    body: B,
    activity: Arc<Activity>,
}

impl<B> Arriving<B> {
    fn arrived(&self) {
        self.activity.arriving.store(false, Ordering::Relaxed);
    }
}

impl<B: Body + Unpin> Body for Arriving<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.arrived();
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

impl<B> Drop for Arriving<B> {
    fn drop(&mut self) {
        self.arrived();
    }
}
