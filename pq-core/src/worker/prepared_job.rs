//! A taken job with the handler that runs it, and the outcome of its attempt.

use std::sync::Arc;
use std::time::Duration;

use super::queue_set::ServedQueue;
use crate::envelope::Envelope;
use crate::handler::{HandlerResult, Incoming, Policy};
use crate::{Claim, Failure, Handler, Outcome, Store};

/// A taken job with its handler, or with the reason why it cannot run.
pub(super) struct PreparedJob<'h, S: Store> {
    pub(super) incoming: Incoming,
    pub(super) handler: Result<&'h Handler<S>, Failure>,
    /// The name of the task; `None` if the handler serves a whole queue.
    pub(super) task: Option<String>,
}

impl<S: Store> ServedQueue<S> {
    /// Finds the handler of a job.
    pub(super) fn prepare(&self, claim: Claim) -> PreparedJob<'_, S> {
        if let Some(handler) = &self.whole_queue {
            let incoming = Incoming { claim: Arc::new(claim), envelope: None };
            return PreparedJob { incoming, handler: Ok(handler), task: None }.unless_exhausted();
        }
        let call = self.queue.json_of(&claim).and_then(|json| Envelope::read(&json));
        let claim = Arc::new(claim);
        match call {
            Ok(call) => {
                let name = call.function().unwrap_or_default();
                let handler = self.tasks.get(&name).ok_or_else(|| Failure::UnknownTask(name.clone()));
                let incoming = Incoming { claim, envelope: Some(call) };
                PreparedJob { incoming, handler, task: Some(name) }.unless_exhausted()
            }
            Err(reason) => {
                let incoming = Incoming { claim, envelope: None };
                PreparedJob { incoming, handler: Err(Failure::Undecodable(reason)), task: None }
            }
        }
    }
}

impl<S: Store> PreparedJob<'_, S> {
    /// Removes the handler if all allowed attempts began and none was settled, because workers crashed or leases
    /// expired.
    fn unless_exhausted(mut self) -> Self {
        if let Ok(handler) = self.handler {
            let Incoming { claim, envelope } = &self.incoming;
            let (allowed, tried) = handler.policy.retries(claim, envelope.as_ref());
            if tried > allowed {
                self.handler = Err(Failure::Exhausted { attempts: tried });
            }
        }
        self
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        let handler = self.handler.as_ref().ok()?;
        handler.policy.timeout(self.incoming.envelope.as_ref())
    }

    /// Returns the job and the outcome that its handler's result leads to.
    pub(super) fn outcome_for(self, served: &ServedQueue<S>, result: HandlerResult) -> (Arc<Claim>, Outcome) {
        let Self { incoming, handler, .. } = self;
        let keeps = handler.as_ref().is_ok_and(|handler| handler.policy.keep_history);
        let (failure, retry) = match result {
            Ok(Outcome::Complete) if keeps => return (incoming.claim, Outcome::Keep { result: None }),
            Ok(Outcome::Retry { after, error, payload }) => (Failure::Error(error), Some((after, payload))),
            Ok(outcome) => return (incoming.claim, outcome),
            Err(failure) => (failure, None),
        };
        let without_handler = Policy::default();
        let policy = handler.as_ref().map_or(&without_handler, |handler| &handler.policy);
        let claim = Arc::clone(&incoming.claim);
        let outcome = policy.after_failure(&served.queue, incoming, &failure, retry);
        let dead = matches!(outcome, Outcome::Dead { .. });
        tracing::warn!(
            queue = %claim.queue,
            job_id = %claim.id,
            attempt = claim.attempt,
            %failure,
            dead,
            "job failed"
        );
        (claim, outcome)
    }
}
