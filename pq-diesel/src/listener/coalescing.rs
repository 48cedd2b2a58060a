//! Decides when a handle notifies on behalf of a channel's writers.
//!
//! PostgreSQL takes a lock that all databases share to commit a transaction that issued NOTIFY (`PreCommit_Notify` in
//! its `async.c`), and holds it until the WAL is synced. Sixteen writers that notify therefore commit one after the
//! other with a sync each, while sixteen writers that do not notify share a sync.
//!
//! A channel is busy if it often receives notifications, or if the handle often puts into its queue. While a channel is
//! busy, the session looks for transactions that wait for that lock. If it finds some, it acquires the channel's
//! notifier lock, an advisory lock. While that is taken, the table's trigger does not notify. The session notifies
//! instead, every [`TICK`] and without a sync, so every session that listens is woken as before. The lock ends with the
//! session. Waiters find jobs that were put between the session's end and the next notification by polling.
//!
//! The lock is held for a lease. At the end of a lease writers notify again until they are seen to wait for each other.
//! A lease ends early if the server is nearly idle.
//!
//! After a lease the session notifies until every writer that did not notify has ended. A writer has a transaction id
//! before it looks at the notifier lock. So each of them has a lower id than a transaction that begins when the lock is
//! released: the fence. When no transaction with a lower id runs, one notification covers all their jobs, and one more
//! the serialization keys that they release a moment after they leave the list of running transactions. Another long
//! transaction delays this end and costs one notification every [`MAX_INTERVAL`].

use std::time::{Duration, Instant};

/// The payload of coalesced notifications. The trigger's payload is empty.
pub(super) const PAYLOAD: &str = "coalesced";

/// The interval of coalesced notifications.
pub(super) const TICK: Duration = Duration::from_millis(4);

/// A channel is busy, until the end of the next window, if it has this many puts within a window.
pub(super) const BUSY_WINDOW: Duration = Duration::from_secs(2);
pub(super) const BUSY_PUTS: usize = 16;

/// The duration of a lease of the notifier lock.
const LEASE: Duration = Duration::from_secs(16);

/// A lease ends early if fewer than this many transactions of others began in this many ticks.
const TICKS_PER_CHECK: u64 = 125;
const MIN_TRANSACTIONS: u64 = 64;

/// The longest interval between two notifications after a lease.
const MAX_INTERVAL: Duration = Duration::from_secs(2);

/// The next action of the session for a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Notify all listeners, then call [`Coalescing::notified`].
    Notify,
    /// Release the notifier lock.
    ReleaseLock,
}

/// The server's transactions at a notification.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transactions {
    /// The id of the transaction that notifies. Ids ascend in the order in which they are assigned.
    pub(super) own: u64,
    /// The lowest id of a transaction that was running when the statement began, or an id above all that had ended.
    pub(super) oldest: u64,
}

/// The state of one channel.
#[derive(Debug)]
pub(super) struct Coalescing {
    window_start: Instant,
    notifications: usize,
    busy_until: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Writers notify for themselves.
    Off,
    /// The session has the notifier lock.
    Leased {
        until: Instant,
        notify_at: Instant,
        ticks: u64,
        /// The id of the first transaction of these ticks.
        first: Option<u64>,
    },
    /// The lock is released, and writers that did not notify may be running.
    Draining {
        notify_at: Instant,
        interval: Duration,
        fence: Option<u64>,
        /// Whether those writers have ended. One more notification follows.
        have_ended: bool,
    },
}

impl Coalescing {
    pub(super) fn new(now: Instant) -> Self {
        Self { window_start: now, notifications: 0, busy_until: now, state: State::Off }
    }

    /// Records a notification that a writer sent for itself.
    pub(super) fn record_notification(&mut self, now: Instant) {
        if now.saturating_duration_since(self.window_start) > BUSY_WINDOW {
            (self.window_start, self.notifications) = (now, 0);
        }
        self.notifications += 1;
        if self.notifications >= BUSY_PUTS {
            self.record_busy(now);
        }
    }

    /// Records that the channel is busy.
    pub(super) fn record_busy(&mut self, now: Instant) {
        self.busy_until = now + BUSY_WINDOW * 2;
    }

    fn is_busy(&self, now: Instant) -> bool {
        now < self.busy_until
    }

    /// Returns whether the notifier lock should be acquired if writers wait for each other.
    pub(super) fn wants_lock(&self, now: Instant) -> bool {
        self.is_busy(now) && !self.has_lock()
    }

    /// Starts a lease.
    pub(super) fn lock_acquired(&mut self, now: Instant) {
        self.state = State::Leased { until: now + LEASE, notify_at: now + TICK, ticks: 0, first: None };
    }

    /// Returns an action that is due. The session calls it until it returns `None`.
    pub(super) fn next_action(&mut self, now: Instant) -> Option<Action> {
        match self.state {
            State::Leased { until, .. } if until <= now => {
                self.state =
                    State::Draining { notify_at: now, interval: TICK, fence: None, have_ended: false };
                Some(Action::ReleaseLock)
            }
            State::Leased { notify_at, .. } | State::Draining { notify_at, .. } if notify_at <= now => {
                Some(Action::Notify)
            }
            _ => None,
        }
    }

    /// Ends the lease, if there is one: releasing the lock is the next action.
    pub(super) fn end_lease(&mut self, now: Instant) {
        if let State::Leased { until, .. } = &mut self.state {
            *until = now;
        }
    }

