//! A taken job with the handler that runs it, and the outcome of its attempt.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tracing::field::Empty;

use super::catch_panic::catch_panic;
use super::queue_set::ServedQueue;
use super::thread_slots::RunningHandler;
use super::worker_run::WorkerRun;
use crate::envelope::Envelope;
use crate::handler::{HandlerResult, Incoming, Policy, is_left_for, leave_to_others};
use crate::{AttemptEnd, Claim, Failure, Handler, Isolation, JobInfo, JobSpan, Outcome, SpanInfo, Store};

/// The policy of a job that has no handler.
static WITHOUT_HANDLER: LazyLock<Policy> = LazyLock::new(Policy::default);

/// A taken job with its handler, or with the reason why it cannot run.
pub(super) struct PreparedJob<'h, S: Store> {
    pub(super) incoming: Incoming,
    pub(super) handler: Result<&'h Handler<S>, Failure>,
    /// The name of the task; `None` if the handler serves a whole queue.
    pub(super) task: Option<String>,
}

impl<S: Store> ServedQueue<S> {
    /// Finds the handler of a job.
    pub(super) fn prepare(&self, claim: Arc<Claim>) -> PreparedJob<'_, S> {
        let call = self.read_call(&claim);
        self.prepare_call(claim, call)
    }

    /// Reads the call of a job. Returns `None` if one handler serves the whole queue, whose jobs need not be calls.
    pub(super) fn read_call(&self, claim: &Claim) -> Result<Option<Envelope>, String> {
        if self.whole_queue.is_some() {
            return Ok(None);
        }
        self.queue.json_of(claim).and_then(|json| Envelope::read(&json)).map(Some)
    }

    /// Finds the handler of a job by its call, as [`ServedQueue::read_call`] has returned it.
    pub(super) fn prepare_call(
        &self,
        claim: Arc<Claim>,
        call: Result<Option<Envelope>, String>,
    ) -> PreparedJob<'_, S> {
        if let Some(handler) = &self.whole_queue {
            let incoming = Incoming { claim, envelope: None };
            return PreparedJob { incoming, handler: Ok(handler), task: None }.unless_crashed();
        }
        match call.and_then(|call| call.ok_or_else(|| "the payload was not read".to_owned())) {
            Ok(call) => {
                let name = call.function().unwrap_or_default();
                let handler = self.tasks.get(&name).ok_or_else(|| Failure::UnknownTask(name.clone()));
                let incoming = Incoming { claim, envelope: Some(call) };
                PreparedJob { incoming, handler, task: Some(name) }.unless_crashed()
            }
            Err(reason) => {
                let incoming = Incoming { claim, envelope: None };
                PreparedJob { incoming, handler: Err(Failure::Undecodable(reason)), task: None }
            }
        }
    }
}

