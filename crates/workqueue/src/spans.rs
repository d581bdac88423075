//! Spans of traces, by OpenTelemetry's semantic conventions for messaging: a job is sent, received, processed and
//! settled. They are recorded if the process exports them ([`export`](crate::span_export)), and cost nothing otherwise.
//!
//! A job is sent as part of a trace, whose context is in its message. So the span that processes the job is a child of
//! the span that has sent it, in any process and at any attempt. The id of the span of an attempt derives from the
//! delivery alone. So the next attempt can link to it, even if the process of the earlier attempt was killed. If the
//! next attempt is one at a copy of the message, the copy has the id.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{self, Display};
use std::sync::OnceLock;
use std::time::SystemTime;

use async_nats::{HeaderMap, Message};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceId,
    Tracer as _,
};
use opentelemetry::{Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracer, Span as SdkSpan};
use sha2::{Digest, Sha256};

use crate::bundle;
use crate::delivery::Delivery;
use crate::headers;
use crate::id::JobId;
use crate::publisher::PublishError;
use crate::queue::Queue;
use crate::settle::{Outcome, Settlement};
use crate::trace::Trace;

/// The tracer of this process, if it exports spans.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The most messages in one span of a receipt: OpenTelemetry's default limit of links.
const MOST_LINKS: usize = 128;

/// Records the spans of this process from now on.
pub(crate) fn record_with(tracer: SdkTracer) {
    // A process has one.
    let _ = TRACER.set(tracer);
}

/// A part of a trace: it begins when it is made, and ends when it is dropped. It is recorded if
/// `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
#[derive(Default)]
pub struct Span {
    span: Option<Box<SdkSpan>>,
    /// Whether its result is still to come. If it does not, because the work is dropped, the span is a failure.
    awaits_result: bool,
}

impl Span {
    /// The handling of an HTTP request that came from outside with this trace. Its name is the method and the route,
    /// such as `POST /orders`.
    #[must_use]
    pub fn server(name: &'static str, parent: &Trace) -> Self {
        let part = || {
            let (method, route) = name.split_once(' ').unwrap_or((name, "/"));
            Part::new(name, SpanKind::Server)
                .with("http.request.method", method)
                .with("http.route", route)
        };
        start(part, parent)
    }

    /// An internal step of the program.
    #[must_use]
    pub fn internal(name: &'static str, parent: &Trace) -> Self {
        start(|| Part::new(name, SpanKind::Internal), parent)
    }

    /// Publishing a message to a stream until it is confirmed.
    pub(crate) fn send(stream: &'static str, id: impl FnOnce() -> String, parent: &Trace) -> Self {
        let part = || {
            Part::messaging(SpanKind::Producer, "send", "publish", stream)
                .with("messaging.message.id", id())
        };
        let mut span = start(part, parent);
        span.awaits_result = true;
        span
    }

    /// Handling a delivery.
    pub(crate) fn process(delivery: &Delivery) -> Self {
        let queue = delivery.queue();
        let part = || {
            delivery.set_processed();
            let attempt = i64::try_from(delivery.attempt().number()).unwrap_or(i64::MAX);
            let mut part = Part::messaging(SpanKind::Consumer, "process", "process", queue.stream)
                .with("messaging.message.id", delivery.key().to_owned())
                .with("messaging.consumer.group.name", queue.consumer)
                .with("workqueue.attempt", attempt);
            part.ids = Some((trace_id_of(delivery), span_id_of(delivery, delivery.numbers().0)));
            part.links.extend(earlier_attempt(delivery).map(|id| link_to(delivery, id)));
            part
        };
        start(part, &Trace::of(delivery.headers()))
    }

    /// Settling a delivery that this span has processed.
    pub(crate) fn settle(&self, delivery: &Delivery, settlement: &Settlement) -> Self {
        let Some(processed) = &self.span else { return Self::default() };
        let queue = delivery.queue();
        let operation = match settlement {
            // It is acked with its bundle.
            Settlement::Ack if delivery.is_bundled() => return Self::default(),
            Settlement::Ack => "ack",
            Settlement::Nak { .. } => "nak",
            Settlement::Snooze { .. } => "snooze",
            Settlement::DeadLetter { .. } => "dead-letter",
        };
        let part = || {
            Part::messaging(SpanKind::Client, "settle", operation, queue.stream)
                .with("messaging.message.id", delivery.key().to_owned())
                .with("messaging.consumer.group.name", queue.consumer)
        };
        start_within(
            part,
            &Context::new().with_remote_span_context(processed.span_context().clone()),
        )
    }

