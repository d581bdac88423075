//! Spans of traces, by OpenTelemetry's semantic conventions for messaging: a job is sent, received, processed and
//! settled. They are recorded where the process exports them ([`export`](crate::span_export)), and cost nothing
//! where it does not.
//!
//! A job is sent as part of a trace, whose context its message carries, so that what processes it is a child of what
//! has sent it, in whatever process and at whatever attempt. The id of the span of an attempt follows from the delivery
//! alone: the next attempt links to it, also where the process that it was made in was killed.

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

/// What records the spans of this process, where it exports them.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The most messages of which one span says that they were received: as many links as OpenTelemetry allows by default.
const MOST_LINKS: usize = 128;

/// From now on the spans of this process are recorded.
pub(crate) fn record_with(tracer: SdkTracer) {
    // A process has one.
    let _ = TRACER.set(tracer);
}

/// A part of a trace: it begins when it is made, and ends when it is dropped. It is recorded where
/// `OTEL_EXPORTER_OTLP_ENDPOINT` says whom to send it to.
#[derive(Default)]
pub struct Span(Option<Box<SdkSpan>>);

impl Span {
    /// The handling of a request that came from outside with this trace, such as `POST /orders`.
    #[must_use]
    pub fn server(name: &'static str, parent: &Trace) -> Self {
        start(|| Part::new(name, SpanKind::Server), parent)
    }

    /// A step of the program's own.
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

    /// Answering for a delivery that this span has processed.
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

    /// The trace for what comes of this: it is part of this span, or as the span is where it is not recorded.
    #[must_use]
    pub fn trace<'a>(&self, parent: &'a Trace) -> Cow<'a, Trace> {
        let Some(span) = &self.0 else { return Cow::Borrowed(parent) };
        let mut trace = Trace::default();
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        TraceContextPropagator::new().inject_context(&context, &mut trace);
        Cow::Owned(trace)
    }

    /// The id of its trace, where it is recorded.
    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        self.0.as_ref().map(|span| span.span_context().trace_id())
    }

    /// The id of its trace, where it is recorded and sampled, so that a collector has it.
    pub(crate) fn exported_trace_id(&self) -> Option<TraceId> {
        let context = self.0.as_ref()?.span_context();
        context.is_sampled().then(|| context.trace_id())
    }

    /// Notes the status of an HTTP response. From 500 on it is a failure.
    pub fn respond(&mut self, status: u16) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        if status >= 500 {
            self.fail(status.to_string(), "");
        }
    }

    /// Notes that it failed: with one of a few kinds of failures, and for people why.
    fn fail(&mut self, kind: impl Into<StringValue>, reason: impl Display) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("error.type", kind.into()));
            span.set_status(Status::error(reason.to_string()));
        }
    }

    /// Notes how the processing of a delivery ended, which it does now.
    pub(crate) fn end_with(&mut self, outcome: &Outcome) {
        if let Some(kind) = outcome.failure() {
            self.fail(kind, outcome);
        }
        if let Some(span) = &mut self.0 {
            span.end();
        }
    }

    /// Notes what came of it, and ends it.
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

/// The messages that come for one question to the broker. One span says of all of them that they were received.
#[derive(Debug, Default)]
pub(crate) struct Batch(Option<(SystemTime, Vec<SpanContext>)>);

impl Batch {
    /// It begins with a question.
    pub(crate) fn begin() -> Self {
        Self(TRACER.get().map(|_| (SystemTime::now(), Vec::new())))
    }

    /// A message has come.
    pub(crate) fn add(&mut self, headers: Option<&async_nats::HeaderMap>) {
        if let Some((_, messages)) = &mut self.0 {
            messages.push(context_of(&Trace::of(headers)));
        }
    }

    /// It ends with the next question. Where nothing has come, there is nothing to say.
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
    /// When it has begun, if not now.
    begun: Option<SystemTime>,
    /// Its id, and that of its trace where it is the first of it; random ones, if none.
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

/// The context that a trace names, which is invalid where it names none.
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

/// The id of the trace of a message that names none, the same at each attempt.
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
