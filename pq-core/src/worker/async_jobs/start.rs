//! Starting a job: its lease, its context, and its future on the executor.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use tracing::Instrument;

use super::events::ResultSender;
use super::running::run_guarded;
use super::{Dispatcher, Flight};
use crate::handler::{Context, Entered, HandlerFuture, HandlerResult, JobNotes, Run};
use crate::worker::catch_panic::catch_panic;
use crate::worker::leased_batch::set_lease_length;
use crate::worker::prepared_job::PreparedJob;
use crate::worker::status::Report;
use crate::worker::thread_slots::FinishedJob;
use crate::{Failure, SpanInfo, Store};

/// A lease is confirmed before a job begins if it was not within this time.
const CONFIRM_EVERY: Duration = Duration::from_millis(1);

impl<'r, S: Store> Dispatcher<'r, S> {
    /// Starts a job. Skips it if its lease was lost.
    pub(super) fn start(&mut self, position: usize, prepared: PreparedJob<'r, S>) {
        let (run, now, job) = (self.run, Instant::now(), Arc::clone(&prepared.incoming.claim));
        let lease = job.lease().unwrap_or_default();
        if !self.is_held(lease, now) {
            tracing::warn!(queue = %job.queue, job_id = %job.id, "job was skipped because its lease was lost");
            self.slot.statistics.add(&job.queue, &Report { lost: 1, ..Report::default() });
            self.in_hand.remove(position, &job);
            run.job_limit.release(1);
            return self.forget(lease, 1);
        }
        run.record_begun(1);
        let timeout = prepared.timeout();
        let access = &run.context_access[position];
        let context = Arc::new(Context::with_policy(access, &prepared.incoming, timeout, prepared.policy()));
        let own_length = prepared.incoming.envelope.as_ref().and_then(|envelope| envelope.duration("lease"));
        let is_alone = self.leases.get(&lease).is_some_and(|own| own.unsettled == 1);
        // The jobs of a lease run at the same time, so one of them may only make it longer.
        if let Some(length) = own_length.filter(|length| is_alone || *length > run.settings.lease) {
            set_lease_length(run, lease, length);
        }
        prepared.report_crash(run);
        let span = prepared.span(run);
        let entered = Entered::enter(|| Arc::clone(context.notes()));
        let future = span.span().in_scope(|| future_of(&prepared, &context));
        drop(entered);
        let future = match future {
            Ok(future) => future,
            Err(failure) => {
                span.describe(|| SpanInfo::AttemptFailed(&failure));
                self.in_hand.remove(position, &job);
                let attempt = Some(prepared.ended_attempt(&run.clock, now, now));
                let (job, outcome) = prepared.end(run, &run.queues.all[position], Err(failure));
                let (settled_as, notes) = (None, context.end_notes());
                return self.finish(FinishedJob { job, outcome, at: now, attempt, settled_as, notes });
            }
        };
        self.in_hand.begin(position, &prepared);
        let handler = prepared.running(None, timeout, now);
        let future: HandlerFuture = if Entered::is_asked_for() {
            Box::pin(InJob { notes: Arc::clone(context.notes()), future })
        } else {
            future
        };
        let number = self.flights.insert(Flight::Leased { position, began: now, prepared, context });
        self.slot.begin_concurrent(number, handler);
        let sender = ResultSender::new(&self.events, number);
        let timeout = timeout.map(|limit| (limit, self.executor.sleep(limit)));
        let run_handler = async move {
            let result = run_guarded(future, timeout).instrument(span.span().clone()).await;
            span.end_attempt(&result);
            drop(span);
            sender.send(result);
        };
        self.executor.spawn(Box::pin(run_handler));
    }

    /// Returns whether the lease is held. It is extended first if it may expire soon.
    fn is_held(&mut self, lease: i64, now: Instant) -> bool {
        let Some(own) = self.leases.get_mut(&lease) else { return false };
        if own.confirmed_at.is_none_or(|at| now - at >= CONFIRM_EVERY) {
            let is_held = self.run.leases.confirm(self.run.store(), lease, now, CONFIRM_EVERY);
            own.confirmed_at = is_held.then_some(now);
        }
        own.confirmed_at.is_some()
    }
}

/// A handler's future, whose thread runs its attempt while it is polled.
struct InJob {
    notes: Arc<JobNotes>,
    future: HandlerFuture,
}

impl Future for InJob {
    type Output = HandlerResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<HandlerResult> {
        let _entered = Entered::enter(|| Arc::clone(&self.notes));
        self.future.as_mut().poll(context)
    }
}

/// Returns the future of a job's handler. The function that makes it may fail or panic.
fn future_of<S: Store>(
    prepared: &PreparedJob<'_, S>,
    context: &Arc<Context<S>>,
) -> Result<HandlerFuture, Failure> {
    let handler = prepared.handler.as_ref().map_err(Clone::clone)?;
    let Run::Asynchronous(handler) = &handler.run else {
        return Err(Failure::Error("the handler is not asynchronous".to_owned()));
    };
    catch_panic(|| handler(context, &prepared.incoming)).flatten()
}
