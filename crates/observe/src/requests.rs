//! Lists requests: the newest first, a page at a time, and with a filter.

use std::ops::Range;
use std::pin::pin;

use async_nats::jetstream::stream::RawMessageErrorKind;
use contract::RequestStatus;
use contract::facts::REQUESTED;
use contract::queues::{DueRequest, Request, SCHEDULES};
use futures_util::{StreamExt, TryStreamExt};
use workqueue::{Connection, Fact, Priority, ReadError, schedules};

use crate::history::RequestHistory;

/// The most requests that are read for one page. There may be few with the wanted status, and no index of them.
pub const MOST_READ: usize = 5_000;

/// The number of requests that are read at a time.
const AT_A_TIME: usize = 32;

/// The filter of a list. By default it matches all accepted requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only requests with this status. Scheduled requests are only in the list with that status, because they are not
    /// accepted before they are due.
    pub status: Option<RequestStatus>,
    /// Only requests of this priority.
    pub priority: Option<Priority>,
    /// Only requests of instances whose name contains this.
    pub requested_by: Option<String>,
}

impl Filter {
    /// The stream from which the list is read.
    #[must_use]
    pub fn stream(&self) -> &'static str {
        if self.is_scheduled() { SCHEDULES.stream } else { REQUESTED.stream }
    }

    fn is_scheduled(&self) -> bool {
        self.status == Some(RequestStatus::Scheduled)
    }

    /// Whether a request matches the filter, apart from its status.
    fn matches(&self, request: &Request) -> bool {
        self.priority.is_none_or(|priority| priority == request.priority)
            && self.requested_by.as_ref().is_none_or(|name| request.requestor.contains(name))
    }
}

/// A list of requests, or the part of it that was read before the time limit.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// The requests, the last accepted one first.
    pub requests: Vec<(Request, RequestStatus)>,
    /// The sequence, in the stream of the list, of the last request that was read.
    pub until: Option<u64>,
}

impl List {
    /// Reads the requests with these sequences in the stream of the list from their end, until there are `limit` of
    /// them, or [`MOST_READ`] were looked at. Calls `answered` with each answer of the broker.
    ///
    /// # Errors
    ///
    /// If the broker does not answer, or a fact is malformed.
    pub async fn read(
        &mut self,
        nats: &Connection,
        filter: &Filter,
        sequences: Range<u64>,
        limit: usize,
        answered: impl Fn(),
    ) -> Result<(), ReadError> {
        if filter.is_scheduled() {
            return self.read_scheduled(nats, filter, sequences, limit, answered).await;
        }
        let stream = nats.context().get_stream_no_info(filter.stream()).await;
        let stream = stream.map_err(|_| ReadError::Unknown)?;
        // Without a filter each request that is read belongs to the list.
        let at_a_time = if *filter == Filter::default() { limit.min(AT_A_TIME) } else { AT_A_TIME };
        let requests = futures_util::stream::iter(sequences.rev().take(MOST_READ))
            .map(async |sequence| {
                let message = stream.get_raw_message(sequence).await;
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
                let Some(request) = request.filter(|request| filter.matches(request)) else {
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

    /// As [`List::read`], for scheduled requests.
    async fn read_scheduled(
        &mut self,
        nats: &Connection,
        filter: &Filter,
        sequences: Range<u64>,
        limit: usize,
        answered: impl Fn(),
    ) -> Result<(), ReadError> {
        let all = Filter { status: filter.status, ..Filter::default() };
        let most = if *filter == all { limit } else { MOST_READ };
        let Range { start, mut end } = sequences;
        let mut looked_at = 0;
        // One answer may have fewer than `most`, because requests become due meanwhile.
        while end > start && self.requests.len() < limit && looked_at < MOST_READ {
            let found = schedules::not_done::<DueRequest>(nats, start..end, most, &answered).await;
            let (found, until) = found.map_err(|_| ReadError::Unknown)?;
            (end, self.until) = (until, Some(until));
            looked_at += found.len().max(1);
            let mut found = found.into_iter().rev().peekable();
            while let Some((sequence, id, due)) = found.next() {
                let request = due.request(id);
                if filter.matches(&request) {
                    self.requests.push((request, RequestStatus::Scheduled));
                }
                if self.requests.len() == limit {
                    self.until = found.peek().map(|_| sequence).or(self.until);
                    break;
                }
            }
        }
        Ok(())
    }
}
