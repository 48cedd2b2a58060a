//! The export of spans by OTLP, as the usual variables `OTEL_*` say.

use std::collections::HashMap;
use std::env;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, ContextGuard};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{self, SdkTracerProvider, SpanData};
use pq_core::{Trace, Tracer};
use pq_otel::OpenTelemetry;
use rustls::crypto::ring;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

/// The longest time that the end of the process waits for the collector.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// The longest time of a request, unless a variable states another.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The tracer of this process, if it exports spans.
static TRACER: OnceLock<Arc<OpenTelemetry<TraceContextPropagator>>> = OnceLock::new();

/// The export of this process. It ends when this is dropped, after the last spans were sent.
pub(crate) struct Export {
    provider: SdkTracerProvider,
    /// Whether the last request failed, which was logged.
    is_failing: Arc<AtomicBool>,
    /// Makes the span of the program that called this one the parent of the spans of the main thread.
    _caller: ContextGuard,
}

impl Export {
    /// Starts the export if the environment asks for it. The error says why it does not begin.
    pub(crate) fn start() -> Result<Option<Self>, String> {
        if !is_wanted()? {
            return Ok(None);
        }
        let client = Client::new(request_timeout());
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .build()
            .map_err(|error| error.to_string())?;
        let is_failing = Arc::<AtomicBool>::default();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Reporting { exporter, is_failing: Arc::clone(&is_failing) })
            .with_resource(resource())
            .build();
        let propagator = TraceContextPropagator::new();
        let caller = ["traceparent", "tracestate"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), variable(&name.to_ascii_uppercase())?)))
            .collect::<HashMap<_, _>>();
        let caller = propagator.extract_with_context(&Context::new(), &caller).attach();
        TRACER.get_or_init(|| Arc::new(OpenTelemetry::new(propagator)));
        Ok(Some(Self { provider, is_failing, _caller: caller }))
    }

    /// Returns the layer that passes the spans of the library to the export.
    pub(crate) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let is_ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("pq_core"));
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("pq"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(is_ours)
            .boxed()
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let ended = self.provider.shutdown_with_timeout(FLUSH_WITHIN);
        if let (Err(error), false) = (ended, self.is_failing.load(Ordering::Relaxed)) {
            tracing::warn!(%error, "last spans were not exported");
        }
    }
}

/// Gives the handle the tracer of this process.
pub(crate) fn traced(builder: pq_diesel::Builder) -> pq_diesel::Builder {
    match TRACER.get() {
        Some(tracer) => builder.trace(Arc::clone(tracer)),
        None => builder,
    }
}

/// Returns the context of the current span, or an empty one.
pub(crate) fn current_trace() -> Trace {
    TRACER.get().map(|tracer| tracer.context()).unwrap_or_default()
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Returns the value of the variable for traces, or else of that for all signals.
fn exporter_variable(name: &str) -> Option<String> {
    variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
        .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
}

/// Returns whether the environment asks for the export.
fn is_wanted() -> Result<bool, String> {
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(false);
    }
    let has_endpoint = exporter_variable("ENDPOINT").is_some();
    match variable("OTEL_TRACES_EXPORTER").as_deref() {
        Some("none") => return Ok(false),
        None if !has_endpoint => return Ok(false),
        None | Some("otlp") => {}
        Some(other) => return Err(format!("invalid OTEL_TRACES_EXPORTER {other:?}: expected otlp or none")),
    }
    match exporter_variable("PROTOCOL").as_deref() {
        None | Some("http/protobuf") => Ok(true),
        Some(other) => Err(format!(
            "invalid OTEL_EXPORTER_OTLP_PROTOCOL {other:?}: expected http/protobuf, on port 4318"
        )),
    }
}

fn request_timeout() -> Duration {
    let millis = exporter_variable("TIMEOUT").and_then(|value| value.trim().parse().ok());
    millis.map_or(REQUEST_TIMEOUT, Duration::from_millis)
}

/// Returns the attributes of this process: those of the environment, and the name of the service.
fn resource() -> Resource {
    let is_named = variable("OTEL_SERVICE_NAME").is_some()
        || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|list| list.contains("service.name="));
    let builder = Resource::builder();
    if is_named { builder.build() } else { builder.with_service_name("pq").build() }
}

/// Logs when the export begins to fail, and when it succeeds again.
#[derive(Debug)]
struct Reporting {
    exporter: SpanExporter,
    is_failing: Arc<AtomicBool>,
}

impl trace::SpanExporter for Reporting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = trace::SpanExporter::export(&self.exporter, batch).await;
        match (&exported, self.is_failing.swap(exported.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(%error, "spans were not exported"),
            (Ok(()), true) => tracing::info!("spans are exported again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        trace::SpanExporter::shutdown_with_timeout(&self.exporter, timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        trace::SpanExporter::set_resource(&mut self.exporter, resource);
    }
}

/// Sends requests from the thread of the export.
#[derive(Debug)]
struct Client(Agent);

impl Client {
    fn new(timeout: Duration) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build();
        let config = Agent::config_builder().tls_config(tls).timeout_global(Some(timeout));
        Self(config.http_status_as_error(false).build().into())
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, mut body) = self.0.run(request.map(|body| body.to_vec()))?.into_parts();
        Ok(Response::from_parts(parts, body.read_to_vec()?.into()))
    }
}

impl HttpClient for Client {
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move { self.send(request) })
    }
}
