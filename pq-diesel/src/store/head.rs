//! Where in the line the last takes ended.
//!
//! The index of the line keeps the entries of jobs that are gone until a vacuum removes them, and while any
//! transaction of the database can still see those jobs, none may. A take that walks from the line's start passes
//! by all of them, and the longer the slower. So where that costs much, takes begin where the last one ended, and
//! walk from the start only for a tenth of the time: what became ready behind that place, because it was given
//! back, or has a higher priority, or committed late, waits for one of those. Where a walk from the start is
//! cheap every take is one, and the order is exact.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::pg::data_types::PgTimestamp;
use pq_core::{QueueName, RawJob};

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
    /// Where the last take ended.
    place: Option<Place>,
    /// What the last walks from the start cost beyond what their jobs account for.
    costs: [Duration; Head::WALKS],
    walked: usize,
    /// What the last walk from a place cost so.
    from_place: Duration,
    /// Time spent on walks from the start, and on all, since they cost much.
    from_start: Duration,
    in_all: Duration,
    at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    All,
    Some,
    Nothing,
}

impl Head {
    /// So many walks from the start in a row have to be dear before one is saved: single ones are when they are
    /// planned, or interrupted.
    const WALKS: usize = 16;
    /// What a walk may cost beside its jobs, and beside twice what one from a place costs.
    const CHEAP: Duration = Duration::from_millis(2);
    /// About what a job of a take costs.
    const JOB: Duration = Duration::from_micros(5);
    /// Walks from the start have one part in so many of the time.
    const SHARE: u32 = 10;

    fn new() -> Self {
        Self {
            found: Found::All,
            place: None,
            costs: [Duration::ZERO; Self::WALKS],
            walked: 0,
            from_place: Duration::ZERO,
            from_start: Duration::ZERO,
            in_all: Duration::ZERO,
            at: Instant::now(),
        }
    }

    fn is_dear(&self) -> bool {
        self.costs.iter().all(|cost| *cost > Self::CHEAP + 2 * self.from_place)
    }

    fn way(&self) -> Way {
        match (self.found, self.place) {
            (Found::Nothing, _) => Way::Ask,
            (_, Some(place)) if self.is_dear() => match self.from_start * Self::SHARE > self.in_all {
                true => Way::From(place),
                false => Way::Start,
            },
            (Found::Some, _) => Way::Ask,
            (Found::All, _) => Way::Start,
        }
    }

    fn took(&mut self, way: Way, jobs: &[RawJob], asked: usize, time: Duration) {
        self.at = Instant::now();
        self.found = match jobs.len() {
            0 => Found::Nothing,
            found if found < asked => Found::Some,
            _ => Found::All,
        };
        // A walk from the start may have found jobs behind the place, and there may be more of them.
        self.place = jobs.last().and_then(Place::of).or(self.place);
        let was_dear = self.is_dear();
        let jobs = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        let cost = time.saturating_sub(Self::JOB.saturating_mul(jobs));
        match way {
            Way::From(_) => self.from_place = cost,
            // Who asks begins at the start as well, but does more than walk where there is nothing.
            Way::Ask if jobs == 0 => {}
            Way::Start | Way::Ask => {
                self.costs[self.walked % Self::WALKS] = cost;
                self.walked += 1;
                self.from_start += time;
            }
        }
        self.in_all += time;
        if !was_dear || !self.is_dear() {
            (self.from_start, self.in_all) = (time, time);
        }
    }
}

impl Heads {
    /// What is not used for so long is forgotten.
    const KEPT: Duration = Duration::from_secs(60);

    pub(super) fn way(&self, queue: &QueueName) -> Way {
        let heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heads.get(queue).map_or(Way::Start, Head::way)
    }

    /// A take went so, and took these jobs of so many that were asked for.
    pub(super) fn took(&self, queue: &QueueName, way: Way, jobs: &[RawJob], asked: usize, time: Duration) {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(head) = heads.get_mut(queue) {
            return head.took(way, jobs, asked, time);
        }
        heads.retain(|_, head| head.at.elapsed() < Self::KEPT);
        let mut head = Head::new();
        head.took(way, jobs, asked, time);
        heads.insert(queue.clone(), head);
    }
}

#[cfg(test)]
mod tests {
    use pq_core::{Claim, Held, JobId, Payload};

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

    /// Walks so often, at these costs from the start and from a place; gives how often it was from the start.
    fn walk(head: &mut Head, times: i64, start: u64, place: u64) -> i64 {
        let mut from_start = 0;
        for round in 0..times {
            let way = head.way();
            from_start += i64::from(way == Way::Start);
            let cost = if way == Way::Start { start } else { place };
            head.took(way, &jobs(round), 1, Duration::from_millis(cost));
        }
        from_start
    }

    #[test]
    fn while_walks_are_cheap_all_are_from_the_start() {
        let mut head = Head::new();
        assert_eq!(walk(&mut head, 100, 1, 1), 100);
        // A dear one now and then is none of the index's doing.
        for _ in 0..100 {
            assert_eq!(walk(&mut head, 1, 30, 1) + walk(&mut head, 10, 1, 1), 11);
        }
    }

    #[test]
    fn dear_walks_get_a_tenth_of_the_time() {
        let mut head = Head::new();
        walk(&mut head, 16, 20, 1);
        let from_start = walk(&mut head, 10_000, 20, 1);
        // Of 201 milliseconds 20 are for one from the start: one of some 181 walks.
        assert!((45..65).contains(&from_start), "{from_start}");
        assert_eq!(head.way(), Way::From(Place { rank: -2, wanted: i64::MAX, id: 9_999 }));
        // Once they are cheap again all are.
        while head.way() != Way::Start {
            walk(&mut head, 1, 1, 1);
        }
        assert_eq!(walk(&mut head, 100, 1, 1), 100);
    }

    #[test]
    fn a_machine_that_is_slow_at_all_walks_saves_none() {
        let mut head = Head::new();
        assert!(walk(&mut head, 1_000, 20, 15) > 900);
    }

    #[test]
    fn who_found_less_than_was_asked_for_asks_why() {
        let mut head = Head::new();
        head.took(Way::Start, &jobs(1), 5, Duration::from_millis(1));
        assert_eq!(head.way(), Way::Ask);
        head.took(Way::Ask, &jobs(2), 1, Duration::from_millis(1));
        assert_eq!(head.way(), Way::Start);
    }

    #[test]
    fn a_line_that_is_never_long_is_walked_on_as_well() {
        let mut head = Head::new();
        for round in 0..16 {
            let way = head.way();
            head.took(way, &jobs(round), 5, Duration::from_millis(20));
        }
        let place = Place { rank: -2, wanted: i64::MAX, id: 15 };
        assert_eq!(head.way(), Way::From(place));
        head.took(Way::From(place), &[], 5, Duration::from_millis(1));
        assert_eq!(head.way(), Way::Ask, "an empty line is asked for why");
    }
}
