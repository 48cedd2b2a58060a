//! Limits which threads take jobs of a queue at the same time.
//!
//! Concurrent takes of many jobs scan the rows that the others are about to lock, so the time of all of them grows with
//! the square of their number. Large takes are therefore limited. The cost of a small take is mostly its commit, and
//! commits are faster side by side if the log's sync is slow, so small takes are not limited.
//!
//! A take returns at most one job of each serialization key. If a thread has taken a job of every key and finishes
//! quickly, a second thread finds only the few keys that are free by chance, and both pay a commit for less work. Such
//! a queue is left to one thread: the keyed-queue affinity.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::lock::lock;

/// The number of large takes that may run at the same time.
const MAX_CONCURRENT: usize = 4;

/// The number of jobs from which a take is large. Only threads with very quick handlers take so many.
const LARGE_TAKE: usize = 512;

/// The longest time that a large take waits for others.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// A keyed batch that takes longer than this is not quick: other threads do not wait for it.
const QUICK_BATCH: Duration = Duration::from_millis(10);

/// The time for which the queue is left to a thread after its batch. If it does not take again by then, another thread
/// does.
const RETURN_WITHIN: Duration = Duration::from_millis(1);

/// Limits the takes of one queue.
#[derive(Debug, Default)]
pub(super) struct TakeLimiter {
    /// The number of large takes that run.
    large: Mutex<usize>,
    ended: Condvar,
    affinity: Mutex<Affinity>,
}

#[derive(Debug, Default)]
struct Affinity {
    /// Whether the queue is left to one thread.
    is_active: bool,
    /// The last thread that took jobs.
    thread: usize,
    /// Until when the other threads leave the queue to it.
    until: Option<Instant>,
}

impl TakeLimiter {
    /// Waits until `want` jobs may be taken, at most [`MAX_WAIT`]: the takes that run may hang. Returns a permit to
    /// hold during the take, if one is needed.
    pub(super) fn acquire(&self, want: usize) -> Option<Permit<'_>> {
        (want >= LARGE_TAKE).then(|| {
            let (large, is_full) = (lock(&self.large), |large: &mut usize| *large >= MAX_CONCURRENT);
            let waited = self.ended.wait_timeout_while(large, MAX_WAIT, is_full);
            *waited.unwrap_or_else(PoisonError::into_inner).0 += 1;
            Permit(self)
        })
    }

    /// Returns how long the thread must leave the queue to another one.
    ///
    /// If it returns `None`, the thread is the one that takes from now on.
    pub(super) fn affinity_delay(&self, thread: usize, now: Instant) -> Option<Duration> {
        let mut affinity = lock(&self.affinity);
        let left = affinity.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        if affinity.is_active && affinity.thread != thread && !left.is_zero() {
            return Some(left);
        }
        (affinity.thread, affinity.until) = (thread, Some(now + QUICK_BATCH));
        None
    }

    /// Records a batch that the thread has taken and run.
    pub(super) fn record_batch(&self, thread: usize, batch: TakenBatch, now: Instant) {
        let mut affinity = lock(&self.affinity);
        if !batch.has_keys || batch.took >= QUICK_BATCH {
            affinity.is_active = false;
        } else if batch.taken < batch.want {
            affinity.is_active = true;
        } else if batch.want >= LARGE_TAKE {
            // A full batch of the largest size leaves work for others. After a smaller one the thread can take more.
            affinity.is_active = false;
        }
        if affinity.thread == thread {
            affinity.until = Some(now + RETURN_WITHIN);
        }
    }

    /// Records that the thread found no job. It will not take again soon.
    pub(super) fn record_empty(&self, thread: usize) {
        let mut affinity = lock(&self.affinity);
        if affinity.thread == thread {
            affinity.until = None;
        }
    }
}

/// The permit for a large take, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit<'l>(&'l TakeLimiter);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *lock(&self.0.large) -= 1;
        self.0.ended.notify_one();
    }
}

