//! Settling the jobs of a lease whose handlers have ended, and giving back those that do not begin.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::events::Event;
use super::{Dispatcher, WaitingJob};
use crate::worker::settling::{SETTLE_WITHIN, settle_apart};
use crate::worker::thread_slots::FinishedJob;
use crate::{Claim, Outcome, Store};

impl<'r, S: Store> Dispatcher<'r, S> {
    pub(super) fn finish(&mut self, finished: FinishedJob) {
        let lease = finished.job.lease().unwrap_or_default();
        if let Some(own) = self.leases.get_mut(&lease) {
            own.finished.push(finished);
        }
    }

    /// Settles the leases all of whose handlers have ended, and others whose jobs have waited for long, or all finished
    /// jobs. Leaves those for which too many calls are late.
    pub(super) fn settle(&mut self, all: bool) {
        let now = Instant::now();
        let due: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, own)| {
                let has_waited = || own.finished.first().is_some_and(|first| now - first.at >= SETTLE_WITHIN);
                !own.finished.is_empty() && (all || own.finished.len() == own.unsettled || has_waited())
            })
            .map(|(lease, _)| *lease)
            .collect();
        for lease in due {
            if self.calls.is_full() {
                return;
            }
            let Some(own) = self.leases.get_mut(&lease) else { continue };
            let finished = mem::take(&mut own.finished);
            let jobs = finished.len();
            let (run, thread, events) = (Arc::clone(self.run), self.thread, Arc::clone(&self.events));
            let settle = move || settle_apart(&run, &run.slots()[thread], finished);
            let late = move |made| drop(events.push(thread, Event::Settled { lease, jobs, made }));
            if self.calls.make(settle, late).is_some() {
                self.forget(lease, jobs);
            }
        }
    }

    /// Forgets jobs of a lease that are settled or lost.
    pub(super) fn forget(&mut self, lease: i64, jobs: usize) {
        if let Some(own) = self.leases.get_mut(&lease) {
            own.unsettled -= jobs;
            if own.unsettled == 0 {
                self.leases.remove(&lease);
                self.run.leases.remove(lease);
            }
        }
    }

    pub(super) fn give_back(&mut self, job: Arc<Claim>) {
        self.run.job_limit.release(1);
        let at = Instant::now();
        let outcome = Outcome::GiveBack;
        self.finish(FinishedJob { job, outcome, at, attempt: None, settled_as: None, notes: None });
    }

    pub(super) fn give_back_waiting(&mut self, job: WaitingJob<'r, S>) {
        self.in_hand.remove(job.position, &job.prepared.incoming.claim);
        self.give_back(job.prepared.incoming.claim);
    }
}
