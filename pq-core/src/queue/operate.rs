//! Operations on one job, and on all jobs that a filter selects.

use super::Pq;
use crate::audit::Action;
use crate::operation::{describe_filter, sources};
use crate::store::Source;
use crate::{
    CancelOutcome, ChangeOutcome, Error, Filter, JobId, JobRecord, JobState, Operation, OperationReport,
    Store, WORKFLOWS, workflow,
};

/// The number of jobs that a transaction of an operation changes at most.
const BATCH: usize = 1_000;

/// The number of times that an operation on one job tries to find it while it moves between the queue and a lease.
const TRIES: usize = 3;

impl<S: Store> Pq<S> {
    /// Changes one job of any queue, in one transaction.
    ///
    /// ```
    /// # use pq_core::{ChangeOutcome, Operation, Pq, PutOptions, Wait, memory::MemoryStore};
    /// # let pq = Pq::new(MemoryStore::new());
    /// # let mail = pq.queue::<u32>("mail")?;
    /// let later = mail.put_with(&1, &PutOptions::new().schedule_at("1h"))?.id;
    /// assert_eq!(pq.change(later, &Operation::RunNow)?, ChangeOutcome::Changed);
    /// assert!(mail.get(Wait::No)?.is_some());
    /// # Ok::<(), pq_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The store's errors; the job was not changed then.
    pub fn change(&self, id: JobId, operation: &Operation) -> Result<ChangeOutcome, S::Error> {
        let action = Action::new(operation.name()).job(id).details(operation.details());
        let changes = |outcome: &ChangeOutcome| u64::from(outcome.is_accepted());
        self.operation(|conn| {
            let Some(job) = self.store.list(conn, &Filter::id(id), 1)?.pop() else {
                return Ok(ChangeOutcome::NotFound);
            };
            let action = action.queue(job.queue.as_str());
            let done =
                self.recorded_on(conn, &action, changes, |conn| self.change_on(conn, id, operation))?;
            if done.is_accepted() && (job.queue.as_str() == WORKFLOWS || job.annotations.workflow().is_some())
            {
                // Otherwise a worker does it with its next run of maintenance.
                workflow::try_advance(self, conn);
            }
            Ok(done)
        })
    }

    pub(super) fn change_on(
        &self,
        conn: &mut S::Conn,
        id: JobId,
        operation: &Operation,
    ) -> Result<ChangeOutcome, S::Error> {
        let selection = operation.selection(&Filter::id(id)).unwrap_or_default();
        for _ in 0..TRIES {
            let Some(job) = self.store.list(conn, &Filter::id(id), 1)?.pop() else {
                return Ok(ChangeOutcome::NotFound);
            };
            if !operation.states().contains(&job.state) {
                return Ok(ChangeOutcome::WrongState(job.state));
            }
            if *operation == Operation::Cancel {
                match self.store.cancel(conn, &job.queue, id)? {
                    CancelOutcome::Cancelled => return Ok(ChangeOutcome::Changed),
                    CancelOutcome::Requested => return Ok(ChangeOutcome::Requested),
                    CancelOutcome::Held => return Ok(ChangeOutcome::Held),
                    CancelOutcome::NotFound => continue,
                }
            }
            if *operation == Operation::Delete
                && job.queue.as_str() == WORKFLOWS
                && job.state != JobState::Dequeued
            {
                return self.delete_workflow(conn, &job, &selection);
            }
            if let Operation::EditPayload { from, .. } = operation
                && job.payload != *from
            {
                return Ok(ChangeOutcome::PayloadChanged);
            }
            for source in sources(&[job.state]) {
                if self.store.apply(conn, operation, &selection, source, i64::MIN, 1)?.changed > 0 {
                    return Ok(ChangeOutcome::Changed);
                }
            }
            if needs_key(operation, &job) {
                return Ok(ChangeOutcome::KeyInUse);
            }
        }
        Ok(ChangeOutcome::Held)
    }

