//! Graphs of jobs: put as a whole, and run by their edges.

mod advance;
mod graph;
mod plan;
mod putting;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub(crate) use self::advance::{advance, run_again, try_advance};
pub use self::graph::{Edge, WorkflowGraph, WorkflowNode};
pub(crate) use self::graph::{read, unknown};
pub(crate) use self::plan::Plan;
use self::plan::{PlannedJob, Undo};
pub use self::putting::WorkflowPut;
use crate::{CallOptions, Error, JobId, NewJob, QueueName};

/// The name of the queue of the jobs that stand for workflows. Maintenance runs them.
pub const WORKFLOWS: &str = "pq.workflows";

/// The maximum number of jobs of a workflow.
const MAX_JOBS: usize = 1_000;

/// The maximum length of a name, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// A task whose calls can be jobs of a [`Workflow`]: that of a store's handle.
pub trait WorkflowTask<A> {
    /// Encodes a call, and returns it with its queue.
    ///
    /// # Errors
    ///
    /// The errors of [`crate::Task::encode`].
    fn encode_call(&self, arguments: &A, options: &CallOptions) -> Result<(QueueName, NewJob), Error>;
}

/// What follows when a job of a workflow fails it. See [`Workflow::on_failure`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The jobs that wait are cancelled, and those that run are asked to end.
    #[default]
    Stop,
    /// Jobs that do not need the failed one go on.
    Continue,
    /// As [`OnFailure::Stop`], and then the done jobs are undone that have an [`Workflow::undo`], the last one first.
    Compensate,
}

impl OnFailure {
    /// Returns the word for it: `stop`, `continue` or `compensate`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Continue => "continue",
            Self::Compensate => "compensate",
        }
    }
}

/// The workflow of a job, and its place in it. See [`crate::Annotations::workflow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowJob {
    /// The job that stands for the workflow.
    pub id: JobId,
    /// The name of the job in the workflow. For a job that undoes another one: the name of that.
    pub name: String,
    /// Whether the job undoes the one with this name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undoes: bool,
}

/// A graph of named jobs that is put as a whole.
///
/// [`Workflow::after`], [`Workflow::after_any_outcome`] and [`Workflow::undo`] concern the job that was added last.
/// The jobs can be named in any order. What is invalid is kept and refused by the put; [`Workflow::check`] refuses it
/// earlier.
///
/// [`crate::Pq::put_workflow`] puts it, and returns the id of a job of the queue [`WORKFLOWS`] that ends with the
/// workflow. A handler reads the results of other jobs by [`crate::Context::result_of`].
///
/// ```
/// use pq_core::{OnFailure, Outcome, Pq, Worker, Workflow, memory::MemoryStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pq = Pq::new(MemoryStore::new());
/// let orders = pq.queue("orders")?;
/// let (charge, refund, pack) = (orders.task::<u32>("charge"), orders.task("refund"), orders.task("pack"));
/// let workflow = Workflow::new("order 7")
///     .job("charge", &charge, &7)
///     .undo(&refund, &7)
///     .job("pack", &pack, &7)
///     .after(["charge"])
///     .on_failure(OnFailure::Compensate);
/// pq.put_workflow(&workflow)?;
///
/// let charging = charge.leased(|_, job| Outcome::result(&format!("receipt of {}", job.data)));
/// let packing = pack.leased(|context, _| {
///     let receipt = context.result_of::<String>("charge")?.done();
///     assert_eq!(receipt.as_deref(), Some("receipt of 7"));
///     Ok::<_, pq_core::Error>(())
/// });
/// assert_eq!(Worker::new(&pq).serve(charging).serve(packing).run_jobs(2)?.done, 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a workflow does nothing until it is put"]
pub struct Workflow {
    name: String,
    on_failure: OnFailure,
    jobs: Vec<Planned>,
    /// The first thing that is wrong, except for the graph.
    refused: Option<String>,
}

/// A job of a workflow that is not put yet.
#[derive(Clone, Debug)]
struct Planned {
    queue: QueueName,
    job: NewJob,
    plan: PlannedJob,
}

