//! Messages that no worker can handle. They must not hold up any other message.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use workqueue::{Connection, JobId, Publication, Queue};

/// The pause before another try: the broker may be down, or the queue full.
const PAUSE: Duration = Duration::from_millis(200);

/// The time limit for all confirmations. Only a stuck message reaches it.
const LIMIT: Duration = Duration::from_mins(2);

/// The messages that are confirmed, and those that are still being sent.
pub(super) struct Poison<'a> {
    connection: &'a Connection,
    sending: JoinSet<String>,
}

impl<'a> Poison<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection, sending: JoinSet::new() }
    }

    /// Publishes such a message to a queue, and repeats that until the broker has confirmed it.
    pub(super) fn spread(&mut self, queue: Queue) {
        let connection = self.connection.clone();
        self.sending.spawn(async move {
            let id = JobId::new().to_string();
            let subject = queue.subject_of(&id);
            loop {
                let body = "neither a request, nor a response, nor an acknowledgment";
                let body = body.into();
                let publication =
                    Publication { subject: subject.clone(), headers: HeaderMap::new(), body };
                if connection.publish_once(publication).await.is_ok() {
                    return id;
                }
                sleep(PAUSE).await;
            }
        });
    }

    /// Waits until all are confirmed, and returns the ids in their subjects.
    pub(super) async fn all(self) -> anyhow::Result<BTreeSet<String>> {
        let all = timeout(LIMIT, self.sending.join_all()).await;
        Ok(all.context("the broker does not take all the garbage")?.into_iter().collect())
    }
}
