//! Waiting for jobs: how long, and the loop that polls and sleeps.

use std::time::{Duration, Instant};

use crate::incidents::{Call, Incidents};
use crate::store::{Scan, Store, StoreError};
use crate::{CancellationToken, Error, JobId, QueueName, WakeSignal};

/// The time that a call waits for a job. Default: 1 s, as in Python's `pq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wait {
    /// Polls once and does not wait.
    No,
    /// Waits for a job for at most this time.
    For(Duration),
    /// Waits until there is a job.
    Forever,
}

impl Default for Wait {
    fn default() -> Self {
        Self::For(Duration::from_secs(1))
    }
}

/// The result of a poll.
pub(crate) enum Polled<R> {
    Found(R),
    /// No job is ready. The next scheduled job, if any, is due after `next_due`.
    Nothing {
        next_due: Option<Duration>,
    },
}

/// What a wait is notified of.
pub(crate) enum Subscribe<'q> {
    /// Puts into these queues.
    Puts(&'q [QueueName]),
    /// The end of this job.
    End(JobId),
}

/// The first pause after the store became unavailable. It doubles up to the store's poll interval.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(20);

/// Polls, and sleeps between polls, until a poll finds jobs, the wait ends or `token` is cancelled.
///
/// While the store is unavailable, polls are repeated with backoff. The first of them is logged, and their end. If
/// the wait ends meanwhile, the last error is returned, since it is unknown whether the queue is empty.
pub(crate) fn poll_and_wait<S: Store, R>(
    store: &S,
    subscribe: Subscribe<'_>,
    wait: Wait,
    token: Option<&CancellationToken>,
    incidents: &Incidents,
    mut poll: impl FnMut(Scan) -> Result<Polled<R>, S::Error>,
) -> Result<Option<R>, S::Error> {
    // A deadline that the clock cannot represent is the same as none.
    let deadline = match wait {
        Wait::No => {
            return poll(Scan::Full).map(|found| match found {
                Polled::Found(jobs) => Some(jobs),
                Polled::Nothing { .. } => None,
            });
        }
        Wait::For(duration) => Instant::now().checked_add(duration),
        Wait::Forever => None,
    };

    // Subscribe before the first poll. A job that commits after the poll then ends the sleep below at once.
    let signal = WakeSignal::new();
    let _subscriptions: Vec<_> = match subscribe {
        Subscribe::Puts(queues) => queues.iter().map(|queue| store.subscribe(queue, &signal)).collect(),
        Subscribe::End(job) => vec![store.subscribe_to_end(job, &signal)],
    };
    let _notified = token.map(|token| token.notifies(&signal));
    let mut retry_in = FIRST_RETRY;

    loop {
        if token.is_some_and(CancellationToken::is_cancelled) {
            return Err(Error::Stopped.into());
        }
        let generation = signal.generation();
        // Read before the poll, so that a final poll that finds nothing began after the deadline.
        let remaining = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let is_last = remaining == Some(Duration::ZERO);

        let pause = match poll(if is_last { Scan::Full } else { Scan::Resume }) {
            Ok(Polled::Found(jobs)) => {
                incidents.succeeded(Call::Poll);
                return Ok(Some(jobs));
            }
            Ok(Polled::Nothing { .. }) if is_last => return Ok(None),
            Ok(Polled::Nothing { next_due }) => {
                incidents.succeeded(Call::Poll);
                retry_in = FIRST_RETRY;
                next_due.map_or(store.poll_interval(), |due| due.min(store.poll_interval()))
            }
            Err(error) if error.is_unavailable() && !is_last => {
                incidents.failed(Call::Poll, &error);
                let pause = retry_in;
                retry_in = (retry_in * 2).min(store.poll_interval().max(FIRST_RETRY));
                pause
            }
            Err(error) => return Err(error),
        };

        // The poll may have taken long, so the remaining time is measured again.
        let remaining = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        signal.wait_past(generation, remaining.map_or(pause, |left| left.min(pause)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use crate::store::{Jobs, Results};
    use crate::{JobState, NewJob, Outcome, Payload, Settlement};

    /// The put commits after a poll and before the sleep that follows it.
    #[test]
    fn a_put_between_poll_and_sleep_ends_the_sleep() -> Result<(), Error> {
        let (store, queue) = (MemoryStore::new(), QueueName::new("apples")?);
        let begun = Instant::now();
        let mut polls = 0;
        let incidents = Incidents::default();
        let queues = Subscribe::Puts(std::slice::from_ref(&queue));
        let found = poll_and_wait(&store, queues, Wait::Forever, None, &incidents, |scan| {
            polls += 1;
            let taken = store.take_now(&queue, 1, scan)?;
            if polls == 1 {
                store.put_now(&queue, &[NewJob::new(Payload::from_stored("1".to_owned()))])?;
            }
            Ok(match taken.jobs.len() {
                0 => Polled::Nothing { next_due: None },
                found => Polled::Found(found),
            })
        })?;
        assert_eq!((found, polls), (Some(1), 2));
        // Otherwise only the next poll would find the job.
        assert!(begun.elapsed() < store.poll_interval());
        Ok(())
    }

    /// The job ends after a look at it and before the sleep that follows it.
    #[test]
    fn an_end_between_look_and_sleep_ends_the_sleep() -> Result<(), Error> {
        let (store, queue) = (MemoryStore::new(), QueueName::new("apples")?);
        let mut job = NewJob::new(Payload::from_stored("1".to_owned()));
        job.annotations = job.annotations.awaited();
        let id = store.put_now(&queue, &[job])?[0].id;
        let (begun, mut looks, mut conn) = (Instant::now(), 0, store.connect());
        let incidents = Incidents::default();
        let ended = poll_and_wait(&store, Subscribe::End(id), Wait::Forever, None, &incidents, |_| {
            looks += 1;
            let ended = store.look(&mut conn, id)?.filter(|job| job.state.is_ended());
            if looks == 1 {
                let taken =
                    store.lease(&mut store.connect(), &queue, 1, Duration::from_secs(9), Scan::Full)?;
                let settlement = Settlement { job: &taken.jobs[0], outcome: Outcome::Complete };
                assert!(store.settle(&mut store.connect(), &[settlement])?.all());
            }
            Ok(ended.map_or(Polled::Nothing { next_due: None }, Polled::Found))
        })?;
        assert_eq!((ended.map(|job| job.state), looks), (Some(JobState::Done), 2));
        // Otherwise only the next poll would find the end.
        assert!(begun.elapsed() < store.poll_interval());
        Ok(())
    }

    #[test]
    fn only_the_last_poll_of_a_wait_is_a_full_scan() -> Result<(), Error> {
        let (store, queue) = (MemoryStore::new(), QueueName::new("apples")?);
        for wait in [Wait::No, Wait::For(Duration::from_millis(20))] {
            let mut polls = Vec::new();
            let found: Option<()> = poll_and_wait(
                &store,
                Subscribe::Puts(std::slice::from_ref(&queue)),
                wait,
                None,
                &Incidents::default(),
                |scan| {
                    polls.push(scan);
                    Ok(Polled::Nothing { next_due: None })
                },
            )?;
            assert_eq!((found, polls.pop()), (None, Some(Scan::Full)));
            assert!(polls.iter().all(|scan| *scan == Scan::Resume), "{polls:?}");
            assert_eq!(polls.is_empty(), wait == Wait::No);
        }
        Ok(())
    }
}
