//! Reads the states of requests.

use std::time::Duration;

use observe::RequestHistory;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::error;
use workqueue::{Connection, JobId, ReadError};

use super::view::RequestDetails;
use crate::problem::{Problem, ProblemKind};

/// The most requests and the most lists that are read at a time. A list reads many requests.
const SLOTS: usize = 64;
const LISTS: usize = 2;

/// The time limit for reading one request.
pub(super) const DEADLINE: Duration = Duration::from_millis(900);

/// Reads requests.
#[derive(Debug)]
pub(crate) struct RequestReader {
    pub(crate) connection: Connection,
    slots: Semaphore,
    pub(super) lists: Semaphore,
}

impl RequestReader {
    pub(crate) fn new(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
            slots: Semaphore::new(SLOTS),
            lists: Semaphore::new(LISTS),
        }
    }

    /// The state of this request.
    pub(crate) async fn details(&self, id: JobId) -> Result<RequestDetails, Problem> {
        found(id, self.history(id).await?)
    }

    /// The history of this request.
    pub(crate) async fn history(&self, id: JobId) -> Result<RequestHistory, Problem> {
        let read = async {
            let _slot = self.slots.acquire().await.expect("it is never closed");
            RequestHistory::read(&self.connection, id).await
        };
        let read = async { timeout(DEADLINE, read).await.unwrap_or(Err(ReadError::Unknown)) };
        self.judge(read).await
    }

    /// The value that was read, or the problem.
    pub(super) async fn judge<T>(
        &self,
        read: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, Problem> {
        let away = || ProblemKind::BrokerAway.because("the broker does not answer; try again");
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

/// The state of the request with this id.
pub(super) fn found(id: JobId, history: RequestHistory) -> Result<RequestDetails, Problem> {
    let no_request = || ProblemKind::NoRequest.because(format_args!("no request has the id {id}"));
    RequestDetails::new(id, history).ok_or_else(no_request)
}
