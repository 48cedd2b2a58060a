//! When a listener tells of the puts of many, in their place.
//!
//! PostgreSQL commits one transaction at a time of those that have notified (`PreCommit_Notify` in its `async.c` takes
//! a lock for the whole database, and it is kept until the log has been synced). So sixteen writers that tell of their
//! puts commit one after the other, each with a sync of its own, where as many that do not share one.
//!
//! Where a channel is loud, which is that several sessions tell on it often, one of those who listen takes an advisory
//! lock that stands for telling on it. While somebody has that lock the table's trigger tells nobody, and whoever has it
//! tells every [`TICK`], with nothing to sync, all who listen, whether they know of this or not. It ends with the
//! session, and what was not told then is found by polling, as anything of which nobody is told.
//!
//! Whoever puts without telling has, until its transaction ends, a share of a second lock, that of putting. So the one
//! who tells learns when hardly anybody is in the middle of that any more, and gives the first lock back; and it goes
//! on telling until all have ended that did not tell. That the second lock is always taken may also be
//! one long transaction. So a term has an end in any case, and another follows where the writers are as loud
//! as before.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What is told with these notifications. Those of the trigger say nothing.
pub(super) const PAYLOAD: &str = "coalesced";

/// How often a channel is told on that is told on for others.
pub(super) const TICK: Duration = Duration::from_millis(4);

/// A channel is loud where it is told on as often in this time by as many sessions. One handle's writers share
/// their commits, so a few sessions are no crowd, however much they tell.
const WINDOW: Duration = Duration::from_millis(100);
const LOUD: usize = 16;
const CROWD: usize = 4;

/// For how long the lock is taken at first, and at most: each term that follows another is four times as long.
const FIRST_TERM: Duration = Duration::from_secs(4);
const LAST_TERM: Duration = Duration::from_secs(64);

/// Terms that are no further apart follow one another.
const APART: Duration = Duration::from_secs(1);

/// A term ends where in so many ticks the lock of putting was mostly free, and for so long nobody else begins one. The
/// same where somebody else has the lock.
const TICKS: u32 = 125;
const REST: Duration = Duration::from_secs(2);

/// For how long at least a channel is told on after a term: a put that has found the lock taken takes its share of the
/// other a moment later.
const AFTER: Duration = Duration::from_millis(500);

/// The longest pause between two notifications after a term.
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// What is to be done about a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Take the lock, if nobody has it, and say so by [`Coalescing::claimed`].
    Claim,
    /// Tell everybody who listens, and say by [`Coalescing::told`] whether the lock of putting was free before.
    Tell,
    /// Give the lock back.
    GiveBack,
}

/// One channel's notifications.
#[derive(Debug)]
pub(super) struct Coalescing {
    window: Instant,
    heard: usize,
    senders: BTreeSet<i32>,
    not_before: Instant,
    term: Duration,
    /// The end of the term, while there is one.
    until: Option<Instant>,
    given_back: Option<Instant>,
    tell_at: Option<Instant>,
    pause: Duration,
    ticks: u32,
    idle_ticks: u32,
}

