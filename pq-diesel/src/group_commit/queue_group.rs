//! The calls of one key: those that run and those that are queued.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wait_slots::{Signal, Slot, WaitSlots};
use super::{MAX_CONCURRENCY, MAX_FOLLOWERS};

/// The calls of one key. A group is removed once it has neither calls nor a limit of one that still matters.
pub(super) struct QueueGroup<K, R, A> {
    key: K,
    /// The number of calls that were signalled to run and have not begun.
    granted: usize,
    /// The starts of the running calls.
    running: Vec<Instant>,
    /// After this long a running call is stalled, and others run beside it.
    stalled_after: Duration,
    /// The number of calls that the running ones execute, including followers.
    pub(super) executing: usize,
    /// The start of the last running call.
    begun: Instant,
    /// For how long that call runs alone. Zero, unless the previous call was slow or one of many.
    alone_for: Duration,
    /// Until when the next leader lingers for the calls that were just answered.
    linger_until: Instant,
    /// The number of threads that called when the last call completed: answered and queued ones.
    callers: usize,
    pub(super) queue: VecDeque<Queued<R, A>>,
    /// The slots of the calls that queue from now on.
    slots: Arc<WaitSlots<A>>,
}

/// A queued call.
pub(super) struct Queued<R, A> {
    pub(super) request: R,
    pub(super) slot: Slot<A>,
}

/// What becomes of a queued call that was not signalled in time.
pub(super) enum Dequeued {
    Leads,
    /// Another call has taken it along.
    Follows,
    /// It asks again at this time.
    StillQueued(Instant),
}

/// The result of a completed call.
pub(super) struct Completed {
    pub(super) begun: Instant,
    pub(super) at: Instant,
    /// After this long the next calls are stalled.
    pub(super) stalled_after: Duration,
    /// The number of calls that it executed.
    pub(super) executed: usize,
}

/// Returns the group of the key, if there is one.
pub(super) fn find<'g, K: Eq, R, A>(
    groups: &'g mut [QueueGroup<K, R, A>],
    key: &K,
) -> Option<&'g mut QueueGroup<K, R, A>> {
    groups.iter_mut().find(|group| group.key == *key)
}

/// Returns the group of the key, and makes it if there is none. Its first calls are stalled after `min_stall`.
pub(super) fn of<'g, K: Eq + Clone, R, A>(
    groups: &'g mut Vec<QueueGroup<K, R, A>>,
    key: &K,
    min_stall: Duration,
) -> &'g mut QueueGroup<K, R, A> {
    let index = match groups.iter().position(|group| group.key == *key) {
        Some(index) => index,
        None => {
            groups.retain(|group| !group.is_idle());
            groups.push(QueueGroup::new(key.clone(), min_stall));
            groups.len() - 1
        }
    };
    &mut groups[index]
}

/// Removes the group of the key if it is idle.
pub(super) fn remove_if_idle<K: Eq, R, A>(groups: &mut Vec<QueueGroup<K, R, A>>, key: &K) {
    groups.retain(|group| group.key != *key || !group.is_idle());
}

impl<K, R, A> QueueGroup<K, R, A> {
    fn new(key: K, min_stall: Duration) -> Self {
        let now = Instant::now();
        Self {
            key,
            granted: 0,
            running: Vec::new(),
            stalled_after: min_stall,
            executing: 0,
            begun: now,
            alone_for: Duration::ZERO,
            linger_until: now,
            callers: 0,
            queue: VecDeque::new(),
            slots: Arc::default(),
        }
    }

    /// Returns the number of running calls, without those that are stalled.
    fn live(&self) -> usize {
        self.granted + self.running.iter().filter(|begun| begun.elapsed() < self.stalled_after).count()
    }

    /// Returns when the next running call is stalled, unless it completes.
    fn next_stall(&self) -> Instant {
        let stalls = self.running.iter().map(|begun| *begun + self.stalled_after);
        let now = Instant::now();
        stalls.filter(|at| *at > now).min().unwrap_or(now + self.stalled_after)
    }

    fn max_concurrency(&self) -> usize {
        if self.begun.elapsed() < self.alone_for { 1 } else { MAX_CONCURRENCY }
    }

