//! Submits jobs that are due later, and sets recurring ones.

use std::pin::pin;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::{self, ErrorCode};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::api::ApiError;
use crate::backoff::Backoff;
use crate::clock::now;
use crate::error_chain::chain;
use crate::id::JobId;
use crate::job::Job;
use crate::last_message::last_message;
use crate::log_once::LogOnce;
use crate::producer::{BrokerTarget, Producer, Target};
use crate::publisher::{PublishError, RETRY};
use crate::queue::{EVERY, ONCE, Queue};
use crate::recurrence::{InvalidSchedule, Recurrence, check_name};
use crate::remove::purge;
use crate::schedules;
use crate::spans::Span;
use crate::trace::Trace;

/// The result of setting a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleOutcome {
    /// There was no schedule of that name; it is now set.
    Created,
    /// A different schedule of that name was replaced.
    Replaced,
    /// An equal schedule existed already, and is unchanged.
    Unchanged,
}

impl Producer {
    /// Submits a job that is due at this time, or now if that has passed. Its queue has to have
    /// [schedules](Queue::with_schedules). Returns its id once the broker has confirmed that the job is stored. While
    /// the queue is full, it waits.
    ///
    /// A job with its own id can be submitted again: until it is due, the first submission wins.
    ///
    /// # Errors
    ///
    /// As [`Producer::submit`].
    pub async fn submit_later<J: Job>(
        &self,
        job: &J,
        at: Timestamp,
    ) -> Result<JobId, PublishError> {
        let id = job.id().unwrap_or_else(JobId::new);
        self.publish_later(job, id, at, &Trace::default(), None).await?;
        Ok(id)
    }

    /// As [`Producer::submit_later`], under this id and as part of this trace. If the queue is still full after
    /// `stop`, it gives up with [`PublishError::Full`], and nothing is stored.
    ///
    /// # Errors
    ///
    /// As [`Producer::submit_later`], and [`PublishError::Full`] after `stop`.
    pub async fn publish_later<J: Job>(
        &self,
        job: &J,
        id: JobId,
        at: Timestamp,
        trace: &Trace,
        stop: Option<&CancellationToken>,
    ) -> Result<(), PublishError> {
        let broker = match self.target() {
            Target::Broker(broker) => broker,
            Target::Recorder(recorder) => {
                recorder.add(schedules::once(job, id, at, trace, None)?);
                return Ok(());
            }
        };
        let span = Span::send(J::QUEUE.stream, || id.to_string(), trace);
        let trace = span.trace(trace);
        span.end(broker.publish_later(job, id, at, &trace, stop).await)
    }

    /// Replaces the job that was submitted for later under this id by this job, and makes it due now. Does nothing if
    /// no such job waits: it is due or done already, or never existed.
    ///
    /// # Errors
    ///
    /// As [`Producer::submit`].
    pub async fn bring_forward<J: Job>(&self, job: &J, id: JobId) -> Result<(), PublishError> {
        let subject = schedules::subject(J::QUEUE, ONCE, &id.to_string());
        let broker = match self.target() {
            Target::Broker(broker) => broker,
            Target::Recorder(recorder) => {
                if recorder.remove(&subject) {
                    recorder.add(schedules::once(job, id, now(), &Trace::default(), None)?);
                }
                return Ok(());
            }
        };
        let publisher = broker.publisher_of::<J>(None).await?;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Some(standing) = broker.standing(J::QUEUE, &subject).await {
            let trace = Trace::of(Some(&standing.headers));
            let new = schedules::once(job, id, now(), &trace, Some(standing.sequence))?;
            match publisher.try_publish(new).await {
                Ok(()) => break,
                // The job became due, or another client was faster, or the answer was lost.
                Err(PublishError::AlreadyExists | PublishError::Unconfirmed(_)) => {}
                Err(error) => return Err(error),
            }
            backoff.wait().await;
        }
        Ok(())
    }

    /// Cancels a job that was submitted for later. Returns whether it was cancelled: a job that is due or done cannot
    /// be.
    ///
    /// # Errors
    ///
    /// If the broker does not do it.
    pub async fn cancel<J: Job>(&self, id: JobId) -> Result<bool, ApiError> {
        self.purge::<J>(ONCE, &id.to_string()).await
    }

