//! The jobs that a thread with asynchronous handlers has in hand: those that run, and those that wait to begin.

use std::collections::{BTreeMap, HashMap};

use crate::worker::prepared_job::PreparedJob;
use crate::{Claim, Store};

/// The payload bytes of the jobs in hand from which on no more are taken.
const MAX_BYTES: usize = 32 << 20;

/// Counts jobs, for the limits of queues, of tasks and of memory.
#[derive(Debug)]
pub(super) struct InHand {
    concurrency: usize,
    /// How many jobs of each queue are in hand, or may be found by late takes.
    by_queue: Vec<usize>,
    /// How many jobs of each queue wait only for others of their task.
    blocked: Vec<usize>,
    /// How many handlers run.
    running: usize,
    /// How many handlers run of each task that has a limit, and of each whole queue that has one.
    by_task: HashMap<(usize, Option<String>), usize>,
    /// The caps of the running handlers that have one, with their numbers, see [`InHand::cap`].
    caps: BTreeMap<usize, usize>,
    bytes: usize,
}

/// Whether a job may begin.
#[derive(Debug, PartialEq)]
pub(super) enum MayBegin {
    Now,
    /// Others may begin before it, because its task has reached its limit.
    AfterItsTask,
    /// Nothing may begin, because this job or a running one may kill the worker.
    AfterAll,
}

impl InHand {
    /// Counts the jobs of this many queues, in a worker that runs `concurrency` handlers at the same time.
    pub(super) fn new(queues: usize, concurrency: usize) -> Self {
        Self {
            concurrency,
            by_queue: vec![0; queues],
            blocked: vec![0; queues],
            running: 0,
            by_task: HashMap::new(),
            caps: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Returns beside how many handlers, itself included, a job may run. `None` is no limit.
    ///
    /// A job whose lease was lost before may kill the worker, and the others that run would crash with it. Each crash
    /// makes the cap of a job an eighth, so that those which crashed only beside another are done soon, and none of
    /// them ends as dead for it.
    pub(super) fn cap(&self, job: &Claim) -> Option<usize> {
        let crashes = u32::try_from(job.crashes).unwrap_or_default();
        let of_crashes = (crashes > 0).then(|| self.concurrency.checked_shr(3 * crashes).unwrap_or_default());
        let of_lease = job.lease_limit.map(|limit| limit as usize);
        of_crashes.into_iter().chain(of_lease).min().map(|cap| cap.max(1))
    }

    /// Records a job of the queue at this position that was taken.
    pub(super) fn add(&mut self, position: usize, job: &Claim) {
        self.by_queue[position] += 1;
        self.bytes += job.size();
    }

    /// Records that a late take of this many jobs counts against the limit of the queue, since it may still find them.
    pub(super) fn reserve(&mut self, position: usize, jobs: usize) {
        self.by_queue[position] += jobs;
    }

    /// Records that such a take has ended.
    pub(super) fn release(&mut self, position: usize, jobs: usize) {
        self.by_queue[position] -= jobs;
    }

    /// Records a job that has ended, or that is given back.
    pub(super) fn remove(&mut self, position: usize, job: &Claim) {
        self.by_queue[position] -= 1;
        self.bytes -= job.size();
    }

    /// Returns how many jobs of the queue are in hand, or may be found by late takes.
    pub(super) fn of_queue(&self, position: usize) -> usize {
        self.by_queue[position]
    }

    /// Returns how many more jobs of the queue may be taken. `limit` may be in hand, and `most_blocked` may wait for
    /// others of their task.
    pub(super) fn room(&self, position: usize, limit: usize, most_blocked: usize) -> usize {
        if self.blocked[position] >= most_blocked { 0 } else { limit.saturating_sub(self.by_queue[position]) }
    }

    /// Returns whether no more jobs are taken: those in hand take too much memory, or one that runs may kill the
    /// worker.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MAX_BYTES || !self.caps.is_empty()
    }

    /// Sets the queues of the jobs that wait only for others of their task.
    pub(super) fn set_blocked(&mut self, positions: impl Iterator<Item = usize>) {
        self.blocked.fill(0);
        positions.for_each(|position| self.blocked[position] += 1);
    }

    /// Returns how many jobs wait only for others of their task.
    pub(super) fn blocked(&self) -> usize {
        self.blocked.iter().sum()
    }

    /// Returns whether a job may begin, beside this many attempts.
    pub(super) fn may_begin<S: Store>(
        &self,
        position: usize,
        job: &PreparedJob<'_, S>,
        attempts: usize,
    ) -> MayBegin {
        let caps = self.caps.keys().next().copied().into_iter().chain(self.cap(&job.incoming.claim));
        if caps.min().is_some_and(|cap| self.running + attempts >= cap) {
            return MayBegin::AfterAll;
        }
        let limit = job.concurrency();
        let has_room = limit == usize::MAX
            || self.by_task.get(&(position, job.task.clone())).is_none_or(|now| *now < limit);
        if has_room { MayBegin::Now } else { MayBegin::AfterItsTask }
    }

    pub(super) fn begin<S: Store>(&mut self, position: usize, job: &PreparedJob<'_, S>) {
        self.running += 1;
        if let Some(cap) = self.cap(&job.incoming.claim) {
            *self.caps.entry(cap).or_default() += 1;
        }
        if job.concurrency() < usize::MAX {
            *self.by_task.entry((position, job.task.clone())).or_default() += 1;
        }
    }

    pub(super) fn end<S: Store>(&mut self, position: usize, job: &PreparedJob<'_, S>) {
        self.running -= 1;
        if let Some(cap) = self.cap(&job.incoming.claim)
            && let Some(running) = self.caps.get_mut(&cap)
        {
            *running -= 1;
            if *running == 0 {
                self.caps.remove(&cap);
            }
        }
        if job.concurrency() < usize::MAX
            && let Some(running) = self.by_task.get_mut(&(position, job.task.clone()))
        {
            *running -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use crate::store::Jobs;
    use crate::{NewJob, Payload, QueueName, Scan};

    /// A worker that dies with a hundred handlers leaves a crash with each. The one that killed it must be found before
    /// another one has three.
    #[test]
    fn each_crash_makes_the_cap_an_eighth() -> Result<(), crate::Error> {
        let (store, queue) = (MemoryStore::new(), QueueName::new("apples")?);
        store.put(&mut store.connect(), &queue, &[NewJob::new(Payload::from_stored("1".to_owned()))])?;
        let taken = store.take(&mut store.connect(), &queue, 1, Scan::Full)?;
        let mut job = Claim::clone(&taken.jobs[0]);
        let in_hand = InHand::new(1, 100);
        let mut cap_after = |crashes, limit| {
            (job.record.crashes, job.lease_limit) = (crashes, limit);
            in_hand.cap(&job)
        };
        assert_eq!([0, 1, 2, 40].map(|crashes| cap_after(crashes, None)), [None, Some(12), Some(1), Some(1)]);
        assert_eq!([cap_after(0, Some(64)), cap_after(1, Some(8))], [Some(64), Some(8)]);
        Ok(())
    }
}
