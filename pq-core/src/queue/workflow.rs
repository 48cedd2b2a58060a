//! Workflows: putting, reading and retrying them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Pq;
use crate::audit::Action;
use crate::store::Wake;
use crate::workflow::{self, read, run_again};
use crate::{
    CallOptions, ChangeOutcome, Context, Error, Filter, JobId, JobRecord, JobResult, JobState, NewJob,
    QueueName, Store, Task, Workflow, WorkflowGraph, WorkflowJob, WorkflowNode, WorkflowTask,
};

impl<S: Store, A: serde::Serialize> WorkflowTask<A> for Task<S, A> {
    fn encode_call(&self, arguments: &A, options: &CallOptions) -> Result<(QueueName, NewJob), Error> {
        Ok((self.queue().name().clone(), self.encode(arguments, options)?))
    }
}

impl<S: Store> Pq<S> {
    /// Enqueues all jobs of a workflow in one transaction, and returns its id.
    ///
    /// It is the id of a job that ends with the workflow, for [`Pq::workflow`], [`Pq::wait_for`] and [`Pq::change`]:
    /// [`crate::Operation::Cancel`] cancels the whole, and [`crate::Operation::Retry`] lets what is dead or cancelled
    /// run again.
    ///
    /// # Errors
    ///
    /// The errors of [`Workflow::check`]; nothing was sent then. The store's errors.
    pub fn put_workflow(&self, workflow: &Workflow) -> Result<JobId, S::Error> {
        self.transaction(|conn| self.put_workflow_on(conn, workflow))
    }

    /// Enqueues all jobs of a workflow on the caller's connection, inside the caller's transaction. Others see them
    /// when it commits.
    ///
    /// On a connection outside of any transaction this is a transaction of its own.
    ///
    /// # Errors
    ///
    /// See [`Pq::put_workflow`].
    pub fn put_workflow_on(&self, conn: &mut S::Conn, workflow: &Workflow) -> Result<JobId, S::Error> {
        let mut put = workflow.begin_put()?;
        self.store.transaction(conn, |conn| {
            while let Some((queue, jobs)) = put.next_jobs()? {
                put.record(&self.queue::<()>(queue)?.on(conn).put_jobs(|| Ok(jobs))?);
            }
            Ok(put.id())
        })
    }

    /// Counts the jobs of a workflow that the store has put from this JSON. For a crate whose store reads it.
    #[doc(hidden)]
    pub fn count_json_workflow(&self, json: &str) {
        #[derive(Deserialize)]
        struct Put {
            jobs: Vec<Job>,
        }
        #[derive(Deserialize)]
        struct Job {
            queue: QueueName,
            task: Option<String>,
        }
        // The store refuses what cannot be read here.
        let Ok(put) = serde_json::from_str::<Put>(json) else { return };
        let own = QueueName::new(workflow::WORKFLOWS).map(|queue| Job { queue, task: None });
        let jobs = own.into_iter().chain(put.jobs);
        jobs.for_each(|Job { queue, task }| self.count_jobs(&queue, task.map(Arc::from), 1));
    }

