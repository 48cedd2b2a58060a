//! Putting a workflow: its own job first, and then its jobs, those before others first.

use std::collections::{BTreeMap, VecDeque};

use super::{Plan, Planned, WORKFLOWS, WorkflowJob};
use crate::{After, Error, JobId, NewJob, Payload, Put, PutOptions, QueueName, Trace, When};

/// A workflow that is being put. For a crate that puts jobs on connections of its own.
///
/// The puts of [`WorkflowPut::next_jobs`] are made in one transaction, and [`WorkflowPut::record`] gets the result of
/// each.
#[derive(Debug)]
pub struct WorkflowPut {
    plan: Plan,
    waiting: VecDeque<(QueueName, NewJob, super::PlannedJob)>,
    workflow: Option<JobId>,
    ids: BTreeMap<String, JobId>,
    /// The names of the jobs of the last put.
    putting: Vec<String>,
}

impl WorkflowPut {
    pub(super) fn new(plan: Plan, jobs: Vec<&Planned>) -> Result<Self, Error> {
        let waiting =
            jobs.into_iter().map(|job| (job.queue.clone(), job.job.clone(), job.plan.clone())).collect();
        Ok(Self { plan, waiting, workflow: None, ids: BTreeMap::new(), putting: Vec::new() })
    }

    /// Returns the jobs of the next put, and their queue. `None` after the last one.
    ///
    /// # Errors
    ///
    /// [`Error::PayloadTooLarge`] for the graph.
    pub fn next_jobs(&mut self) -> Result<Option<(QueueName, Vec<NewJob>)>, Error> {
        let Some(workflow) = self.workflow else {
            let own = workflow_job(self.plan.payload()?)?;
            return Ok(Some((QueueName::new(WORKFLOWS)?, vec![own])));
        };
        self.putting.clear();
        let mut next: Option<(QueueName, Vec<NewJob>)> = None;
        while let Some((queue, _, plan)) = self.waiting.front() {
            let is_known = |name: &String| self.ids.contains_key(name);
            if next.as_ref().is_some_and(|(first, _)| first != queue)
                || !plan.after.iter().all(|edge| is_known(&edge.name))
            {
                break;
            }
            let Some((queue, job, plan)) = self.waiting.pop_front() else { break };
            let edges = plan.after.iter().filter_map(|edge| {
                Some(After { job: *self.ids.get(&edge.name)?, only_done: edge.only_done })
            });
            let place = WorkflowJob { id: workflow, name: plan.name.clone(), undoes: false };
            let fails = self.plan.on_failure != super::OnFailure::Continue && self.plan.is_needed(&plan.name);
            self.putting.push(plan.name.clone());
            let job = in_workflow(job, &place, edges, fails);
            next.get_or_insert_with(|| (queue, Vec::new())).1.push(job);
        }
        Ok(next)
    }

    /// Notes the results of the last put.
    pub fn record(&mut self, puts: &[Put]) {
        match self.workflow {
            None => self.workflow = puts.first().map(|put| put.id),
            Some(_) => self.ids.extend(self.putting.drain(..).zip(puts.iter().map(|put| put.id))),
        }
    }

    /// Returns the id of the workflow, after its own job was put.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.workflow.unwrap_or(JobId(0))
    }
}

/// Returns the job that stands for a workflow.
fn workflow_job(payload: Payload) -> Result<NewJob, Error> {
    PutOptions::new().open().awaited().job(payload, Trace::new())
}

/// Returns a job of a workflow, which waits for these and for those that it names itself.
pub(super) fn in_workflow(
    mut job: NewJob,
    place: &WorkflowJob,
    after: impl IntoIterator<Item = After>,
    fails: bool,
) -> NewJob {
    job.links.after.extend(after);
    job.links.batch = Some(place.id);
    job.links.fails_batch = fails;
    if !job.links.after.is_empty() {
        job.schedule_at = Some(When::At(After::HELD_UNTIL));
    }
    job.annotations = job.annotations.in_workflow(place);
    job
}