impl Coalescing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            window: now,
            heard: 0,
            senders: BTreeSet::new(),
            not_before: now,
            term: FIRST_TERM,
            until: None,
            given_back: None,
            tell_at: None,
            pause: TICK,
            ticks: 0,
            idle_ticks: 0,
        }
    }

    /// A writer has told of a put by itself.
    pub(super) fn heard(&mut self, sender: i32, now: Instant) {
        if now.saturating_duration_since(self.window) > WINDOW {
            self.listen_anew(now);
        }
        self.heard += 1;
        self.senders.insert(sender);
    }

    /// What is due now; to be asked again until it is nothing.
    pub(super) fn act(&mut self, now: Instant) -> Option<Act> {
        if self.until.is_some_and(|until| until <= now) {
            (self.until, self.given_back) = (None, Some(now));
            self.listen_anew(now);
            return Some(Act::GiveBack);
        }
        let is_loud = self.heard >= LOUD && self.senders.len() >= CROWD;
        if is_loud && self.until.is_none() && self.not_before <= now {
            return Some(Act::Claim);
        }
        (self.tell_at? <= now).then_some(Act::Tell)
    }

    /// Whether the lock was had.
    pub(super) fn claimed(&mut self, was_had: bool, now: Instant) {
        self.listen_anew(now);
        if !was_had {
            self.not_before = now + REST;
            return;
        }
        let follows = self.given_back.is_some_and(|at| now.saturating_duration_since(at) < APART);
        self.term = if follows { (self.term * 4).min(LAST_TERM) } else { FIRST_TERM };
        self.until = Some(now + self.term);
        (self.ticks, self.idle_ticks) = (0, 0);
        self.pause = TICK;
        self.tell_at = Some(now + TICK);
    }

    /// Everybody was told, and whether nobody was in the middle of a put before.
    pub(super) fn told(&mut self, was_idle: bool, now: Instant) {
        if self.until.is_some() {
            self.ticks += 1;
            self.idle_ticks += u32::from(was_idle);
            if self.ticks == TICKS {
                if self.idle_ticks * 4 >= TICKS * 3 {
                    (self.until, self.not_before) = (Some(now), now + REST);
                }
                (self.ticks, self.idle_ticks) = (0, 0);
            }
        } else {
            self.pause = (self.pause * 2).min(LAST_PAUSE);
        }
        let is_over = was_idle
            && self.until.is_none()
            && self.given_back.is_none_or(|at| now.saturating_duration_since(at) >= AFTER);
        self.tell_at = (!is_over).then(|| now + self.pause);
    }

    pub(super) fn has_lock(&self) -> bool {
        self.until.is_some()
    }

    /// When something will be due, if nothing is heard.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.until.into_iter().chain(self.tell_at).min()
    }

    fn listen_anew(&mut self, now: Instant) {
        (self.window, self.heard) = (now, 0);
        self.senders.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loud(coalescing: &mut Coalescing, now: Instant) {
        (0..LOUD).for_each(|n| coalescing.heard((n % CROWD) as i32, now));
    }

    /// One that has the lock.
    fn telling(now: Instant) -> Coalescing {
        let mut coalescing = Coalescing::new(now);
        loud(&mut coalescing, now);
        assert_eq!(coalescing.act(now), Some(Act::Claim));
        coalescing.claimed(true, now);
        coalescing
    }

    /// When it tells and gives the lock back until it has nothing more to do, or `until` is over.
    fn course(
        coalescing: &mut Coalescing,
        until: Instant,
        is_idle: impl Fn(Instant) -> bool,
    ) -> (Vec<Instant>, Option<Instant>) {
        let (mut told, mut given_back) = (Vec::new(), None);
        while let Some(now) = coalescing.next_at().filter(|at| *at < until) {
            while let Some(act) = coalescing.act(now) {
                match act {
                    Act::Tell => {
                        told.push(now);
                        coalescing.told(is_idle(now), now);
                    }
                    Act::GiveBack => given_back = Some(now),
                    Act::Claim => panic!("nobody is loud"),
                }
            }
        }
        (told, given_back)
    }

    const LONG: Duration = Duration::from_secs(100);

    #[test]
    fn a_crowd_that_tells_often_is_loud_and_nobody_else() {
        let now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        (0..LOUD * 2).for_each(|n| coalescing.heard((n % (CROWD - 1)) as i32, now));
        assert_eq!(coalescing.act(now), None, "one handle's sessions");
        let mut coalescing = Coalescing::new(now);
        (0..LOUD as u32 * 2).for_each(|n| coalescing.heard(n as i32, now + WINDOW / 10 * n));
        assert_eq!(coalescing.act(now), None, "many, now and then");
        loud(&mut coalescing, now + WINDOW * 9);
        assert_eq!(coalescing.act(now + WINDOW * 9), Some(Act::Claim));
    }

    #[test]
    fn a_busy_crowd_is_told_for_until_the_term_is_over() {
        let begun = Instant::now();
        let over = begun + FIRST_TERM;
        let (told, given_back) = course(&mut telling(begun), over + AFTER * 2, |now| now > over);
        assert_eq!(given_back, Some(over));
        let during = told.iter().filter(|at| **at <= over).count();
        assert_eq!(during as u128, FIRST_TERM.as_millis() / TICK.as_millis());
    }

    #[test]
    fn where_hardly_anybody_puts_the_term_ends_early_and_none_begins_at_once() {
        let begun = Instant::now();
        let mut coalescing = telling(begun);
        let (_, given_back) = course(&mut coalescing, begun + LONG, |_| true);
        assert_eq!(given_back, Some(begun + TICK * TICKS));
        let soon = begun + TICK * TICKS + REST / 2;
        loud(&mut coalescing, soon);
        assert_eq!(coalescing.act(soon), None);
    }

    #[test]
    fn after_its_term_it_tells_in_longer_pauses_until_nobody_is_left_who_did_not() {
        let begun = Instant::now();
        let last = begun + FIRST_TERM + Duration::from_secs(60);
        let (told, given_back) = course(&mut telling(begun), begun + LONG, |now| now > last);
        let after: Vec<Instant> = told.into_iter().filter(|at| Some(*at) > given_back).collect();
        let pauses: Vec<Duration> = after.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(pauses.iter().all(|pause| (TICK..=LAST_PAUSE).contains(pause)), "{pauses:?}");
        assert!(pauses.windows(2).all(|two| two[0] <= two[1]), "{pauses:?}");
        let end = after.last().copied().unwrap_or(begun);
        assert!(last < end && end <= last + LAST_PAUSE, "{:?}", end - last);
        // Nobody is left at the end, but one may have found the lock taken that has no share of the other yet.
        let (told, given_back) = course(&mut telling(begun), begun + LONG, |_| true);
        let after = told.last().copied().zip(given_back).map(|(last, given_back)| last - given_back);
        assert!(after.is_some_and(|after| after >= AFTER), "{after:?}");
    }

    #[test]
    fn terms_that_follow_one_another_grow_and_others_do_not() {
        let mut now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        let mut term = |after: Duration| {
            now += after;
            loud(&mut coalescing, now);
            assert_eq!(coalescing.act(now), Some(Act::Claim));
            coalescing.claimed(true, now);
            let length = coalescing.until.map(|until| until - now).unwrap_or_default();
            now += length;
            assert_eq!(coalescing.act(now), Some(Act::GiveBack));
            length.as_secs()
        };
        let terms = [1, 10, 10, 10, 1000, 10].map(|millis| term(Duration::from_millis(millis)));
        assert_eq!(terms, [4, 16, 64, 64, 4, 16]);
    }

    #[test]
    fn where_somebody_else_has_the_lock_it_is_not_asked_for_at_once() {
        let now = Instant::now();
        let mut coalescing = Coalescing::new(now);
        loud(&mut coalescing, now);
        assert_eq!(coalescing.act(now), Some(Act::Claim));
        coalescing.claimed(false, now);
        loud(&mut coalescing, now);
        assert_eq!((coalescing.act(now), coalescing.has_lock()), (None, false));
        loud(&mut coalescing, now + REST);
        assert_eq!(coalescing.act(now + REST), Some(Act::Claim));
    }
}
