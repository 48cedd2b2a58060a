//! Spans of real jobs on PostgreSQL, as a collector receives them by OTLP.

mod receiver;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::LazyLock;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use pq_diesel::{Backoff, Job, Wait};
use pq_otel::OpenTelemetry;
use pq_testing::{Database, Server};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::receiver::{Received, Receiver};

type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The collector, and the provider that exports to it. All tests share them, since a process has one subscriber.
static COLLECTOR: LazyLock<(Receiver, SdkTracerProvider)> = LazyLock::new(|| {
    let receiver = Receiver::start().expect("a collector");
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(PlainHttp)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", receiver.endpoint()))
        .build()
        .expect("an exporter");
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).build();
    let is_span_of_ours = filter_fn(|metadata| {
        metadata.is_span() && (metadata.target().starts_with("pq_") || metadata.target() == "otlp")
    });
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing_subscriber::registry().with(layer.with_filter(is_span_of_ours)).init();
    (receiver, provider)
});

/// Sends each request on a connection of its own.
#[derive(Debug)]
struct PlainHttp;

impl PlainHttp {
    fn send(request: &Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri();
        let mut stream = TcpStream::connect(uri.authority().ok_or("no host")?.as_str())?;
        write!(stream, "POST {} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n", uri.path())?;
        write!(stream, "content-length: {}\r\n\r\n", request.body().len())?;
        stream.write_all(request.body())?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        let status: u16 = String::from_utf8_lossy(&answer[9..]).parse()?;
        Ok(Response::builder().status(status).body(Bytes::new())?)
    }
}

impl HttpClient for PlainHttp {
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move { Self::send(&request) })
    }
}

/// Returns a handle whose spans are received.
fn traced() -> (Database, pq_diesel::Pq) {
    LazyLock::force(&COLLECTOR);
    let database = Server::shared().expect("a server").database().expect("a database");
    let tracer = OpenTelemetry::new(TraceContextPropagator::new());
    let pq = pq_diesel::Pq::builder().url(database.url()).trace(tracer).build().expect("a handle");
    pq.migrate().expect("a table");
    (database, pq)
}

/// Returns the spans of a queue when all that have ended are received.
fn spans(queue: &str) -> Vec<Received> {
    let (receiver, provider) = &*COLLECTOR;
    provider.force_flush().expect("an answer");
    receiver.of_queue(queue)
}

/// Returns the spans of an operation.
fn of<'s>(spans: &'s [Received], operation: &str) -> Vec<&'s Received> {
    spans.iter().filter(|span| span.attribute("messaging.operation.name") == Some(operation)).collect()
}

/// Returns the only span of an operation.
fn one<'s>(spans: &'s [Received], operation: &str) -> &'s Received {
    let found = of(spans, operation);
    assert_eq!(found.len(), 1, "spans of {operation}: {spans:#?}");
    found[0]
}

/// Asserts what the spans of one job have in common, however it was put and run. Returns the handler's.
fn assert_one_trace<'s>(spans: &'s [Received], queue: &str, id: i64) -> &'s Received {
    let (put, run, settle) = (one(spans, "put"), one(spans, "run"), one(spans, "settle"));
    let takes = of(spans, "take");
    let take = takes.iter().find(|take| take.attribute("messaging.message.id").is_some());
    let take = take.unwrap_or_else(|| panic!("no take has the job: {spans:#?}"));
    for (span, name, kind, operation) in [
        (put, "put", SpanKind::Producer, "send"),
        (take, "take", SpanKind::Client, "receive"),
        (run, "run", SpanKind::Consumer, "process"),
        (settle, "settle", SpanKind::Client, "settle"),
    ] {
        assert_eq!((span.name.as_str(), span.kind), (format!("{name} {queue}").as_str(), kind));
        assert_eq!(span.attribute("messaging.system"), Some("pq"), "{span:#?}");
        assert_eq!(span.attribute("messaging.operation.type"), Some(operation), "{span:#?}");
        assert_eq!(span.attribute("messaging.destination.name"), Some(queue), "{span:#?}");
        assert_eq!(span.attribute("messaging.message.id"), Some(id.to_string().as_str()), "{span:#?}");
        assert_eq!(span.attribute("messaging.batch.message_count"), None, "{span:#?}");
    }
    assert!(run.is_child_of(put), "{run:#?} {put:#?}");
    assert_eq!(take.links, std::slice::from_ref(&put.id), "the take links to the put: {take:#?}");
    assert_eq!(settle.links, std::slice::from_ref(&put.id), "the settlement links to the put: {settle:#?}");
    assert!(take.id.0 != put.id.0 && settle.id.0 != put.id.0, "a worker's batch is a trace of its own");
    run
}

