//! Running one handler: its middleware, its span, its timeout and its panics.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::prepared_job::PreparedJob;
use super::thread_slots::{RunningHandler, ThreadSlot};
use super::worker_run::WorkerRun;
use crate::handler::{HandlerResult, Incoming, JobInfo, Next};
use crate::{Failure, Store};

/// Runs a handler inside its middleware. A panic and an exceeded timeout are failures.
pub(super) fn run_handler<S: Store>(
    run: &WorkerRun<S>,
    slot: &ThreadSlot,
    prepared: &PreparedJob<'_, S>,
    now: Instant,
    handler: &mut dyn FnMut(&Incoming) -> HandlerResult,
) -> HandlerResult {
    if let Err(failure) = &prepared.handler {
        return Err(failure.clone());
    }
    let (job, timeout) = (&prepared.incoming.claim, prepared.timeout());
    let span = tracing::info_span!(
        "pq.run",
        queue = %job.queue,
        job_id = %job.id,
        task = prepared.task.as_deref(),
        attempt = job.attempt
    );
    let _entered = span.enter();
    slot.begin(RunningHandler {
        id: job.id,
        queue: job.queue.clone(),
        task: prepared.task.clone(),
        attempt: job.attempt,
        lease: job.lease(),
        timeout,
        since: now,
    });
    // A panic cannot leave shared state half written: the handler's connection is rolled back, and no lock of the
    // worker is held here.
    let result = catch_unwind(AssertUnwindSafe(|| {
        if run.middleware.is_empty() {
            return handler(&prepared.incoming);
        }
        let info = JobInfo { job, task: prepared.task.as_deref(), trace: prepared.incoming.trace() };
        Next::new(&run.middleware, &info, &mut || handler(&prepared.incoming)).run()
    }));
    slot.end();
    match (result, timeout) {
        (Err(panic), _) => Err(Failure::Panic(panic_text(panic))),
        (Ok(_), Some(limit)) if now.elapsed() > limit => Err(Failure::Timeout(limit)),
        (Ok(result), _) => result,
    }
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => match panic.downcast::<&'static str>() {
            Ok(text) => (*text).to_owned(),
            Err(_) => "(the panic's payload is not text)".to_owned(),
        },
    }
}