/// A batch that was taken and run.
#[derive(Clone, Copy, Debug)]
pub(super) struct TakenBatch {
    pub(super) has_keys: bool,
    pub(super) taken: usize,
    pub(super) want: usize,
    /// The time from the take to the end of the last handler.
    pub(super) took: Duration,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn large_takes_are_limited_and_small_ones_do_not_wait() {
        let (limiter, running) = (TakeLimiter::default(), AtomicUsize::new(0));
        let held: Vec<_> = (0..MAX_CONCURRENT).map(|_| limiter.acquire(LARGE_TAKE)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(limiter.acquire(LARGE_TAKE - 1).is_none());
        std::thread::scope(|scope| {
            for _ in 0..4 * MAX_CONCURRENT {
                let (limiter, running) = (&limiter, &running);
                scope.spawn(move || {
                    let _permit = limiter.acquire(LARGE_TAKE);
                    assert!(
                        running.fetch_add(1, Ordering::SeqCst) < MAX_CONCURRENT,
                        "more takes than allowed are running"
                    );
                    std::thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
            assert_eq!(running.load(Ordering::SeqCst), 0, "a thread did not wait");
            drop(held);
        });
        assert_eq!(running.into_inner(), 0);
    }

    #[test]
    fn takes_that_hang_delay_others_for_a_limited_time() {
        let limiter = TakeLimiter::default();
        let hung: Vec<_> = (0..MAX_CONCURRENT).map(|_| limiter.acquire(LARGE_TAKE)).collect();
        let begun = Instant::now();
        assert!(limiter.acquire(LARGE_TAKE).is_some());
        assert!(begun.elapsed() >= MAX_WAIT, "the take did not wait");
        drop(hung);
        assert_eq!(*lock(&limiter.large), 0);
    }

    /// A quick batch of jobs with ten keys.
    const QUICK: TakenBatch =
        TakenBatch { has_keys: true, taken: 10, want: 64, took: Duration::from_millis(3) };

    /// Returns a limiter after such a batch of thread 0, and the time of the batch.
    fn for_thread_0() -> (TakeLimiter, Instant) {
        let (limiter, now) = (TakeLimiter::default(), Instant::now());
        for thread in [1, 0] {
            assert_eq!(limiter.affinity_delay(thread, now), None, "the limiter has recorded no batch");
        }
        limiter.record_batch(0, QUICK, now);
        (limiter, now)
    }

    #[test]
    fn a_queue_is_left_to_a_thread_that_is_quick_with_all_keys() {
        let (limiter, begun) = for_thread_0();
        assert_eq!(limiter.affinity_delay(1, begun), Some(RETURN_WITHIN));
        assert_eq!(limiter.affinity_delay(0, begun), None);
        assert_eq!(limiter.affinity_delay(1, begun), Some(QUICK_BATCH));
        let done = begun + QUICK_BATCH / 2;
        limiter.record_batch(0, QUICK, done);
        assert_eq!(limiter.affinity_delay(1, done), Some(RETURN_WITHIN));
        // Thread 0 did not take again in time, so thread 1 takes.
        assert_eq!(limiter.affinity_delay(1, done + RETURN_WITHIN), None);
        assert_eq!(limiter.affinity_delay(0, done + RETURN_WITHIN), Some(QUICK_BATCH));
    }

    #[test]
    fn threads_do_not_wait_for_one_that_is_slow_or_found_nothing() {
        let (limiter, begun) = for_thread_0();
        assert_eq!(limiter.affinity_delay(0, begun), None);
        assert_eq!(limiter.affinity_delay(1, begun + QUICK_BATCH), None);
        limiter.record_empty(0);
        assert_eq!(
            limiter.affinity_delay(2, begun + QUICK_BATCH),
            Some(QUICK_BATCH),
            "the queue is left to thread 1"
        );
        limiter.record_empty(1);
        assert_eq!(limiter.affinity_delay(2, begun + QUICK_BATCH), None);
    }

    #[test]
    fn affinity_ends_with_a_batch_that_leaves_work_for_others() {
        let without_keys = TakenBatch { has_keys: false, ..QUICK };
        let slow = TakenBatch { took: QUICK_BATCH, ..QUICK };
        let more_than_one_takes = TakenBatch { taken: LARGE_TAKE, want: LARGE_TAKE, ..QUICK };
        for other in [without_keys, slow, more_than_one_takes] {
            let (limiter, now) = for_thread_0();
            limiter.record_batch(0, other, now);
            assert_eq!(limiter.affinity_delay(1, now), None, "{other:?}");
        }
        let still_grows = TakenBatch { taken: 8, want: 8, ..QUICK };
        let (limiter, now) = for_thread_0();
        limiter.record_batch(0, still_grows, now);
        assert_eq!(limiter.affinity_delay(1, now), Some(RETURN_WITHIN));
    }
}
