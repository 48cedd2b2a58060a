//! Where the takes of limited queues begin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pq_core::{Claim, QueueName};

use super::sort_key::SortKey;

/// The recent takes of limited queues.
///
/// A take passes the dead entries of the index, as one of the fast path does. If takes from the start have become
/// expensive, they resume where the last one ended, for forty times as long as the last one from the start took. A
/// job that has become ready before that position is taken afterwards, or if nothing is behind the position.
#[derive(Debug, Default)]
pub(super) struct LimitedScans(Mutex<HashMap<QueueName, Recent>>);

#[derive(Debug)]
struct Recent {
    /// What the last takes from the start took, the latest first.
    costs: [Duration; 3],
    position: Option<SortKey>,
    resume_until: Instant,
    last_take: Instant,
}

impl LimitedScans {
    /// A take from the start is expensive if it takes longer than this for anything but its jobs.
    const EXPENSIVE: Duration = Duration::from_millis(2);
    /// About what a job of a take costs.
    const COST_OF_JOB: Duration = Duration::from_micros(20);
    const INTERVAL: u32 = 40;
    const LONGEST: Duration = Duration::from_secs(5);
    const KEPT: Duration = Duration::from_secs(60);

    /// Returns the position behind which the next take begins, or `None` if it begins at the start.
    pub(super) fn start(&self, queue: &QueueName) -> Option<SortKey> {
        let recent = self.lock();
        let recent = recent.get(queue)?;
        recent.position.filter(|_| Instant::now() < recent.resume_until)
    }

    /// Notes a take that began behind `start`.
    pub(super) fn note(
        &self,
        queue: &QueueName,
        start: Option<SortKey>,
        jobs: &[Arc<Claim>],
        begun: Instant,
    ) {
        // A take without jobs may not have scanned anything, because there was no place.
        let Some(last) = jobs.iter().filter_map(|job| SortKey::of(job)).max() else { return };
        let now = Instant::now();
        let of_jobs = Self::COST_OF_JOB * u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        let cost = now.saturating_duration_since(begun).saturating_sub(of_jobs);
        let mut all = self.lock();
        all.retain(|_, recent| now.saturating_duration_since(recent.last_take) < Self::KEPT);
        let recent = all.entry(queue.clone()).or_insert(Recent {
            costs: [Duration::ZERO; 3],
            position: None,
            resume_until: now,
            last_take: now,
        });
        recent.last_take = now;
        if start.is_some() {
            // A position that was forgotten meanwhile stays so.
            recent.position = recent.position.map(|position| position.max(last));
            return;
        }
        recent.costs = [cost, recent.costs[0], recent.costs[1]];
        let is_expensive = recent.costs.iter().all(|cost| *cost > Self::EXPENSIVE);
        recent.position = is_expensive.then_some(last);
        recent.resume_until = now + (cost * Self::INTERVAL).min(Self::LONGEST);
    }

    /// Returns where the last take ended, if the next one may begin there.
    pub(super) fn position(&self, queue: &QueueName) -> Option<SortKey> {
        self.lock().get(queue)?.position
    }

    /// Has the next take begin at the start.
    pub(super) fn forget_position(&self, queue: &QueueName) {
        if let Some(recent) = self.lock().get_mut(queue) {
            recent.position = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Recent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
