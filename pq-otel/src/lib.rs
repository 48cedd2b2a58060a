//! OpenTelemetry traces of `pq`: from the put of a job to its handler.
//!
//! `pq` creates its spans by the crate `tracing`, and the layer of `tracing-opentelemetry` exports them. An
//! [`OpenTelemetry`] in the handle gives them names, kinds and attributes by the
//! [semantic conventions for messaging], stores the context of a put with its jobs, and makes it the parent of their
//! handlers' spans:
//!
//! ```
//! use opentelemetry_sdk::propagation::TraceContextPropagator;
//! use pq_otel::OpenTelemetry;
//!
//! let tracer = OpenTelemetry::new(TraceContextPropagator::new());
//! let pq = pq_diesel::Pq::builder().url("postgres://localhost/shop").trace(tracer).build()?;
//! # Ok::<(), pq_diesel::Error>(())
//! ```
//!
//! The page [tracing.md](https://github.com/pq-rs/pq/blob/main/docs/tracing.md) has the set-up of the layer, and the
//! attributes of each span.
//!
//! | span | name | kind | parent | links |
//! |---|---|---|---|---|
//! | put | `put QUEUE` | producer | the caller's span | |
//! | take | `take QUEUE` | client | the caller's span; a worker has none | the puts of the jobs |
//! | handler | `run QUEUE` | consumer | the put of the job | the span in which the worker runs, if any |
//! | settlement | `settle QUEUE` | client | the caller's span; a worker has none | the puts of the jobs |
//!
//! A put that is not sampled is not the parent of exported spans, if the sampler respects the parent's decision.
//!
//! [semantic conventions for messaging]: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/

#![warn(missing_debug_implementations)]

mod carrier;

/// The examples of the page are compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../docs/tracing.md")]
mod page {}

use std::collections::HashSet;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt};
use pq_core::{Claim, Failure, JobId, Outcome, SpanInfo, Trace, Tracer};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use self::carrier::{Extract, Inject};

/// The value of `error.type` for errors without a kind.
const OTHER_ERROR: &str = "_OTHER";

/// The number of links that a span has at most by the specification's default. Further ones are dropped by the SDK.
const MAX_LINKS: usize = 128;

/// Connects a handle to OpenTelemetry. See [`pq_core::Pq::with_trace`].
///
/// It has no effect without the layer of `tracing-opentelemetry`.
#[derive(Debug)]
pub struct OpenTelemetry<P> {
    propagator: P,
}

impl<P: TextMapPropagator + Send + Sync> OpenTelemetry<P> {
    /// Creates a tracer that stores trace contexts as `propagator` encodes them.
    ///
    /// Use `opentelemetry_sdk::propagation::TraceContextPropagator`, unless all programs of the application use
    /// another one.
    pub fn new(propagator: P) -> Self {
        Self { propagator }
    }

    /// Returns the context of the span in which a job was put. It is not valid if the job has none.
    fn put_context(&self, job: &Claim) -> SpanContext {
        let trace = job.annotations.trace();
        let context = self.propagator.extract_with_context(&Context::new(), &Extract(&trace));
        context.span().span_context().clone()
    }

    /// Links the span to those in which its jobs were put: once to each, and to [`MAX_LINKS`] at most.
    fn add_links<'a>(&self, span: &Span, jobs: impl Iterator<Item = &'a Claim>) {
        let mut linked = HashSet::new();
        for job in jobs {
            let put = self.put_context(job);
            if put.is_valid() && linked.insert((put.trace_id(), put.span_id())) {
                span.add_link(put);
            }
            if linked.len() == MAX_LINKS {
                return;
            }
        }
    }
}

impl<P: TextMapPropagator + Send + Sync> Tracer for OpenTelemetry<P> {
    fn context(&self) -> Trace {
        let mut trace = Trace::new();
        self.propagator.inject_context(&current_context(), &mut Inject(&mut trace));
        trace
    }

