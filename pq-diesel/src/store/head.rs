//! Where in the line the last takes ended.
//!
//! The index of the line keeps the entries of jobs that are gone until a vacuum removes them, and while any
//! transaction of the database can still see those jobs, none may. A take that walks from the line's start passes
//! by all of them, and the longer the slower. So where that costs much, takes begin where the last one ended, and
//! those from the start are ten times their cost apart: what became ready before that place meanwhile, because it
//! was given back, or has a higher priority, or committed late, waits for one of those. What this handle itself
//! puts there does not wait. Where a walk from the start is cheap every take is one, and the order is exact.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::pg::data_types::PgTimestamp;
use pq_core::{NewJob, QueueName, RawJob};

use crate::rows::since_epoch;

/// A place in the line, by the columns of its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) rank: i64,
    pub(super) wanted: i64,
    pub(super) id: i64,
}

impl Place {
    /// The place of a job, unless its time is one that has no exact number here.
    fn of(job: &RawJob) -> Option<Self> {
        let wanted = match job.expected_at {
            None => i64::MAX,
            Some(at) if at == DateTime::<Utc>::MIN_UTC || at == DateTime::<Utc>::MAX_UTC => return None,
            Some(at) => since_epoch(at),
        };
        Some(Self { rank: -i64::from(job.priority), wanted, id: job.id.0 })
    }

    /// Whether this place is behind that of a job that is put now, as far as can be told.
    fn is_behind(&self, job: &NewJob) -> bool {
        let rank = -i64::from(job.priority);
        rank < self.rank || (rank == self.rank && job.expected_at.is_some())
    }

    pub(super) fn wanted(&self) -> PgTimestamp {
        PgTimestamp(self.wanted)
    }
}

/// How a queue's next take goes about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Way {
    /// There was nothing, or little: ask the statement that also says when there will be.
    Ask,
    /// From the line's start.
    Start,
    /// From behind this place.
    From(Place),
}

/// What is remembered of each queue. Hints: whatever they say, a take is right.
#[derive(Debug, Default)]
pub(crate) struct Heads(Mutex<HashMap<QueueName, Head>>);

#[derive(Debug)]
struct Head {
    /// Whether the last take found as much as it asked for, or anything.
    found: Found,
    /// Where the last take ended, if it is not to be walked from the start again at once.
    place: Option<Place>,
    /// What the last walks from the start cost beyond what their jobs account for.
    costs: [Duration; Head::WALKS],
    walked: usize,
    /// When the last of them ended.
    start_at: Instant,
    /// What the last walk from a place cost so.
    from_place: Duration,
    at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    All,
    Some,
    Nothing,
}

impl Head {
    /// What is not used for so long is forgotten.
    const KEPT: Duration = Duration::from_secs(60);
    /// So many walks from the start in a row have to be dear before one is saved: single ones are when they are
    /// planned, or interrupted.
    const WALKS: usize = 16;
    /// What a walk may cost beside its jobs, and beside twice what one from a place costs.
    const CHEAP: Duration = Duration::from_millis(2);
    /// About what a job of a take costs.
    const JOB: Duration = Duration::from_micros(5);
    /// Where walks from the start are dear, they are so many times their cost apart.
    const APART: u32 = 10;

    fn new(now: Instant) -> Self {
        Self {
            found: Found::All,
            place: None,
            costs: [Duration::ZERO; Self::WALKS],
            walked: 0,
            start_at: now,
            from_place: Duration::ZERO,
            at: now,
        }
    }

    /// For how long after a walk from the start others begin where the last one ended.
    fn pause(&self) -> Duration {
        let least = self.costs.iter().min().copied().unwrap_or_default();
        let cost = least.saturating_sub(2 * self.from_place);
        if cost > Self::CHEAP { cost * Self::APART } else { Duration::ZERO }
    }

    fn way(&self, now: Instant) -> Way {
        match (self.found, self.place) {
            (Found::Nothing, _) => Way::Ask,
            (_, Some(place)) if now.saturating_duration_since(self.start_at) < self.pause() => {
                Way::From(place)
            }
            (Found::Some, _) => Way::Ask,
            (Found::All, _) => Way::Start,
        }
    }

    fn took(&mut self, way: Way, jobs: &[RawJob], asked: usize, begun: Instant, now: Instant) {
        self.at = now;
        self.found = match jobs.len() {
            0 => Found::Nothing,
            found if found < asked => Found::Some,
            _ => Found::All,
        };
        // A walk from the start may have found jobs behind the place, and there may be more of them.
        self.place = jobs.last().and_then(Place::of).or(self.place);
        let jobs = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        let cost = now.saturating_duration_since(begun).saturating_sub(Self::JOB.saturating_mul(jobs));
        match way {
            Way::From(_) => self.from_place = cost,
            // Who asks begins at the start as well, but does more than walk where there is nothing.
            Way::Ask if jobs == 0 => {}
            Way::Start | Way::Ask => {
                self.costs[self.walked % Self::WALKS] = cost;
                self.walked += 1;
                self.start_at = now;
            }
        }
    }
}

impl Heads {
    pub(super) fn way(&self, queue: &QueueName) -> Way {
        self.lock().get(queue).map_or(Way::Start, |head| head.way(Instant::now()))
    }

    /// A take that began then went so, and took these jobs of so many that were asked for.
    pub(super) fn took(&self, queue: &QueueName, way: Way, jobs: &[RawJob], asked: usize, begun: Instant) {
        let now = Instant::now();
        let mut heads = self.lock();
        if let Some(head) = heads.get_mut(queue) {
            return head.took(way, jobs, asked, begun, now);
        }
        heads.retain(|_, head| now.saturating_duration_since(head.at) < Head::KEPT);
        let mut head = Head::new(now);
        head.took(way, jobs, asked, begun, now);
        heads.insert(queue.clone(), head);
    }

