//! The life of one request: what has happened to it, and where it is now.

use anyhow::Context as _;
use async_nats::jetstream::Context;
use contract::RequestId;
use contract::facts::{Fact, Received};
use contract::queues::{self, Acknowledgment, Queue, Request};
use futures_util::TryStreamExt;

use crate::dead_letters::{self, DeadLetter};
use crate::reading::last_under;

/// What there is of one request.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// What was asked, when and by whom, once it was accepted.
    pub requested: Option<Request>,
    /// What was stored, when and by whom, and who had made it.
    pub stored: Option<Acknowledgment>,
    /// What was marked as received, when and by whom.
    pub received: Option<Received>,
    /// The queues that it is in, delivered or not.
    pub queues: Vec<Queue>,
    /// What was given up of it, the last one from each queue.
    pub dead_letters: Vec<DeadLetter>,
}

impl Life {
    /// Looks for a request everywhere, in the order in which it passes: what moves on meanwhile is
    /// seen where it has come to.
    ///
    /// # Errors
    ///
    /// Where the broker does not answer, or has no topology of ours to read.
    pub async fn look(nats: &Context, id: RequestId) -> anyhow::Result<Self> {
        let mut life = Self { requested: fact(nats, id).await?, ..Self::default() };
        let [requests, responses, acknowledgments] = queues::ALL;
        for queue in [requests, responses] {
            life.look_into(nats, queue, id).await?;
        }
        life.stored = fact(nats, id).await?;
        life.look_into(nats, acknowledgments, id).await?;
        life.received = fact(nats, id).await?;
        life.dead_letters = dead_letters::of_request(&nats.client(), id).await?;
        Ok(life)
    }

    async fn look_into(
        &mut self,
        nats: &Context,
        queue: Queue,
        id: RequestId,
    ) -> anyhow::Result<()> {
        let what = || format!("cannot look into the queue {}", queue.stream);
        let stream = nats.get_stream_no_info(queue.stream).await.with_context(what)?;
        let mut found = stream.info_with_subjects(queue.subject(id)).await.with_context(what)?;
        if found.try_next().await.with_context(what)?.is_some() {
            self.queues.push(queue);
        }
        Ok(())
    }
}

async fn fact<F: Fact>(nats: &Context, id: RequestId) -> anyhow::Result<Option<F>> {
    let found = last_under(nats, F::BUCKET.stream, &F::BUCKET.subject(id)).await?;
    Ok(found.and_then(|message| F::decode(&message.payload).ok()))
}
