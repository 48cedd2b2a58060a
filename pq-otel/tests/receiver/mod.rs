//! A collector: receives spans by OTLP over HTTP.

// No test binary uses all of these helpers.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use prost::Message;

/// A span as it was received.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    pub name: String,
    pub kind: SpanKind,
    /// The ids of its trace and of itself.
    pub id: (String, String),
    /// The id of its parent; empty if it has none.
    pub parent: String,
    /// The ids of the spans that it links to, with those of their traces.
    pub links: Vec<(String, String)>,
    pub attributes: BTreeMap<String, String>,
    /// The text of its error.
    pub error: Option<String>,
    pub service: String,
}

impl Received {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    /// Returns whether `parent` is the parent of this span, in the same trace.
    pub fn is_child_of(&self, parent: &Self) -> bool {
        self.id.0 == parent.id.0 && self.parent == parent.id.1
    }
}

/// A running collector.
#[derive(Clone)]
pub struct Receiver {
    pub address: SocketAddr,
    spans: Arc<Mutex<Vec<Received>>>,
    /// The headers of the last request, in lower case.
    headers: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    pub fn start() -> io::Result<Self> {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    pub fn listen(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let receiver =
            Self { address: listener.local_addr()?, spans: Arc::default(), headers: Arc::default() };
        let server = receiver.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                thread::spawn(move || server.serve(stream));
            }
        });
        Ok(receiver)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the spans whose names end with this queue.
    pub fn of_queue(&self, queue: &str) -> Vec<Received> {
        let ending = format!(" {queue}");
        self.all().into_iter().filter(|span| span.name.ends_with(&ending)).collect()
    }

    pub fn all(&self) -> Vec<Received> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn headers(&self) -> Vec<String> {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `count` spans have this name, and returns them.
    pub fn wait_for(&self, name: &str, count: usize) -> Vec<Received> {
        let began = Instant::now();
        loop {
            let found: Vec<_> = self.all().into_iter().filter(|span| span.name == name).collect();
            if found.len() >= count {
                return found;
            }
            let names: Vec<_> = self.all().into_iter().map(|span| span.name).collect();
            assert!(began.elapsed() < Duration::from_secs(60), "expected {count} of {name:?} in {names:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Answers the requests of a connection.
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let mut headers = Vec::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
                match line.trim_end() {
                    "" => break,
                    line => headers.push(line.to_ascii_lowercase()),
                }
            }
            let length = headers.iter().find_map(|line| line.strip_prefix("content-length:"))?;
            let mut body = vec![0; length.trim().parse().ok()?];
            reader.read_exact(&mut body).ok()?;
            let is_known = headers.first().is_some_and(|line| line.starts_with("post /v1/traces "));
            let request = ExportTraceServiceRequest::decode(body.as_slice()).ok().filter(|_| is_known);
            let status = if request.is_some() { "200 OK" } else { "400 Bad Request" };
            *self.headers.lock().unwrap_or_else(PoisonError::into_inner) = headers;
            self.spans
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(request.into_iter().flat_map(read));
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").ok()?;
        }
    }
}

fn read(request: ExportTraceServiceRequest) -> Vec<Received> {
    let mut spans = Vec::new();
    for resource in request.resource_spans {
        let attributes =
            resource.resource.map(|resource| attributes(&resource.attributes)).unwrap_or_default();
        let service = attributes.get("service.name").cloned().unwrap_or_default();
        let received = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(received.map(|span| read_span(span, &service)));
    }
    spans
}

fn read_span(span: Span, service: &str) -> Received {
    let status = span.status.clone().unwrap_or_default();
    Received {
        kind: span.kind(),
        id: (hex(&span.trace_id), hex(&span.span_id)),
        parent: hex(&span.parent_span_id),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        attributes: attributes(&span.attributes),
        error: (status.code() == StatusCode::Error).then_some(status.message),
        service: service.to_owned(),
        name: span.name,
    }
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    list.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
