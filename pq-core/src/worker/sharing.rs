//! Which handlers share a transaction, and how many jobs are taken for it.
//!
//! A handler that sends a statement is the only one of its transaction that does, unless its task allows more by
//! [`crate::Task::share_transaction`]. Handlers that send nothing share a transaction in any case.

use std::sync::Mutex;

use crate::lock::lock;

/// The handlers of one transaction that sent statements.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedTransaction {
    /// The number of handlers that began.
    begun: usize,
    senders: usize,
    /// The least of the numbers of senders that the tasks of the senders allow.
    max_senders: usize,
    end: Option<End>,
}

/// Why a transaction ended before its jobs ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// No further handler may share it.
    Full,
    /// It conflicted with another transaction, or could not be committed.
    Failed,
}

impl Default for SharedTransaction {
    fn default() -> Self {
        Self { begun: 0, senders: 0, max_senders: usize::MAX, end: None }
    }
}

impl SharedTransaction {
    /// Returns whether a handler may begin in this transaction whose task allows this number of senders, including
    /// it. If not, the transaction must end.
    pub(super) fn admits(&mut self, max_senders: usize) -> bool {
        let admits = self.senders < self.max_senders.min(max_senders);
        if !admits {
            self.end.get_or_insert(End::Full);
        }
        admits && self.end.is_none()
    }

    /// Records that a handler has run.
    pub(super) fn record(&mut self, has_sent: bool, max_senders: usize) {
        self.begun += 1;
        if has_sent {
            self.senders += 1;
            self.max_senders = self.max_senders.min(max_senders);
            if self.senders >= self.max_senders {
                self.end.get_or_insert(End::Full);
            }
        }
    }

    /// Returns whether other handlers of this transaction have sent statements.
    pub(super) fn has_senders(&self) -> bool {
        self.senders > 0
    }

    /// Records a conflict. No further handler begins in this transaction.
    pub(super) fn fail(&mut self) {
        self.end = Some(End::Failed);
    }
}

/// Limits the jobs of the next batch of a queue, so that few of them are given back.
///
/// While handlers send nothing there is no limit. After one that did, jobs are taken in the number that could share its
/// transaction. The limit then grows with the number of jobs that have run since without ending a transaction.
#[derive(Debug)]
pub(super) struct SharingLimit(Mutex<State>);

#[derive(Clone, Copy, Debug)]
struct State {
    max_jobs: usize,
    /// The number of jobs since the last transaction that ended early.
    calm: usize,
    /// The limit is at least `calm` divided by this.
    patience: usize,
}

/// The patience while no transaction has failed. A batch then ends early about once in this many batches.
const MIN_PATIENCE: usize = 8;

/// The patience after many failed transactions.
const MAX_PATIENCE: usize = 1_024;

impl Default for SharingLimit {
    fn default() -> Self {
        Self(Mutex::new(State { max_jobs: usize::MAX, calm: 0, patience: MIN_PATIENCE }))
    }
}

impl SharingLimit {
    /// Returns the maximum number of jobs to take for one transaction.
    pub(super) fn max_jobs(&self) -> usize {
        lock(&self.0).max_jobs
    }

    /// Records a transaction that has ended.
    pub(super) fn record(&self, ended: &SharedTransaction) {
        let mut state = lock(&self.0);
        match ended.end {
            None => {
                state.calm = state.calm.saturating_add(ended.begun);
                state.max_jobs = state.max_jobs.max(state.calm / state.patience);
            }
            Some(End::Full) => {
                (state.max_jobs, state.calm) = (ended.senders.max(1), 0);
                state.patience = (state.patience / 2).max(MIN_PATIENCE);
            }
            // Jobs run one by one for a while, longer after each further failure.
            Some(End::Failed) => {
                (state.max_jobs, state.calm) = (1, 0);
                state.patience = (state.patience * 2).min(MAX_PATIENCE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs jobs of a task in one transaction until it ends, and returns how many began.
    fn run(limit: &SharingLimit, jobs: usize, sends: bool, max_senders: usize) -> usize {
        let mut transaction = SharedTransaction::default();
        let taken = jobs.min(limit.max_jobs());
        let mut begun = 0;
        while begun < taken && transaction.admits(max_senders) {
            transaction.record(sends, max_senders);
            begun += 1;
        }
        limit.record(&transaction);
        begun
    }

    #[test]
    fn handlers_that_send_nothing_share_without_limit() {
        assert_eq!(run(&SharingLimit::default(), 4_096, false, 1), 4_096);
    }

    #[test]
    fn a_handler_that_sends_is_alone_unless_its_task_allows_more() {
        for max_senders in [1, 64] {
            let limit = SharingLimit::default();
            assert_eq!(run(&limit, 4_096, true, max_senders), max_senders);
            assert_eq!(limit.max_jobs(), max_senders);
        }
    }

    #[test]
    fn a_handler_that_does_not_share_begins_in_no_transaction_of_another() {
        let mut transaction = SharedTransaction::default();
        assert!(transaction.admits(64));
        transaction.record(true, 64);
        assert!(transaction.admits(64) && !transaction.admits(1));
    }

    #[test]
    fn the_limit_grows_while_handlers_send_nothing() {
        let limit = SharingLimit::default();
        run(&limit, 1, true, 1);
        let batches = (1..).find(|_| run(&limit, 4_096, false, 1) >= 512);
        assert!(batches.is_some_and(|batches| (16..100).contains(&batches)), "{batches:?}");
    }

    #[test]
    fn jobs_run_one_by_one_for_longer_after_each_failure() {
        let limit = SharingLimit::default();
        let mut before = 0;
        for _ in 0..5 {
            let mut failed = SharedTransaction::default();
            failed.record(true, 64);
            failed.fail();
            limit.record(&failed);
            let alone = (1..).find(|_| {
                run(&limit, 1, true, 64);
                limit.max_jobs() > 1
            });
            assert!(alone > Some(before), "{alone:?} after {before}");
            before = alone.unwrap_or_default();
        }
    }
}
