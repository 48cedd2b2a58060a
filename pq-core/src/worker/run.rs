//! Running one handler: what is around it, and what it comes to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::middleware::{JobInfo, Next};
use super::queue_set::ServedQueue;
use super::shared::{Shared, Started};
use crate::task::{Envelope, Failure, HandlerResult, Incoming, after_failure, retry_or_dead};
use crate::{Handler, Outcome, RawJob, Store};

/// A job that can be run, or what is wrong with it.
pub(crate) struct Prepared<'h, S: Store> {
    pub(crate) incoming: Incoming,
    pub(crate) handler: Result<&'h Handler<S>, Failure>,
    task: Option<String>,
}

impl<S: Store> ServedQueue<S> {
    /// Finds the handler of a job.
    pub(crate) fn prepare(&self, raw: RawJob) -> Prepared<'_, S> {
        if let Some(handler) = &self.raw {
            let incoming = Incoming { raw: Arc::new(raw), envelope: None };
            return Prepared { incoming, handler: Ok(handler), task: None }.unless_exhausted();
        }
        let call = self.queue.json_of(&raw).and_then(|json| Envelope::read(&json));
        let raw = Arc::new(raw);
        match call {
            Ok(call) => {
                let name = call.function().unwrap_or_default();
                let handler = self.tasks.get(&name).ok_or_else(|| Failure::UnknownTask(name.clone()));
                let incoming = Incoming { raw, envelope: Some(call) };
                Prepared { incoming, handler, task: Some(name) }.unless_exhausted()
            }
            Err(reason) => {
                let incoming = Incoming { raw, envelope: None };
                Prepared { incoming, handler: Err(Failure::Undecodable(reason)), task: None }
            }
        }
    }
}

impl<S: Store> Prepared<'_, S> {
    /// A job that was begun as often as it may, and never came to a verdict, is not begun again.
    fn unless_exhausted(mut self) -> Self {
        if let Ok(handler) = self.handler {
            let (allowed, tried) = handler.tries(&self.incoming.raw, self.incoming.envelope.as_ref());
            if tried > allowed {
                self.handler = Err(Failure::Exhausted { attempts: tried });
            }
        }
        self
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        let handler = self.handler.as_ref().ok()?;
        handler.timeout_of(self.incoming.envelope.as_ref())
    }

    /// What becomes of the job.
    pub(crate) fn outcome_for(self, served: &ServedQueue<S>, ran: HandlerResult) -> (Arc<RawJob>, Outcome) {
        let Self { incoming, handler, .. } = self;
        let handler = handler.ok();
        let keeps = handler.is_some_and(|handler| handler.policy.keep);
        let outcome = match ran {
            Ok(Outcome::Complete) if keeps => Outcome::Keep { result: None },
            Ok(Outcome::Retry { after, error, payload }) => {
                let (raw, envelope) = (&incoming.raw, incoming.envelope);
                retry_or_dead(handler, &served.queue, raw, envelope, error, Some(after), payload)
            }
            Ok(outcome) => outcome,
            Err(failure) => {
                let raw = &incoming.raw;
                let outcome = after_failure(handler, &served.queue, raw, incoming.envelope, &failure);
                let dead = matches!(outcome, Outcome::Dead { .. });
                tracing::warn!(queue = %raw.queue, id = %raw.id, attempt = raw.attempt, %failure, dead, "a job failed");
                return (incoming.raw, outcome);
            }
        };
        (incoming.raw, outcome)
    }
}

impl<S: Store> Shared<S> {
    /// Runs a handler, now, and all that is around it. A panic is its failure.
    pub(crate) fn run(
        &self,
        thread: usize,
        prepared: &Prepared<'_, S>,
        now: Instant,
        handler: &mut dyn FnMut(&Incoming) -> HandlerResult,
    ) -> HandlerResult {
        if let Err(failure) = &prepared.handler {
            return Err(failure.clone());
        }
        let (job, timeout) = (&prepared.incoming.raw, prepared.timeout());
        let span = tracing::info_span!(
            "pq.run",
            queue = %job.queue,
            id = %job.id,
            task = prepared.task.as_deref(),
            attempt = job.attempt
        );
        let _entered = span.enter();
        self.signals.started(
            thread,
            Started {
                id: job.id,
                queue: job.queue.clone(),
                task: prepared.task.clone(),
                attempt: job.attempt,
                lease: job.claim.lease(),
                timeout,
                at: now,
            },
        );
        // A handler that panics leaves nothing half done that outlives it: its connection is rolled back.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            if self.middleware.is_empty() {
                return handler(&prepared.incoming);
            }
            let info = JobInfo { job, task: prepared.task.as_deref(), trace: prepared.incoming.trace() };
            Next::new(&self.middleware, &info, &mut || handler(&prepared.incoming)).run()
        }));
        self.signals.ended(thread);
        match (ran, timeout) {
            (Err(panic), _) => Err(Failure::Panic(text_of(panic))),
            (Ok(_), Some(limit)) if now.elapsed() > limit => Err(Failure::Timeout(limit)),
            (Ok(ran), _) => ran,
        }
    }
}

fn text_of(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => match panic.downcast::<&'static str>() {
            Ok(text) => (*text).to_owned(),
            Err(_) => "with something that is no text".to_owned(),
        },
    }
}
