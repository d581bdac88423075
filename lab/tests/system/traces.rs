//! Traces through all queues, as a collector of OpenTelemetry receives them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::json;
use testkit::eventually::eventually;
use testkit::http;
use testkit::process::{Process, logged};
use testkit::reserved_ports::ReservedPorts;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::api::{ACCEPTS, accepted, get, post as submit};
use crate::deployment::{Deployment, PATIENT, Service, admin, api_addr, succeeded};
use crate::work::in_flight;

/// The trace of a client.
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

/// A collector of spans.
struct Collector {
    url: String,
    received: Arc<Mutex<Vec<(String, Span)>>>,
    _serves: JoinHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let received = Arc::<Mutex<Vec<(String, Span)>>>::default();
        let spans = Arc::clone(&received);
        let take = async move |body: Bytes| {
            let export = ExportTraceServiceRequest::decode(body).expect("it is OTLP");
            for from in export.resource_spans {
                let resource = from.resource.expect("it says what it comes from").attributes;
                let service = resource.iter().find(|it| it.key == "service.name");
                let service = text(service.unwrap().value.clone().unwrap().value);
                let of_service = from.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.lock().unwrap().extend(of_service.map(|span| (service.clone(), span)));
            }
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(take));
        let serves = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, received, _serves: serves }
    }

    /// The settings with which a program sends its spans here soon.
    fn settings(&self) -> [(&str, &str); 2] {
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &self.url), ("OTEL_BSP_SCHEDULE_DELAY", "100")]
    }

    fn spans(&self) -> Vec<(String, Span)> {
        self.received.lock().unwrap().clone()
    }

    /// The spans, each as its service and its name, once there is one for each of these names.
    async fn spans_with(&self, names: &[&str]) -> Vec<(String, Span)> {
        eventually("all spans have come", async || {
            let spans = self.spans();
            let found: BTreeSet<String> =
                spans.iter().map(|(service, span)| format!("{service}: {}", span.name)).collect();
            if names.iter().all(|name| found.contains(*name)) { Ok(spans) } else { Err(found) }
        })
        .await
    }
}

