//! Reads lists of requests, some at a time, and gives up where the broker goes silent.

use std::time::Duration;

use observe::requests::{Filter, List};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use workqueue::{ReadError, topology};

use super::cursor::Cursor;
use super::reader::{DEADLINE, RequestReader};
use super::view::{RequestList, RequestSummary};
use crate::problem::{Problem, ProblemKind};

/// How long it may take to read a list, and to wait before that for others that are read. The part that is read by
/// then is the answer.
const LIST_DEADLINE: Duration = Duration::from_secs(5);

impl RequestReader {
    /// The newest requests of those that are asked for, from this cursor on.
    pub(crate) async fn list(
        &self,
        filter: &Filter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<RequestList, Problem> {
        let deadline = Instant::now() + LIST_DEADLINE;
        let Ok(_slot) = timeout_at(deadline, self.lists.acquire()).await else {
            return Err(ProblemKind::Busy.because("too many clients read lists at this moment"));
        };
        let stream = async {
            let state = topology::stream_state(self.connection.context(), filter.stream());
            timeout(DEADLINE, state).await.ok().and_then(Result::ok).ok_or(ReadError::Unknown)
        };
        let stream = self.judge(stream).await?;
        let store = topology::created_at(&stream);
        // Of an empty stream both are 0, which is no sequence.
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
                // There may be a part of it.
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
