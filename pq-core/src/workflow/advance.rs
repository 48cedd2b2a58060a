//! What follows when jobs of a workflow have ended. Maintenance decides it, in the transaction that does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::graph::members;
use super::putting::in_workflow;
use super::{OnFailure, Plan, WORKFLOWS, WorkflowJob};
use crate::store::{Scan, StoreError as _, Wake};
use crate::{
    After, CancelOutcome, Claim, Error, JobId, JobRecord, JobState, Outcome, Payload, Pq, QueueName,
    Settlement, Store,
};

/// The number of workflows of one run of maintenance.
const MAX_WORKFLOWS: usize = 100;

/// The pause before jobs are cancelled again that a transaction held, or before the next turn after a conflict with
/// another session.
const CANCEL_AGAIN: Duration = Duration::from_secs(1);

/// The pause before the next try of a turn that failed.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// Advances the workflows that are due, a bounded number of them. Returns whether there were any.
pub(crate) fn advance<S: Store>(pq: &Pq<S>, conn: &mut S::Conn) -> Result<bool, S::Error> {
    let store = pq.store();
    let queue = QueueName::new(WORKFLOWS)?;
    let mut any = false;
    for _ in 0..MAX_WORKFLOWS {
        let mut taken = None;
        let turn = store.transaction(conn, |conn| -> Result<Vec<Undo>, S::Error> {
            taken = store.take(conn, &queue, 1, Scan::Full)?.jobs.pop();
            match &taken {
                Some(claim) => Turn::new(store, conn, claim)?.run(conn),
                None => Ok(Vec::new()),
            }
        });
        match (turn, taken) {
            (Ok(_), None) => break,
            (Ok(put), Some(_)) => {
                put.into_iter().for_each(|Undo { queue, task }| pq.count_jobs(&queue, task, 1));
                any = true;
            }
            (Err(error), Some(claim)) if !error.is_unavailable() => {
                // It must not keep the others from their turns.
                tracing::error!(workflow = %claim.id, %error, "workflow not advanced");
                let after = if error.is_conflict() { CANCEL_AGAIN } else { TRY_AGAIN };
                store
                    .transaction(conn, |conn| store.wake(conn, claim.id, claim.annotations.wake(), after))?;
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(any)
}

/// Advances the workflows that are due, after a change that is committed. A worker does later what fails.
pub(crate) fn try_advance<S: Store>(pq: &Pq<S>, conn: &mut S::Conn) {
    if let Err(error) = advance(pq, conn) {
        tracing::warn!(%error, "workflows not advanced; a worker advances them");
    }
}

/// A call that undoes a job, put by a turn.
struct Undo {
    queue: QueueName,
    task: Option<Arc<str>>,
}

/// A workflow that is due, as its transaction sees it.
struct Turn<'t, S: Store> {
    store: &'t S,
    claim: &'t Claim,
    plan: Option<Plan>,
    /// The newest job of each name.
    jobs: BTreeMap<String, JobRecord>,
    /// Whether a job of the workflow has not ended, as far as maintenance has noted it.
    is_open: bool,
    /// Whether a call that undoes a job has not ended.
    is_undoing: bool,
}

impl<'t, S: Store> Turn<'t, S> {
    fn new(store: &'t S, conn: &mut S::Conn, claim: &'t Claim) -> Result<Self, S::Error> {
        let plan = Plan::read(&claim.payload);
        // Read first: a job that ends later is open here, and maintenance notes its end after this turn.
        let is_open = store.waits(conn, claim.id)?;
        let (mut jobs, mut is_undoing) = (BTreeMap::new(), false);
        for member in members(store, conn, claim.id)? {
            match member.annotations.workflow() {
                Some(place) if place.undoes => is_undoing |= !member.state.is_ended(),
                Some(place) => drop(jobs.insert(place.name, member)),
                None => {}
            }
        }
        Ok(Self { store, claim, plan, jobs, is_open, is_undoing })
    }

    /// Decides about the workflow. Returns the calls that undo jobs and were put.
    fn run(self, conn: &mut S::Conn) -> Result<Vec<Undo>, S::Error> {
        let Some(mut plan) = self.plan.clone() else {
            self.settle(conn, Outcome::dead("its payload is not that of a workflow"))?;
            return Ok(Vec::new());
        };
        let wake = self.claim.annotations.wake();
        if wake.is_some() {
            // A job that runs again was not asked in this run, also if its requeue has left the wake of a cancellation.
            plan.asked.clear();
        }
        if matches!(wake, Some(Wake::Retry | Wake::Reopen)) {
            // What was done is undone, so it must be done again, but not while it is being undone.
            plan.runs_again |= plan.is_undone;
        }
        let runs_again = match wake {
            Some(Wake::Cancel) => {
                (plan.is_cancelled, plan.runs_again) = (true, false);
                false
            }
            _ if plan.runs_again => !self.is_undoing && self.retry(conn, &mut plan)?,
            Some(Wake::Retry) => self.retry(conn, &mut plan)?,
            Some(Wake::Reopen) => {
                plan.is_cancelled = false;
                plan.stays_dead = self.dead();
                self.reopen(conn, &plan)?
            }
            None => false,
        };
        if runs_again {
            self.hold(conn, &plan)?;
            return Ok(Vec::new());
        }
        let ignored = if self.is_open { &*plan.stays_dead } else { &[] };
        let failed = self.failed(&plan, ignored);
        let stops = plan.is_cancelled || plan.on_failure != OnFailure::Continue && failed.is_some();
        if self.is_open {
            let all_asked = !stops || plan.is_undone || self.stop(conn, &mut plan, failed)?;
            self.hold(conn, &plan)?;
            if !all_asked {
                self.store.wake(conn, self.claim.id, None, CANCEL_AGAIN)?;
            }
            return Ok(Vec::new());
        }
        if stops && plan.on_failure == OnFailure::Compensate && !plan.is_undone {
            plan.is_undone = true;
            let undone: Vec<&super::PlannedJob> = plan
                .jobs
                .iter()
                .filter(|job| {
                    job.undo.is_some()
                        && self.jobs.get(&job.name).is_some_and(|job| job.state == JobState::Done)
                })
                .collect();
            if !undone.is_empty() {
                self.hold(conn, &plan)?;
                return self.undo(conn, &undone);
            }
        }
        let outcome = match failed {
            _ if plan.is_cancelled => Outcome::Cancel { reason: Some("it was cancelled".to_owned()) },
            Some(job) => Outcome::dead(describe(job)),
            None => Outcome::Keep { result: None },
        };
        self.settle(conn, outcome)?;
        Ok(Vec::new())
    }

    /// Returns the job that fails the workflow: the first dead one but the ignored ones, or else that which was the
    /// first to be cancelled although those before it are as they must be.
    fn failed(&self, plan: &Plan, ignored: &[String]) -> Option<&JobRecord> {
        let found = |state: JobState| {
            plan.jobs.iter().filter(|planned| !ignored.contains(&planned.name)).filter_map(move |planned| {
                let job = self.jobs.get(&planned.name).filter(|job| job.state == state)?;
                let is_cause = state == JobState::Dead
                    || planned.after.iter().filter(|edge| edge.only_done).all(|edge| {
                        self.jobs.get(&edge.name).is_none_or(|before| before.state == JobState::Done)
                    });
                (is_cause && plan.is_needed(&planned.name)).then_some(job)
            })
        };
        // The others were cancelled because of it.
        found(JobState::Dead)
            .next()
            .or_else(|| found(JobState::Cancelled).min_by_key(|job| (job.ended_at, job.id)))
    }

    /// Returns the names of the dead jobs.
    fn dead(&self) -> Vec<String> {
        let dead = self.jobs.iter().filter(|(_, job)| job.state == JobState::Dead);
        dead.map(|(name, _)| name.clone()).collect()
    }

    /// Cancels the jobs that wait, and asks those that run to end, once. Returns `false` if a transaction held one.
    fn stop(
        &self,
        conn: &mut S::Conn,
        plan: &mut Plan,
        failed: Option<&JobRecord>,
    ) -> Result<bool, S::Error> {
        let reason = match failed {
            Some(job) if !plan.is_cancelled => {
                format!("workflow {} was stopped: {}", self.claim.id, describe(job))
            }
            _ => format!("workflow {} was cancelled", self.claim.id),
        };
        let open: Vec<&JobRecord> = self.jobs.values().filter(|job| !job.state.is_ended()).collect();
        let ids: Vec<JobId> = open.iter().map(|job| job.id).collect();
        let cancelled = self.store.cancel_waiting(conn, &ids, &reason)?;
        let mut all_asked = true;
        for job in open.iter().filter(|job| !cancelled.contains(&job.id)) {
            if !plan.asked.contains(&job.id) {
                match self.store.cancel(conn, &job.queue, job.id)? {
                    CancelOutcome::Requested => plan.asked.push(job.id),
                    CancelOutcome::Held => all_asked = false,
                    CancelOutcome::Cancelled | CancelOutcome::NotFound => {}
                }
            }
        }
        Ok(all_asked)
    }

    /// Puts the calls that undo these jobs: the last one first, and each of the others after the one before.
    fn undo(&self, conn: &mut S::Conn, jobs: &[&super::PlannedJob]) -> Result<Vec<Undo>, S::Error> {
        let (mut before, mut calls) = (None, Vec::new());
        for planned in jobs.iter().rev() {
            let Some(undo) = &planned.undo else { continue };
            let place = WorkflowJob { id: self.claim.id, name: planned.name.clone(), undoes: true };
            let (queue, job) = undo.job()?;
            let after = before.map(|job| After { job, only_done: false });
            let task = job.task.clone();
            let put = self.store.put(conn, &queue, &[in_workflow(job, &place, after, false)])?;
            before = put.first().map(|put| put.id);
            calls.push(Undo { queue, task });
        }
        Ok(calls)
    }

    /// Lets the jobs that are not done run again: all of them after a compensation. Returns whether there are any.
    fn retry(&self, conn: &mut S::Conn, plan: &mut Plan) -> Result<bool, S::Error> {
        let again = |job: &JobRecord| match plan.is_undone {
            true => job.state.is_ended(),
            false => matches!(job.state, JobState::Dead | JobState::Cancelled),
        };
        let names: Vec<&str> =
            self.jobs.iter().filter(|(_, job)| again(job)).map(|(name, _)| name.as_str()).collect();
        run_again(self.store, conn, self.claim.id, plan, &self.jobs, &names)?;
        (plan.is_cancelled, plan.is_undone, plan.runs_again) = (false, false, false);
        plan.stays_dead.clear();
        Ok(!names.is_empty())
    }

    /// Lets the cancelled jobs wait again, after another job was requeued. Returns whether there are any.
    fn reopen(&self, conn: &mut S::Conn, plan: &Plan) -> Result<bool, S::Error> {
        let is_cancelled = |(_, job): &(&String, &JobRecord)| job.state == JobState::Cancelled;
        let names: Vec<&str> = self.jobs.iter().filter(is_cancelled).map(|(name, _)| name.as_str()).collect();
        run_again(self.store, conn, self.claim.id, plan, &self.jobs, &names)?;
        Ok(!names.is_empty())
    }

    /// Lets the workflow wait for its jobs, without the reason for which it was due.
    fn hold(&self, conn: &mut S::Conn, plan: &Plan) -> Result<(), S::Error> {
        let payload = Some(plan.payload()?).filter(|payload: &Payload| *payload != self.claim.payload);
        let after = (After::HELD_UNTIL - self.store.now(conn)?).to_std().unwrap_or_default();
        self.settle(conn, Outcome::Snooze { after, reason: None, payload })?;
        if self.claim.annotations.wake().is_some() {
            self.store.wake(conn, self.claim.id, None, after)?;
        }
        Ok(())
    }

    fn settle(&self, conn: &mut S::Conn, outcome: Outcome) -> Result<(), S::Error> {
        let accepted = self.store.settle(conn, &[Settlement { job: self.claim, outcome }])?;
        if accepted.all() { Ok(()) } else { Err(Error::not_yours(self.claim.id).into()) }
    }
}

/// Lets jobs of a workflow run again: those that wait for others after them, and those that wait for none at once.
pub(crate) fn run_again<S: Store>(
    store: &S,
    conn: &mut S::Conn,
    workflow: JobId,
    plan: &Plan,
    jobs: &BTreeMap<String, JobRecord>,
    names: &[&str],
) -> Result<(), S::Error> {
    let mut held = Vec::new();
    let mut first = Vec::new();
    for planned in plan.jobs.iter().filter(|planned| names.contains(&&*planned.name)) {
        let Some(job) = jobs.get(&planned.name) else { continue };
        // One that is the first in the workflow may wait for jobs outside of it.
        match planned.after.is_empty() && store.predecessors(conn, job.id, 1)?.is_empty() {
            true => first.push(job.id),
            false => held.push(job.id),
        }
    }
    store.wait_again(conn, workflow, &first, false)?;
    store.wait_again(conn, workflow, &held, true)
}

/// Returns a text such as `job 17 "charge" is dead`.
fn describe(job: &JobRecord) -> String {
    let name = job.annotations.workflow().map(|place| format!(" {:?}", place.name)).unwrap_or_default();
    format!("job {}{name} is {}", job.id, job.state)
}
