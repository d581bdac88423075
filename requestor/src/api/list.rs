//! The newest requests, and how far each of them has come.

use std::time::Duration;

use async_nats::jetstream::stream::RawMessageErrorKind;
use contract::facts::{Fact, REQUESTED, Received};
use contract::queues::{Acknowledgment, Request};
use contract::{RequestId, topology};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use utoipa::ToSchema;
use workqueue::ReadError;

use super::problem::{Kind, Problem};
use super::status::{DEADLINE, Reader, Status, status};

/// How long it may take to read a list, and to wait before that for others who read one.
const LIST_DEADLINE: Duration = Duration::from_secs(5);

/// How many of the requests of a list are looked up at a time.
const AT_A_TIME: usize = 32;

/// How many places may be empty in a list that is read: there are none, unless somebody has removed
/// facts by hand.
const MAX_GAPS: usize = 1000;

/// A request in a list, without its strings.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RequestSummary)]
pub(crate) struct Summary {
    /// The id of the request.
    #[schema(value_type = super::openapi::Id)]
    id: RequestId,
    status: Status,
    /// How many strings were asked for.
    count: u32,
    /// How many characters each of them has.
    length: u32,
    /// When it was asked for.
    requested_at: Timestamp,
    /// The instance that asked.
    requested_by: String,
}

/// The newest requests.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RequestList)]
pub(crate) struct List {
    /// The one that was accepted last comes first.
    requests: Vec<Summary>,
}

impl Reader {
    /// The newest requests.
    pub(super) async fn list(&self, limit: usize) -> Result<List, Problem> {
        let deadline = Instant::now() + LIST_DEADLINE;
        let Ok(_slot) = timeout_at(deadline, self.lists.acquire()).await else {
            return Err(Kind::Busy.because("too many read lists at this moment"));
        };
        let answered = Notify::new();
        let newest = while_answered(&answered, self.newest(limit, &answered));
        let read = async { timeout_at(deadline, newest).await.unwrap_or(Err(ReadError::Unknown)) };
        Ok(List { requests: self.judge(read).await? })
    }

    /// Reads the bucket of what was accepted from its end, and looks each of them up.
    async fn newest(&self, limit: usize, answered: &Notify) -> Result<Vec<Summary>, ReadError> {
        let context = self.connection.context();
        let state = topology::bucket_state(context, REQUESTED).await;
        let state = state.map_err(|_| ReadError::Unknown)?.state;
        answered.notify_one();
        let stream = context.get_stream_no_info(REQUESTED.stream).await;
        let stream = stream.expect("the names of the contract are valid");
        // Of an empty bucket both are 0, which is no sequence.
        let requests = stream::iter((state.first_sequence.max(1)..=state.last_sequence).rev())
            .take(limit.saturating_add(MAX_GAPS))
            .map(async |sequence| {
                let message = stream.get_raw_message(sequence).await;
                answered.notify_one();
                match message {
                    // What somebody has written there by hand is no request.
                    Ok(message) => Ok(<Request as Fact>::decode(&message.payload).ok()),
                    Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
                    Err(_) => Err(ReadError::Unknown),
                }
            })
            .buffered(AT_A_TIME.min(limit))
            .try_filter_map(async |request| Ok(request))
            .take(limit)
            .map_ok(async |request: Request| {
                let status = self.status(request.id).await?;
                answered.notify_one();
                let Request { id, amount, requestor, requested_at } = request;
                let (count, length) = (amount.count(), amount.length());
                Ok(Summary { id, status, count, length, requested_at, requested_by: requestor })
            });
        requests.try_buffered(AT_A_TIME).try_collect().await
    }

    /// How far a request has come that was accepted.
    async fn status(&self, id: RequestId) -> Result<Status, ReadError> {
        if self.received.read::<Received>(id).await?.is_some() {
            return Ok(Status::Received);
        }
        let stored = self.stored.read::<Acknowledgment>(id).await?.is_some();
        Ok(status(false, stored, self.dead_letter(id, stored).await?.is_some()))
    }
}

/// Reads for as long as no answer takes longer than a single look may: where the broker hangs, that is
/// known long before a list would be too late.
async fn while_answered<T>(
    answered: &Notify,
    read: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, ReadError> {
    let silence = async { while timeout(DEADLINE, answered.notified()).await.is_ok() {} };
    tokio::select! {
        read = read => read,
        () = silence => Err(ReadError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_list_is_given_up_once_nothing_is_answered() {
        let answered = Notify::new();
        assert_eq!(while_answered(&answered, async { Ok(1) }).await, Ok(1));
        // However much was answered before.
        answered.notify_one();
        let never = while_answered(&answered, pending::<Result<(), _>>());
        let given_up = timeout(Duration::from_mins(1), never).await.expect("it is given up");
        assert_eq!(given_up, Err(ReadError::Unknown));
    }
}