    fn describe(&self, span: &Span, info: &SpanInfo<'_>) {
        match info {
            SpanInfo::Put { queue } => begin(span, &PUT, queue.as_str()),
            SpanInfo::Added(puts) => set_jobs(span, puts.len(), puts.first().map(|put| put.id)),
            SpanInfo::Streamed(count) => set_count(span, *count),
            SpanInfo::Take { queue } => begin(span, &TAKE, queue.as_str()),
            SpanInfo::Taken(jobs) => {
                set_jobs(span, jobs.len(), jobs.first().map(|job| job.id));
                self.add_links(span, jobs.iter().map(|job| &**job));
            }
            SpanInfo::Run { job } => {
                begin(span, &RUN, job.queue.as_str());
                set_id(span, job.id);
                let put = self.put_context(job);
                if put.is_valid() {
                    let ambient = current_context().span().span_context().clone();
                    // Refused only if the span has begun, or if no layer is interested in it.
                    let _ = span.set_parent(Context::new().with_remote_span_context(put));
                    span.add_link(ambient);
                }
            }
            SpanInfo::Settle { queue, jobs } => {
                begin(span, &SETTLE, queue.as_str());
                set_jobs(span, jobs.len(), jobs.first().map(|(job, _)| job.id));
                if let [(_, outcome)] = jobs.as_slice() {
                    span.set_attribute("messaging.pq.outcome", outcome_name(outcome));
                }
                self.add_links(span, jobs.iter().map(|(job, _)| *job));
            }
            SpanInfo::Failed(error) => fail(span, error.clone(), OTHER_ERROR),
            SpanInfo::AttemptFailed(failure) => fail(span, failure.to_string(), failure_kind(failure)),
            _ => {}
        }
    }
}

/// An operation of the semantic conventions.
struct Operation {
    name: &'static str,
    /// The type of the operation among those that all messaging systems have.
    operation_type: &'static str,
    span_kind: &'static str,
}

const PUT: Operation = Operation { name: "put", operation_type: "send", span_kind: "producer" };
const TAKE: Operation = Operation { name: "take", operation_type: "receive", span_kind: "client" };
const RUN: Operation = Operation { name: "run", operation_type: "process", span_kind: "consumer" };
const SETTLE: Operation = Operation { name: "settle", operation_type: "settle", span_kind: "client" };

fn begin(span: &Span, operation: &Operation, queue: &str) {
    span.record("otel.name", format!("{} {queue}", operation.name));
    span.record("otel.kind", operation.span_kind);
    span.set_attribute("messaging.system", "pq");
    span.set_attribute("messaging.operation.name", operation.name);
    span.set_attribute("messaging.operation.type", operation.operation_type);
    span.set_attribute("messaging.destination.name", queue.to_owned());
}

/// Sets the number of jobs, and the id of a single one.
fn set_jobs(span: &Span, count: usize, first: Option<JobId>) {
    match first.filter(|_| count == 1) {
        Some(id) => set_id(span, id),
        None => set_count(span, count as u64),
    }
}

fn set_id(span: &Span, id: JobId) {
    span.set_attribute("messaging.message.id", id.to_string());
}

fn set_count(span: &Span, count: u64) {
    span.set_attribute("messaging.batch.message_count", i64::try_from(count).unwrap_or(i64::MAX));
}

fn fail(span: &Span, error: String, kind: &'static str) {
    span.set_attribute("error.type", kind);
    span.set_status(Status::error(error));
}

fn failure_kind(failure: &Failure) -> &'static str {
    match failure {
        Failure::Error(_) => "error",
        Failure::Panic(_) => "panic",
        Failure::Timeout { .. } => "timeout",
        Failure::UnknownTask(_) => "unknown_task",
        Failure::ChangedSteps(_) => "changed_steps",
        Failure::Undecodable(_) => "undecodable",
        Failure::Crashed { .. } => "crashed",
        _ => OTHER_ERROR,
    }
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Complete => "complete",
        Outcome::Keep { .. } => "keep",
        Outcome::Retry { .. } => "retry",
        Outcome::Snooze { .. } => "snooze",
        Outcome::Dead { .. } => "dead",
        Outcome::Cancel { .. } => "cancel",
        Outcome::GiveBack => "give_back",
        Outcome::RolledBack(outcome) => outcome_name(outcome),
    }
}

/// Returns the context of the current span of `tracing`, or else that of OpenTelemetry.
fn current_context() -> Context {
    let context = Span::current().context();
    if context.span().span_context().is_valid() { context } else { Context::current() }
}
