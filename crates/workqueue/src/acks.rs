//! Sends acks a moment later, several together.
//!
//! A queue removes a message when it is acked. With the last message of a file the broker removes the file, and
//! creates another one: this costs it more than the rest of its work on a message. While a message waits for its ack,
//! the file stays. No job waits for an ack, so an ack may wait for the next ones.

use std::mem::take;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Subject};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::delivery::SETTLE_TIMEOUT;

/// The time for which the first ack waits for others: far below any sensible `ACK_WAIT`. A replica that is killed loses
/// the acks of this time, and the broker redelivers those messages.
const LINGER: Duration = Duration::from_millis(20);

/// The acks of a connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Acks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    /// The subjects of the acks that wait.
    waiting: Mutex<Vec<Subject>>,
    /// Locked while acks are sent, so that the last call of [`Acks::send`] waits for an earlier one.
    sending: tokio::sync::Mutex<()>,
}

impl Acks {
    pub(crate) fn new(client: Client) -> Self {
        let (waiting, sending) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { client, waiting, sending }))
    }

    /// Acks the message that has this reply subject, soon.
    pub(crate) fn add(&self, subject: Subject) {
        let mut waiting = self.0.waiting.lock().expect("nothing panics while it holds this lock");
        waiting.push(subject);
        if waiting.len() == 1 {
            let acks = self.clone();
            tokio::spawn(async move {
                sleep(LINGER).await;
                acks.send().await;
            });
        }
    }

    /// Hands all acks that wait to the client. A lost ack is harmless: the broker redelivers the message, and the facts
    /// prevent a second effect.
    pub(crate) async fn send(&self) {
        let Inner { client, waiting, sending } = &*self.0;
        let _sending = sending.lock().await;
        let subjects = take(&mut *waiting.lock().expect("nothing panics while it holds this lock"));
        let count = subjects.len();
        let sent = async {
            for subject in subjects {
                client.publish(subject, AckKind::Ack.into()).await?;
            }
            Ok::<_, async_nats::PublishError>(())
        };
        match timeout(SETTLE_TIMEOUT, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%error, count, "could not ack messages; the broker will redeliver them");
            }
            Err(_) => warn!(count, "acking messages timed out; the broker will redeliver them"),
        }
    }
}
