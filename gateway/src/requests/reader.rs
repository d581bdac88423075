//! Reads the states of requests.

use std::time::Duration;

use observe::RequestHistory;
use tokio::sync::{Semaphore, SemaphorePermit};
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
        let _slot = permit(&self.slots, DEADLINE, "too many clients read at this moment").await?;
        let read = timeout(DEADLINE, RequestHistory::read(&self.connection, id));
        self.judge(async { read.await.unwrap_or(Err(ReadError::Unknown)) }).await
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

/// One of the permits, once it is free. If none is free in time, the gateway is busy, and the broker not at fault.
pub(crate) async fn permit<'a>(
    permits: &'a Semaphore,
    limit: Duration,
    why: &str,
) -> Result<SemaphorePermit<'a>, Problem> {
    let permit = timeout(limit, permits.acquire()).await;
    Ok(permit.map_err(|_| ProblemKind::Busy.because(why))?.expect("it is never closed"))
}

/// The state of the request with this id.
pub(super) fn found(id: JobId, history: RequestHistory) -> Result<RequestDetails, Problem> {
    let no_request = || ProblemKind::NoRequest.because(format_args!("no request has the id {id}"));
    RequestDetails::new(id, history).ok_or_else(no_request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gateway_without_a_free_permit_is_busy() {
        let permits = Semaphore::new(1);
        let first = permit(&permits, Duration::ZERO, "too many").await.unwrap();
        let problem = permit(&permits, Duration::ZERO, "too many").await.unwrap_err().json();
        assert!(problem.contains("openapi.json#busy"), "{problem}");
        drop(first);
        let _second = permit(&permits, Duration::ZERO, "too many").await.unwrap();
    }
}
