//! The spans of a queue's jobs.

use std::fmt;

use tracing::field::Empty;

use super::Queue;
use crate::put_counts::ByTask;
use crate::tracer::{JobSpan, SpanInfo};
use crate::{Claim, Error, NewJob, Outcome, Pq, Put, QueueName, Store, Taken};

// The bridge from `tracing` to OpenTelemetry reads the name and the kind of a span from its fields. A tracer records
// them.
impl<S: Store, T> Queue<S, T> {
    /// Creates the span of a put.
    ///
    /// The jobs must be encoded in it, so that they carry its context.
    fn put_span(&self) -> JobSpan {
        let span = tracing::debug_span!(
            "pq.put",
            queue = %self.name,
            jobs = Empty,
            otel.name = Empty,
            otel.kind = Empty
        );
        JobSpan::new(span, self.pq.tracer(), || SpanInfo::Put { queue: &self.name })
    }

    /// Creates the span of a take of up to `want` jobs.
    #[must_use]
    pub fn take_span(&self, want: usize) -> JobSpan {
        let span = tracing::debug_span!(
            "pq.take",
            queue = %self.name,
            want,
            otel.name = Empty,
            otel.kind = Empty
        );
        JobSpan::new(span, self.pq.tracer(), || SpanInfo::Take { queue: &self.name })
    }

    /// Takes jobs by `take`, in the span of the take.
    pub(crate) fn in_take_span(
        &self,
        want: usize,
        take: impl FnOnce() -> Result<Taken, S::Error>,
    ) -> Result<Taken, S::Error> {
        let span = self.take_span(want);
        span.run(|| {
            let taken = take()?;
            span.describe(|| SpanInfo::Taken(&taken.jobs));
            Ok(taken)
        })
    }

    /// Takes jobs by a future, in the span of the take.
    ///
    /// # Errors
    ///
    /// The error of the future.
    pub async fn in_take_span_async<E: fmt::Display>(
        &self,
        want: usize,
        take: impl Future<Output = Result<Taken, E>>,
    ) -> Result<Taken, E> {
        let span = self.take_span(want);
        let taken = span.run_async(take).await?;
        span.describe(|| SpanInfo::Taken(&taken.jobs));
        Ok(taken)
    }

    /// Encodes jobs and passes them to `put`, in the span of the put.
    pub(super) fn put_in_span<J: AsRef<[NewJob]>>(
        &self,
        encode: impl FnOnce() -> Result<J, Error>,
        put: impl FnOnce(&[NewJob]) -> Result<Vec<Put>, S::Error>,
    ) -> Result<Vec<Put>, S::Error> {
        let span = self.put_span();
        span.run(|| {
            let jobs = encode()?;
            span.record_jobs(jobs.as_ref().len());
            let puts = put(jobs.as_ref())?;
            let tasks = jobs.as_ref().iter().map(|job| &job.task);
            self.pq.count_puts(&self.name, ByTask::added(tasks, &puts));
            self.pq.store_put_counts_regularly();
            span.describe(|| SpanInfo::Added(&puts));
            Ok(puts)
        })
    }

    /// Encodes jobs and passes them to `put`, in the span of the put.
    ///
    /// # Errors
    ///
    /// The errors of `encode` and of the future.
    pub async fn in_put_span_async<E: fmt::Display + From<Error>, F: Future<Output = Result<Vec<Put>, E>>>(
        &self,
        encode: impl FnOnce() -> Result<Vec<NewJob>, Error>,
        put: impl FnOnce(Vec<NewJob>) -> F,
    ) -> Result<Vec<Put>, E> {
        let span = self.put_span();
        let jobs = span.run(encode)?;
        span.record_jobs(jobs.len());
        let tasks: Vec<_> = jobs.iter().map(|job| job.task.clone()).collect();
        let puts = span.run_async(put(jobs)).await?;
        self.pq.count_puts(&self.name, ByTask::added(&tasks, &puts));
        span.describe(|| SpanInfo::Added(&puts));
        Ok(puts)
    }

    /// Streams jobs to `put` as they are encoded, in the span of the put. Refuses unique keys, since no job's outcome
    /// is returned.
    pub(super) fn put_all_in_span<I: Iterator<Item = Result<NewJob, Error>>>(
        &self,
        encode: impl FnOnce() -> I,
        put: impl FnOnce(&mut dyn Iterator<Item = Result<NewJob, Error>>) -> Result<u64, S::Error>,
    ) -> Result<u64, S::Error> {
        let span =
            tracing::debug_span!("pq.put_all", queue = %self.name, otel.name = Empty, otel.kind = Empty);
        let span = JobSpan::new(span, self.pq.tracer(), || SpanInfo::Put { queue: &self.name });
        span.run(|| {
            let mut by_task = ByTask::default();
            let jobs = encode().map(without_answer);
            let count = put(&mut jobs.inspect(|job| job.iter().for_each(|job| by_task.add(&job.task))))?;
            self.pq.count_puts(&self.name, by_task);
            self.pq.store_put_counts_regularly();
            span.describe(|| SpanInfo::Streamed(count));
            Ok(count)
        })
    }
}

impl<S: Store> Pq<S> {
    /// Creates the span of the settlement of jobs with these outcomes.
    #[must_use]
    pub fn settle_span<'a>(
        &self,
        queue: &'a QueueName,
        jobs: impl Iterator<Item = (&'a Claim, &'a Outcome)> + Clone,
    ) -> JobSpan {
        let span = tracing::debug_span!(
            "pq.settle",
            %queue,
            jobs = jobs.clone().count(),
            otel.name = Empty,
            otel.kind = Empty
        );
        JobSpan::new(span, self.tracer(), || SpanInfo::Settle { queue, jobs: jobs.collect() })
    }
}

/// Refuses a job whose put must answer with its id or its outcome.
fn without_answer(job: Result<NewJob, Error>) -> Result<NewJob, Error> {
    match job {
        Ok(job) if job.unique.is_some() => Err(Error::UniqueKey),
        Ok(job) if !job.links.is_empty() => Err(Error::Linked),
        job => job,
    }
}
