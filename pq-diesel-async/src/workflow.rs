//! Workflows: putting, reading and retrying them.

use diesel_async::AsyncPgConnection;
use pq_core::{
    CallOptions, ChangeOutcome, Error as Refused, Filter, JobId, JobResult, NewJob, QueueName, Workflow,
    WorkflowGraph, WorkflowJob, WorkflowTask,
};
use pq_diesel::Error;
use pq_diesel::store::{PgStore, SqlConnection};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::OnAsync;
use crate::context::Context;
use crate::pq::Pq;
use crate::shared::on_connection;
use crate::task::Task;

/// The number of jobs of one name that are read: the job, and those that undo it.
const MAX_OF_NAME: usize = 100;

impl<A: Serialize> WorkflowTask<A> for Task<A> {
    fn encode_call(&self, arguments: &A, options: &CallOptions) -> Result<(QueueName, NewJob), Refused> {
        self.blocking().encode_call(arguments, options)
    }
}

/// Workflows.
impl Pq {
    /// Enqueues all jobs of a workflow in one transaction, and returns its id. See [`pq_core::Pq::put_workflow`].
    ///
    /// If the future is dropped, nothing was put, unless the commit is in progress.
    ///
    /// # Errors
    ///
    /// The errors of [`Workflow::check`]; nothing was sent then. The database's own.
    pub async fn put_workflow(&self, workflow: &Workflow) -> Result<JobId, Error> {
        let mut lent = self.shared.begin().await?;
        let put = self.put_each(lent.connection(), workflow).await;
        self.shared.end(lent, put).await
    }

    /// Enqueues all jobs of a workflow on the caller's connection, inside the caller's transaction.
    ///
    /// On a connection outside of any transaction this is a transaction of its own.
    ///
    /// # Errors
    ///
    /// See [`Pq::put_workflow`].
    pub async fn put_workflow_on(
        &self,
        conn: &mut AsyncPgConnection,
        workflow: &Workflow,
    ) -> Result<JobId, Error> {
        let around = self.shared.store().begin(&mut OnAsync::new(conn)).await?;
        let put = self.put_each(conn, workflow).await;
        self.shared.store().end(&mut OnAsync::new(conn), around, put).await
    }

    async fn put_each(&self, conn: &mut AsyncPgConnection, workflow: &Workflow) -> Result<JobId, Error> {
        let mut put = workflow.begin_put()?;
        while let Some((queue, jobs)) = put.next_jobs()? {
            let queue = self.queue::<()>(queue)?;
            put.record(&queue.on(conn).put_jobs(|| Ok(jobs)).await?);
        }
        Ok(put.id())
    }

    /// Enqueues a workflow that is written as JSON, in one transaction, and returns its id. See
    /// [`pq_diesel::Pq::put_workflow_json`].
    ///
    /// # Errors
    ///
    /// See [`pq_diesel::Pq::put_workflow_json`].
    pub async fn put_workflow_json(&self, json: &str) -> Result<JobId, Error> {
        let json = json.to_owned();
        self.in_thread(move |pq| pq.put_workflow_json(&json)).await
    }

    /// Returns a workflow with the states of its jobs. See [`pq_core::Pq::workflow`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn workflow(&self, id: JobId) -> Result<Option<WorkflowGraph>, Error> {
        self.in_thread(move |pq| pq.workflow(id)).await
    }

    /// Lets a job of a workflow and all jobs after it run again. See [`pq_core::Pq::retry_workflow_from`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::retry_workflow_from`].
    pub async fn retry_workflow_from(&self, id: JobId, name: &str) -> Result<ChangeOutcome, Error> {
        let name = name.to_owned();
        self.in_thread(move |pq| pq.retry_workflow_from(id, &name)).await
    }

    /// Returns what became of the job with this name of a workflow. See [`pq_core::Pq::workflow_result`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::workflow_result`].
    pub async fn workflow_result<R: DeserializeOwned>(
        &self,
        workflow: JobId,
        name: &str,
    ) -> Result<JobResult<R>, Error> {
        on_connection!(self.shared, |conn| result_on(self.shared.store(), conn, workflow, name))
    }

    /// Returns what became of a job of a workflow on the caller's connection: for a transactional handler, which
    /// finds its workflow by [`pq_core::Annotations::workflow`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::workflow_result`].
    pub async fn workflow_result_on<R: DeserializeOwned>(
        &self,
        conn: &mut AsyncPgConnection,
        workflow: JobId,
        name: &str,
    ) -> Result<JobResult<R>, Error> {
        result_on(self.shared.store(), &mut OnAsync::new(conn), workflow, name).await
    }
}

impl Context {
    /// Returns what became of the job with this name of the same workflow. See [`pq_core::Context::result_of`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Context::result_of`].
    pub async fn result_of<R: DeserializeOwned>(&self, name: &str) -> Result<JobResult<R>, Error> {
        let workflow = self.context.workflow_id()?;
        on_connection!(self.shared, |conn| result_on(self.shared.store(), conn, workflow, name))
    }
}

async fn result_on<R: DeserializeOwned>(
    store: &PgStore,
    conn: &mut impl SqlConnection,
    workflow: JobId,
    name: &str,
) -> Result<JobResult<R>, Error> {
    let mut found = store.list_on(conn, &WorkflowJob::ended(workflow, name), MAX_OF_NAME).await?;
    if !found.iter().any(WorkflowJob::is_own) {
        found = store.list_on(conn, &Filter::default().workflow_job(workflow, name), MAX_OF_NAME).await?;
    }
    let own = match found.is_empty() {
        true => store.list_on(conn, &Filter::id(workflow), 1).await?.pop(),
        false => None,
    };
    Ok(WorkflowJob::result(workflow, name, &found, own.as_ref())?)
}
