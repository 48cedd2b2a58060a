//! Waiting for jobs without a thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pq_core::store::{Jobs, Results};
use pq_core::{CancellationToken, JobId, QueueName, Scan, Wait, WakeSignal};
use pq_diesel::Error;
use tracing::field::display;

use crate::shared::Shared;

/// The result of a poll.
pub(crate) enum Polled<R> {
    Found(R),
    /// No job is ready. The next scheduled job, if any, is due after `next_due`.
    Nothing {
        next_due: Option<Duration>,
    },
}

/// What a wait is notified of.
#[derive(Clone, Copy)]
pub(crate) enum Subscribe<'q> {
    /// Puts into this queue.
    Puts(&'q QueueName),
    /// The end of this job.
    End(JobId),
}

/// The first pause after the database became unavailable. It doubles up to the poll interval.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(20);

/// Polls, and sleeps between polls, until a poll finds jobs, the wait ends or `token` is cancelled.
///
/// While the database is unavailable, polls are repeated with backoff. If the wait ends meanwhile, the last error is
/// returned, since it is unknown whether the queue is empty.
pub(crate) async fn poll_and_wait<R, F: Future<Output = Result<Polled<R>, Error>>>(
    shared: &Shared,
    subscribe: Subscribe<'_>,
    wait: Wait,
    token: Option<&CancellationToken>,
    mut poll: impl FnMut(Scan) -> F,
) -> Result<Option<R>, Error> {
    let deadline = match wait {
        Wait::No => {
            return Ok(match poll(Scan::Full).await? {
                Polled::Found(jobs) => Some(jobs),
                Polled::Nothing { .. } => None,
            });
        }
        Wait::For(duration) => Instant::now().checked_add(duration),
        Wait::Forever => None,
    };
    // Subscribe before the first poll. A job that commits after the poll then ends the sleep below at once.
    let signal = WakeSignal::new();
    let (_subscription, queue, job_id) = match subscribe {
        Subscribe::Puts(queue) => (shared.store().subscribe(queue, &signal), Some(display(queue)), None),
        Subscribe::End(job) => (shared.store().subscribe_to_end(job, &signal), None, Some(display(job))),
    };
    let _registration = token.map(|token| token.notifies(&signal));
    let interval = shared.store().poll_interval();
    let mut retry_in = FIRST_RETRY;
    let mut lost_at = None::<Instant>;
    loop {
        if token.is_some_and(CancellationToken::is_cancelled) {
            return Err(pq_core::Error::Stopped.into());
        }
        let generation = signal.generation();
        // Read before the poll, so that a final poll that finds nothing began after the deadline.
        let remaining = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let is_last = remaining == Some(Duration::ZERO);
        let pause = match poll(if is_last { Scan::Full } else { Scan::Resume }).await {
            Ok(Polled::Found(jobs)) => return Ok(Some(jobs)),
            Ok(Polled::Nothing { .. }) if is_last => return Ok(None),
            Ok(Polled::Nothing { next_due }) => {
                retry_in = FIRST_RETRY;
                if let Some(at) = lost_at.take() {
                    tracing::info!(after = ?at.elapsed(), queue, job_id, "store became available again");
                }
                next_due.map_or(interval, |due| due.min(interval))
            }
            Err(error) if error.is_unavailable() && !is_last => {
                if lost_at.is_none() {
                    lost_at = Some(Instant::now());
                    tracing::warn!(%error, queue, job_id, "store became unavailable; calls will be repeated");
                }
                let pause = retry_in;
                retry_in = (retry_in * 2).min(interval.max(FIRST_RETRY));
                pause
            }
            Err(error) => return Err(error),
        };
        // The poll may have taken long, so the remaining time is measured again.
        let remaining = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        sleep_until_notified(&signal, generation, remaining.map_or(pause, |left| left.min(pause))).await;
    }
}

async fn sleep_until_notified(signal: &Arc<WakeSignal>, seen: u64, at_most: Duration) {
    drop(tokio::time::timeout(at_most, signal.passed(seen)).await);
}
