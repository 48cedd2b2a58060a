//! The spans of jobs, and what connects them to a system of distributed tracing.

use std::fmt;
use std::sync::Arc;

use tracing::{Instrument, Span};

use crate::{Claim, Failure, Outcome, Put, QueueName, Trace};

/// Connects the spans of a handle to a system of distributed tracing, such as OpenTelemetry. See
/// [`crate::Pq::with_trace`].
///
/// The library creates its spans by the crate `tracing`. A tracer returns the context that is stored with each job,
/// and receives what each span is about, so that it can set the span's name, parent and attributes.
///
/// A function that returns the caller's trace context is a tracer, too.
pub trait Tracer: Send + Sync {
    /// Returns the trace context of the current span. It is stored with each job that is put in it.
    fn context(&self) -> Trace;

    /// Describes a span. Default: does nothing.
    ///
    /// Called only for a span that a subscriber has enabled: before it is entered, and again when more is known.
    fn describe(&self, span: &Span, info: &SpanInfo<'_>) {
        let _ = (span, info);
    }
}

impl<F: Fn() -> Trace + Send + Sync> Tracer for F {
    fn context(&self) -> Trace {
        self()
    }
}

impl<T: Tracer + ?Sized> Tracer for Arc<T> {
    fn context(&self) -> Trace {
        (**self).context()
    }

    fn describe(&self, span: &Span, info: &SpanInfo<'_>) {
        (**self).describe(span, info);
    }
}

/// What a span of the library is about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SpanInfo<'a> {
    /// The span is that of a put.
    Put {
        /// The queue of the jobs.
        queue: &'a QueueName,
    },
    /// The put has ended with these results.
    Added(&'a [Put]),
    /// The put has streamed this number of jobs.
    Streamed(u64),
    /// The span is that of a take.
    Take {
        /// The queue of the jobs.
        queue: &'a QueueName,
    },
    /// The take has returned these jobs.
    Taken(&'a [Arc<Claim>]),
    /// The span is that of a handler.
    Run {
        /// The job.
        job: &'a Claim,
    },
    /// The span is that of the settlement of jobs.
    Settle {
        /// The queue of the jobs.
        queue: &'a QueueName,
        /// The jobs with their outcomes.
        jobs: Vec<(&'a Claim, &'a Outcome)>,
    },
    /// The put, the take or the settlement has failed with this error.
    Failed(String),
    /// The attempt has failed.
    AttemptFailed(&'a Failure),
}

/// A span of the library, with the tracer that describes it.
///
/// For a crate that implements puts, takes and settlements on connections of its own.
#[derive(Clone)]
pub struct JobSpan {
    span: Span,
    /// `None` if nobody is interested in the span.
    tracer: Option<Arc<dyn Tracer>>,
}

impl fmt::Debug for JobSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobSpan").field("span", &self.span).finish_non_exhaustive()
    }
}

impl JobSpan {
    /// Describes `span` to the tracer, if a subscriber has enabled it.
    pub(crate) fn new<'a>(
        span: Span,
        tracer: Option<&Arc<dyn Tracer>>,
        info: impl FnOnce() -> SpanInfo<'a>,
    ) -> Self {
        let tracer = tracer.filter(|_| !span.is_disabled()).cloned();
        let span = Self { span, tracer };
        span.describe(info);
        span
    }

    /// Describes the span to the tracer. `info` is called only if there is one.
    pub fn describe<'a>(&self, info: impl FnOnce() -> SpanInfo<'a>) {
        if let Some(tracer) = &self.tracer {
            tracer.describe(&self.span, &info());
        }
    }

    /// Records the number of jobs that the span is about.
    pub(crate) fn record_jobs(&self, jobs: usize) {
        self.span.record("jobs", jobs);
    }

    /// Returns the span.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Calls `work` in the span.
    ///
    /// # Errors
    ///
    /// The error of `work`. The span has failed then.
    pub fn run<R, E: fmt::Display>(&self, work: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        self.end(self.span.in_scope(work))
    }

    /// Polls a future in the span.
    ///
    /// # Errors
    ///
    /// The error of the future. The span has failed then.
    pub async fn run_async<R, E: fmt::Display>(
        &self,
        work: impl Future<Output = Result<R, E>>,
    ) -> Result<R, E> {
        self.end(work.instrument(self.span.clone()).await)
    }

    fn end<R, E: fmt::Display>(&self, result: Result<R, E>) -> Result<R, E> {
        if let Err(error) = &result {
            self.describe(|| SpanInfo::Failed(error.to_string()));
        }
        result
    }

    /// Describes how an attempt has ended, if it has failed.
    pub(crate) fn end_attempt(&self, result: &Result<Outcome, Failure>) {
        let outcome = match result {
            Err(failure) => return self.describe(|| SpanInfo::AttemptFailed(failure)),
            Ok(Outcome::RolledBack(outcome)) => outcome,
            Ok(outcome) => outcome,
        };
        if let Outcome::Dead { error } | Outcome::Retry { error, .. } = outcome {
            self.describe(|| SpanInfo::Failed(error.clone()));
        }
    }
}