impl<S: Store> PreparedJob<'_, S> {
    /// Removes the handler if the worker died in as many attempts as allowed.
    fn unless_crashed(mut self) -> Self {
        if let Ok(handler) = self.handler
            && let Some(failure) = handler.policy.crashed(&self.incoming.claim)
        {
            self.handler = Err(failure);
        }
        self
    }

    /// Returns whether the handler has a context, by which it learns that the worker stops.
    pub(super) fn is_leased(&self) -> bool {
        self.handler.as_ref().is_ok_and(|handler| !handler.is_transactional())
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        let handler = self.handler.as_ref().ok()?;
        handler.policy.timeout(self.incoming.envelope.as_ref())
    }

    /// Returns how many handlers that send statements may share a transaction with this one. See
    /// [`Policy::max_senders`].
    pub(super) fn max_senders(&self) -> usize {
        self.handler.as_ref().map_or(usize::MAX, |handler| handler.policy.max_senders())
    }

    /// Returns how many jobs of its handler run at the same time in one worker.
    pub(super) fn concurrency(&self) -> usize {
        self.handler.as_ref().map_or(usize::MAX, |handler| handler.policy.concurrency)
    }

    /// Creates the span in which its handler runs.
    pub(super) fn span(&self, run: &WorkerRun<S>) -> JobSpan {
        let job = &self.incoming.claim;
        let span = tracing::info_span!(
            "pq.run",
            queue = %job.queue,
            job_id = %job.id,
            task = self.task.as_deref(),
            attempt = job.attempt,
            otel.name = Empty,
            otel.kind = Empty
        );
        JobSpan::new(span, run.pq.tracer(), || SpanInfo::Run { job })
    }

    /// Describes its handler, which begins at `since`, to the status. `lease` is the lease that expires if a blocking
    /// handler hangs.
    pub(super) fn running(
        &self,
        lease: Option<i64>,
        timeout: Option<Duration>,
        since: Instant,
    ) -> RunningHandler {
        RunningHandler {
            job: Arc::clone(&self.incoming.claim),
            task: self.task.clone(),
            lease,
            timeout,
            since,
        }
    }

    /// Gives the job back if its handler, which has a context, returned an error after it was asked to end.
    pub(super) fn unless_asked_to_end(&self, run: &WorkerRun<S>, result: HandlerResult) -> HandlerResult {
        match result {
            Err(Failure::Error(error)) if run.stop.is_aborting() && self.is_leased() => {
                // The error says nothing about the job.
                let job_id = self.incoming.claim.id;
                tracing::info!(%job_id, error, "handler ended early; its job is given back");
                Ok(Outcome::GiveBack)
            }
            result => result,
        }
    }

    /// Returns the isolation level of a transactional handler.
    pub(super) fn isolation(&self) -> Isolation {
        self.policy().isolation
    }

    /// Describes the job to middleware and to the functions that are called for each failure.
    pub(super) fn info(&self, run: &WorkerRun<S>) -> JobInfo<'_> {
        let Incoming { claim, envelope } = &self.incoming;
        let (max_retries, tried) = self.policy().retries(claim, envelope.as_ref());
        let is_last = match &self.handler {
            Ok(_) => tried >= max_retries,
            Err(Failure::UnknownTask(_)) => is_left_for(&self.incoming, run.settings.leave_unknown_tasks_for),
            Err(_) => true,
        };
        let (task, trace) = (self.task.as_deref(), claim.annotations.trace());
        let attempt =
            tried.saturating_add(u32::try_from(claim.crashes).unwrap_or_default()).saturating_add(1);
        JobInfo { job: claim, task, trace, attempt, max_retries, is_last }
    }

    /// Returns the job and the outcome that its handler's result leads to.
    ///
    /// Logs a failure, and passes it to the functions of [`crate::Worker::on_failure`].
    pub(super) fn end(
        self,
        run: &WorkerRun<S>,
        served: &ServedQueue<S>,
        result: HandlerResult,
    ) -> (Arc<Claim>, Outcome) {
        let (outcome, failure) = self.outcome_of(run, served, result);
        if let Some(failure) = failure {
            let dead = matches!(outcome, Outcome::Dead { .. });
            let job = &self.incoming.claim;
            let attempt = job.attempt;
            let (queue, job_id, task) = (&job.queue, job.id, self.task.as_deref());
            if job.lease().is_some_and(|lease| run.leases.is_lost(lease)) {
                // Another worker may have the job. Then the store refuses this outcome, so it is no death yet.
                tracing::warn!(%queue, %job_id, task, attempt, %failure, "job failed after its lease was lost");
            } else if dead {
                tracing::error!(%queue, %job_id, task, attempt, %failure, dead, "job failed");
            } else {
                tracing::warn!(%queue, %job_id, task, attempt, %failure, dead, "job failed");
            }
            self.call_on_failure(run, &failure, dead);
        }
        (self.incoming.claim, outcome)
    }

    /// Passes the crash of the previous attempt to the functions of [`crate::Worker::on_failure`], because nobody could
    /// when it happened. To be called when the handler begins.
    pub(super) fn report_crash(&self, run: &WorkerRun<S>) {
        let job = &self.incoming.claim;
        let crashed = job.attempt_log.last().is_some_and(|last| last.end == AttemptEnd::Crashed);
        // A snooze adds nothing to the log, and clears the limit.
        if crashed && job.lease_limit.is_some() && self.handler.is_ok() {
            let times = u32::try_from(job.crashes).unwrap_or_default();
            self.call_on_failure(run, &Failure::Crashed { times }, false);
        }
    }

    fn call_on_failure(&self, run: &WorkerRun<S>, failure: &Failure, is_last: bool) {
        if run.on_failure.is_empty() {
            return;
        }
        let info = self.info(run);
        for on_failure in &run.on_failure {
            if let Err(panic) = catch_panic(|| on_failure(&info, failure, is_last)) {
                tracing::error!(job_id = %info.job.id, %panic, "a function for failures panicked");
            }
        }
    }

    /// Returns the outcome that a handler's result leads to, and the failure if the attempt failed.
    pub(super) fn outcome_of(
        &self,
        run: &WorkerRun<S>,
        served: &ServedQueue<S>,
        result: HandlerResult,
    ) -> (Outcome, Option<Failure>) {
        let keeps = self.policy().keep_history;
        let (failure, retry) = match result.map(|outcome| outcome.into_parts().0) {
            Ok(Outcome::Complete) if keeps || self.incoming.claim.annotations.is_awaited() => {
                return (Outcome::Keep { result: None }, None);
            }
            Ok(Outcome::Dead { error }) => {
                return (Outcome::Dead { error: error.clone() }, Some(Failure::Error(error)));
            }
            Ok(Outcome::Retry { after, error, payload }) => (Failure::Error(error), Some((after, payload))),
            Ok(outcome) => return (outcome, None),
            Err(failure) => (failure, None),
        };
        let (queue, bound) = (&served.queue, run.settings.leave_unknown_tasks_for);
        let outcome = match &failure {
            Failure::UnknownTask(_) | Failure::ChangedSteps(_) if self.incoming.envelope.is_some() => {
                served.leaves_jobs.store(true, Ordering::Relaxed);
                leave_to_others(queue, &self.incoming, &failure, bound)
            }
            _ => self.policy().after_failure(queue, &self.incoming, &failure, retry),
        };
        (outcome, Some(failure))
    }

    pub(super) fn policy(&self) -> &Policy {
        self.handler.as_ref().map_or(&WITHOUT_HANDLER, |handler| &handler.policy)
    }
}
