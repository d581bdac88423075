//! Reads lists of requests, a few at a time, and gives up if the broker stops answering.

use std::time::Duration;

use observe::requests::{Filter, List};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use workqueue::{ReadError, topology};

use super::cursor::Cursor;
use super::reader::{DEADLINE, RequestReader, permit};
use super::view::{RequestList, RequestSummary};
use crate::problem::{Problem, ProblemKind};

/// The time limit for a list, with the wait for other lists. The answer then has the part that was read.
const LIST_DEADLINE: Duration = Duration::from_secs(5);

impl RequestReader {
    /// The newest requests that match the filter, from this cursor on.
    pub(crate) async fn list(
        &self,
        filter: &Filter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<RequestList, Problem> {
        let deadline = Instant::now() + LIST_DEADLINE;
        let why = "too many clients read lists at this moment";
        let _slot = permit(&self.lists, LIST_DEADLINE, why).await?;
        let stream = async {
            let state = topology::stream_state(self.connection.context(), filter.stream());
            timeout(DEADLINE, state).await.ok().and_then(Result::ok).ok_or(ReadError::Unknown)
        };
        let stream = self.judge(stream).await?;
        let store = topology::created_at(&stream);
        // Both are 0 for an empty stream, and sequences begin at 1.
        let first = stream.state.first_sequence.max(1);
        let end = stream.state.last_sequence + 1;
        let before = match cursor {
            None => end,
            Some(cursor) => Cursor::read(cursor, filter, store)?.min(end),
        };
        let answered = Notify::new();
        let mut list = List::default();
        let reading =
            list.read(&self.connection, filter, first..before, limit, || answered.notify_one());
        let reading = timeout_at(deadline, while_answered(&answered, reading));
        self.judge(async {
            match reading.await {
                Ok(read) => read,
                // A part of the list may be there.
                Err(_too_long) => Ok(()),
            }
        })
        .await?;
        let until = list.until.unwrap_or(before);
        if until == before && before > first {
            return Err(
                ProblemKind::BrokerAway.because("the broker does not answer in time; try again")
            );
        }
        let requests = list.requests.into_iter();
        Ok(RequestList {
            requests: requests
                .map(|(request, status)| RequestSummary::new(request, status))
                .collect(),
            next: (until > first).then(|| Cursor::new(filter, store, until).to_string()),
        })
    }
}

/// Reads while no single answer of the broker takes too long. So a broker that hangs is detected long before the time
/// limit of the list.
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
    async fn list_ends_once_the_broker_stops_answering() {
        let answered = Notify::new();
        assert_eq!(while_answered(&answered, async { Ok(1) }).await, Ok(1));
        // Also after earlier answers.
        answered.notify_one();
        let never = while_answered(&answered, pending::<Result<(), _>>());
        let ended = timeout(Duration::from_mins(1), never).await.expect("it ends");
        assert_eq!(ended, Err(ReadError::Unknown));
    }
}
