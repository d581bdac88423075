//! Exports the spans of this process by OTLP over HTTP. This is best effort: a failure never stops the work.

use std::env;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter,
    SpanProcessor,
};
use tracing::{info, warn};
use ureq::tls::{RootCerts, TlsConfig};

use crate::command_line::variable;
use crate::held_signals::while_held;
use crate::log_once::LogOnce;
use crate::mask::without_users;
use crate::settings::default_instance;
use crate::spans::{self, Ids};

/// How many spans may wait to be exported.
const QUEUE: usize = 2_048;

/// The time limit for sending the last spans when the process ends.
const LAST: Duration = Duration::from_secs(2);

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// The number of spans that the collector did not accept, or for which there was no room.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Records the spans of this process from now on, and sends them to this address.
pub(crate) fn start(endpoint: &str) -> Result<(), ExporterBuildError> {
    let traces = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .unwrap_or_else(|| format!("{}/v1/traces", endpoint.trim_end_matches('/')));
    // For the logs.
    let endpoint = without_users(&traces);
    let provider = while_held(|| {
        let http = OtlpExporter::builder().with_http().with_http_client(Http::default());
        let inner = http.with_endpoint(&traces).build()?;
        let waiting = Arc::new(AtomicUsize::new(0));
        let exporter =
            Counted { inner, waiting: Arc::clone(&waiting), endpoint, logged: Mutex::default() };
        let config = BatchConfigBuilder::default().with_max_queue_size(QUEUE).build();
        let inner = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        let provider = SdkTracerProvider::builder().with_span_processor(Bounded { inner, waiting });
        Ok(provider.with_id_generator(Ids::default()).with_resource(resource()).build())
    })?;
    spans::record_with(provider.tracer(env!("CARGO_PKG_NAME")));
    let _ = PROVIDER.set(provider);
    Ok(())
}

/// Sends the last spans, and ends.
pub(crate) fn flush() {
    if let Some(provider) = PROVIDER.get() {
        let _ = provider.shutdown_with_timeout(LAST);
    }
}

/// The number of spans dropped so far.
pub(crate) fn dropped_spans() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The resource of these spans. The environment overrides it, as usual with OpenTelemetry.
fn resource() -> Resource {
    let program =
        env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    let instance = variable("INSTANCE").unwrap_or_else(default_instance);
    let resource = Resource::builder_empty()
        .with_service_name(program.unwrap_or_else(|| "unknown_service".to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// Sends one request after another, and blocks the thread meanwhile: it is the exporter's own.
#[derive(Debug)]
struct Http(ureq::Agent);

impl Default for Http {
    fn default() -> Self {
        // The authorities that this machine trusts, perhaps with that of the collector.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = ureq::Agent::config_builder().http_status_as_error(false).tls_config(tls);
        // By OpenTelemetry's specification.
        Self(config.timeout_global(Some(Duration::from_secs(10))).build().into())
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, mut body) = self.0.run(request.map(|body| body.to_vec()))?.into_parts();
        Ok(Response::from_parts(head, body.read_to_vec()?.into()))
    }
}

/// Queues spans while there is room, and counts the others.
#[derive(Debug)]
struct Bounded {
    inner: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) < QUEUE {
            self.inner.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Counts the spans that the collector does not accept, and logs each reason once.
#[derive(Debug)]
struct Counted {
    inner: OtlpExporter,
    waiting: Arc<AtomicUsize>,
    endpoint: String,
    logged: Mutex<LogOnce>,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let exported = self.inner.export(batch).await;
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let mut logged = self.logged.lock().expect("nothing panics while it holds this lock");
        match &exported {
            Ok(()) if logged.last().is_some() => {
                logged.forget();
                info!(endpoint = self.endpoint, "spans are exported again");
            }
            Ok(()) => {}
            Err(error) => {
                DROPPED.fetch_add(count as u64, Ordering::Relaxed);
                if logged.is_first(error) {
                    warn!(endpoint = self.endpoint, %error, "spans cannot be exported; dropped");
                }
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