    /// The trace for the messages of this step: part of this span, or the given trace if spans are not recorded.
    #[must_use]
    pub fn trace<'a>(&self, parent: &'a Trace) -> Cow<'a, Trace> {
        let Some(span) = &self.span else { return Cow::Borrowed(parent) };
        let mut trace = Trace::default();
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        TraceContextPropagator::new().inject_context(&context, &mut trace);
        Cow::Owned(trace)
    }

    /// The id of its trace, if it is recorded.
    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        self.span.as_ref().map(|span| span.span_context().trace_id())
    }

    /// The id of its trace, if it is recorded and sampled, so that a collector has it.
    pub(crate) fn exported_trace_id(&self) -> Option<TraceId> {
        let context = self.span.as_ref()?.span_context();
        context.is_sampled().then(|| context.trace_id())
    }

    /// Records the status of an HTTP response. From 500 on it is a failure.
    pub fn respond(&mut self, status: u16) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        if status >= 500 {
            self.fail(status.to_string(), "");
        }
    }

    /// Records a failure: its kind, and the reason for people.
    pub(crate) fn fail(&mut self, kind: impl Into<StringValue>, reason: impl Display) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new("error.type", kind.into()));
            span.set_status(Status::error(reason.to_string()));
        }
    }

    /// Records the outcome of a delivery, and ends the span.
    pub(crate) fn end_with(&mut self, outcome: &Outcome) {
        if let Some(kind) = outcome.failure() {
            self.fail(kind, outcome);
        }
        if let Some(span) = &mut self.span {
            span.end();
        }
    }

    /// Records the result, and ends the span.
    pub(crate) fn end<T>(mut self, result: Result<T, PublishError>) -> Result<T, PublishError> {
        self.awaits_result = false;
        if let Err(error) = &result {
            self.fail(error.kind(), error);
        }
        result
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Span").field(&self.trace_id()).finish()
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.awaits_result {
            self.fail("cancelled", "it was dropped before its result");
        }
    }
}

/// The messages that arrive for one pull, from the pull to the last of them. They share a span for their receipt, or
/// several if they have more than [`MOST_LINKS`] jobs. It is recorded when it is dropped.
#[derive(Debug)]
pub(crate) struct Batch {
    queue: Queue,
    begun: SystemTime,
    ended: SystemTime,
    /// The span that has sent each job. Not valid for a job without a trace.
    jobs: Vec<SpanContext>,
}

impl Batch {
    /// Begins with a pull.
    pub(crate) fn begin(queue: Queue) -> Self {
        let begun = SystemTime::now();
        Self { queue, begun, ended: begun, jobs: Vec::new() }
    }

    /// Adds an arrived message.
    pub(crate) fn add(&mut self, message: &Message) {
        if TRACER.get().is_none() {
            return;
        }
        self.ended = SystemTime::now();
        let sent = |headers: Option<&HeaderMap>| context_of(&Trace::of(headers));
        match bundle::jobs(message, "") {
            None => self.jobs.push(sent(message.headers.as_ref())),
            Some(jobs) => self.jobs.extend(jobs.iter().map(|job| sent(job.headers.as_ref()))),
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let Self { queue, begun, ended, .. } = *self;
        for jobs in self.jobs.chunks(MOST_LINKS) {
            let part = || {
                let count = i64::try_from(jobs.len()).unwrap_or(i64::MAX);
                let mut part = Part::messaging(SpanKind::Client, "receive", "pull", queue.stream)
                    .with("messaging.batch.message_count", count)
                    .with("messaging.consumer.group.name", queue.consumer);
                let known = jobs.iter().filter(|sent| sent.is_valid()).cloned();
                part.links = known.map(Link::with_context).collect();
                part.begun = Some(begun);
                part
            };
            if let Some(mut span) = start_within(part, &Context::new()).span.take() {
                span.end_with_timestamp(ended);
            }
        }
    }
}

/// A span that is about to begin.
struct Part {
    name: Cow<'static, str>,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
    links: Vec<Link>,
    /// Its beginning, if that is not now.
    begun: Option<SystemTime>,
    /// Its id, and the id of its trace if it is the first span of the trace. Random ids by default.
    ids: Option<(TraceId, SpanId)>,
}

impl Part {
    fn new(name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Self {
        let (attributes, links) = (Vec::new(), Vec::new());
        Self { name: name.into(), kind, attributes, links, begun: None, ids: None }
    }

    fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push(KeyValue::new(name, value));
        self
    }