    /// Records a notification that the session sent, with the transactions that its statement saw.
    pub(super) fn notified(&mut self, transactions: Transactions, now: Instant) {
        match &mut self.state {
            State::Off => {}
            State::Leased { until, notify_at, ticks, first } => {
                *notify_at = now + TICK;
                let Some(first) = first else {
                    *first = Some(transactions.own);
                    return;
                };
                *ticks += 1;
                if *ticks == TICKS_PER_CHECK {
                    if transactions.own.saturating_sub(*first) < TICKS_PER_CHECK + MIN_TRANSACTIONS {
                        *until = now;
                    }
                    (*ticks, *first) = (0, transactions.own);
                }
            }
            State::Draining { notify_at, interval, fence, have_ended } => {
                if *have_ended {
                    self.state = State::Off;
                    return;
                }
                // The first of these transactions began after the lock was released.
                *have_ended = transactions.oldest >= *fence.get_or_insert(transactions.own);
                *notify_at = now + if *have_ended { TICK } else { *interval };
                *interval = (*interval * 2).min(MAX_INTERVAL);
            }
        }
    }

    /// Returns whether the session has the notifier lock.
    pub(super) fn has_lock(&self) -> bool {
        matches!(self.state, State::Leased { .. })
    }

    /// Returns whether nothing is to be done while no put is recorded.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        matches!(self.state, State::Off) && !self.is_busy(now)
    }

    /// Returns when the next action is due if no notification arrives.
    pub(super) fn next_action_at(&self) -> Option<Instant> {
        match self.state {
            State::Off => None,
            State::Leased { until, notify_at, .. } => Some(until.min(notify_at)),
            State::Draining { notify_at, .. } => Some(notify_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a channel whose lock was acquired now, and returns when it notified, and when it released the lock.
    ///
    /// `others` is the number of transactions of others that begin between two notifications, and `oldest_of` returns
    /// the oldest running transaction for the time and the next id.
    fn simulate(
        duration: Duration,
        others: u64,
        oldest_of: impl Fn(Duration, u64) -> u64,
    ) -> (Vec<Duration>, Option<Duration>) {
        let start = Instant::now();
        let mut coalescing = Coalescing::new(start);
        coalescing.lock_acquired(start);
        let (mut notified, mut released, mut next) = (Vec::new(), None, 1_000);
        while let Some(now) = coalescing.next_action_at().filter(|at| *at < start + duration) {
            let time = now - start;
            while let Some(action) = coalescing.next_action(now) {
                if action == Action::ReleaseLock {
                    released = Some(time);
                    continue;
                }
                notified.push(time);
                let transactions = Transactions { own: next, oldest: oldest_of(time, next) };
                coalescing.notified(transactions, now);
                next += 1 + others;
            }
        }
        (notified, released)
    }

    const LONG: Duration = Duration::from_secs(100);

    #[test]
    fn a_channel_is_busy_for_a_while_after_frequent_notifications() {
        let now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        (0..BUSY_PUTS as u32 * 2)
            .for_each(|n| coalescing.record_notification(now + BUSY_WINDOW / BUSY_PUTS as u32 * 2 * n));
        assert!(!coalescing.is_busy(now), "too seldom");
        let later = now + BUSY_WINDOW * 9;
        (0..BUSY_PUTS).for_each(|_| coalescing.record_notification(later));
        assert!(coalescing.wants_lock(later + BUSY_WINDOW));
        assert!(coalescing.is_idle(later + BUSY_WINDOW * 2));
        coalescing.lock_acquired(later);
        assert!(!coalescing.wants_lock(later) && coalescing.has_lock());
    }

    #[test]
    fn a_channel_is_notified_every_tick_until_the_lease_ends() {
        let (notified, released) = simulate(LONG, 10, |_, next| next);
        assert_eq!(released, Some(LEASE));
        let during = notified.iter().filter(|at| **at < LEASE).count() as u128;
        assert_eq!(during, LEASE.as_millis() / TICK.as_millis() - 1);
        // No writer was left.
        assert_eq!(notified.len() as u128, during + 2);
    }

    #[test]
    fn a_lease_ends_early_on_an_idle_server() {
        let (_, released) = simulate(LONG, 0, |_, next| next);
        assert_eq!(released, Some(TICK * (TICKS_PER_CHECK as u32 + 1)));
    }

    #[test]
    fn after_a_lease_the_interval_grows_until_no_writer_is_left() {
        let last_writer = LEASE + Duration::from_secs(60);
        // The writer is the last that began before the fence.
        let (notified, released) =
            simulate(LONG, 10, |time, next| if time > last_writer { next } else { next.min(1_500) });
        let mut after: Vec<Duration> = notified.into_iter().filter(|at| Some(*at) > released).collect();
        let last = after.pop();
        let intervals: Vec<Duration> = after.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(intervals.iter().all(|interval| (TICK..=MAX_INTERVAL).contains(interval)), "{intervals:?}");
        assert!(intervals.windows(2).all(|two| two[0] <= two[1]), "{intervals:?}");
        let end = after.last().copied().unwrap_or_default();
        assert!(last_writer < end && end <= last_writer + MAX_INTERVAL, "{end:?}");
        assert_eq!(last, Some(end + TICK));
    }
}
