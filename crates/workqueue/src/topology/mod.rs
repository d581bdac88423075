//! Declares the streams, buckets and consumers on the broker, and checks the existing ones.
//!
//! A service declares its topology when it starts, so start order does not matter. It looks first, and creates only
//! what is missing, so a service without the permission to create can still run. Existing settings stay: a difference
//! in a limit is reported, and a difference that breaks a guarantee is an error that names it.

mod api;
pub mod config;
mod declared;
mod difference;
mod error;
pub(crate) mod history;
mod overlap;
mod pause;
mod state;
mod version;

pub use crate::settings::Limits;
pub use declared::Declared;
pub use difference::Difference;
pub use error::DeclareError;
pub use history::{FIRST_CREATED, created_at, expires_at, first_created, lost_facts, replaces};
pub use overlap::subject_taken;
pub use pause::{pause, paused_until, resume};
pub use state::{
    QueueState, bucket_state, facts_max_age, guard_time, lane_state, limit, no_room, queue_state,
    stream_state,
};

use std::mem;

use async_nats::jetstream::consumer::Config as ConsumerConfig;
use async_nats::jetstream::stream::{Config as StreamConfig, Info as StreamInfo};
use async_nats::jetstream::{Context, ErrorCode};

use crate::api::ApiError;
use crate::clock::now;
use crate::commands;
use crate::facts::Bucket;
use crate::known_streams::KnownStreams;
use crate::queue::Queue;
use config::QUEUE_LIMIT;
use difference::{Differences, Kind};
use history::{LOST_FACTS, REPLACES};
use overlap::{is_of_another_consumer, messages_taken};
use version::{check_creator, check_version};

/// The streams and consumers that a program needs on the broker: the queues with their consumers, the buckets, the dead
/// letters of the queues, and the counters of the rate limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The queues.
    pub queues: Vec<Queue>,
    /// The buckets.
    pub buckets: Vec<Bucket>,
    dead_letters: bool,
    rates: bool,
}

impl Topology {
    /// These queues, with their dead letters, and these buckets.
    #[must_use]
    pub fn new(queues: &[Queue], buckets: &[Bucket]) -> Self {
        let dead_letters = !queues.is_empty();
        Self { queues: queues.to_vec(), buckets: buckets.to_vec(), dead_letters, rates: false }
    }

    /// The same, with the stream of the counters for rate limits. A service with a rate limit declares it by itself,
    /// if its user may create streams.
    #[must_use]
    pub fn with_rates(self) -> Self {
        Self { rates: true, ..self }
    }

    /// The stream of the dead letters alone.
    pub(crate) fn of_dead_letters() -> Self {
        Self { dead_letters: true, ..Self::default() }
    }

    /// Adds a queue with its dead letters, unless the topology has it.
    pub fn add_queue(&mut self, queue: Queue) {
        self.dead_letters = true;
        if !self.queues.contains(&queue) {
            self.queues.push(queue);
        }
    }

    /// Adds a bucket, unless the topology has it.
    pub fn add_bucket(&mut self, bucket: Bucket) {
        if !self.buckets.contains(&bucket) {
            self.buckets.push(bucket);
        }
    }

    /// Adds all parts of another topology that this one lacks.
    pub(crate) fn add(&mut self, other: &Self) {
        other.queues.iter().for_each(|queue| self.add_queue(*queue));
        other.buckets.iter().for_each(|bucket| self.add_bucket(*bucket));
        self.dead_letters |= other.dead_letters;
        self.rates |= other.rates;
    }

    fn streams(&self, limits: &Limits) -> Vec<(Kind, StreamConfig)> {
        let queues = self.queues.iter().map(|queue| {
            let kind = if queue.schedules().is_some() { Kind::Schedules } else { Kind::Queue };
            (kind, config::queue(*queue, limits))
        });
        let buckets =
            self.buckets.iter().map(|bucket| (Kind::Bucket, config::bucket(*bucket, limits)));
        let dead_letters =
            self.dead_letters.then(|| (Kind::DeadLetters, config::dead_letters(limits)));
        let rates = self.rates.then(|| (Kind::Rates, config::rates(limits)));
        queues.chain(dead_letters).chain(buckets).chain(rates).collect()
    }
}

/// Creates the missing parts of this topology, and checks the existing ones. If `known` has an earlier stream with the
/// same name, a new one gets a note about it, see [`replaces`].
///
/// # Errors
///
/// See [`DeclareError`]. A retry helps only for [`DeclareError::Unavailable`].
pub async fn declare(
    context: &Context,
    known: &KnownStreams,
    topology: &Topology,
    limits: &Limits,
) -> Result<Declared, DeclareError> {
    let mut declared = Declared::default();
    declare_or_adjust(context, known, topology, limits, false, &mut declared).await?;
    Ok(declared)
}

