//! Lists requests: the newest first, some at a time, of a status or a priority if that is asked for.

use std::ops::Range;
use std::pin::pin;

use async_nats::jetstream::stream::RawMessageErrorKind;
use contract::RequestStatus;
use contract::facts::REQUESTED;
use contract::queues::Request;
use futures_util::{StreamExt, TryStreamExt, stream};
use workqueue::{Connection, Fact, Priority, ReadError};

use crate::history::RequestHistory;

/// The most accepted requests that are looked at for one list. Of most statuses there may be few, and none knows
/// where they are.
pub const MOST_READ: usize = 5_000;

/// How many requests are read at a time.
const AT_A_TIME: usize = 32;

/// Which requests a list has: all of them, unless it says more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those that have come that far.
    pub status: Option<RequestStatus>,
    /// Those of this priority.
    pub priority: Option<Priority>,
}

/// A list of requests that is read, or a part of it where the reading was given up.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// The requests, the one that was accepted last first.
    pub requests: Vec<(Request, RequestStatus)>,
    /// The sequence, in the bucket of the accepted requests, of the last one that was looked at.
    pub until: Option<u64>,
}

impl List {
    /// Reads the accepted requests with these sequences from their end, until there are `limit` of them, or
    /// [`MOST_READ`] were looked at. Calls `answered` with each answer of the broker.
    ///
    /// # Errors
    ///
    /// Where the broker does not answer, or a fact is malformed.
    pub async fn read(
        &mut self,
        nats: &Connection,
        filter: Filter,
        sequences: Range<u64>,
        limit: usize,
        answered: impl Fn(),
    ) -> Result<(), ReadError> {
        let bucket = nats.context().get_stream_no_info(REQUESTED.stream).await;
        let bucket = bucket.map_err(|_| ReadError::Unknown)?;
        // Without a filter none is read for nothing.
        let at_a_time = if filter == Filter::default() { limit.min(AT_A_TIME) } else { AT_A_TIME };
        let requests = stream::iter(sequences.rev().take(MOST_READ))
            .map(async |sequence| {
                let message = bucket.get_raw_message(sequence).await;
                answered();
                match message {
                    // A fact that a person wrote by hand may be malformed.
                    Ok(message) => Ok((sequence, Request::from_body(&message.payload).ok())),
                    Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                        Ok((sequence, None))
                    }
                    Err(_) => Err(ReadError::Unknown),
                }
            })
            .buffered(at_a_time)
            .map_ok(async |(sequence, request)| {
                let is_wanted = |request: &Request| {
                    filter.priority.is_none_or(|priority| priority == request.priority)
                };
                let Some(request) = request.filter(is_wanted) else {
                    return Ok((sequence, None));
                };
                let history = RequestHistory::read_state(nats, request.id).await?;
                answered();
                let status = RequestStatus::from(history.state());
                let is_wanted = filter.status.is_none_or(|wanted| wanted == status);
                Ok((sequence, is_wanted.then_some((request, status))))
            })
            .try_buffered(at_a_time);
        let mut requests = pin!(requests);
        while let Some((sequence, request)) = requests.try_next().await? {
            self.until = Some(sequence);
            self.requests.extend(request);
            if self.requests.len() == limit {
                break;
            }
        }
        Ok(())
    }
}