impl Workflow {
    /// Creates a workflow without jobs. The name is shown to operators, and need not be unique.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), on_failure: OnFailure::default(), jobs: Vec::new(), refused: None }
    }

    /// Sets what follows when a job fails the workflow. Default: [`OnFailure::Stop`].
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }

    /// Adds a job that calls a task.
    pub fn job<A>(self, name: impl Into<String>, task: &impl WorkflowTask<A>, arguments: &A) -> Self {
        self.job_with(name, task, arguments, &CallOptions::new())
    }

    /// Adds a job that calls a task, with options: no unique key and no batch, and a time only if it waits for no
    /// other job.
    pub fn job_with<A>(
        mut self,
        name: impl Into<String>,
        task: &impl WorkflowTask<A>,
        arguments: &A,
        options: &CallOptions,
    ) -> Self {
        let name = name.into();
        match task.encode_call(arguments, options) {
            Ok((queue, job)) => {
                let plan = PlannedJob {
                    name,
                    task: job.task.as_deref().map(str::to_owned),
                    ..PlannedJob::default()
                };
                self.jobs.push(Planned { queue, job, plan });
            }
            Err(error) => self.refuse(format!("job {name:?}: {error}")),
        }
        self
    }

    /// Lets the last job wait until the jobs with these names are done. If one is not, it is cancelled.
    pub fn after(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.after_each(names, true)
    }

    /// Lets the last job wait until the jobs with these names have ended, whatever their outcomes. Their failures do
    /// not fail the workflow then.
    pub fn after_any_outcome(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.after_each(names, false)
    }

    fn after_each(mut self, names: impl IntoIterator<Item = impl Into<String>>, only_done: bool) -> Self {
        let edges = names.into_iter().map(|name| Edge { name: name.into(), only_done });
        match self.jobs.last_mut() {
            Some(last) => last.plan.after.extend(edges),
            None => self.refuse_without_job("after"),
        }
        self
    }

    /// Sets the call that undoes the last job if the workflow fails after it was done. See [`OnFailure::Compensate`].
    pub fn undo<A>(mut self, task: &impl WorkflowTask<A>, arguments: &A) -> Self {
        let undo =
            task.encode_call(arguments, &CallOptions::new()).and_then(|(queue, job)| Undo::new(queue, &job));
        match (undo, self.jobs.last_mut()) {
            (Ok(undo), Some(last)) => last.plan.undo = Some(undo),
            (Ok(_), None) => self.refuse_without_job("undo"),
            (Err(error), _) => self.refuse(format!("undo: {error}")),
        }
        self
    }

    fn refuse(&mut self, reason: String) {
        self.refused.get_or_insert(reason);
    }

    fn refuse_without_job(&mut self, method: &str) {
        self.refuse(format!("{method} must follow a job"));
    }

    fn invalid(&self, reason: &str) -> Error {
        Error::InvalidSetting(format!("invalid workflow {:?}: {reason}", self.name))
    }

    /// Checks the workflow, as a put does.
    ///
    /// # Errors
    ///
    /// The error of the first invalid call, and [`Error::InvalidSetting`] that names what is wrong with the graph.
    pub fn check(&self) -> Result<(), Error> {
        self.sorted().map(drop)
    }

    /// Returns the graph, for [`WorkflowGraph::tree`], [`WorkflowGraph::dot`] and [`WorkflowGraph::mermaid`].
    ///
    /// # Errors
    ///
    /// The errors of [`Workflow::check`].
    pub fn graph(&self) -> Result<WorkflowGraph, Error> {
        Ok(WorkflowGraph::of_plan(&self.plan()?))
    }

    /// Begins to put the workflow, for a crate that puts jobs on connections of its own.
    ///
    /// # Errors
    ///
    /// The errors of [`Workflow::check`].
    pub fn begin_put(&self) -> Result<WorkflowPut, Error> {
        WorkflowPut::new(self.plan()?, self.sorted()?)
    }

    fn plan(&self) -> Result<Plan, Error> {
        let jobs = self.sorted()?.into_iter().map(|planned| planned.plan.clone()).collect();
        Ok(Plan::new(self.name.clone(), self.on_failure, jobs))
    }

    /// Returns the jobs, each behind those for which it waits, and otherwise as they were added.
    fn sorted(&self) -> Result<Vec<&Planned>, Error> {
        if let Some(refused) = &self.refused {
            return Err(self.invalid(refused));
        }
        let names = self.names()?;
        for Planned { plan, job, queue } in &self.jobs {
            let refused = |reason: &str| Err(self.invalid(&format!("job {:?} {reason}", plan.name)));
            if let Some(unknown) = plan.after.iter().find(|edge| !names.contains_key(&*edge.name)) {
                return refused(&format!("waits for {:?}, which is no job of it", unknown.name));
            }
            if queue.as_str() == WORKFLOWS || plan.undo.as_ref().is_some_and(|undo| undo.queue == WORKFLOWS) {
                return refused(&format!(
                    "is in the queue {WORKFLOWS:?}, which is that of workflows themselves; choose another one"
                ));
            }
            if job.unique.is_some() {
                return refused("has a unique key; remove it");
            }
            if job.links.batch.is_some() {
                return refused("is in a batch; the batch of a job of a workflow is the workflow");
            }
            if !plan.after.is_empty() && job.schedule_at.is_some() && job.links.after.is_empty() {
                return refused(
                    "has a time and waits for others: it is due when they have ended; remove one",
                );
            }
        }
        let (mut sorted, mut placed) = (Vec::new(), BTreeSet::new());
        while sorted.len() < self.jobs.len() {
            let is_next = |index: &usize| {
                let edges = &self.jobs[*index].plan.after;
                !placed.contains(index) && edges.iter().all(|edge| placed.contains(&names[&*edge.name]))
            };
            let Some(next) = (0..self.jobs.len()).find(is_next) else {
                let circle = self.circle(&names, &placed);
                return Err(self.invalid(&format!("its jobs wait for each other: {circle}")));
            };
            placed.insert(next);
            sorted.push(&self.jobs[next]);
        }
        Ok(sorted)
    }

    fn names(&self) -> Result<BTreeMap<&str, usize>, Error> {
        let mut names = BTreeMap::new();
        if !(1..=MAX_JOBS).contains(&self.jobs.len()) {
            let found = self.jobs.len();
            return Err(self.invalid(&format!("it must have 1 to {MAX_JOBS} jobs, and has {found}")));
        }
        for (index, Planned { plan: PlannedJob { name, .. }, .. }) in self.jobs.iter().enumerate() {
            if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('\0') {
                let start: String = name.chars().take(40).collect();
                return Err(self.invalid(&format!(
                    "the name {start:?} of a job must have 1 to {MAX_NAME_BYTES} bytes, without NUL"
                )));
            }
            if names.insert(&**name, index).is_some() {
                return Err(self.invalid(&format!("two jobs have the name {name:?}")));
            }
        }
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES || self.name.contains('\0') {
            return Err(self.invalid(&format!("its name must have 1 to {MAX_NAME_BYTES} bytes, without NUL")));
        }
        Ok(names)
    }

    /// Returns the text of a circle among the jobs that are not placed. Each of them waits for another one of them.
    fn circle(&self, names: &BTreeMap<&str, usize>, placed: &BTreeSet<usize>) -> String {
        let before = |index: usize| {
            let edges = self.jobs[index].plan.after.iter();
            edges.map(|edge| names[&*edge.name]).find(|index| !placed.contains(index))
        };
        let mut path: Vec<usize> =
            (0..self.jobs.len()).find(|index| !placed.contains(index)).into_iter().collect();
        while let Some(next) = path.last().and_then(|last| before(*last)) {
            let again = path.iter().position(|index| *index == next);
            path.push(next);
            if let Some(first) = again {
                path.drain(..first);
                break;
            }
        }
        let shown: Vec<String> =
            path.iter().map(|index| format!("{:?}", self.jobs[*index].plan.name)).collect();
        shown.join(" after ")
    }
}

#[cfg(test)]
mod tests;