/// As [`declare`], and changes differing limits in place. It also adds the note about an earlier stream to a stream
/// that another client has created.
///
/// It adds each creation and change to `done`, even if it ends with an error: a caller that retries can report all of
/// them in the end.
///
/// # Errors
///
/// As [`declare`].
pub async fn adjust(
    context: &Context,
    known: &KnownStreams,
    topology: &Topology,
    limits: &Limits,
    done: &mut Declared,
) -> Result<(), DeclareError> {
    // Looks at all of it first, so that nothing is changed where something breaks a guarantee.
    declare_or_adjust(context, known, topology, limits, false, done).await?;
    declare_or_adjust(context, known, topology, limits, true, done).await
}

/// Adds the created and changed objects to `declared`, and sets its other fields to the settings on the broker.
async fn declare_or_adjust(
    context: &Context,
    known: &KnownStreams,
    topology: &Topology,
    limits: &Limits,
    adjust: bool,
    declared: &mut Declared,
) -> Result<(), DeclareError> {
    *declared = Declared {
        created: mem::take(&mut declared.created),
        adjusted: mem::take(&mut declared.adjusted),
        ..Declared::default()
    };
    let mut breaks = Vec::new();
    for (kind, mut should_be) in topology.streams(limits) {
        let object = format!("stream {}", should_be.name);
        // Counters are forgotten with each end of the broker, which means nothing.
        let before = known.get(&should_be.name).filter(|_| kind != Kind::Rates);
        let replacing = before.map(|before| (REPLACES.to_owned(), before.created.to_string()));
        should_be.metadata.extend(replacing.clone());
        let found = find_or_create(
            context,
            || api::stream_info(context, &should_be.name),
            || api::create_stream(context, &should_be),
            &object,
        );
        let (mut is, created) = match found.await {
            Err(DeclareError::Refused { source, .. })
                if source.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP =>
            {
                let taken = subject_taken(context, &should_be.subjects).await;
                return Err(DeclareError::SubjectTaken { stream: should_be.name, taken });
            }
            found => found?,
        };
        check_version(&is)?;
        let is_another = before.is_some_and(|before| before.created != created_at(&is));
        let lost = before
            .filter(|_| kind == Kind::Bucket && !is_another)
            .and_then(|before| before.lost_facts(&is, now()))
            .map(|lost| (LOST_FACTS.to_owned(), lost.to_string()));
        let is_known = !is_another && lost.is_none();
        let mark = replacing.filter(|_| is_another && replaces(&is.config).is_none()).or(lost);
        if let Some(mark) = mark.filter(|_| adjust) {
            is.config.metadata.extend([mark]);
            is = api::update_stream(context, &is.config)
                .await
                .map_err(|error| DeclareError::new(context, format!("change {object}"), error))?;
        }
        if adjust || created || is_known {
            known.note(&is);
        }
        let found = Differences::of_stream(kind, &is.config, &should_be);
        declared.created.extend(created.then_some(object.clone()));
        breaks.extend(found.guarantees);
        if adjust && !found.limits.is_empty() && breaks.is_empty() {
            let mut adjusted = with_limits_of(&is.config, &should_be);
            if kind == Kind::Schedules && drops_messages(&is, &adjusted) {
                adjusted.max_bytes = is.config.max_bytes;
            }
            let kept = Differences::of_stream(kind, &adjusted, &should_be).limits;
            if kept != found.limits {
                let updated = api::update_stream(context, &adjusted).await;
                is = updated.map_err(|error| {
                    DeclareError::new(context, format!("change {object}"), error)
                })?;
            }
            declared.adjusted.extend(found.limits.into_iter().filter(|it| !kept.contains(it)));
            declared.differences.extend(kept);
        } else {
            declared.differences.extend(found.limits);
        }
        if kind == Kind::Bucket {
            declared.facts_max_age = Some(declared.facts_max_age().min(guard_time(&is.config)));
        }
    }
    if !breaks.is_empty() {
        // The stream has to be changed first. Its consumers would only add further differences to the error.
        return Err(DeclareError::Breaks(breaks));
    }
    declare_consumers(context, topology, limits, adjust, declared).await
}

