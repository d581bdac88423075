//! Spans of traces, by OpenTelemetry's semantic conventions for messaging: a job is sent, received, processed and
//! settled. They are recorded if the process exports them ([`export`](crate::span_export)), and cost nothing otherwise.
//!
//! A job is sent as part of a trace, whose context is in its message. So the span that processes the job is a child of
//! the span that has sent it, in any process and at any attempt. The id of the span of an attempt derives from the
//! delivery alone. So the next attempt can link to it, even if the process of the earlier attempt was killed.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{self, Display};
use std::sync::OnceLock;
use std::time::SystemTime;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceId,
    Tracer as _,
};
use opentelemetry::{Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracer, Span as SdkSpan};
use sha2::{Digest, Sha256};

use crate::delivery::Delivery;
use crate::publisher::PublishError;
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
pub struct Span(Option<Box<SdkSpan>>);

impl Span {
    /// The handling of a request that came from outside with this trace, such as `POST /orders`.
    #[must_use]
    pub fn server(name: &'static str, parent: &Trace) -> Self {
        start(|| Part::new(name, SpanKind::Server), parent)
    }

    /// An internal step of the program.
    #[must_use]
    pub fn internal(name: &'static str, parent: &Trace) -> Self {
        start(|| Part::new(name, SpanKind::Internal), parent)
    }

    /// Publishing a message to a stream until it is confirmed.
    pub(crate) fn send(stream: &'static str, id: impl FnOnce() -> String, parent: &Trace) -> Self {
        let part = || {
            Part::new(format!("send {stream}"), SpanKind::Producer)
                .messaging("send", "publish", stream)
                .with("messaging.message.id", id())
        };
        start(part, parent)
    }

    /// Handling a delivery, by one of this group of consumers.
    pub(crate) fn process(delivery: &Delivery, group: &'static str) -> Self {
        let stream = delivery.queue().stream;
        let part = || {
            let attempt = delivery.attempt().number();
            let mut part = Part::new(format!("process {stream}"), SpanKind::Consumer)
                .messaging("process", "process", stream)
                .with("messaging.message.id", delivery.key().to_owned())
                .with("messaging.consumer.group.name", group)
                .with("workqueue.attempt", i64::try_from(attempt).unwrap_or(i64::MAX));
            part.ids = Some((trace_id_of(delivery), span_id_of(delivery, attempt)));
            if attempt > 1 {
                part.links.push(Link::with_context(earlier_attempt(delivery)));
            }
            part
        };
        start(part, &Trace::of(delivery.headers()))
    }

    /// Settling a delivery that this span has processed.
    pub(crate) fn settle(&self, delivery: &Delivery, settlement: &Settlement) -> Self {
        let Some(processed) = &self.0 else { return Self::default() };
        let stream = delivery.queue().stream;
        let operation = match settlement {
            Settlement::Ack => "ack",
            Settlement::Nak { .. } => "nak",
            Settlement::Snooze { .. } => "snooze",
            Settlement::DeadLetter { .. } => "dead-letter",
        };
        let part = || {
            Part::new(format!("{operation} {stream}"), SpanKind::Client)
                .messaging("settle", operation, stream)
                .with("messaging.message.id", delivery.key().to_owned())
        };
        start_within(
            part,
            &Context::new().with_remote_span_context(processed.span_context().clone()),
        )
    }

