//! A batch of jobs whose handlers run in the transaction that takes them.

use std::iter;
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
            let worked = work.all(conn, taken.jobs);
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
    fn all(&mut self, conn: &mut S::Conn, jobs: Vec<RawJob>) -> Result<(), S::Error> {
        let began = Instant::now();
        let mut mark = self.shared.pq.store().mark(conn, None)?;
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            self.shared.signals.totals.buffered.store(jobs.len() as u64, Ordering::Relaxed);
            let now = Instant::now();
            if now - began > AT_MOST || self.shared.signals.is_ending() {
                iter::once(job).chain(jobs).for_each(|job| self.end(Arc::new(job), Outcome::GiveBack));
                return Ok(());
            }
            self.one(conn, job, now, &mut mark)?;
        }
        Ok(())
    }

    /// Works a job. What those before it have written is behind the mark, so that a rollback undoes the writes of
    /// one handler alone; handlers that touch nothing on the connection do not pay for it.
    fn one(
        &mut self,
        conn: &mut S::Conn,
        job: RawJob,
        now: Instant,
        mark: &mut S::Mark,
    ) -> Result<(), S::Error> {
        let store = self.shared.pq.store();
        let prepared = self.line.prepare(job);
        let timeout = prepared.timeout();
        if timeout.is_some() {
            store.limit(conn, timeout)?;
        }
        let before = store.activity(conn);
        let ran = self.shared.run(self.thread, &prepared, now, &mut |incoming| match &prepared.handler {
            Ok(handler) => match &handler.run {
                Run::Transactional(handler) => handler(conn, incoming),
                Run::Leased(_) => Err(Failure::Error("it is no transactional handler".to_owned())),
            },
            Err(failure) => Err(failure.clone()),
        });
        let touched = before.is_none() || store.activity(conn) != before;
        let kept = match touched && ran.is_err() {
            true => store.undo(conn, *mark).map(|()| ran),
            false => self.keep(conn, timeout.is_some(), touched, mark).map(|()| ran),
        };
        let ran = match kept {
            Ok(ran) => ran,
            Err(error) if error.is_unavailable() => return Err(error),
            // The handler overlooked that a statement of its own had failed.
            Err(error) => {
                store.undo(conn, *mark)?;
                Err(Failure::Error(format!("the handler's writes could not be kept: {error}")))
            }
        };
        let (job, outcome) = prepared.judge(self.line, ran);
        self.end(job, outcome);
        Ok(())
    }

    /// Puts what a handler did behind the mark.
    fn keep(
        &self,
        conn: &mut S::Conn,
        limited: bool,
        touched: bool,
        mark: &mut S::Mark,
    ) -> Result<(), S::Error> {
        let store = self.shared.pq.store();
        if limited {
            store.limit(conn, None)?;
        }
        if touched {
            *mark = store.mark(conn, Some(*mark))?;
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