/// As [`declare_or_adjust`], the consumers of the queues.
async fn declare_consumers(
    context: &Context,
    topology: &Topology,
    limits: &Limits,
    adjust: bool,
    declared: &mut Declared,
) -> Result<(), DeclareError> {
    let mut breaks = Vec::new();
    for lane in topology.queues.iter().flat_map(|queue| queue.lanes()) {
        let should_be = config::consumer(lane, limits);
        let object = lane.described();
        let found = find_or_create(
            context,
            || api::consumer_info(context, lane),
            || api::create_consumer(context, lane, &should_be),
            &object,
        );
        let (is, created) = match found.await {
            Err(DeclareError::Refused { source, .. }) if is_of_another_consumer(&source) => {
                let taken = messages_taken(context, lane).await;
                return Err(DeclareError::MessagesTaken { consumer: object, taken });
            }
            found => found?,
        };
        declared
            .paused
            .extend(paused_until(&is).map(|at| format!("{object} is paused until {at}")));
        let found = Differences::of_consumer(&object, &is.config, &should_be);
        declared.created.extend(created.then_some(object.clone()));
        breaks.extend(found.guarantees);
        if adjust && !found.limits.is_empty() && breaks.is_empty() {
            let adjusted = ConsumerConfig {
                ack_wait: should_be.ack_wait,
                max_ack_pending: should_be.max_ack_pending,
                filter_subject: should_be.filter_subject,
                filter_subjects: should_be.filter_subjects,
                ..is.config.clone()
            };
            api::update_consumer(context, lane, &adjusted)
                .await
                .map_err(|error| DeclareError::new(context, format!("change {object}"), error))?;
            declared.adjusted.extend(found.limits);
        } else {
            declared.differences.extend(found.limits);
        }
    }
    if breaks.is_empty() { Ok(()) } else { Err(DeclareError::Breaks(breaks)) }
}

/// Looks, creates the object if it is missing, and looks again if another client was faster.
async fn find_or_create<T, Find, Create>(
    context: &Context,
    find: impl Fn() -> Find,
    create: impl FnOnce() -> Create,
    object: &str,
) -> Result<(T, bool), DeclareError>
where
    Find: Future<Output = Result<T, ApiError>>,
    Create: Future<Output = Result<T, ApiError>>,
{
    match find().await {
        Ok(found) => return Ok((found, false)),
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(DeclareError::new(context, format!("show {object}"), error)),
    }
    check_creator(context).await?;
    match create().await {
        Ok(created) => Ok((created, true)),
        Err(error) if exists_already(&error) => match find().await {
            Ok(found) => Ok((found, false)),
            // A cluster refuses a second creation before the first one can be seen.
            Err(error) if is_missing(&error) => Err(DeclareError::Unavailable {
                action: format!("show {object}"),
                source: "another client is creating it".into(),
            }),
            Err(error) => Err(DeclareError::new(context, format!("show {object}"), error)),
        },
        // The broker does not answer a client that may not create.
        Err(ApiError::TimedOut) => Err(DeclareError::Unavailable {
            action: format!("create {object}"),
            source: format!(
                "it is missing, and there is no answer; if this user may not create it, run {} as one that \
                 may",
                commands::declare()
            )
            .into(),
        }),
        // Its stream is being removed at this moment.
        Err(error) if is_of_a_removal(&error) => Err(DeclareError::Unavailable {
            action: format!("create {object}"),
            source: error.into(),
        }),
        Err(error) => Err(DeclareError::new(context, format!("create {object}"), error)),
    }
}

fn with_limits_of(is: &StreamConfig, should_be: &StreamConfig) -> StreamConfig {
    let mut metadata = is.metadata.clone();
    if let Some(limit) = should_be.metadata.get(QUEUE_LIMIT) {
        metadata.insert(QUEUE_LIMIT.to_owned(), limit.clone());
    }
    StreamConfig {
        metadata,
        subjects: should_be.subjects.clone(),
        max_age: should_be.max_age,
        max_messages: should_be.max_messages,
        max_messages_per_subject: should_be.max_messages_per_subject,
        max_bytes: should_be.max_bytes,
        max_message_size: should_be.max_message_size,
        num_replicas: should_be.num_replicas,
        ..is.clone()
    }
}

/// Whether the broker would drop messages of a stream with `discard: old` to get below its new limit.
fn drops_messages(stream: &StreamInfo, adjusted: &StreamConfig) -> bool {
    u64::try_from(adjusted.max_bytes).is_ok_and(|most| stream.state.bytes > most)
}

fn is_missing(error: &ApiError) -> bool {
    is_one_of(error, &[ErrorCode::STREAM_NOT_FOUND, ErrorCode::CONSUMER_NOT_FOUND])
}

/// Whether this answer to a creation can be due to a stream that is being removed.
fn is_of_a_removal(error: &ApiError) -> bool {
    let codes = [ErrorCode::STREAM_CREATE, ErrorCode::CONSUMER_CREATE, ErrorCode::STREAM_NOT_FOUND];
    is_one_of(error, &codes)
}

fn exists_already(error: &ApiError) -> bool {
    let codes = [
        ErrorCode::STREAM_NAME_EXIST,
        ErrorCode::CONSUMER_NAME_EXIST,
        ErrorCode::CONSUMER_ALREADY_EXISTS,
    ];
    is_one_of(error, &codes)
}

fn is_one_of(error: &ApiError, codes: &[ErrorCode]) -> bool {
    matches!(error, ApiError::Refused(error) if codes.contains(&error.error_code()))
}