#[test]
fn a_blocking_handler_is_a_child_of_the_put() -> TestResult {
    let (_database, pq) = traced();
    for (queue, is_task, is_transactional) in [
        ("task-leased", true, false),
        ("task-transactional", true, true),
        ("plain-leased", false, false),
        ("plain-transactional", false, true),
    ] {
        let plain = pq.queue::<u8>(queue)?;
        let task = pq.queue(queue)?.task::<u8>("eat");
        let id = if is_task { task.call(&1)?.id } else { plain.put(&1)?.id };
        let handler = match (is_task, is_transactional) {
            (true, false) => task.leased(|_, _| Ok::<_, std::fmt::Error>(())),
            (true, true) => task.transactional(|_, _| Ok::<_, std::fmt::Error>(())),
            (false, false) => plain.leased(|_, _| Ok::<_, std::fmt::Error>(())),
            (false, true) => plain.transactional(|_, _| Ok::<_, std::fmt::Error>(())),
        };
        let report = pq_diesel::Worker::new(&pq).serve(handler).run_until_empty()?;
        assert_eq!(report.done, 1, "{queue}: {report:?}");
        let spans = spans(queue);
        let run = assert_one_trace(&spans, queue, id.0);
        assert_eq!(run.attribute("task"), is_task.then_some("eat"), "{run:#?}");
        assert_eq!((run.attribute("attempt"), &run.error), (Some("1"), &None), "{run:#?}");
        assert_eq!(one(&spans, "settle").attribute("messaging.pq.outcome"), Some("complete"));
        assert!(one(&spans, "put").parent.is_empty(), "no span was current");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asynchronous_handler_is_a_child_of_the_put() -> TestResult {
    let (database, _) = tokio::task::spawn_blocking(traced).await?;
    let tracer = OpenTelemetry::new(TraceContextPropagator::new());
    let pq = pq_diesel_async::Pq::builder().url(database.url()).trace(tracer).build()?;
    for (queue, is_task, is_transactional) in [
        ("async-task-leased", true, false),
        ("async-task-transactional", true, true),
        ("async-plain-leased", false, false),
    ] {
        let plain = pq.queue::<u8>(queue)?;
        let task = pq.queue(queue)?.task::<u8>("eat");
        let id = if is_task { task.call(&1).await?.id } else { plain.put(&1).await?.id };
        let handler = match (is_task, is_transactional) {
            (true, false) => task.leased_async(async |_, _| Ok::<_, std::fmt::Error>(())),
            (true, true) => task.transactional_async(async |_, _| Ok::<_, std::fmt::Error>(())),
            (false, _) => plain.leased_async(async |_, _| Ok::<_, std::fmt::Error>(())),
        };
        let report = pq_diesel_async::Worker::new(&pq).serve(handler).run_until_empty().await?;
        assert_eq!(report.done, 1, "{queue}: {report:?}");
        let spans = tokio::task::spawn_blocking(move || spans(queue)).await?;
        assert_one_trace(&spans, queue, id.0);
    }
    Ok(())
}

#[test]
fn each_attempt_has_a_span_with_its_failure() -> TestResult {
    let (_database, pq) = traced();
    let queue = "failing";
    let task = pq.queue(queue)?.task::<u8>("eat").max_retries(1).backoff(Backoff::fixed(Duration::ZERO));
    let caller = tracing::info_span!(target: "otlp", "caller", otel.name = "caller failing");
    caller.in_scope(|| task.call(&1))?;
    drop(caller);
    let handler = task.leased(|context, _: Job<u8>| match context.job().attempt {
        1 => Err::<(), _>("out of apples"),
        _ => panic!("no teeth"),
    });
    let report = pq_diesel::Worker::new(&pq).serve(handler).run_until_empty()?;
    assert_eq!((report.failed, report.dead), (2, 1), "{report:?}");
    let spans = spans(queue);
    let put = one(&spans, "put");
    let caller = spans.iter().find(|span| span.name == "caller failing").expect("the caller's span");
    assert!(put.is_child_of(caller), "{put:#?}");
    let runs = of(&spans, "run");
    assert_eq!(runs.len(), 2, "{spans:#?}");
    for (run, attempt, error, kind) in
        [(runs[0], "1", "out of apples", "error"), (runs[1], "2", "the handler panicked: no teeth", "panic")]
    {
        assert!(run.is_child_of(put), "{run:#?}");
        assert_eq!((run.attribute("attempt"), run.attribute("task")), (Some(attempt), Some("eat")));
        assert_eq!((run.error.as_deref(), run.attribute("error.type")), (Some(error), Some(kind)));
    }
    let outcomes: Vec<_> =
        of(&spans, "settle").iter().map(|settle| settle.attribute("messaging.pq.outcome")).collect();
    assert_eq!(outcomes, [Some("retry"), Some("dead")]);
    Ok(())
}

#[test]
fn a_batch_has_one_put_and_one_take_with_a_link_to_each_put() -> TestResult {
    let (_database, pq) = traced();
    let apples = pq.queue::<u8>("batch")?;
    apples.put_many([1, 2, 3])?;
    // On the caller's connection.
    pq.transaction(|conn| apples.on(conn).put(&4))?;
    assert_eq!(apples.put_all([5, 6])?, 2);
    assert_eq!(apples.get_many(10, Wait::No)?.len(), 6);
    let spans = spans("batch");
    let puts = of(&spans, "put");
    let counts: Vec<_> = puts.iter().map(|put| put.attribute("messaging.batch.message_count")).collect();
    assert_eq!(counts, [Some("3"), None, Some("2")], "{puts:#?}");
    let take = one(&spans, "take");
    assert_eq!(take.attribute("messaging.batch.message_count"), Some("6"));
    let expected: Vec<_> = puts.iter().map(|put| put.id.clone()).collect();
    assert_eq!(take.links, expected, "{take:#?}");
    Ok(())
}

#[test]
fn a_put_that_was_not_sampled_leads_to_no_exported_span() -> TestResult {
    let (_database, pq) = traced();
    let task = pq.queue("unsampled")?.task::<u8>("eat");
    let untraced = pq_diesel::Pq::builder().url(_database.url()).trace(|| {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00".to_owned();
        [("traceparent".to_owned(), parent)].into()
    });
    untraced.build()?.queue("unsampled")?.task::<u8>("eat").call(&1)?;
    let seen = std::sync::Arc::new(std::sync::Mutex::new(None));
    let see = std::sync::Arc::clone(&seen);
    let handler = task.leased(move |context, _| {
        *see.lock().expect("a lock") = context.trace().get("traceparent").cloned();
        Ok::<_, std::fmt::Error>(())
    });
    pq_diesel::Worker::new(&pq).serve(handler).run_until_empty()?;
    let seen = seen.lock().expect("a lock").clone();
    assert!(seen.is_some_and(|parent| parent.ends_with("-00")));
    let spans = spans("unsampled");
    assert!(of(&spans, "run").is_empty(), "{spans:#?}");
    assert!(!of(&spans, "take").is_empty(), "{spans:#?}");
    Ok(())
}

#[test]
fn a_refused_put_has_failed() -> TestResult {
    let (database, pq) = traced();
    let missing = pq_diesel::Pq::builder().url(database.url()).table("missing");
    let missing = missing.trace(OpenTelemetry::new(TraceContextPropagator::new())).build()?;
    drop(pq);
    assert!(missing.queue::<u8>("refused")?.put(&1).is_err());
    let spans = spans("refused");
    let put = one(&spans, "put");
    assert!(put.error.as_ref().is_some_and(|error| error.contains("missing")), "{put:#?}");
    assert_eq!(put.attribute("error.type"), Some("_OTHER"));
    Ok(())
}