    /// Deletes a workflow that has ended with its jobs, which the archive keeps.
    fn delete_workflow(
        &self,
        conn: &mut S::Conn,
        workflow: &JobRecord,
        own: &Filter,
    ) -> Result<ChangeOutcome, S::Error> {
        if !workflow.state.is_ended() {
            let reason =
                "it has not ended, and its jobs would stay; cancel it, and delete it when it has ended";
            return Err(
                Error::InvalidSetting(format!("cannot delete workflow {}: {reason}", workflow.id)).into()
            );
        }
        let jobs = Filter { states: own.states.clone(), ..Filter::default().workflow(workflow.id) };
        self.store.transaction(conn, |conn| {
            // First the workflow: a retry of it or of one of its jobs either came before, or finds none.
            if self.store.apply(conn, &Operation::Delete, own, Source::Archive, i64::MIN, 1)?.changed == 0 {
                return Ok(ChangeOutcome::Held);
            }
            let mut after = Some(i64::MIN);
            while let Some(last) = after {
                let batch =
                    self.store.apply(conn, &Operation::Delete, &jobs, Source::Archive, last, BATCH)?;
                after = batch.last.filter(|_| batch.selected >= BATCH as u64);
            }
            Ok(ChangeOutcome::Changed)
        })
    }

    /// Counts the jobs that an operation would select, at most `limit`. Takes no lock.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn preview(&self, operation: &Operation, filter: &Filter, limit: usize) -> Result<u64, S::Error> {
        let Some(selection) = operation.selection(filter) else { return Ok(0) };
        self.operation(|conn| self.store.tally(conn, &selection, limit))
    }

    /// Changes all jobs that the filter selects and that the operation can change, in batches of 1,000.
    ///
    /// Each batch is a transaction of its own, and `progress` is called after it. Jobs that are held or whose unique
    /// key is in use are passed. Jobs that are put or end after this call has begun are not changed. With an actor
    /// ([`Pq::acting_as`]), the whole operation is one entry of the audit log, whose count each batch raises in its
    /// transaction.
    ///
    /// # Errors
    ///
    /// The store's errors. The batches before have been committed.
    pub fn operate(
        &self,
        operation: &Operation,
        filter: &Filter,
        mut progress: impl FnMut(OperationReport),
    ) -> Result<OperationReport, S::Error> {
        let mut report = OperationReport::default();
        let Some(mut selection) = operation.selection(filter) else { return Ok(report) };
        // Otherwise a retry would find jobs that have failed again meanwhile, and would not end.
        let now = self.store.with_connection(|conn| self.store.now(conn))?;
        selection.until = selection.until.map_or(Some(now), |until| Some(until.min(now)));
        let mut entry = None;
        let record = |count| self.actor().map(|actor| operation_record(actor, operation, filter, count));
        for source in sources(&selection.states) {
            let mut after = i64::MIN;
            loop {
                let batch = self.operation(|conn| {
                    self.store.transaction(conn, |conn| {
                        let batch = self.store.apply(conn, operation, &selection, source, after, BATCH)?;
                        match entry {
                            _ if batch.changed == 0 => {}
                            Some(entry) => self.store.add_to_record(conn, entry, batch.changed)?,
                            None => {
                                if let Some(record) = record(batch.changed) {
                                    entry = Some(self.store.record(conn, &record)?);
                                }
                            }
                        }
                        Ok::<_, S::Error>(batch)
                    })
                })?;
                report.changed += batch.changed;
                report.skipped += batch.selected.saturating_sub(batch.changed);
                progress(report);
                match batch.last {
                    Some(last) if batch.selected >= BATCH as u64 => after = last,
                    _ => break,
                }
            }
        }
        Ok(report)
    }
}

/// Returns whether the operation claims the unique key of the job.
fn needs_key(operation: &Operation, job: &JobRecord) -> bool {
    job.unique_key.is_some() && matches!(operation, Operation::Retry | Operation::Move { .. })
}

/// Returns the record of an operation on all jobs that a filter selects.
pub(crate) fn operation_record(
    actor: &str,
    operation: &Operation,
    filter: &Filter,
    count: u64,
) -> crate::AuditRecord {
    let parts = [operation.details(), describe_filter(filter)];
    let details = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    let mut action = Action::new(operation.name()).details(details);
    if let Some(queue) = &filter.queue {
        action = action.queue(queue);
    }
    if let Some(id) = filter.id {
        action = action.job(id);
    }
    action.record(actor, count)
}