    /// Returns `true` if the group has no calls and nothing worth remembering.
    fn is_idle(&self) -> bool {
        let runs = self.granted > 0 || !self.running.is_empty();
        !runs && self.queue.is_empty() && self.max_concurrency() == MAX_CONCURRENCY
    }

    /// Returns `true` if with `more` calls the queue is as long as it is expected to get.
    fn is_complete_with(&self, more: usize) -> bool {
        self.queue.len() + more >= self.callers.min(1 + MAX_FOLLOWERS)
    }

    /// Returns `true` if a new call runs at once. If no call runs, the queued ones linger for others.
    pub(super) fn may_run(&self) -> bool {
        match self.live() {
            0 => self.is_complete_with(1) || Instant::now() >= self.linger_until,
            live => live < self.max_concurrency(),
        }
    }

    /// Counts a call that runs next.
    pub(super) fn grant(&mut self) {
        self.granted += 1;
    }

    /// Queues a call. Returns its slot, and when it must call [`QueueGroup::dequeue_to_lead`] unless it is signalled.
    pub(super) fn enqueue(&mut self, request: R) -> (Slot<A>, Instant) {
        let slot = Slot::new(&self.slots);
        let is_first = self.live() == 0 && self.queue.is_empty();
        self.queue.push_back(Queued { request, slot: slot.clone() });
        (slot, if is_first { self.linger_until } else { self.next_stall() })
    }

    /// Lets a queued call run if none runs or those that run are stalled.
    pub(super) fn dequeue_to_lead(&mut self, slot: &Slot<A>) -> Dequeued {
        let Some(index) = self.queue.iter().position(|queued| queued.slot == *slot) else {
            return Dequeued::Follows;
        };
        let live = self.live();
        // Without a stalled call, one that runs signals the queued ones when it completes.
        let all_are_live = live == self.granted + self.running.len();
        if live >= if all_are_live { 1 } else { self.max_concurrency() } {
            return Dequeued::StillQueued(self.next_stall());
        }
        self.queue.remove(index);
        self.grant();
        Dequeued::Leads
    }

    /// Begins a call that was granted. Returns its start and its followers.
    pub(super) fn begin(
        &mut self,
        choose: impl Fn(&mut dyn Iterator<Item = &R>) -> usize,
    ) -> (Instant, Vec<Queued<R, A>>) {
        self.begun = Instant::now();
        self.granted -= 1;
        self.running.push(self.begun);
        let most = self.queue.len().min(MAX_FOLLOWERS);
        let chosen = choose(&mut self.queue.iter().take(most).map(|queued| &queued.request)).min(most);
        self.executing += 1 + chosen;
        self.slots = Arc::default();
        (self.begun, self.queue.drain(..chosen).collect())
    }

    /// Completes a running call, puts `requeued` in front of the queue, and sets how the next calls run: alone for
    /// `alone_for`, after a linger time of at most `linger`.
    pub(super) fn complete(
        &mut self,
        completed: &Completed,
        requeued: Vec<Queued<R, A>>,
        limit: impl FnOnce(usize) -> Option<(Duration, Duration)>,
    ) {
        if let Some(index) = self.running.iter().position(|begun| *begun == completed.begun) {
            self.running.swap_remove(index);
        }
        self.stalled_after = completed.stalled_after;
        self.executing -= completed.executed;
        self.callers = completed.executed + self.queue.len();
        for queued in requeued.into_iter().rev() {
            self.queue.push_front(queued);
        }
        let (alone_for, linger) = limit(self.callers + self.executing).unwrap_or_default();
        (self.alone_for, self.linger_until) = (alone_for, completed.at + linger);
    }

    /// Returns the signal for the first queued call, if it can run now or has to linger.
    pub(super) fn next_signal(&mut self) -> Option<(Slot<A>, Signal<A>)> {
        let live = self.live();
        if live >= self.max_concurrency() {
            // The call that still runs signals the queued ones when it completes.
            return None;
        }
        if live == 0 && !self.is_complete_with(0) && Instant::now() < self.linger_until {
            return self.queue.front().map(|first| (first.slot.clone(), Signal::LeadAt(self.linger_until)));
        }
        let first = self.queue.pop_front()?;
        self.grant();
        Some((first.slot, Signal::Lead))
    }
}