    /// The trace for the messages of this step: part of this span, or the given trace if spans are not recorded.
    #[must_use]
    pub fn trace<'a>(&self, parent: &'a Trace) -> Cow<'a, Trace> {
        let Some(span) = &self.0 else { return Cow::Borrowed(parent) };
        let mut trace = Trace::default();
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        TraceContextPropagator::new().inject_context(&context, &mut trace);
        Cow::Owned(trace)
    }

    /// The id of its trace, if it is recorded.
    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        self.0.as_ref().map(|span| span.span_context().trace_id())
    }

    /// The id of its trace, if it is recorded and sampled, so that a collector has it.
    pub(crate) fn exported_trace_id(&self) -> Option<TraceId> {
        let context = self.0.as_ref()?.span_context();
        context.is_sampled().then(|| context.trace_id())
    }

    /// Records the status of an HTTP response. From 500 on it is a failure.
    pub fn respond(&mut self, status: u16) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        if status >= 500 {
            self.fail(status.to_string(), "");
        }
    }

    /// Records a failure: its kind, and the reason for people.
    fn fail(&mut self, kind: impl Into<StringValue>, reason: impl Display) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("error.type", kind.into()));
            span.set_status(Status::error(reason.to_string()));
        }
    }

    /// Records the outcome of a delivery, and ends the span.
    pub(crate) fn end_with(&mut self, outcome: &Outcome) {
        if let Some(kind) = outcome.failure() {
            self.fail(kind, outcome);
        }
        if let Some(span) = &mut self.0 {
            span.end();
        }
    }

    /// Records the result, and ends the span.
    pub(crate) fn end<T>(mut self, result: Result<T, PublishError>) -> Result<T, PublishError> {
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

/// The messages that arrive for one pull. They share one span for their receipt.
#[derive(Debug, Default)]
pub(crate) struct Batch(Option<(SystemTime, Vec<SpanContext>)>);

impl Batch {
    /// Begins with a pull.
    pub(crate) fn begin() -> Self {
        Self(TRACER.get().map(|_| (SystemTime::now(), Vec::new())))
    }

    /// Adds an arrived message.
    pub(crate) fn add(&mut self, headers: Option<&async_nats::HeaderMap>) {
        if let Some((_, messages)) = &mut self.0 {
            messages.push(context_of(&Trace::of(headers)));
        }
    }

    /// Ends with the next pull. If no message has arrived, there is no span.
    pub(crate) fn end(self, stream: &str) {
        let Some((begun, messages)) = self.0.filter(|(_, messages)| !messages.is_empty()) else {
            return;
        };
        let part = || {
            let count = i64::try_from(messages.len()).unwrap_or(i64::MAX);
            let mut part = Part::new(format!("receive {stream}"), SpanKind::Client)
                .messaging("receive", "pull", stream.to_owned())
                .with("messaging.batch.message_count", count);
            let known = messages.into_iter().filter(SpanContext::is_valid).take(MOST_LINKS);
            part.links = known.map(Link::with_context).collect();
            part.begun = Some(begun);
            part
        };
        drop(start_within(part, &Context::new()));
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

    fn messaging(
        self,
        kind: &'static str,
        operation: &'static str,
        stream: impl Into<Value>,
    ) -> Self {
        self.with("messaging.system", "nats")
            .with("messaging.operation.type", kind)
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
    Span(Some(Box::new(span)))
}

/// The context of a trace. It is invalid if the trace has none.
fn context_of(trace: &Trace) -> SpanContext {
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), trace);
    context.span().span_context().clone()
}

/// The span of the attempt before this delivery.
fn earlier_attempt(delivery: &Delivery) -> SpanContext {
    let sent = context_of(&Trace::of(delivery.headers()));
    let trace = if sent.is_valid() { sent.trace_id() } else { trace_id_of(delivery) };
    let span = span_id_of(delivery, delivery.attempt().number() - 1);
    SpanContext::new(trace, span, sent.trace_flags(), true, sent.trace_state().clone())
}

/// The id of the trace for a message without a trace, the same at each attempt.
fn trace_id_of(delivery: &Delivery) -> TraceId {
    TraceId::from_bytes(digest(&format!("{delivery} {}", delivery.key())))
}

/// The id of the span of an attempt at this message.
fn span_id_of(delivery: &Delivery, attempt: u64) -> SpanId {
    SpanId::from_bytes(digest(&format!("{delivery} {attempt}")))
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
