//! Creates facts, each once, and reads those that stand.

use std::fmt::Display;
use std::pin::pin;
use std::time::Duration;

use contract::RequestId;
use contract::facts::Fact;

use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::last_message::last_message;
use crate::publisher::{PublishError, Publisher, Refusal};

/// The first ceiling of the time between two tries to create the same fact, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// The facts of one bucket.
#[derive(Clone, Debug)]
pub struct Facts {
    connection: Connection,
    publisher: Publisher,
}

/// What came of creating a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation<F> {
    /// It is now a fact.
    Created,
    /// This one stood there before, and counts: it may have been created by somebody else, or by
    /// an earlier try of our own whose confirmation was lost.
    Stands(F),
}

impl Facts {
    pub(crate) fn new(connection: &Connection, publisher: Publisher) -> Self {
        Self { connection: connection.clone(), publisher }
    }

    /// Creates a fact, or tells which one stands there already. Tries until it is known which.
    ///
    /// # Errors
    ///
    /// Where trying is of no use, see [`Refusal`]; also where what stands there is not a fact.
    pub async fn create<F: Fact>(&self, fact: &F) -> Result<Creation<F>, Refusal> {
        loop {
            if let Some(creation) = self.try_create(fact, false).await? {
                return Ok(creation);
            }
        }
    }

    /// As [`Facts::create`], but gives up, with `None`, where there is no room: then nothing stands
    /// there, and nothing of this try will.
    ///
    /// # Errors
    ///
    /// As [`Facts::create`].
    pub async fn create_unless_full<F: Fact>(
        &self,
        fact: &F,
    ) -> Result<Option<Creation<F>>, Refusal> {
        self.try_create(fact, true).await
    }

    async fn try_create<F: Fact>(
        &self,
        fact: &F,
        unless_full: bool,
    ) -> Result<Option<Creation<F>>, Refusal> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        // Whether an earlier try may have got through.
        let mut unknown = false;
        loop {
            let full = match self.publisher.try_publish(fact.creation()).await {
                Ok(_) => return Ok(Some(Creation::Created)),
                Err(PublishError::Exists) => false,
                // A broker without room says so before it looks whether there is one already.
                Err(PublishError::Full(_)) => true,
                Err(PublishError::Unconfirmed(_)) => {
                    unknown = true;
                    backoff.wait().await;
                    continue;
                }
                Err(PublishError::TooLarge(reason)) => return Err(Refusal::TooLarge(reason)),
                Err(PublishError::Refused(reason)) => return Err(Refusal::Refused(reason)),
            };
            if !full || unless_full {
                // In a box, because it is rare, and would make every other creation larger.
                match Box::pin(self.read_key(&fact.key())).await {
                    Ok(Some(standing)) => return Ok(Some(Creation::Stands(standing))),
                    Ok(None) if full && !unknown => return Ok(None),
                    // The refusal may be due to another creation that is only under way, and may
                    // still fail. It counts once the fact can be read.
                    Ok(None) | Err(ReadError::Unknown) => {}
                    Err(error @ ReadError::NoFact(_)) => {
                        return Err(Refusal::Refused(error.to_string()));
                    }
                }
            }
            backoff.wait().await;
        }
    }

    /// The fact about this request, if there is one.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn read<F: Fact>(&self, id: RequestId) -> Result<Option<F>, ReadError> {
        self.read_key(&id.to_string()).await
    }

    /// The fact that is kept under this key, if there is one.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn read_key<F: Fact>(&self, key: &str) -> Result<Option<F>, ReadError> {
        read_fact(&self.connection, key).await
    }
}

/// The fact that is kept under this key, if there is one: from the nearest broker, because facts never
/// change, and where that one has nothing from the stream's leader, which is never behind.
///
/// # Errors
///
/// See [`ReadError`].
pub async fn read_fact<F: Fact>(
    connection: &Connection,
    key: &str,
) -> Result<Option<F>, ReadError> {
    let (context, stream) = (connection.context(), F::BUCKET.stream);
    let subject = F::BUCKET.subject_of(key);
    let nearest = context.get_stream_no_info(stream).await.map_err(|_| ReadError::Unknown)?;
    let nearest = nearest.direct_get_last_for_subject(subject.as_str());
    let mut found = connection.ask(pin!(nearest)).await.ok_or(ReadError::Unknown)?.ok();
    if found.is_none() {
        let last = connection.ask(pin!(last_message(context, stream, &subject))).await;
        found = last.ok_or(ReadError::Unknown)?.map_err(|_| ReadError::Unknown)?;
    }
    let Some(message) = found else { return Ok(None) };
    let wrong = |why: &dyn Display| {
        ReadError::NoFact(format!("bucket {}, key {key}: {why}", F::BUCKET.name))
    };
    let fact = F::decode(&message.payload).map_err(|error| wrong(&error))?;
    if fact.key() == key { Ok(Some(fact)) } else { Err(wrong(&"it belongs under another")) }
}

/// Why a fact could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The broker did not say whether there is one. Worth another try.
    #[error("the broker did not say")]
    Unknown,
    /// What stands there is not a fact: somebody else has written into the bucket.
    #[error("what stands there is no fact: {0}")]
    NoFact(String),
}
