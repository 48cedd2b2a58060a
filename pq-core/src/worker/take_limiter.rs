//! Which threads take jobs of a queue at the same time.
//!
//! Takes of many jobs that run beside one another walk over what the others are about to have, so that the time of all
//! of them grows with the square of their number: sixteen threads took half as many jobs a second as four. A smaller
//! take is mostly its commit, which goes best beside others where the log's sync is slow, and waits for no turn.
//!
//! Of jobs with serialization keys a batch holds one of each key. Where it has held all keys that there were, and was
//! done at once, whoever takes beside the next one finds what it left by chance, and each of them has less to a commit:
//! four threads with a hundred keys did a third of what one does. So then one thread does it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::shared::lock;

/// So many takes at a time keep a server of several cores busy, and those that wait have nothing else to do.
const MAX_CONCURRENT: usize = 4;

/// Only handlers that are done in a tenth of a millisecond are given so many at a time. Four takes of so many to a sync
/// of ten milliseconds are still two hundred thousand jobs a second.
const LARGE_TAKE: usize = 512;

/// A batch of keys that takes longer than this is shared: nobody waits for it.
const QUICK_BATCH: Duration = Duration::from_millis(10);

/// The thread that has worked the keys comes back within this time.
const RETURN_WITHIN: Duration = Duration::from_millis(1);

/// The turns of a queue's takes.
#[derive(Default)]
pub(super) struct TakeLimiter {
    many: [Mutex<()>; MAX_CONCURRENT],
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    /// Whether one thread does best with them.
    is_affine: bool,
    /// The last thread that took, and until when the others leave the keys to it.
    thread: usize,
    until: Option<Instant>,
}

impl TakeLimiter {
    /// Waits for the thread's turn to take so many, and holds it; nothing where it need not wait.
    pub(super) fn acquire(&self, thread: usize, want: usize) -> Option<MutexGuard<'_, ()>> {
        (want >= LARGE_TAKE).then(|| lock(&self.many[thread % MAX_CONCURRENT]))
    }

    /// How long the thread is to leave the keys to another. Where it need not, it is the one that takes.
    pub(super) fn affinity_delay(&self, thread: usize, now: Instant) -> Option<Duration> {
        let mut keys = lock(&self.keys);
        let left = keys.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        if keys.is_affine && keys.thread != thread && !left.is_zero() {
            return Some(left);
        }
        (keys.thread, keys.until) = (thread, Some(now + QUICK_BATCH));
        None
    }

    /// The thread has worked a batch, in this time: with keys or without, and all that there was or as many jobs as
    /// it wanted.
    pub(super) fn record_batch(&self, thread: usize, batch: TakenBatch, now: Instant) {
        let mut keys = lock(&self.keys);
        if !batch.has_keys || batch.took >= QUICK_BATCH {
            keys.is_affine = false;
        } else if batch.taken < batch.want {
            keys.is_affine = true;
        } else if batch.want >= LARGE_TAKE {
            // There are more than one thread takes at a time; where it wants less it wants more the next time.
            keys.is_affine = false;
        }
        if keys.thread == thread {
            keys.until = Some(now + RETURN_WITHIN);
        }
    }

    /// The thread has found nothing to take, and does not come back soon.
    pub(super) fn record_empty(&self, thread: usize) {
        let mut keys = lock(&self.keys);
        if keys.thread == thread {
            keys.until = None;
        }
    }
}

/// A batch that was worked.
#[derive(Clone, Copy, Debug)]
pub(super) struct TakenBatch {
    pub(super) has_keys: bool,
    pub(super) taken: usize,
    pub(super) want: usize,
    pub(super) took: Duration,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn takes_of_many_go_few_abreast_and_those_of_few_do_not_wait() {
        let (limiter, under_way) = (TakeLimiter::default(), AtomicUsize::new(0));
        let held: Vec<_> = (0..MAX_CONCURRENT).map(|thread| limiter.acquire(thread, LARGE_TAKE)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(limiter.acquire(0, LARGE_TAKE - 1).is_none());
        std::thread::scope(|scope| {
            for thread in 0..4 * MAX_CONCURRENT {
                let (limiter, under_way) = (&limiter, &under_way);
                scope.spawn(move || {
                    let _turn = limiter.acquire(thread, LARGE_TAKE);
                    assert!(
                        under_way.fetch_add(1, Ordering::SeqCst) < MAX_CONCURRENT,
                        "more than may are under way"
                    );
                    std::thread::yield_now();
                    under_way.fetch_sub(1, Ordering::SeqCst);
                });
            }
            assert_eq!(under_way.load(Ordering::SeqCst), 0, "somebody did not wait");
            drop(held);
        });
        assert_eq!(under_way.into_inner(), 0);
    }

    /// A quick batch of ten keys.
    const QUICK: TakenBatch =
        TakenBatch { has_keys: true, taken: 10, want: 64, took: Duration::from_millis(3) };

    /// As after such a batch of thread 0, at the moment that is given.
    fn for_thread_0() -> (TakeLimiter, Instant) {
        let (limiter, now) = (TakeLimiter::default(), Instant::now());
        for thread in [1, 0] {
            assert_eq!(limiter.affinity_delay(thread, now), None, "nothing is known of the queue");
        }
        limiter.record_batch(0, QUICK, now);
        (limiter, now)
    }

    #[test]
    fn one_thread_works_the_keys_where_it_is_quick_with_all_of_them() {
        let (limiter, begun) = for_thread_0();
        assert_eq!(limiter.affinity_delay(1, begun), Some(RETURN_WITHIN));
        assert_eq!(limiter.affinity_delay(0, begun), None);
        assert_eq!(limiter.affinity_delay(1, begun), Some(QUICK_BATCH));
        let done = begun + QUICK_BATCH / 2;
        limiter.record_batch(0, QUICK, done);
        assert_eq!(limiter.affinity_delay(1, done), Some(RETURN_WITHIN));
        // It is thread 1's where thread 0 does not come back.
        assert_eq!(limiter.affinity_delay(1, done + RETURN_WITHIN), None);
        assert_eq!(limiter.affinity_delay(0, done + RETURN_WITHIN), Some(QUICK_BATCH));
    }

    #[test]
    fn nobody_waits_for_a_thread_that_takes_its_time_or_has_nothing_to_do() {
        let (limiter, begun) = for_thread_0();
        assert_eq!(limiter.affinity_delay(0, begun), None);
        assert_eq!(limiter.affinity_delay(1, begun + QUICK_BATCH), None);
        limiter.record_empty(0);
        assert_eq!(limiter.affinity_delay(2, begun + QUICK_BATCH), Some(QUICK_BATCH), "it is thread 1's now");
        limiter.record_empty(1);
        assert_eq!(limiter.affinity_delay(2, begun + QUICK_BATCH), None);
    }

    #[test]
    fn what_is_not_for_one_thread_is_for_all() {
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
