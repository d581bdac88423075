//! Reads how far requests have come: one of them, or the newest.

use std::time::Duration;

use async_nats::jetstream::stream::RawMessageErrorKind;
use contract::facts::REQUESTED;
use contract::queues::Request;
use futures_util::{StreamExt, TryStreamExt, stream};
use observe::RequestHistory;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::error;
use workqueue::{Connection, Fact, JobId, ReadError, topology};

use super::view::{RequestDetails, RequestSummary};
use crate::problem::{Problem, ProblemKind};

/// How many requests are read at a time, and how many lists. Each list reads a lot.
const SLOTS: usize = 64;
const LISTS: usize = 2;

/// How long it may take to read one request.
const DEADLINE: Duration = Duration::from_millis(900);

/// How long it may take to read a list, and to wait before that for others that are read.
const LIST_DEADLINE: Duration = Duration::from_secs(5);

/// How many of the requests of a list are read at a time.
const AT_A_TIME: usize = 32;

/// How many places may be empty in a list that is read: there are none, unless facts were removed by
/// hand.
const MAX_GAPS: usize = 1000;

/// Reads requests.
#[derive(Debug)]
pub(crate) struct RequestReader {
    pub(crate) connection: Connection,
    slots: Semaphore,
    lists: Semaphore,
}

impl RequestReader {
    pub(crate) fn new(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
            slots: Semaphore::new(SLOTS),
            lists: Semaphore::new(LISTS),
        }
    }

    /// How far this request has come.
    pub(crate) async fn details(&self, id: JobId) -> Result<RequestDetails, Problem> {
        found(id, self.history(id).await?)
    }

    /// All that has happened to this request.
    pub(crate) async fn history(&self, id: JobId) -> Result<RequestHistory, Problem> {
        let read = async {
            let _slot = self.slots.acquire().await.expect("it is never closed");
            RequestHistory::read(&self.connection, id).await
        };
        let read = async { timeout(DEADLINE, read).await.unwrap_or(Err(ReadError::Unknown)) };
        self.judge(read).await
    }

    /// The newest requests.
    pub(crate) async fn newest(&self, limit: usize) -> Result<Vec<RequestSummary>, Problem> {
        let deadline = Instant::now() + LIST_DEADLINE;
        let Ok(_slot) = timeout_at(deadline, self.lists.acquire()).await else {
            return Err(ProblemKind::Busy.because("too many read lists at this moment"));
        };
        let answered = Notify::new();
        let newest = while_answered(&answered, self.read_newest(limit, &answered));
        let read = async { timeout_at(deadline, newest).await.unwrap_or(Err(ReadError::Unknown)) };
        self.judge(read).await
    }

    /// Reads the bucket `requested` from its end, and the state of each request.
    async fn read_newest(
        &self,
        limit: usize,
        answered: &Notify,
    ) -> Result<Vec<RequestSummary>, ReadError> {
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
                    // A fact that a person wrote by hand may be malformed.
                    Ok(message) => Ok(Request::from_body(&message.payload).ok()),
                    Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
                    Err(_) => Err(ReadError::Unknown),
                }
            })
            .buffered(AT_A_TIME.min(limit))
            .try_filter_map(async |request| Ok(request))
            .take(limit)
            .map_ok(async |request: Request| {
                let history = RequestHistory::read_state(&self.connection, request.id).await?;
                answered.notify_one();
                Ok(RequestSummary::new(request, history.state().into()))
            });
        requests.try_buffered(AT_A_TIME).try_collect().await
    }

    /// The value that was read, or the problem.
    async fn judge<T>(
        &self,
        read: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, Problem> {
        let away = || ProblemKind::BrokerAway.because("the broker gives no answer; try again");
        if !self.connection.is_connected() {
            return Err(away());
        }
        match read.await {
            Ok(read) => Ok(read),
            Err(ReadError::Unknown) => Err(away()),
            Err(ReadError::NoFact(reason)) => {
                error!(reason, "a fact cannot be read");
                Err(ProblemKind::Refused.because(format_args!("it cannot be read: {reason}")))
            }
        }
    }
}

/// How far the request of this id has come, if there is one.
pub(super) fn found(id: JobId, history: RequestHistory) -> Result<RequestDetails, Problem> {
    let no_request = || ProblemKind::NoRequest.because(format_args!("no request has the id {id}"));
    RequestDetails::new(id, history).ok_or_else(no_request)
}

/// Reads for as long as no answer takes longer than a single one may: a broker that hangs is noticed long
/// before a list would be too late.
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
