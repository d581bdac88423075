//! Compares the topology on the broker with the wanted one.

use std::fmt;

use async_nats::jetstream::consumer::Config as Consumer;
use async_nats::jetstream::stream::{Config as Stream, PersistenceMode};

use super::config::{FACTS_MARGIN, QUEUE_LIMIT};

/// The purpose of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Queue,
    /// A queue with schedules.
    Schedules,
    DeadLetters,
    Bucket,
    Rates,
}

/// A setting that differs from the wanted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The object of the setting, such as "stream REQUESTS".
    pub object: String,
    /// The name of the setting in the broker's configuration.
    pub setting: &'static str,
    /// Its value on the broker.
    pub is: String,
    /// The wanted value.
    pub should_be: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, setting, is, should_be } = self;
        write!(formatter, "{object}: {setting} is {is}, should be {should_be}")
    }
}

/// All differences of one object.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// Differences that break a guarantee: no service runs with one of these.
    pub(super) guarantees: Vec<Difference>,
    /// Differences in limits, which break no guarantee.
    pub(super) limits: Vec<Difference>,
}

impl Differences {
    pub(super) fn of_stream(kind: Kind, is: &Stream, should_be: &Stream) -> Self {
        let mut found = Self::default();
        let object = || format!("stream {}", should_be.name);
        // One that takes more, as before there were priorities, takes all that is published.
        let of_subjects = if takes_all(&is.subjects, &should_be.subjects) {
            &mut found.limits
        } else {
            &mut found.guarantees
        };
        differ(of_subjects, object, "subjects", &is.subjects, &should_be.subjects);
        let guarantees = &mut found.guarantees;
        differ(guarantees, object, "retention", &is.retention, &should_be.retention);
        differ(guarantees, object, "discard", &is.discard, &should_be.discard);
        differ(guarantees, object, "storage", &is.storage, &should_be.storage);
        differ(guarantees, object, "no_ack", &is.no_ack, &should_be.no_ack);
        differ(guarantees, object, "sealed", &is.sealed, &should_be.sealed);
        differ(guarantees, object, "mirror", &is.mirror, &should_be.mirror);
        // The broker answers with an empty list if there are no sources.
        let sources = |stream: &Stream| stream.sources.clone().unwrap_or_default();
        differ(guarantees, object, "sources", &sources(is), &sources(should_be));
        differ(
            guarantees,
            object,
            "subject_transform",
            &is.subject_transform,
            &should_be.subject_transform,
        );
        // With this the broker confirms before it has stored.
        let persistence = |stream: &Stream| stream.persist_mode.unwrap_or(PersistenceMode::Default);
        differ(guarantees, object, "persist_mode", &persistence(is), &persistence(should_be));
        let counts = |stream: &Stream| stream.allow_message_counter;
        differ(guarantees, object, "allow_msg_counter", &counts(is), &counts(should_be));
        // A queue with an age limit would drop its oldest waiting messages. Facts that are kept for no longer than
        // their margin protect no job; any other age of facts is a limit.
        let forgets = !is.max_age.is_zero();
        let breaks = match kind {
            Kind::Queue | Kind::Schedules => forgets,
            Kind::Bucket => forgets && is.max_age <= FACTS_MARGIN,
            Kind::DeadLetters | Kind::Rates => false,
        };
        let age = if breaks { &mut *guarantees } else { &mut found.limits };
        differ(age, object, "max_age", &is.max_age, &should_be.max_age);
        differ(
            guarantees,
            object,
            "allow_msg_schedules",
            &is.allow_message_schedules,
            &should_be.allow_message_schedules,
        );
        // With `discard: old`, any limit would drop the oldest waiting message.
        let counts = if kind == Kind::Schedules { &mut *guarantees } else { &mut found.limits };
        differ(counts, object, "max_msgs", &is.max_messages, &should_be.max_messages);
        differ(
            counts,
            object,
            "max_msgs_per_subject",
            &is.max_messages_per_subject,
            &should_be.max_messages_per_subject,
        );
        let limits = &mut found.limits;
        let queue_limit = |stream: &Stream| -> u64 {
            stream.metadata.get(QUEUE_LIMIT).and_then(|limit| limit.parse().ok()).unwrap_or(0)
        };
        differ(limits, object, QUEUE_LIMIT, &queue_limit(is), &queue_limit(should_be));
        differ(limits, object, "max_bytes", &is.max_bytes, &should_be.max_bytes);
        differ(limits, object, "max_msg_size", &is.max_message_size, &should_be.max_message_size);
        differ(limits, object, "num_replicas", &is.num_replicas, &should_be.num_replicas);
        found
    }