    /// Sets a recurring job under this name. It replaces a different one with this name, and leaves an equal one as it
    /// is. Its queue has to have [schedules](Queue::with_schedules), and the job must not have an id of its own,
    /// because each occurrence is a job with another id.
    ///
    /// # Errors
    ///
    /// [`PublishError::Invalid`] with an [`InvalidSchedule`] whose message names a valid value; [`PublishError::Full`]
    /// at once if there is no room; otherwise as [`Producer::submit`].
    pub async fn schedule<J: Job>(
        &self,
        name: &str,
        recurrence: &Recurrence,
        job: &J,
    ) -> Result<ScheduleOutcome, PublishError> {
        let invalid = |error: InvalidSchedule| PublishError::Invalid(error.into());
        check_name(name).and_then(|()| recurrence.check()).map_err(invalid)?;
        if job.id().is_some() {
            return Err(invalid(InvalidSchedule::HasId));
        }
        let broker = match self.target() {
            Target::Broker(broker) => broker,
            Target::Recorder(recorder) => {
                recorder.add(schedules::every(job, name, recurrence, None)?);
                return Ok(ScheduleOutcome::Created);
            }
        };
        let publisher = broker.publisher_of::<J>(None).await?;
        let subject = schedules::subject(J::QUEUE, EVERY, name);
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut done = None;
        loop {
            let standing = broker.standing(J::QUEUE, &subject).await;
            let sequence = standing.as_ref().map(|standing| standing.sequence);
            let new = schedules::every(job, name, recurrence, sequence)?;
            if standing.as_ref().is_some_and(|standing| schedules::is_same(standing, &new)) {
                return Ok(done.unwrap_or(ScheduleOutcome::Unchanged));
            }
            if standing.is_none() {
                publisher.check_room().await?;
            }
            let does = if standing.is_some() {
                ScheduleOutcome::Replaced
            } else {
                ScheduleOutcome::Created
            };
            match publisher.try_publish(new).await {
                Ok(()) => return Ok(does),
                // Another client was faster.
                Err(PublishError::AlreadyExists) => {}
                Err(PublishError::Unconfirmed(_)) => done = Some(does),
                Err(error) => return Err(explained(error, recurrence)),
            }
            backoff.wait().await;
        }
    }

    /// Removes the recurring job with this name. Returns whether it existed. Jobs that are due already are still
    /// handled.
    ///
    /// # Errors
    ///
    /// If the broker does not do it.
    pub async fn unschedule<J: Job>(&self, name: &str) -> Result<bool, ApiError> {
        if check_name(name).is_err() {
            return Ok(false);
        }
        self.purge::<J>(EVERY, name).await
    }

    async fn purge<J: Job>(&self, kind: &str, key: &str) -> Result<bool, ApiError> {
        let subject = schedules::subject(J::QUEUE, kind, key);
        match self.target() {
            Target::Broker(broker) => Ok(purge(&broker.connection, J::QUEUE, &subject).await? > 0),
            Target::Recorder(recorder) => Ok(recorder.remove(&subject)),
        }
    }
}

/// The error of a schedule that the broker refuses.
fn explained(error: PublishError, recurrence: &Recurrence) -> PublishError {
    let PublishError::Invalid(source) = &error else { return error };
    let Recurrence::Cron { expression, time_zone } = recurrence else { return error };
    let code = source.downcast_ref().map(jetstream::Error::error_code);
    let explained = match (code, time_zone) {
        (Some(ErrorCode::MESSAGE_SCHEDULES_PATTERN_INVALID), _) => {
            InvalidSchedule::Expression(expression.clone())
        }
        (Some(ErrorCode::MESSAGE_SCHEDULES_TIME_ZONE_INVALID), Some(zone)) => {
            InvalidSchedule::TimeZone(zone.clone())
        }
        _ => return error,
    };
    PublishError::Invalid(explained.into())
}

impl BrokerTarget {
    async fn publish_later<J: Job>(
        &self,
        job: &J,
        id: JobId,
        at: Timestamp,
        trace: &Trace,
        stop: Option<&CancellationToken>,
    ) -> Result<(), PublishError> {
        let publisher = self.publisher_of::<J>(stop).await?;
        publisher.wait_for_room(stop).await?;
        let publish = || schedules::once(job, id, at, trace, None);
        let mut tried = publisher.publish(publish, stop).await;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Err(PublishError::AlreadyExists) = tried {
            // The refusal may be due to another one that is only under way, and may still fail. If it is due
            // meanwhile, it is the same job once more.
            let waits = schedules::subject(J::QUEUE, ONCE, &id.to_string());
            // In this order, because the job may become due between the two.
            for subject in [waits, J::QUEUE.subject(id)] {
                if self.standing(J::QUEUE, &subject).await.is_some() {
                    return Ok(());
                }
            }
            backoff.wait().await;
            // It does not give up after `stop` any more: the other one may be an earlier try of its own.
            tried = publisher.publish(publish, None).await;
        }
        tried
    }

    /// The last message under this subject of the queue, if there is one. Retries until the broker answers.
    async fn standing(&self, queue: Queue, subject: &str) -> Option<StreamMessage> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut reasons = LogOnce::default();
        loop {
            let last = last_message(self.connection.context(), queue.stream, subject);
            let reason = match self.connection.ask(pin!(last)).await {
                Some(Ok(standing)) => return standing,
                Some(Err(error)) => chain(&error),
                None => "the connection was lost".to_owned(),
            };
            if reasons.is_first(&reason) {
                warn!(queue = queue.stream, reason, "cannot read what is scheduled; trying again");
            }
            backoff.wait().await;
        }
    }
}
