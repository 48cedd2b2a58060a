//! Decides when a listener notifies on behalf of a channel's writers.
//!
//! PostgreSQL takes a database-wide lock to commit a transaction that issued NOTIFY (`PreCommit_Notify` in its
//! `async.c`), and holds it until the WAL is synced. Sixteen writers that notify therefore commit one after the other
//! with a sync each, while sixteen writers that do not notify share a sync.
//!
//! A channel is contended if several sessions notify it often. One of the listeners then acquires the channel's
//! notifier lock, an advisory lock. While it is taken, the table's trigger does not notify. The listener notifies
//! instead, every [`TICK`] and without a sync, so every session that listens is woken as before. The lock ends with the
//! listener's session. Waiters find jobs that were put between the session's end and the next notification by polling.
//!
//! A writer that does not notify holds a share of a second lock until its transaction ends: the channel's
//! in-flight-writers lock. Two decisions depend on it:
//!
//! * If the lock is free most of the time, the channel is no longer contended and the notifier lock is released.
//! * After the release the listener continues to notify until every writer that did not notify has ended.
//!
//! One long transaction can hold the in-flight-writers lock all the time. Therefore a lease of the notifier lock has a
//! term. If the writers are still contended at its end, another lease follows.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The payload of coalesced notifications. The trigger's payload is empty.
pub(super) const PAYLOAD: &str = "coalesced";

/// The interval of coalesced notifications.
pub(super) const TICK: Duration = Duration::from_millis(4);

/// A channel is contended if it receives this many notifications from this many sessions within the window. The writers
/// of one handle share their commits, so a few sessions do not slow each other, however often they notify.
const CONTENTION_WINDOW: Duration = Duration::from_millis(100);
const CONTENDED_NOTIFICATIONS: usize = 16;
const MIN_SESSIONS: usize = 4;

/// The term of the first lease, and the longest one. Each consecutive lease is four times as long as the one before.
const FIRST_TERM: Duration = Duration::from_secs(4);
const MAX_TERM: Duration = Duration::from_secs(64);

/// The longest time between two consecutive leases.
const MAX_GAP: Duration = Duration::from_secs(1);

/// A lease ends early if the in-flight-writers lock was free in three quarters of this many ticks. No lease starts
/// during the cooldown after that, nor after the notifier lock was found taken.
const TICKS_PER_CHECK: u32 = 125;
const COOLDOWN: Duration = Duration::from_secs(2);

/// The minimum time for which the listener continues to notify after a lease. A writer that found the notifier lock
/// taken acquires its share of the other lock a moment later, so that lock alone does not prove that no writer is left.
const MIN_DRAIN: Duration = Duration::from_millis(500);

/// The longest interval between two notifications after a lease.
const MAX_INTERVAL: Duration = Duration::from_secs(2);

/// The next action of the session for a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Try to acquire the notifier lock, then call [`Coalescing::lock_attempted`].
    AcquireLock,
    /// Notify all listeners, then call [`Coalescing::notified`].
    Notify,
    /// Release the notifier lock.
    ReleaseLock,
}

/// The state of one channel.
#[derive(Debug)]
pub(super) struct Coalescing {
    window_start: Instant,
    notifications: usize,
    senders: BTreeSet<i32>,
    /// No lease starts before.
    cooldown_until: Instant,
    term: Duration,
    /// The end of the lease, while there is one.
    lease_until: Option<Instant>,
    released_at: Option<Instant>,
    notify_at: Option<Instant>,
    interval: Duration,
    ticks: u32,
    idle_ticks: u32,
}

