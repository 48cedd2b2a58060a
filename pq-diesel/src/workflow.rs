//! Workflows: putting, reading and retrying them.

use diesel::pg::PgConnection;
use pq_core::store::Connect as _;
use pq_core::{ChangeOutcome, JobId, JobResult, Workflow, WorkflowGraph};
use serde::de::DeserializeOwned;

use crate::connection::blocking;
use crate::{Error, Pq};

/// Workflows.
impl Pq {
    /// Enqueues all jobs of a workflow in one transaction, and returns its id. See [`pq_core::Pq::put_workflow`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::put_workflow`].
    pub fn put_workflow(&self, workflow: &Workflow) -> Result<JobId, Error> {
        self.0.put_workflow(workflow)
    }

    /// Enqueues all jobs of a workflow on the caller's connection, inside the caller's transaction. See
    /// [`pq_core::Pq::put_workflow_on`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::put_workflow`].
    pub fn put_workflow_on(&self, conn: &mut PgConnection, workflow: &Workflow) -> Result<JobId, Error> {
        self.0.put_workflow_on(conn, workflow)
    }

    /// Enqueues a workflow that is written as JSON, in one transaction, and returns its id: what the SQL function
    /// `queue_put_workflow` does. docs/sql.md lists the members.
    ///
    /// # Errors
    ///
    /// [`pq_core::Error::InvalidSetting`] with what is wrong; nothing was put then. The database's own.
    pub fn put_workflow_json(&self, json: &str) -> Result<JobId, Error> {
        let store = self.store();
        let id = store.with_connection(|conn| blocking(store.put_workflow_json_on(conn, json)))?;
        self.0.count_json_workflow(json);
        Ok(id)
    }

    /// Returns a workflow with the states of its jobs. See [`pq_core::Pq::workflow`].
    ///
    /// # Errors
    ///
    /// The database's own.
    pub fn workflow(&self, id: JobId) -> Result<Option<WorkflowGraph>, Error> {
        self.0.workflow(id)
    }

    /// Returns what became of the job with this name of a workflow. See [`pq_core::Pq::workflow_result`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::workflow_result`].
    pub fn workflow_result<R: DeserializeOwned>(
        &self,
        workflow: JobId,
        name: &str,
    ) -> Result<JobResult<R>, Error> {
        self.0.workflow_result(workflow, name)
    }

    /// Returns what became of a job of a workflow on the caller's connection. See [`pq_core::Pq::workflow_result_on`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::workflow_result`].
    pub fn workflow_result_on<R: DeserializeOwned>(
        &self,
        conn: &mut PgConnection,
        workflow: JobId,
        name: &str,
    ) -> Result<JobResult<R>, Error> {
        self.0.workflow_result_on(conn, workflow, name)
    }

    /// Lets a job of a workflow and all jobs after it run again. See [`pq_core::Pq::retry_workflow_from`].
    ///
    /// # Errors
    ///
    /// See [`pq_core::Pq::retry_workflow_from`].
    pub fn retry_workflow_from(&self, id: JobId, name: &str) -> Result<ChangeOutcome, Error> {
        self.0.retry_workflow_from(id, name)
    }

    /// Decides about the workflows that are due. See [`pq_core::Pq::advance_workflows`].
    ///
    /// # Errors
    ///
    /// The database's own.
    #[doc(hidden)]
    pub fn advance_workflows(&self) -> Result<bool, Error> {
        self.0.advance_workflows()
    }
}
