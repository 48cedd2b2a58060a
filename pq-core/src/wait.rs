//! How long a get may wait, and the one loop that waits.

use std::time::{Duration, Instant};

use crate::store::{Scan, Store, StoreError};
use crate::{CancellationToken, WakeSignal};
use crate::{Error, QueueName};

/// How long a call may wait for a job.
///
/// The default is one second, as in Python's `pq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// One look, and no wait.
    No,
    /// Until a job is there, but not longer than this.
    For(Duration),
    /// Until a job is there.
    Forever,
}

impl Default for Wait {
    fn default() -> Self {
        Self::For(Duration::from_secs(1))
    }
}

/// What one look found.
pub(crate) enum Look<R> {
    Found(R),
    /// Nothing is ready; the next waiting job falls due after this time, if there is one.
    Nothing {
        next_due: Option<Duration>,
    },
}

/// How long the first pause after a lost connection is; each further one doubles, up to the store's
/// poll interval.
const FIRST_RETRY: Duration = Duration::from_millis(20);

/// Looks, and sleeps until looking again is worth it, until something is found, the wait is over or
/// `stop` says so. One deadline holds for the whole call.
///
/// A store that cannot be reached is looked at again with backoff while the wait lasts; the last
/// error is returned where the wait ends before it could be reached, for then nobody knows whether
/// the queue is empty.
pub(crate) fn look_and_wait<S: Store, R>(
    store: &S,
    queues: &[QueueName],
    wait: Wait,
    stop: Option<&CancellationToken>,
    mut look: impl FnMut(Scan) -> Result<Look<R>, S::Error>,
) -> Result<Option<R>, S::Error> {
    // A duration that no clock can add is as good as for ever.
    let deadline = match wait {
        Wait::No => {
            return look(Scan::Full).map(|found| match found {
                Look::Found(jobs) => Some(jobs),
                Look::Nothing { .. } => None,
            });
        }
        Wait::For(duration) => Instant::now().checked_add(duration),
        Wait::Forever => None,
    };

    // Subscribed before the first look: a job that is committed between the two rings the signal, and
    // the sleep below then ends at once.
    let signal = WakeSignal::new();
    let _subscriptions: Vec<_> = queues.iter().map(|queue| store.subscribe(queue, &signal)).collect();
    let _stop = stop.map(|stop| stop.notifies(&signal));
    let mut retry_in = FIRST_RETRY;

    loop {
        if stop.is_some_and(CancellationToken::is_cancelled) {
            return Err(Error::Stopped.into());
        }
        let heard = signal.generation();
        // Read before the look: the look that finds nothing at the deadline began after it.
        let remaining = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let over = remaining == Some(Duration::ZERO);

        let pause = match look(if over { Scan::Full } else { Scan::Resume }) {
            Ok(Look::Found(jobs)) => return Ok(Some(jobs)),
            Ok(Look::Nothing { .. }) if over => return Ok(None),
            Ok(Look::Nothing { next_due }) => {
                retry_in = FIRST_RETRY;
                next_due.map_or(store.poll_interval(), |due| due.min(store.poll_interval()))
            }
            Err(error) if error.is_unavailable() && !over => {
                tracing::warn!(%error, ?queues, "the store cannot be reached; the wait goes on");
                let pause = retry_in;
                retry_in = (retry_in * 2).min(store.poll_interval().max(FIRST_RETRY));
                pause
            }
            Err(error) => return Err(error),
        };

        // Measured anew after the look, which may have taken its time.
        let remaining = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        signal.wait_past(heard, remaining.map_or(pause, |left| left.min(pause)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use crate::store::Jobs;
    use crate::{NewJob, Payload};

    /// A put that commits after a look and before the sleep that follows it.
    #[test]
    fn a_put_between_the_look_and_the_sleep_is_not_slept_past() -> Result<(), Error> {
        let (store, queue) = (MemoryStore::new(), QueueName::new("apples")?);
        let begun = Instant::now();
        let mut looks = 0;
        let found = look_and_wait(&store, std::slice::from_ref(&queue), Wait::Forever, None, |scan| {
            looks += 1;
            let taken = store.take_now(&queue, 1, scan)?;
            if looks == 1 {
                store.put_now(&queue, &[NewJob::new(Payload::from_stored("1".to_owned()))])?;
            }
            Ok(match taken.jobs.len() {
                0 => Look::Nothing { next_due: None },
                found => Look::Found(found),
            })
        })?;
        assert_eq!((found, looks), (Some(1), 2));
        // One that was slept past is found by the poll.
        assert!(begun.elapsed() < store.poll_interval());
        Ok(())
    }

    #[test]
    fn a_wait_is_sure_of_its_last_look_alone() -> Result<(), Error> {
        let (store, queue) = (MemoryStore::new(), QueueName::new("apples")?);
        for wait in [Wait::No, Wait::For(Duration::from_millis(20))] {
            let mut looks = Vec::new();
            let found: Option<()> =
                look_and_wait(&store, std::slice::from_ref(&queue), wait, None, |scan| {
                    looks.push(scan);
                    Ok(Look::Nothing { next_due: None })
                })?;
            assert_eq!((found, looks.pop()), (None, Some(Scan::Full)));
            assert!(looks.iter().all(|scan| *scan == Scan::Resume), "{looks:?}");
            assert_eq!(looks.is_empty(), wait == Wait::No);
        }
        Ok(())
    }
}
