//! Group commit: one statement and one commit execute the calls of many threads.
//!
//! Below the concurrency limit a call runs at once. Otherwise it queues. When a running call completes, the first
//! queued call becomes the leader: it takes all queued calls along as followers and executes their requests together
//! with its own.
//!
//! If many threads call, or a call is slow, the limit is one. The threads that were just answered are then likely to
//! call again, so the next leader lingers for them: the last of them leads, or the first queued call once the linger
//! time has passed. No thread leads twice for others. A thread that calls alone pays for two uncontended locks.
//!
//! A call may hang, for example because its server process is stopped. It then counts as stalled and no longer as
//! running, so that the queued calls run beside it. Its followers wait for its deadline.
//!
//! Calls are grouped by a key, here the name of a queue. This module knows neither the requests nor the database.

mod leader;
mod queue_group;
mod wait_slots;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use self::leader::{Leader, Reply};
use self::queue_group::{Dequeued, QueueGroup};
use self::wait_slots::{Signal, Slot};

/// The maximum number of concurrent calls of a group while few threads call. With a limit of one, two threads would
/// take turns.
pub(crate) const MAX_CONCURRENCY: usize = 2;

/// From this many calling threads on, one call runs at a time. Two leaders would share no sync of the log but take
/// turns at it, each with half of the calls, and a statement for half costs the server nearly as much as one for all.
const THRESHOLD: usize = 3;

/// A call that takes this long mostly waits for a disk. One call then runs at a time, however few threads call.
const SLOW: Duration = Duration::from_millis(1);

/// A call that takes this many times as long as the last one is stalled, and new calls run in parallel.
const STALL_FACTOR: u32 = 10;

/// A call is stalled at the earliest after this fraction of the handle's call timeout, and at the latest after so many
/// times as long.
const MIN_STALL: u32 = 100;
const MAX_STALL: u32 = 5;

/// A follower waits for its leader for the call timeout and this fraction of it: the leader should know first.
const FOLLOW_MARGIN: u32 = 10;

/// The time that the next leader lingers for each call that was just answered, because threads wake one after the
/// other. It lingers for at most half of the time that the answered call took.
const LINGER: Duration = Duration::from_micros(25);

/// The most calls that a leader takes along.
pub(crate) const MAX_FOLLOWERS: usize = 64;

/// The running and the queued calls, grouped by a key `K`: a call has a request `R` and gets an answer `A`.
pub(crate) struct GroupCommit<K, R, A> {
    groups: Mutex<Vec<QueueGroup<K, R, A>>>,
    slow: Duration,
    threshold: usize,
    linger: Duration,
    min_stall: Duration,
    /// The longest time that a follower waits for its leader.
    follow_for: Duration,
}

type Groups<'g, K, R, A> = MutexGuard<'g, Vec<QueueGroup<K, R, A>>>;

/// The next step of a call.
pub(crate) enum Turn<'g, K: Eq, R, A> {
    /// Execute its own request and those of its followers. It counts as running until the leader is dropped.
    Lead(Leader<'g, K, R, A>),
    /// Return this answer: a leader has executed the request.
    Answered(A),
    /// Execute its own request only: the group did not succeed together.
    RunAlone,
    /// Fail: its leader panicked or does not answer, and it is unknown what the leader has executed.
    LeaderLost,
}

impl<K, R, A> GroupCommit<K, R, A> {
    /// Creates groups whose calls should end within `call_timeout`.
    pub(crate) fn new(call_timeout: Duration) -> Self {
        Self {
            groups: Mutex::default(),
            slow: SLOW,
            threshold: THRESHOLD,
            linger: LINGER,
            min_stall: call_timeout / MIN_STALL,
            follow_for: call_timeout.saturating_add(call_timeout / FOLLOW_MARGIN),
        }
    }
}

impl<K: Eq + Clone, R, A> GroupCommit<K, R, A> {
    /// Waits for this call's turn in the group of `key`.
    ///
    /// `request` makes the request that a leader executes if this call follows. `choose` returns how many of the
    /// queued requests, in order, this call takes along if it leads.
    pub(crate) fn turn<'g>(
        &'g self,
        key: &'g K,
        request: impl FnOnce() -> R,
        choose: impl Fn(&mut dyn Iterator<Item = &R>) -> usize,
    ) -> Turn<'g, K, R, A> {
        let mut groups = self.groups();
        if !queue_group::of(&mut groups, key, self.min_stall).may_run() {
            drop(groups);
            // A request may take long to copy. Without the lock other calls continue meanwhile.
            let request = request();
            groups = self.groups();
            let group = queue_group::of(&mut groups, key, self.min_stall);
            if !group.may_run() {
                let (slot, deadline) = group.enqueue(request);
                drop(groups);
                return match self.wait(key, &slot, deadline) {
                    Signal::Answer(answer) => Turn::Answered(answer),
                    Signal::RunAlone => Turn::RunAlone,
                    Signal::LeaderLost => Turn::LeaderLost,
                    Signal::Lead | Signal::LeadAt(_) => self.lead(key, self.groups(), choose),
                };
            }
        }
        queue_group::of(&mut groups, key, self.min_stall).grant();
        self.lead(key, groups, choose)
    }

    /// Waits for the signal that ends the waiting. At `deadline` the call leads if none runs: because the linger time
    /// has passed, or because those that ran are stalled.
    fn wait(&self, key: &K, slot: &Slot<A>, mut deadline: Instant) -> Signal<A> {
        let mut follows = false;
        loop {
            // A call that another one has taken along must notice.
            match slot.wait(deadline.min(Instant::now() + self.follow_for)) {
                Some(Signal::LeadAt(instant)) => (follows, deadline) = (false, instant),
                Some(signal) => return signal,
                None => {
                    let mut groups = self.groups();
                    // A call that fails must not be in the queue: another one would take jobs for it. Its leader may
                    // have put it back.
                    match queue_group::of(&mut groups, key, self.min_stall).dequeue_to_lead(slot) {
                        Dequeued::Leads => return Signal::Lead,
                        Dequeued::StillQueued(next) => (follows, deadline) = (false, next),
                        Dequeued::Follows if follows => return Signal::LeaderLost,
                        Dequeued::Follows => (follows, deadline) = (true, Instant::now() + self.follow_for),
                    }
                }
            }
        }
    }

    fn lead<'g>(
        &'g self,
        key: &'g K,
        mut groups: Groups<'g, K, R, A>,
        choose: impl Fn(&mut dyn Iterator<Item = &R>) -> usize,
    ) -> Turn<'g, K, R, A> {
        let (started, followers) = queue_group::of(&mut groups, key, self.min_stall).begin(choose);
        drop(groups);
        Turn::Lead(Leader::new(self, key, started, followers))
    }

    /// Returns how many calls are queued in the group of `key`.
    #[cfg(test)]
    pub(crate) fn queued(&self, key: &K) -> usize {
        queue_group::find(&mut self.groups(), key).map_or(0, |group| group.queue.len())
    }
}

impl<K, R, A> GroupCommit<K, R, A> {
    fn groups(&self) -> Groups<'_, K, R, A> {
        // No code panics while it holds this lock.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