fn text(value: Option<AnyValue>) -> String {
    match value {
        Some(AnyValue::StringValue(text)) => text,
        Some(AnyValue::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn attributes(span: &Span) -> BTreeMap<String, String> {
    let of = |value: &opentelemetry_proto::tonic::common::v1::AnyValue| text(value.value.clone());
    span.attributes.iter().map(|it| (it.key.clone(), of(it.value.as_ref().unwrap()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// Starts all programs, which send their spans to this collector.
async fn traced(deployment: &Deployment, collector: &Collector) -> [Process; 3] {
    let gateway = deployment.gateway("gateway", &collector.settings()).await;
    logged(&gateway, ACCEPTS).await;
    let generator = deployment.run(Service::Generator, "generator", &collector.settings()).await;
    let requestor = deployment.run(Service::Requestor, "requestor", &collector.settings()).await;
    [gateway, generator, requestor]
}

#[tokio::test]
async fn request_is_one_trace_from_http_to_the_mark() {
    let (deployment, collector) = (Deployment::start().await, Collector::start().await);
    let [gateway, ..] = &traced(&deployment, &collector).await;
    let headers = [("Content-Type", "application/json"), ("traceparent", TRACE)];
    let api = api_addr(gateway).await;
    let answer = http::ask(api, "POST", "/requests", &headers, r#"{"count": 1}"#).await.unwrap();
    let id = accepted(&answer).to_string();
    let way = [
        "gateway: POST /requests",
        "gateway: ask",
        "gateway: publish REQUESTS",
        "gateway: publish KV_requested",
        "generator: process REQUESTS",
        "generator: publish RESPONSES",
        "generator: ack REQUESTS",
        "requestor: process RESPONSES",
        "requestor: publish KV_stored",
        "requestor: publish ACKNOWLEDGMENTS",
        "requestor: ack RESPONSES",
        "generator: process ACKNOWLEDGMENTS",
        "generator: publish KV_received",
        "generator: ack ACKNOWLEDGMENTS",
    ];
    let spans = collector.spans_with(&way).await;
    let of_trace: Vec<&(String, Span)> =
        spans.iter().filter(|(_, span)| hex(&span.trace_id) == TRACE_ID).collect();
    let named: BTreeSet<String> =
        of_trace.iter().map(|(service, span)| format!("{service}: {}", span.name)).collect();
    assert_eq!(named, way.map(str::to_owned).into(), "each of them once, in one trace");
    assert_eq!(of_trace.len(), way.len());
    let parent_of = |span: &Span| {
        let parent = of_trace.iter().find(|(_, it)| it.span_id == span.parent_span_id);
        parent.map_or_else(|| hex(&span.parent_span_id), |(_, parent)| parent.name.clone())
    };
    let parents: BTreeMap<&str, String> =
        of_trace.iter().map(|(_, span)| (span.name.as_str(), parent_of(span))).collect();
    assert_eq!(parents["POST /requests"], "b7ad6b7169203331", "the span of the client");
    for (child, parent) in [
        ("ask", "POST /requests"),
        ("publish REQUESTS", "ask"),
        ("process REQUESTS", "publish REQUESTS"),
        ("ack REQUESTS", "process REQUESTS"),
        ("process RESPONSES", "publish RESPONSES"),
        ("publish KV_received", "process ACKNOWLEDGMENTS"),
    ] {
        assert_eq!(parents[child], parent, "{child}");
    }
    let processed = of_trace.iter().find(|(_, span)| span.name == "process REQUESTS").unwrap();
    assert_eq!(processed.1.kind, SpanKind::Consumer as i32);
    let expected = [
        ("messaging.consumer.group.name", "generator"),
        ("messaging.destination.name", "REQUESTS"),
        ("messaging.message.id", &id),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.system", "nats"),
        ("workqueue.attempt", "1"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(attributes(&processed.1), expected.into());
    // The span of a batch is in a trace of its own, with links to those of its messages.
    collector.spans_with(&["generator: pull REQUESTS"]).await;
    let batch = collector.spans().into_iter().find(|(_, span)| span.name == "pull REQUESTS");
    let (_, batch) = batch.unwrap();
    assert_eq!(batch.links.iter().map(|link| hex(&link.trace_id)).collect::<Vec<_>>(), [TRACE_ID]);
}

#[tokio::test]
async fn duration_of_a_job_has_its_trace_as_an_exemplar() {
    let (deployment, collector) = (Deployment::start().await, Collector::start().await);
    let [gateway, generator, _requestor] = traced(&deployment, &collector).await;
    let headers = [("Content-Type", "application/json"), ("traceparent", TRACE)];
    let api = api_addr(&gateway).await;
    accepted(&http::ask(api, "POST", "/requests", &headers, r#"{"count": 1}"#).await.unwrap());
    let bucket = "generator_handle_duration_seconds_bucket{";
    let example = format!(r#"# {{trace_id="{TRACE_ID}"}} "#);
    eventually("the example is there", async || {
        let (_, metrics) = admin(&generator, "/metrics").await;
        let is_there = |line: &str| line.starts_with(bucket) && line.contains(&example);
        if metrics.lines().any(is_there) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

/// The spans of all attempts at the one request, by the number of the attempt; several if none of them was spent.
fn attempts(spans: Vec<(String, Span)>) -> Vec<(u64, Span)> {
    let of_request = spans.into_iter().filter(|(_, span)| span.name == "process REQUESTS");
    let numbered =
        |(_, span): (String, Span)| (attributes(&span)["workqueue.attempt"].parse().unwrap(), span);
    let mut attempts: Vec<(u64, Span)> = of_request.map(numbered).collect();
    attempts.sort_by_key(|(_, span)| span.start_time_unix_nano);
    // All in one trace, although the client had sent none.
    assert!(attempts.iter().all(|(_, span)| span.trace_id == attempts[0].1.trace_id));
    assert!(attempts[0].1.links.is_empty());
    // Each links to the one before it.
    for pair in attempts.windows(2) {
        let links: Vec<_> = pair[1].1.links.iter().map(|link| &link.span_id).collect();
        assert_eq!(links, [&pair[0].1.span_id], "{attempts:?}");
    }
    attempts
}

#[tokio::test]
async fn redelivery_links_to_the_attempt_before_it() {
    let (deployment, collector) = (Deployment::start().await, Collector::start().await);
    let failing = [collector.settings().as_slice(), &[("FAILURE_RATE", "1")]].concat();
    let mut failing = deployment.run(Service::Generator, "failing", &failing).await;
    let settings = [collector.settings().as_slice(), &[("REQUEST_RATE", "0")]].concat();
    let _requestor = deployment.run(Service::Requestor, "requestor", &settings).await;
    let gateway = deployment.gateway("gateway", &[]).await;
    logged(&gateway, ACCEPTS).await;
    accepted(&submit(api_addr(&gateway).await, None, &json!({ "count": 1 })).await);
    eventually("two attempts have failed", async || {
        let naks = collector.spans().into_iter().filter(|(_, span)| span.name == "nak REQUESTS");
        let count = naks.count();
        if count >= 2 { Ok(()) } else { Err(count) }
    })
    .await;
    // It sends its last spans.
    failing.terminate().unwrap();
    succeeded(&mut failing).await;
    let _generator = deployment.run(Service::Generator, "generator", &collector.settings()).await;
    let attempts = attempts(collector.spans_with(&["generator: ack REQUESTS"]).await);
    let (first, last) = (&attempts[0], &attempts[attempts.len() - 1]);
    assert_eq!((first.0, attributes(&first.1)["error.type"].as_str()), (1, "failed"));
    assert!(last.0 > 2 && !attributes(&last.1).contains_key("error.type"));
}

#[tokio::test]
async fn copy_of_a_message_links_to_the_attempt_before_it() {
    let (deployment, collector) = (Deployment::with(&PATIENT).await, Collector::start().await);
    let once = [collector.settings().as_slice(), &[("MAX_ATTEMPTS", "1")]].concat();
    let stuck = [once.as_slice(), &[("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "10s")]].concat();
    let mut stuck = deployment.run(Service::Generator, "stuck", &stuck).await;
    let _requestor = deployment.ask(1).await;
    in_flight(&deployment, 1, 0).await;
    // At its last attempt, a copy replaces the message.
    stuck.terminate().unwrap();
    succeeded(&mut stuck).await;
    let _generator = deployment.run(Service::Generator, "generator", &once).await;
    let attempts = attempts(collector.spans_with(&["generator: ack REQUESTS"]).await);
    assert_eq!(attempts.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 1]);
}

#[tokio::test]
async fn delay_and_schedule_are_part_of_their_traces() {
    let (deployment, collector) = (Deployment::start().await, Collector::start().await);
    let [gateway, ..] = &traced(&deployment, &collector).await;
    let headers = [("Content-Type", "application/json"), ("traceparent", TRACE)];
    let api = api_addr(gateway).await;
    let body = json!({ "count": 1, "delay": "10ms" }).to_string();
    accepted(&http::ask(api, "POST", "/requests", &headers, &body).await.unwrap());
    let of = |spans: Vec<(String, Span)>, id: &str| -> BTreeSet<String> {
        let of_trace = spans.into_iter().filter(|(_, span)| hex(&span.trace_id) == id);
        of_trace.map(|(_, span)| span.name).collect()
    };
    let whole = |names: &BTreeSet<String>| {
        let steps =
            ["process SCHEDULES", "publish REQUESTS", "process REQUESTS", "publish KV_received"];
        steps.iter().all(|step| names.contains(*step))
    };
    eventually("what is due later is part of the client's trace", async || {
        let names = of(collector.spans(), TRACE_ID);
        if whole(&names) && names.contains("publish SCHEDULES") { Ok(()) } else { Err(names) }
    })
    .await;
    let body = json!({ "every": "1s" }).to_string();
    let headers = [("Content-Type", "application/json")];
    let set = http::ask(api, "PUT", "/schedules/often", &headers, &body).await.unwrap();
    assert_eq!(set.status, 201, "{set:?}");
    eventually("two requests of the schedule are traces of their own", async || {
        let spans = collector.spans();
        let due = spans.iter().filter(|(_, span)| span.name == "process SCHEDULES");
        let traces: BTreeSet<String> = due.map(|(_, span)| hex(&span.trace_id)).collect();
        let traces = traces.into_iter().filter(|id| id != TRACE_ID);
        let whole = traces.filter(|id| whole(&of(spans.clone(), id))).count();
        if whole >= 2 { Ok(()) } else { Err(whole) }
    })
    .await;
}

#[tokio::test]
async fn spans_without_a_collector_are_dropped_and_counted() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_held, port) = ReservedPorts::free().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str())];
    let generator = deployment.run(Service::Generator, "generator", &settings).await;
    let _requestor = deployment.ask(100).await;
    logged(&generator, "spans cannot be exported; dropped").await;
    eventually("they are counted", async || {
        let (_, metrics) = admin(&generator, "/metrics").await;
        let dropped =
            metrics.lines().find_map(|line| line.strip_prefix("generator_spans_dropped_total "));
        if dropped.is_some_and(|count| count != "0") { Ok(()) } else { Err(metrics) }
    })
    .await;
    eventually("the work goes on", async || {
        let verdict = deployment.verdict().await;
        if verdict.complete == 100 { Ok(()) } else { Err(verdict.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn page_links_to_the_trace_if_it_has_an_address() {
    let deployment = Deployment::start().await;
    let settings = [("TRACE_URL", "http://127.0.0.1:16686/trace/{trace_id}")];
    let gateway = deployment.gateway("gateway", &settings).await;
    logged(&gateway, ACCEPTS).await;
    let api = api_addr(&gateway).await;
    let headers = [("Content-Type", "application/json"), ("traceparent", TRACE)];
    let asked = http::ask(api, "POST", "/requests", &headers, r#"{"count": 1}"#).await.unwrap();
    let shown = get(api, &format!("/api/requests/{}", accepted(&asked))).await.json();
    assert_eq!(shown["trace"], format!("http://127.0.0.1:16686/trace/{TRACE_ID}"), "{shown}");
    let without = accepted(&submit(api, None, &json!({ "count": 1 })).await);
    let shown = get(api, &format!("/api/requests/{without}")).await.json();
    assert_eq!(shown["trace"], json!(null), "{shown}");
}