    /// These jobs are put: where one comes before the place, the next take walks from the start.
    pub(super) fn put(&self, queue: &QueueName, jobs: &[impl Borrow<NewJob>]) {
        if let Some(head) = self.lock().get_mut(queue)
            && head.place.is_some_and(|place| jobs.iter().any(|job| place.is_behind(job.borrow())))
        {
            head.place = None;
        }
    }

    /// Jobs came into the queue anywhere: the next take walks from the start.
    pub(super) fn changed(&self, queue: &QueueName) {
        if let Some(head) = self.lock().get_mut(queue) {
            head.place = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Head>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use pq_core::{Claim, Held, JobId, Payload, When};

    use super::*;

    fn jobs(last: i64) -> Vec<RawJob> {
        let claim = Claim { id: JobId(last), token: 1, held: Held::Transaction };
        vec![RawJob {
            id: JobId(last),
            queue: QueueName::new("q").expect("a name"),
            payload: Payload::from_stored("1".to_owned()),
            enqueued_at: DateTime::<Utc>::default(),
            schedule_at: None,
            expected_at: None,
            priority: 2,
            attempt: 1,
            serialization_key: None,
            unique_key: None,
            claim,
        }]
    }

    const MS: Duration = Duration::from_millis(1);

    /// A queue's head, and a clock that only tests move.
    struct Walks {
        head: Head,
        now: Instant,
    }

    impl Walks {
        fn new() -> Self {
            let now = Instant::now();
            Self { head: Head::new(now), now }
        }

        /// Takes so often, a job each, at these costs from the start and from a place; gives how often it was from
        /// the start.
        fn take(&mut self, times: i64, start: Duration, place: Duration) -> i64 {
            let mut from_start = 0;
            for round in 0..times {
                let way = self.head.way(self.now);
                from_start += i64::from(way == Way::Start);
                let begun = self.now;
                self.now += if way == Way::Start { start } else { place };
                self.head.took(way, &jobs(round), 1, begun, self.now);
            }
            from_start
        }
    }

    #[test]
    fn while_walks_are_cheap_all_are_from_the_start() {
        let mut walks = Walks::new();
        assert_eq!(walks.take(100, MS, MS), 100);
        // A dear one now and then is none of the index's doing.
        for _ in 0..50 {
            assert_eq!(walks.take(1, 30 * MS, MS) + walks.take(10, MS, MS), 11);
        }
    }

    #[test]
    fn dear_walks_are_ten_times_their_cost_apart() {
        let mut walks = Walks::new();
        walks.take(16, 22 * MS, MS);
        walks.take(1, 22 * MS, MS);
        // They cost 20 beside twice what the others cost, and so there are 200 of the others between them.
        let from_start = walks.take(10_050, 22 * MS, MS);
        assert!((48..=52).contains(&from_start), "{from_start}");
        assert_eq!(walks.head.way(walks.now), Way::From(Place { rank: -2, wanted: i64::MAX, id: 10_049 }));
        // Once they are cheap again all are.
        assert!(walks.take(300, MS, MS) >= 100, "from the next that is due on");
        assert_eq!(walks.take(100, MS, MS), 100);
    }

    #[test]
    fn a_machine_that_is_slow_at_all_walks_saves_none() {
        let mut walks = Walks::new();
        assert!(walks.take(1_000, 20 * MS, 15 * MS) > 990);
    }

    #[test]
    fn what_is_put_before_the_place_is_looked_for_at_once() {
        let queue = QueueName::new("q").expect("a name");
        let dear = || {
            let mut walks = Walks::new();
            walks.take(17, 22 * MS, MS);
            Heads(Mutex::new(HashMap::from([(queue.clone(), walks.head)])))
        };
        let at = Some(When::At(DateTime::<Utc>::default()));
        for (priority, expected_at, is_from_start) in [(2, None, false), (3, None, true), (2, at, true)] {
            let mut job = NewJob::new(Payload::from_stored("1".to_owned()));
            (job.priority, job.expected_at) = (priority, expected_at);
            let heads = dear();
            heads.put(&queue, &[job]);
            assert_eq!(heads.way(&queue) == Way::Start, is_from_start, "{priority} {expected_at:?}");
        }
        let heads = dear();
        heads.changed(&queue);
        assert_eq!(heads.way(&queue), Way::Start);
    }

    #[test]
    fn who_found_less_than_was_asked_for_asks_why() {
        let mut head = Head::new(Instant::now());
        head.took(Way::Start, &jobs(1), 5, Instant::now(), Instant::now());
        assert_eq!(head.way(Instant::now()), Way::Ask);
        head.took(Way::Ask, &jobs(2), 1, Instant::now(), Instant::now());
        assert_eq!(head.way(Instant::now()), Way::Start);
    }

    #[test]
    fn a_line_that_is_never_long_is_walked_on_as_well() {
        let mut walks = Walks::new();
        walks.take(17, 22 * MS, MS);
        walks.head.took(Way::Start, &jobs(7), 5, walks.now, walks.now + 22 * MS);
        let place = Place { rank: -2, wanted: i64::MAX, id: 7 };
        assert_eq!(walks.head.way(walks.now), Way::From(place));
        walks.head.took(Way::From(place), &[], 5, walks.now, walks.now);
        assert_eq!(walks.head.way(walks.now), Way::Ask, "an empty line is asked for why");
    }
}
