//! Running one handler: its middleware, its span, its timeout and its panics.

use std::time::{Duration, Instant};

use super::catch_panic::catch_panic;
use super::prepared_job::PreparedJob;
use super::thread_slots::ThreadSlot;
use super::worker_run::WorkerRun;
use crate::handler::{HandlerResult, Next, Run};
use crate::{Failure, Store};

/// Calls `handler` with the closure of the job's handler, inside its middleware. A panic and an exceeded timeout are
/// failures.
///
/// The middleware also runs for a job without a handler, so that it sees how every job ends.
pub(super) fn run_handler<S: Store>(
    run: &WorkerRun<S>,
    slot: &ThreadSlot,
    prepared: &PreparedJob<'_, S>,
    now: Instant,
    handler: &mut dyn FnMut(&Run<S>) -> HandlerResult,
) -> HandlerResult {
    let timeout = prepared.timeout();
    let span = prepared.span(run);
    let _entered = span.span().enter();
    tracing::debug!("job started");
    prepared.report_crash(run);
    slot.begin(prepared.running(prepared.incoming.claim.lease(), timeout, now));
    let mut attempt = || run_attempt(prepared, timeout, now, handler);
    let result = if run.middleware.is_empty() {
        attempt()
    } else {
        let info = prepared.info(run);
        catch_panic(|| Next::new(&run.middleware, &info, &mut attempt).run()).flatten()
    };
    slot.end();
    log_end(now, &result);
    span.end_attempt(&result);
    result
}

/// Logs the end of a handler. The fields of the job are those of the current span.
pub(super) fn log_end(began: Instant, result: &HandlerResult) {
    tracing::debug!(duration = ?began.elapsed(), succeeded = result.is_ok(), "job ended");
}

fn run_attempt<S: Store>(
    prepared: &PreparedJob<'_, S>,
    timeout: Option<Duration>,
    now: Instant,
    handler: &mut dyn FnMut(&Run<S>) -> HandlerResult,
) -> HandlerResult {
    let found = prepared.handler.as_ref().map_err(Clone::clone)?;
    let result = catch_panic(|| handler(&found.run))?;
    match timeout {
        Some(limit) if now.elapsed() > limit => {
            let error = match result {
                Err(Failure::Error(error)) => Some(error),
                _ => None,
            };
            Err(Failure::Timeout { limit, error })
        }
        _ => result,
    }
}