    /// An operation on the messages of a stream.
    fn messaging(
        kind: SpanKind,
        operation_type: &'static str,
        operation: &'static str,
        stream: &'static str,
    ) -> Self {
        Self::new(format!("{operation} {stream}"), kind)
            .with("messaging.system", "nats")
            .with("messaging.operation.type", operation_type)
            .with("messaging.operation.name", operation)
            .with("messaging.destination.name", stream)
    }
}

fn start(part: impl FnOnce() -> Part, parent: &Trace) -> Span {
    if TRACER.get().is_none() {
        return Span::default();
    }
    start_within(part, &TraceContextPropagator::new().extract_with_context(&Context::new(), parent))
}

fn start_within(part: impl FnOnce() -> Part, parent: &Context) -> Span {
    let Some(tracer) = TRACER.get() else { return Span::default() };
    let Part { name, kind, attributes, links, begun, ids } = part();
    let mut builder =
        SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes).with_links(links);
    builder.start_time = begun;
    NEXT_IDS.set(ids);
    let span = tracer.build_with_context(builder, parent);
    NEXT_IDS.set(None);
    Span { span: Some(Box::new(span)), awaits_result: false }
}

/// The context of a trace. It is invalid if the trace has none.
fn context_of(trace: &Trace) -> SpanContext {
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), trace);
    context.span().span_context().clone()
}

/// The span of the last attempt at this job so far, for the copy of its message: of this delivery, if it was processed.
pub(crate) fn last_attempt(delivery: &Delivery) -> Option<String> {
    TRACER.get()?;
    let this = delivery.is_processed().then(|| span_id_of(delivery, delivery.numbers().0));
    this.or_else(|| earlier_attempt(delivery)).map(|id| id.to_string())
}

/// The span of the attempt before this delivery, if there was one.
fn earlier_attempt(delivery: &Delivery) -> Option<SpanId> {
    let of_copy = || SpanId::from_hex(headers::span_of_a_snooze(delivery.headers()?)?).ok();
    delivery.numbers().1.map(|number| span_id_of(delivery, number)).or_else(of_copy)
}

/// A link to an attempt at this job.
fn link_to(delivery: &Delivery, attempt: SpanId) -> Link {
    let sent = context_of(&Trace::of(delivery.headers()));
    let trace = if sent.is_valid() { sent.trace_id() } else { trace_id_of(delivery) };
    let (flags, state) = (sent.trace_flags(), sent.trace_state().clone());
    Link::with_context(SpanContext::new(trace, attempt, flags, true, state))
}

/// The id of the trace for a message without a trace, the same at each attempt at its job.
fn trace_id_of(delivery: &Delivery) -> TraceId {
    let (stream, key) = (delivery.queue().stream, delivery.key());
    let is_job = key.parse::<JobId>().is_ok();
    let text = if is_job { format!("{stream} {key}") } else { format!("{delivery} {key}") };
    TraceId::from_bytes(digest(&text))
}

/// The id of the span that processes the delivery of this number.
fn span_id_of(delivery: &Delivery, number: u64) -> SpanId {
    SpanId::from_bytes(digest(&format!("{delivery} {number}")))
}

/// The first bytes of the digest of a text.
fn digest<const N: usize>(text: &str) -> [u8; N] {
    *Sha256::digest(text).first_chunk().expect("it has 32 bytes")
}

thread_local! {
    /// The ids of the span that this thread is about to make.
    static NEXT_IDS: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Gives a span the ids that were set for it, or random ones.
#[derive(Debug, Default)]
pub(crate) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        NEXT_IDS.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        NEXT_IDS.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

impl Extractor for Trace {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.parent(),
            "tracestate" => self.state(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Injector for Trace {
    fn set(&mut self, key: &str, value: String) {
        self.set(key, &value);
    }
}
