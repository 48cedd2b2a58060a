//! Counters of what became of jobs.

use super::MemoryStore;
use super::transaction::{MemoryConn, Open};
use crate::envelope::Envelope;
use crate::store::{Counting, MAX_COUNTED_QUEUES, MAX_COUNTED_TASKS};
use crate::{Counters, Error, JobRecord, TaskCounters};

impl Counting for MemoryStore {
    fn count(&self, conn: &mut MemoryConn, counted: &[TaskCounters]) -> Result<(), Error> {
        conn.operate(|_, open| {
            counted.iter().cloned().for_each(|counted| open.count(counted));
            Ok(())
        })
    }

    fn counted(&self, conn: &mut MemoryConn) -> Result<Vec<TaskCounters>, Error> {
        conn.operate(|state, _| {
            let all = std::mem::take(&mut state.counters);
            state.counters = TaskCounters::merge(all, MAX_COUNTED_QUEUES, MAX_COUNTED_TASKS);
            Ok(state.counters.clone())
        })
    }
}

/// Counts a job that no worker settles.
pub(super) fn count(open: &mut Open, job: &JobRecord, add: impl FnOnce(&mut Counters)) {
    let task = Envelope::read(job.payload.as_str()).ok().and_then(|call| call.function());
    let mut counters = Counters::default();
    add(&mut counters);
    open.count(TaskCounters { queue: job.queue.clone(), task: task.unwrap_or_default(), counters });
}
