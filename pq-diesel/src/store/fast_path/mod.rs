//! The fast path of a take: an index scan that skips dead tuples.
//!
//! Nearly all takes are served here. A reader of the rest of the store can skip this folder: [`FastPath::take`] returns
//! either jobs or `None`, and then the fallback statements of `take.rs` decide. The store notifies the fast path of
//! jobs that it puts or gives back.
//!
//! The index keeps the entries of deleted jobs until VACUUM removes them, which it cannot do while any transaction of
//! the database may still see the jobs. A scan from the start of the queue passes all dead entries, so each take gets
//! slower. If that has become expensive, a take resumes where the last one ended, and three other scans find what
//! has become ready before that position: a job that was given back, has a higher priority, or was committed late.
//!
//! - The range between two checkpoints is scanned, one after the other, at intervals of forty times its cost.
//! - The scan resumes where takes were one to two seconds ago, by the same rule. It finds late commits sooner.
//! - If this handle itself puts such a job, the next take begins at the start.
//!
//! If a scan from the start is inexpensive, every take is one, and jobs are taken in exact order.

mod index_scan;
mod limited_scans;
mod scan_checkpoints;
mod scan_costs;
mod scan_planner;
mod scan_state;
mod sort_key;

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Instant;

use pq_core::{Claim, NewJob, QueueName};

use self::limited_scans::LimitedScans;
use self::scan_planner::{Plan, ScanPlanner};
use self::sort_key::SortKey;
use super::take::TakeRequest;
use crate::prepared::Value;

/// Takes jobs by an index scan, and remembers where the scans of each queue ended and what they cost.
#[derive(Debug, Default)]
pub(crate) struct FastPath {
    planner: ScanPlanner,
    limited: LimitedScans,
}

/// The position behind which a take of a limited queue begins, if it does not begin at the start.
pub(super) struct LimitedStart(Option<SortKey>);

/// The position of a queue's scans when a long put began.
pub(super) struct Position(Option<SortKey>);

impl FastPath {
    /// Notes a take by the full scan, which began at `begun`.
    pub(super) fn note_full_scan(
        &self,
        queue: &QueueName,
        jobs: &[Arc<Claim>],
        request: TakeRequest,
        begun: Instant,
    ) {
        self.planner.note(queue, Plan::Full, jobs, request.count, begun);
    }

    /// Notes that jobs are put. If one may sort before the position, the next take begins at the start.
    pub(super) fn note_put(&self, queue: &QueueName, jobs: &[impl Borrow<NewJob>]) {
        self.planner.note_put(queue, jobs);
        if self.limited.position(queue).is_some_and(|key| jobs.iter().any(|job| key.may_follow(job.borrow())))
        {
            self.limited.forget_position(queue);
        }
    }

    /// Has the next take begin at the start, because jobs may have come into the queue anywhere.
    pub(super) fn forget_position(&self, queue: &QueueName) {
        self.planner.forget_position(queue);
        self.limited.forget_position(queue);
    }

    /// Returns where the next take of a limited queue begins.
    pub(super) fn limited_start(&self, queue: &QueueName) -> LimitedStart {
        LimitedStart(self.limited.start(queue))
    }

    /// Notes a take of a limited queue, which began at `begun`.
    pub(super) fn note_limited(
        &self,
        queue: &QueueName,
        start: &LimitedStart,
        jobs: &[Arc<Claim>],
        begun: Instant,
    ) {
        self.limited.note(queue, start.0, jobs, begun);
    }

    /// Returns the position, to compare with it jobs that are put one by one.
    pub(super) fn position(&self, queue: &QueueName) -> Position {
        Position(self.planner.position(queue).max(self.limited.position(queue)))
    }
}

impl LimitedStart {
    /// The start of the queue.
    pub(super) const QUEUE: Self = Self(None);

    pub(super) fn values(&self) -> [Value<'static>; 3] {
        self.0.unwrap_or(SortKey::FIRST).values()
    }
}

impl Position {
    /// Returns `true` if a job that is put now may sort before the position.
    pub(super) fn may_follow(&self, job: &NewJob) -> bool {
        self.0.is_some_and(|key| key.may_follow(job))
    }
}