impl Coalescing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            window_start: now,
            notifications: 0,
            senders: BTreeSet::new(),
            cooldown_until: now,
            term: FIRST_TERM,
            lease_until: None,
            released_at: None,
            notify_at: None,
            interval: TICK,
            ticks: 0,
            idle_ticks: 0,
        }
    }

    /// Records a notification that a writer sent for itself.
    pub(super) fn record_notification(&mut self, sender: i32, now: Instant) {
        if now.saturating_duration_since(self.window_start) > CONTENTION_WINDOW {
            self.reset_window(now);
        }
        self.notifications += 1;
        self.senders.insert(sender);
    }

    /// Returns an action that is due. The session calls it until it returns `None`.
    pub(super) fn next_action(&mut self, now: Instant) -> Option<Action> {
        if self.lease_until.is_some_and(|until| until <= now) {
            (self.lease_until, self.released_at) = (None, Some(now));
            self.reset_window(now);
            return Some(Action::ReleaseLock);
        }
        let contended = self.notifications >= CONTENDED_NOTIFICATIONS && self.senders.len() >= MIN_SESSIONS;
        if contended && self.lease_until.is_none() && self.cooldown_until <= now {
            return Some(Action::AcquireLock);
        }
        (self.notify_at? <= now).then_some(Action::Notify)
    }

    /// Starts a lease if the notifier lock was acquired, and a cooldown if not.
    pub(super) fn lock_attempted(&mut self, acquired: bool, now: Instant) {
        self.reset_window(now);
        if !acquired {
            self.cooldown_until = now + COOLDOWN;
            return;
        }
        let consecutive = self.released_at.is_some_and(|at| now.saturating_duration_since(at) < MAX_GAP);
        self.term = if consecutive { (self.term * 4).min(MAX_TERM) } else { FIRST_TERM };
        self.lease_until = Some(now + self.term);
        (self.ticks, self.idle_ticks) = (0, 0);
        self.interval = TICK;
        self.notify_at = Some(now + TICK);
    }

    /// Records a notification that the session sent, and whether no writer was in flight before it.
    pub(super) fn notified(&mut self, no_writers: bool, now: Instant) {
        if self.lease_until.is_some() {
            self.ticks += 1;
            self.idle_ticks += u32::from(no_writers);
            if self.ticks == TICKS_PER_CHECK {
                if self.idle_ticks * 4 >= TICKS_PER_CHECK * 3 {
                    (self.lease_until, self.cooldown_until) = (Some(now), now + COOLDOWN);
                }
                (self.ticks, self.idle_ticks) = (0, 0);
            }
        } else {
            self.interval = (self.interval * 2).min(MAX_INTERVAL);
        }
        let drained = no_writers
            && self.lease_until.is_none()
            && self.released_at.is_none_or(|at| now.saturating_duration_since(at) >= MIN_DRAIN);
        self.notify_at = (!drained).then(|| now + self.interval);
    }

    /// Returns whether the session has the notifier lock.
    pub(super) fn has_lock(&self) -> bool {
        self.lease_until.is_some()
    }

    /// Returns when the next action is due if no notification arrives.
    pub(super) fn next_action_at(&self) -> Option<Instant> {
        self.lease_until.into_iter().chain(self.notify_at).min()
    }

    fn reset_window(&mut self, now: Instant) {
        (self.window_start, self.notifications) = (now, 0);
        self.senders.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contend(coalescing: &mut Coalescing, now: Instant) {
        (0..CONTENDED_NOTIFICATIONS)
            .for_each(|n| coalescing.record_notification((n % MIN_SESSIONS) as i32, now));
    }

    /// Returns the state of a channel whose lock was acquired now.
    fn leased(now: Instant) -> Coalescing {
        let mut coalescing = Coalescing::new(now);
        contend(&mut coalescing, now);
        assert_eq!(coalescing.next_action(now), Some(Action::AcquireLock));
        coalescing.lock_attempted(true, now);
        coalescing
    }

    /// Returns when it notifies and releases the lock before `until`.
    fn simulate(
        coalescing: &mut Coalescing,
        until: Instant,
        no_writers: impl Fn(Instant) -> bool,
    ) -> (Vec<Instant>, Option<Instant>) {
        let (mut notified, mut released) = (Vec::new(), None);
        while let Some(now) = coalescing.next_action_at().filter(|at| *at < until) {
            while let Some(action) = coalescing.next_action(now) {
                match action {
                    Action::Notify => {
                        notified.push(now);
                        coalescing.notified(no_writers(now), now);
                    }
                    Action::ReleaseLock => released = Some(now),
                    Action::AcquireLock => panic!("the channel is not contended"),
                }
            }
        }
        (notified, released)
    }

    const LONG: Duration = Duration::from_secs(100);

    #[test]
    fn only_frequent_notifications_of_several_sessions_are_contention() {
        let now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        (0..CONTENDED_NOTIFICATIONS * 2)
            .for_each(|n| coalescing.record_notification((n % (MIN_SESSIONS - 1)) as i32, now));
        assert_eq!(coalescing.next_action(now), None, "too few sessions");
        let mut coalescing = Coalescing::new(now);
        (0..CONTENDED_NOTIFICATIONS as u32 * 2)
            .for_each(|n| coalescing.record_notification(n as i32, now + CONTENTION_WINDOW / 10 * n));
        assert_eq!(coalescing.next_action(now), None, "too seldom");
        let later = now + CONTENTION_WINDOW * 9;
        contend(&mut coalescing, later);
        assert_eq!(coalescing.next_action(later), Some(Action::AcquireLock));
    }

    #[test]
    fn a_contended_channel_is_notified_every_tick_until_the_term_ends() {
        let start = Instant::now();
        let end = start + FIRST_TERM;
        let (notified, released) = simulate(&mut leased(start), end + MIN_DRAIN * 2, |now| now > end);
        assert_eq!(released, Some(end));
        let during = notified.iter().filter(|at| **at <= end).count();
        assert_eq!(during as u128, FIRST_TERM.as_millis() / TICK.as_millis());
    }

    #[test]
    fn a_lease_without_writers_ends_early_and_a_cooldown_follows() {
        let start = Instant::now();
        let mut coalescing = leased(start);
        let (_, released) = simulate(&mut coalescing, start + LONG, |_| true);
        assert_eq!(released, Some(start + TICK * TICKS_PER_CHECK));
        let soon = start + TICK * TICKS_PER_CHECK + COOLDOWN / 2;
        contend(&mut coalescing, soon);
        assert_eq!(coalescing.next_action(soon), None);
    }

    #[test]
    fn after_a_lease_the_interval_grows_until_no_writer_is_left() {
        let start = Instant::now();
        let last_writer = start + FIRST_TERM + Duration::from_secs(60);
        let (notified, released) = simulate(&mut leased(start), start + LONG, |now| now > last_writer);
        let after: Vec<Instant> = notified.into_iter().filter(|at| Some(*at) > released).collect();
        let intervals: Vec<Duration> = after.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(intervals.iter().all(|interval| (TICK..=MAX_INTERVAL).contains(interval)), "{intervals:?}");
        assert!(intervals.windows(2).all(|two| two[0] <= two[1]), "{intervals:?}");
        let end = after.last().copied().unwrap_or(start);
        assert!(last_writer < end && end <= last_writer + MAX_INTERVAL, "{:?}", end - last_writer);
    }

    #[test]
    fn after_a_lease_without_writers_it_notifies_for_the_minimum_drain_time() {
        let start = Instant::now();
        let (notified, released) = simulate(&mut leased(start), start + LONG, |_| true);
        let drained = notified.last().copied().zip(released).map(|(last, released)| last - released);
        assert!(drained.is_some_and(|drained| drained >= MIN_DRAIN), "{drained:?}");
    }

    #[test]
    fn only_consecutive_leases_have_growing_terms() {
        let mut now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        let mut term = |gap: Duration| {
            now += gap;
            contend(&mut coalescing, now);
            assert_eq!(coalescing.next_action(now), Some(Action::AcquireLock));
            coalescing.lock_attempted(true, now);
            let length = coalescing.lease_until.map(|until| until - now).unwrap_or_default();
            now += length;
            assert_eq!(coalescing.next_action(now), Some(Action::ReleaseLock));
            length.as_secs()
        };
        let terms = [1, 10, 10, 10, 1000, 10].map(|millis| term(Duration::from_millis(millis)));
        assert_eq!(terms, [4, 16, 64, 64, 4, 16]);
    }

    #[test]
    fn a_cooldown_follows_if_another_session_has_the_lock() {
        let now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        contend(&mut coalescing, now);
        assert_eq!(coalescing.next_action(now), Some(Action::AcquireLock));
        coalescing.lock_attempted(false, now);
        contend(&mut coalescing, now);
        assert_eq!((coalescing.next_action(now), coalescing.has_lock()), (None, false));
        contend(&mut coalescing, now + COOLDOWN);
        assert_eq!(coalescing.next_action(now + COOLDOWN), Some(Action::AcquireLock));
    }
}
