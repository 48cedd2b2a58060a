//! Chooses for each queue where the next index scan begins.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pq_core::{Claim, NewJob, QueueName};

use super::scan_checkpoints::KeyRange;
use super::scan_state::ScanState;
use super::sort_key::SortKey;

/// The plan of the next take of a queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Plan {
    /// By the full scan: the last one found no more than a few jobs, and a full scan also says when the next is due.
    Full,
    /// By an index scan from the start of the queue.
    FromStart,
    /// By an index scan of a range before the last position.
    Backfill(KeyRange),
    /// By an index scan from where takes were one to two seconds ago.
    ResumeEarlier(SortKey),
    /// By an index scan from where the last take ended.
    Resume(SortKey),
}

/// The scan state of each queue. It contains only hints: wrong ones cost time, and never
/// return a job twice.
#[derive(Debug, Default)]
pub(super) struct ScanPlanner(Mutex<HashMap<QueueName, ScanState>>);

impl ScanPlanner {
    pub(super) fn plan(&self, queue: &QueueName) -> Plan {
        self.lock().get(queue).map_or(Plan::FromStart, |state| state.plan(Instant::now()))
    }

    /// Returns how long it is until a take of this queue scans before the last position again.
    pub(super) fn due_in(&self, queue: &QueueName) -> Duration {
        self.lock().get(queue).map_or(Duration::ZERO, |state| state.due_in(Instant::now()))
    }

    /// Notes a take that began at `begun`, wanted `wanted` jobs and took `jobs`.
    pub(super) fn note(
        &self,
        queue: &QueueName,
        plan: Plan,
        jobs: &[Arc<Claim>],
        wanted: usize,
        begun: Instant,
    ) {
        let now = Instant::now();
        let mut states = self.lock();
        if let Some(state) = states.get_mut(queue) {
            return state.note(plan, jobs, wanted, begun, now);
        }
        states.retain(|_, state| !state.is_stale(now));
        let mut state = ScanState::new(now);
        state.note(plan, jobs, wanted, begun, now);
        states.insert(queue.clone(), state);
    }

    /// Returns where the last take ended, if the next one may begin there.
    pub(super) fn position(&self, queue: &QueueName) -> Option<SortKey> {
        self.lock().get(queue).and_then(|state| state.position)
    }

    /// Notes that jobs are put. If one may sort before the position, the next take begins at the start.
    pub(super) fn note_put(&self, queue: &QueueName, jobs: &[impl Borrow<NewJob>]) {
        if let Some(state) = self.lock().get_mut(queue)
            && state.position.is_some_and(|key| jobs.iter().any(|job| key.may_follow(job.borrow())))
        {
            state.position = None;
        }
    }

    /// Has the next take begin at the start.
    pub(super) fn forget_position(&self, queue: &QueueName) {
        if let Some(state) = self.lock().get_mut(queue) {
            state.position = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, ScanState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn with(queue: QueueName, state: ScanState) -> Self {
        Self(Mutex::new(HashMap::from([(queue, state)])))
    }
}