    /// Returns a workflow with the states of its jobs: by its id, or by the id of one of its jobs. `None` if it is
    /// not kept any more, or if the job belongs to none.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn workflow(&self, id: JobId) -> Result<Option<WorkflowGraph>, S::Error> {
        self.store.with_connection(|conn| self.workflow_on(conn, id))
    }

    /// Returns a workflow on the caller's connection, as [`Pq::workflow`] does.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn workflow_on(&self, conn: &mut S::Conn, id: JobId) -> Result<Option<WorkflowGraph>, S::Error> {
        Ok(read(&*self.store, conn, id)?.map(|(graph, ..)| graph))
    }

    /// Returns what became of the job with this name of a workflow. See [`Pq::result`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if the workflow has no job of this name; [`Error::InvalidResult`] if the result is
    /// not an `R`; the store's errors.
    pub fn workflow_result<R: DeserializeOwned>(
        &self,
        workflow: JobId,
        name: &str,
    ) -> Result<JobResult<R>, S::Error> {
        self.store.with_connection(|conn| self.workflow_result_on(conn, workflow, name))
    }

    /// Returns what became of a job of a workflow on the caller's connection, as [`Pq::workflow_result`] does: for a
    /// transactional handler, which finds its workflow by [`crate::Annotations::workflow`].
    ///
    /// # Errors
    ///
    /// See [`Pq::workflow_result`].
    pub fn workflow_result_on<R: DeserializeOwned>(
        &self,
        conn: &mut S::Conn,
        workflow: JobId,
        name: &str,
    ) -> Result<JobResult<R>, S::Error> {
        let mut found = self.store.list(conn, &WorkflowJob::ended(workflow, name), 100)?;
        if !found.iter().any(WorkflowJob::is_own) {
            found = self.store.list(conn, &Filter::default().workflow_job(workflow, name), 100)?;
        }
        let own = match found.is_empty() {
            true => self.store.list(conn, &Filter::id(workflow), 1)?.pop(),
            false => None,
        };
        Ok(WorkflowJob::result(workflow, name, &found, own.as_ref())?)
    }

    /// Decides about the workflows that are due. Returns whether there were any. [`Pq::maintain`] does it; this is
    /// for a program that runs the maintenance of its store in another way.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn advance_workflows(&self) -> Result<bool, S::Error> {
        self.store.with_connection(|conn| workflow::advance(self, conn))
    }

    /// Lets a job of a workflow and all jobs after it run again, whatever their outcomes, and the cancelled ones.
    ///
    /// `id` is that of the workflow or of one of its jobs. Their durable steps are forgotten.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if the workflow has no job of this name, or if one of them is due or runs; the
    /// store's errors. Nothing was changed.
    pub fn retry_workflow_from(&self, id: JobId, name: &str) -> Result<ChangeOutcome, S::Error> {
        self.operation(|conn| {
            let details = format!("from job {name}");
            let action = Action::new("retry").job(id).queue(crate::WORKFLOWS).details(details);
            let done = self.recorded_on(
                conn,
                &action,
                |outcome: &ChangeOutcome| u64::from(outcome.is_accepted()),
                |conn| self.store.transaction(conn, |conn| self.run_again_from(conn, id, name)),
            )?;
            if done.is_accepted() {
                // Otherwise a worker does it with its next run of maintenance.
                workflow::try_advance(self, conn);
            }
            Ok(done)
        })
    }

    fn run_again_from(&self, conn: &mut S::Conn, id: JobId, name: &str) -> Result<ChangeOutcome, S::Error> {
        let store = &*self.store;
        let Some((graph, ..)) = read(store, conn, id)? else {
            if store.list(conn, &Filter::id(id), 1)?.is_empty() {
                return Ok(ChangeOutcome::NotFound);
            }
            let reason = "it belongs to no workflow, or its workflow is not kept any more";
            return Err(
                Error::InvalidSetting(format!("cannot retry job {id} from {name:?}: {reason}")).into()
            );
        };
        let workflow = graph.id.unwrap_or(id);
        // The workflow is locked before it is looked at, so that maintenance does not decide about it meanwhile.
        if !store.wake(conn, workflow, Some(Wake::Reopen), Duration::ZERO)? {
            return Ok(ChangeOutcome::Held);
        }
        let Some((graph, plan, members)) = read(store, conn, workflow)? else {
            return Ok(ChangeOutcome::NotFound);
        };
        let names = plan.from(name);
        if names.is_empty() {
            return Err(workflow::unknown(workflow, name, &plan).into());
        }
        let undoing = |node: &&WorkflowNode| node.undo_state.is_some_and(|state| !state.is_ended());
        if let Some(node) = graph.jobs.iter().find(undoing) {
            return Err(Error::InvalidSetting(format!(
                "cannot retry workflow {workflow} from {name:?}: job {:?} is being undone; wait for its end",
                node.name
            ))
            .into());
        }
        for node in graph.jobs.iter().filter(|node| names.contains(&&*node.name)) {
            if let Some(state) = node.state.filter(|state| !state.is_ended() && !node.is_held) {
                let job = node.id.map(|id| format!("{id} ")).unwrap_or_default();
                return Err(Error::InvalidSetting(format!(
                    "cannot retry workflow {workflow} from {name:?}: job {job}{:?} is {state}; cancel it or wait for its end",
                    node.name
                ))
                .into());
            }
        }
        let jobs: BTreeMap<String, JobRecord> = members
            .into_iter()
            .filter_map(|job| Some((job.annotations.workflow().filter(|place| !place.undoes)?.name, job)))
            .collect();
        for job in
            names.iter().filter_map(|name| jobs.get(*name)).filter(|job| job.state != JobState::Scheduled)
        {
            store.forget_steps(conn, job, 0)?;
        }
        run_again(store, conn, workflow, &plan, &jobs, &names)?;
        Ok(ChangeOutcome::Changed)
    }
}

impl<S: Store> Context<S> {
    /// Returns what became of the job with this name of the same workflow: that of a job before this one is done with
    /// its result, or dead or cancelled if this one waited for any outcome.
    ///
    /// It is [`JobResult::Unknown`] if the archive does not keep that job any more. See [`Pq::result`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if this job belongs to no workflow, or its workflow has no job of this name;
    /// [`Error::InvalidResult`] if the result is not an `R`; the store's errors.
    pub fn result_of<R: DeserializeOwned>(&self, name: &str) -> Result<JobResult<R>, S::Error> {
        self.access.pq.workflow_result(self.workflow_id()?, name)
    }

    /// Returns the id of the workflow that the job belongs to.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if it belongs to none.
    pub fn workflow_id(&self) -> Result<JobId, Error> {
        let place = self.job().annotations.workflow();
        place.map(|place| place.id).ok_or_else(|| {
            Error::InvalidSetting(format!(
                "cannot read results: job {} belongs to no workflow",
                self.job().id
            ))
        })
    }
}
