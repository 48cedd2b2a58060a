//! Where in the line the last takes ended.
//!
//! The index of the line keeps the entries of jobs that are gone until a vacuum removes them, and while any
//! transaction of the database can still see those jobs, none may. A take that walks from the line's start passes
//! by all of them, and the longer the slower. So where that costs much, takes begin where the last one ended, and
//! the line before that place is walked piece by piece (`trail.rs`), forty times the cost of a piece apart: what became
//! ready there meanwhile, because it was given back, or has a higher priority, or committed late, waits for its
//! piece. A commit that was late by no more than a second waits for less, since the line is walked from where takes
//! were a while ago as well, with the same rule. What this handle itself puts there does not wait. Where a walk from the
//! start is cheap every take is one, and the order is exact.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pq_core::{NewJob, QueueName, RawJob};

use super::costs::{self, Costs};
use super::place::Place;
use super::trail::{Piece, Trail};

/// How a queue's next take goes about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Way {
    /// There was nothing, or little: ask the statement that also says when there will be.
    Ask,
    /// From the line's start.
    Start,
    /// A piece of the line before the last place.
    Between(Piece),
    /// From behind this place, where takes were a while ago.
    Since(Place),
    /// From behind this place, where the last take ended.
    On(Place),
}

/// What is remembered of each queue. Hints: whatever they say, a take is right.
#[derive(Debug, Default)]
pub(crate) struct Heads(Mutex<HashMap<QueueName, Head>>);

#[derive(Debug)]
struct Head {
    /// Whether the last take found as much as it asked for, or anything.
    found: Found,
    /// Where the last take ended, if the line is not to be walked from its start at once.
    place: Option<Place>,
    /// Where takes ended a while ago, and before that.
    marks: [Option<Place>; 2],
    marked_at: Instant,
    /// The whole way there.
    trail: Trail,
    start: Costs,
    since: Costs,
    on: Costs,
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
    /// What a walk from the start may cost beside its jobs while it is not known what one from a place costs, in
    /// microseconds; and what more than one from a place once that is known.
    const CHEAP: i64 = 2_000;
    const AS_CHEAP: i64 = 250;
    /// About what a job of a take costs, in microseconds.
    const JOB: i64 = 5;
    /// Within this time of a look that found less than it wanted there is likely to be no more.
    const JUST_NOW: Duration = Duration::from_millis(1);
    /// How far apart marks are.
    const MARK: Duration = Duration::from_secs(1);

    fn new(now: Instant) -> Self {
        Self {
            found: Found::All,
            place: None,
            marks: [None; 2],
            marked_at: now,
            trail: Trail::new(now),
            start: Costs::new(now),
            since: Costs::new(now),
            on: Costs::new(now),
            at: now,
        }
    }

    /// Whether walks from the start are worth sparing.
    fn is_dear(&self) -> bool {
        self.start.least().is_some_and(|start| match self.on.least() {
            Some(on) => start.saturating_sub(on) > Self::AS_CHEAP,
            None => start > Self::CHEAP,
        })
    }

    /// How long it is until such a walk is due, if they are dear.
    fn due_in(&self, costs: &Costs, now: Instant) -> Duration {
        let more = costs.now().saturating_sub(self.on.least().unwrap_or_default());
        costs::due_in(more, costs.at, now)
    }

    /// How long it is until the line before the last place is to be walked again, all of it or the next piece.
    fn before_due_in(&self, now: Instant) -> Duration {
        match self.trail.piece() {
            _ if !self.is_dear() => Duration::ZERO,
            Some(_) => self.trail.due_in(now),
            None => self.due_in(&self.start, now),
        }
    }

    /// How long it is until another walk than one from the last place is due.
    fn more_due_in(&self, now: Instant) -> Duration {
        let before = self.before_due_in(now);
        self.mark().map_or(before, |_| before.min(self.due_in(&self.since, now)))
    }

    /// Where takes were a while ago, if that is further up.
    fn mark(&self) -> Option<Place> {
        self.marks[1].filter(|mark| self.place.is_some_and(|place| *mark < place))
    }

    fn way(&self, now: Instant) -> Way {
        if self.is_dear()
            && let Some(place) = self.place
        {
            let is_due = self.before_due_in(now).is_zero();
            match (self.trail.piece(), self.mark()) {
                (Some(piece), _) if is_due => return Way::Between(piece),
                (None, _) if is_due => {}
                (_, Some(mark)) if self.due_in(&self.since, now).is_zero() => return Way::Since(mark),
                _ => return Way::On(place),
            }
        }
        match self.found {
            Found::All => Way::Start,
            // Whoever comes back later was woken, and what woke it is likely to be in the line.
            _ if now.saturating_duration_since(self.at) > Self::JUST_NOW => Way::Start,
            Found::Some | Found::Nothing => Way::Ask,
        }
    }

    fn took(&mut self, way: Way, jobs: &[RawJob], asked: usize, begun: Instant, now: Instant) {
        self.at = now;
        let micros = i64::try_from(now.saturating_duration_since(begun).as_micros()).unwrap_or(i64::MAX);
        let cost = micros - Self::JOB * i64::try_from(jobs.len()).unwrap_or(i64::MAX);
        match way {
            Way::Between(piece) => {
                let pieces = self.trail.walked(piece, micros, jobs.len() < asked, now);
                let on = self.on.least().unwrap_or_default();
                self.start.raise(micros.saturating_sub(on).saturating_mul(self.trail.places()));
                // Where a piece costs little more than any walk does, what made them dear may be gone.
                if pieces.is_some_and(|mean| mean <= on + Self::CHEAP) {
                    self.start.forget();
                    self.place = None;
                }
                return;
            }
            Way::On(_) => self.on.add(cost, now),
            Way::Since(_) => self.since.add(cost, now),
            // Who asks begins at the start as well, but does more than walk where there is nothing.
            Way::Ask if jobs.is_empty() => self.start.at = now,
            Way::Start | Way::Ask => self.start.add(cost, now),
        }
        self.found = match jobs.len() {
            0 => Found::Nothing,
            found if found < asked => Found::Some,
            _ => Found::All,
        };
        // A walk from further up may have found jobs before the place, and there may be more of them.
        self.place = jobs.last().and_then(Place::of).or(self.place);
        if let Some(place) = self.place {
            self.trail.went(place, jobs.len());
        }
        if now.saturating_duration_since(self.marked_at) >= Self::MARK {
            self.marks = [self.place, self.marks[0]];
            self.marked_at = now;
        }
    }
}

impl Heads {
    pub(super) fn way(&self, queue: &QueueName) -> Way {
        self.lock().get(queue).map_or(Way::Start, |head| head.way(Instant::now()))
    }

    /// How long it is until a take of this queue walks from further up than the last place again.
    pub(super) fn due_in(&self, queue: &QueueName) -> Duration {
        self.lock().get(queue).map_or(Duration::ZERO, |head| head.more_due_in(Instant::now()))
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

    /// Where the last take ended, if the next one need not walk from the start.
    pub(super) fn place(&self, queue: &QueueName) -> Option<Place> {
        self.lock().get(queue).and_then(|head| head.place)
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
mod tests;