    pub(super) fn of_consumer(object: &str, is: &Consumer, should_be: &Consumer) -> Self {
        let mut found = Self::default();
        let object = || object.to_owned();
        let filters = |consumer: &Consumer| {
            let mut filters = consumer.filter_subjects.clone();
            filters.extend(Some(consumer.filter_subject.clone()).filter(|one| !one.is_empty()));
            filters
        };
        let (filters, wanted) = (filters(is), filters(should_be));
        // Messages that the filters of an older version leave out wait until the consumer is adjusted.
        // Without a filter it takes all, also what no consumer may read.
        let is_narrower =
            !filters.is_empty() && filters.iter().all(|filter| wanted.contains(filter));
        let of_filters = if is_narrower { &mut found.limits } else { &mut found.guarantees };
        differ(of_filters, object, "filter_subjects", &filters, &wanted);
        let guarantees = &mut found.guarantees;
        differ(guarantees, object, "ack_policy", &is.ack_policy, &should_be.ack_policy);
        differ(guarantees, object, "deliver_policy", &is.deliver_policy, &should_be.deliver_policy);
        differ(guarantees, object, "deliver_subject", &is.deliver_subject, &None);
        differ(guarantees, object, "max_deliver", &is.max_deliver, &should_be.max_deliver);
        differ(guarantees, object, "headers_only", &is.headers_only, &should_be.headers_only);
        differ(guarantees, object, "mem_storage", &is.memory_storage, &should_be.memory_storage);
        // With these the broker would turn down our pulls, or forget the consumer.
        differ(guarantees, object, "max_batch", &is.max_batch, &should_be.max_batch);
        differ(guarantees, object, "max_expires", &is.max_expires, &should_be.max_expires);
        differ(guarantees, object, "max_bytes", &is.max_bytes, &should_be.max_bytes);
        differ(
            guarantees,
            object,
            "priority_policy",
            &is.priority_policy,
            &should_be.priority_policy,
        );
        differ(
            guarantees,
            object,
            "inactive_threshold",
            &is.inactive_threshold,
            &should_be.inactive_threshold,
        );
        let limits = &mut found.limits;
        differ(limits, object, "ack_wait", &is.ack_wait, &should_be.ack_wait);
        differ(limits, object, "max_ack_pending", &is.max_ack_pending, &should_be.max_ack_pending);
        found
    }
}

/// Whether a stream with these subjects accepts all messages that a stream with the other subjects accepts.
fn takes_all(subjects: &[String], others: &[String]) -> bool {
    let takes = |subject: &String, other: &String| match subject.strip_suffix('>') {
        Some(prefix) => other.starts_with(prefix),
        None => subject == other,
    };
    others.iter().all(|other| subjects.iter().any(|subject| takes(subject, other)))
}

fn differ<T: PartialEq + fmt::Debug>(
    found: &mut Vec<Difference>,
    object: impl Fn() -> String,
    setting: &'static str,
    is: &T,
    should_be: &T,
) {
    if is != should_be {
        found.push(Difference {
            object: object(),
            setting,
            is: format!("{is:?}"),
            should_be: format!("{should_be:?}"),
        });
    }
}
