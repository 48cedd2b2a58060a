//! A batch of jobs whose handlers run in the transaction that takes them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::lines::Line;
use super::shared::Shared;
use super::status::Report;
use super::threads::Batch;
use crate::task::{Failure, Run};
use crate::{Outcome, RawJob, Search, Store, StoreError, Verdict};

/// A batch that takes longer than this is ended before its end, and the rest given back.
const AT_MOST: Duration = Duration::from_millis(200);

/// Why a nested transaction is rolled back.
enum Undo<E> {
    /// What its last handler wrote is not to stay.
    Handler,
    Store(E),
}

impl<E> From<E> for Undo<E> {
    fn from(error: E) -> Self {
        Self::Store(error)
    }
}

/// Takes up to `want` jobs and works them in one transaction. `found` is called when there are some, before the
/// first one is begun.
pub(super) fn batch<S: Store>(
    shared: &Arc<Shared<S>>,
    thread: usize,
    line: &Line<S>,
    want: usize,
    search: Search,
    found: &mut dyn FnMut(),
) -> Result<Batch, S::Error> {
    let store = shared.pq.store();
    // Before the transaction, which is not to lie open for it.
    let turn = line.turns.wait(thread, want);
    store.with_connection(|conn| {
        let mut tally = Report::default();
        let batch = store.transaction(conn, |conn| -> Result<Batch, S::Error> {
            let taken = {
                let _span = tracing::debug_span!("pq.take", queue = %line.queue.name(), want).entered();
                store.take(conn, line.queue.name(), want, search)?
            };
            drop(turn);
            if taken.jobs.is_empty() {
                return Ok(Batch::nothing(taken.next_due));
            }
            found();
            let batch = Batch::of(&taken.jobs);
            let mut work = Work { shared, thread, line, tally: Report::default(), verdicts: Vec::new() };
            let worked = work.all(conn, taken.jobs.into());
            shared.signals.totals.buffered.store(0, Ordering::Relaxed);
            worked?;
            let verdicts: Vec<Verdict<'_>> = work
                .verdicts
                .iter()
                .map(|(job, outcome)| Verdict { job, outcome: outcome.clone() })
                .collect();
            if !verdicts.is_empty() {
                let _span = tracing::debug_span!("pq.settle", verdicts = verdicts.len()).entered();
                store.settle(conn, &verdicts)?;
            }
            tally = work.tally;
            Ok(Batch { given_back: usize::try_from(tally.given_back).unwrap_or(batch.taken), ..batch })
        })?;
        // Only what is committed has happened.
        shared.signals.totals.add_of(line.queue.name(), &tally);
        Ok(batch)
    })
}

struct Work<'w, S: Store> {
    shared: &'w Arc<Shared<S>>,
    thread: usize,
    line: &'w Line<S>,
    tally: Report,
    /// What the transaction must still do with its jobs. What is completed needs no verdict.
    verdicts: Vec<(Arc<RawJob>, Outcome)>,
}

impl<S: Store> Work<'_, S> {
    fn all(&mut self, conn: &mut S::Conn, mut jobs: VecDeque<RawJob>) -> Result<(), S::Error> {
        let begun = Instant::now();
        while !jobs.is_empty() {
            let late = begun.elapsed() > AT_MOST;
            if late || self.shared.signals.is_ending() {
                for job in jobs.drain(..) {
                    self.end(Arc::new(job), Outcome::GiveBack);
                }
                return Ok(());
            }
            self.some(conn, &mut jobs)?;
        }
        Ok(())
    }

    /// Works jobs in one nested transaction: those whose handlers touch nothing on the connection, and the
    /// first that does. So handlers that do not need one do not pay for it, and a rollback undoes the writes of
    /// one handler alone.
    fn some(&mut self, conn: &mut S::Conn, jobs: &mut VecDeque<RawJob>) -> Result<(), S::Error> {
        let store = self.shared.pq.store();
        let mut last = None;
        let nested = store.transaction(conn, |conn| -> Result<(), Undo<S::Error>> {
            while let Some(job) = jobs.pop_front() {
                self.shared.signals.totals.buffered.store(jobs.len() as u64, Ordering::Relaxed);
                let prepared = self.line.prepare(job);
                let timeout = prepared.timeout();
                if timeout.is_some() {
                    store.limit(conn, timeout)?;
                }
                let before = store.activity(conn);
                let ran = self.shared.run(self.thread, &prepared, &mut |incoming| match &prepared.handler {
                    Ok(handler) => match &handler.run {
                        Run::Transactional(handler) => handler(conn, incoming),
                        Run::Leased(_) => Err(Failure::Error("it is no transactional handler".to_owned())),
                    },
                    Err(failure) => Err(failure.clone()),
                });
                let untouched = before.is_some() && store.activity(conn) == before;
                let failed = ran.is_err();
                if timeout.is_some() && !failed {
                    store.limit(conn, None)?;
                }
                last = Some(prepared.judge(self.line, ran));
                if failed && !untouched {
                    return Err(Undo::Handler);
                }
                if !untouched || self.shared.signals.is_ending() {
                    return Ok(());
                }
                if let Some((job, outcome)) = last.take() {
                    self.end(job, outcome);
                }
            }
            Ok(())
        });
        match (nested, last) {
            (Ok(()) | Err(Undo::Handler), Some((job, outcome))) => self.end(job, outcome),
            (Ok(()) | Err(Undo::Handler), None) => {}
            // The handler overlooked that a statement of its own had failed.
            (Err(Undo::Store(error)), Some((job, _))) if !error.is_unavailable() => {
                let failure = format!("the handler's writes could not be kept: {error}");
                let prepared = self.line.prepare(RawJob::clone(&job));
                let (job, outcome) = prepared.judge(self.line, Err(Failure::Error(failure)));
                self.end(job, outcome);
            }
            (Err(Undo::Store(error)), _) => return Err(error),
        }
        Ok(())
    }

    fn end(&mut self, job: Arc<RawJob>, outcome: Outcome) {
        self.tally.count(&outcome);
        if !matches!(outcome, Outcome::Complete) {
            self.verdicts.push((job, outcome));
        }
    }
}
