//! Passing a worker's counters to the store.

use std::time::Instant;

use super::worker_run::WorkerRun;
use crate::lease_table::extension_timeout;
use crate::put_counts::{NotStored, may_have_counted};
use crate::{Store, TaskCounters};

/// Adds what a worker has counted to the store's counters, as often as it sends heartbeats. One that sends none
/// leaves no trace in the store.
///
/// Counters are kept in memory while the store cannot be reached, and are lost with the process.
#[derive(Debug, Default)]
pub(super) struct CounterFlush {
    /// What the store has refused so far.
    pending: Vec<TaskCounters>,
    flushed_at: Option<Instant>,
    not_stored: NotStored,
}

impl CounterFlush {
    pub(super) fn flush_if_due<S: Store>(&mut self, run: &WorkerRun<S>) {
        let Some(interval) = run.settings.heartbeat_every else { return };
        match self.flushed_at {
            // The first call only reads the clock, so that the number of a worker's statements does not depend on how
            // many jobs have ended by then.
            None => self.send(run),
            Some(at) if at.elapsed() >= interval => self.flush(run),
            Some(_) => {}
        }
    }

    /// Passes what was counted since the last call, also at the end of the worker.
    pub(super) fn flush<S: Store>(&mut self, run: &WorkerRun<S>) {
        if run.settings.heartbeat_every.is_some() {
            self.pending.extend(run.progress.take_counters());
            self.send(run);
        }
    }

    /// Reads the store's clock, and adds the pending counters.
    fn send<S: Store>(&mut self, run: &WorkerRun<S>) {
        let is_first = self.flushed_at.replace(Instant::now()).is_none();
        if self.pending.is_empty() && !is_first {
            return;
        }
        self.pending = TaskCounters::merge(std::mem::take(&mut self.pending), usize::MAX, usize::MAX);
        let (store, timeout) = (run.store(), extension_timeout(run.settings.lease));
        let mut was_sent = false;
        let flushed: Result<(), S::Error> = store.with_connection(|conn| {
            store.with_call_timeout(conn, Some(timeout), |conn| {
                let asked_at = Instant::now();
                run.clock.set(store.now(conn)?, asked_at);
                if !self.pending.is_empty() {
                    was_sent = true;
                    store.count(conn, &self.pending)?;
                }
                Ok(())
            })
        });
        match flushed {
            Ok(()) => self.pending.clear(),
            Err(error) => {
                if was_sent && may_have_counted(&error) {
                    self.pending.clear();
                }
                self.not_stored.report(&error);
            }
        }
    }
}
