//! `pq cancel`.

use std::process::ExitCode;

use pq_diesel::Filter;
use pq_diesel::{CancelOutcome, JobId, JobRecord, JobState, Pq};

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::global::Global;
use crate::{job_output, output};

/// The states of jobs that can be cancelled.
const LIVE: [JobState; 4] = [JobState::Ready, JobState::Blocked, JobState::Scheduled, JobState::Running];

/// Cancel jobs.
///
/// Waiting jobs are cancelled at once. The handler of a job that runs under a lease is asked to stop. Cancelled jobs
/// are archived, and `pq retry` requeues them.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq cancel 42 43\npq cancel --queue mail --state scheduled --yes"))]
pub(crate) struct Cancel {
    /// Job ids.
    #[arg(required_unless_present = "queue", value_parser = job_output::parse_id, allow_negative_numbers = true)]
    ids: Vec<i64>,
    /// Cancel all waiting and running jobs of this queue.
    #[arg(long, value_name = "QUEUE", conflicts_with = "ids")]
    queue: Option<String>,
    /// With --queue: only jobs in this state: ready, blocked, scheduled or running.
    #[arg(long, value_name = "STATE", requires = "queue", conflicts_with = "ids", value_parser = live)]
    state: Option<JobState>,
    #[command(flatten)]
    yes: Confirmation,
}

impl Cancel {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let mut found = Vec::new();
        let mut all = true;
        if let Some(name) = &self.queue {
            let filter = Filter::queue(pq.queue::<()>(name)?.name());
            let states = self.state.map_or(LIVE.to_vec(), |state| vec![state]);
            let filter = states.into_iter().fold(filter, Filter::state);
            job_output::for_each(&pq, &filter, |job| {
                found.push(job);
                Ok(())
            })?;
            if found.is_empty() {
                output::print("0 jobs cancelled")?;
            } else {
                let what = format!("cancels {} of {name:?}", output::plural(found.len() as u64, "job"));
                if !self.yes.confirm(&what)? {
                    return Ok(ExitCode::from(1));
                }
            }
        } else {
            for id in &self.ids {
                match pq.find(JobId(*id))? {
                    Some(job) => found.push(job),
                    None => {
                        all = false;
                        output::print_error(&format!("cannot cancel job {id}: {}", job_output::NOT_FOUND));
                    }
                }
            }
        }
        let bar = output::progress_bar(found.len() as u64, "{wide_bar} {pos}/{len} jobs, {eta} left");
        for job in &found {
            all &= bar.suspend(|| cancel(&pq, job))?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

fn cancel(pq: &Pq, job: &JobRecord) -> Result<bool, Failure> {
    let id = job.id;
    match pq.queue::<()>(job.queue.as_str())?.cancel(id)? {
        CancelOutcome::Cancelled => output::print(&format!("{id}: cancelled"))?,
        CancelOutcome::Requested => output::print(&format!("{id}: running; its handler is asked to stop"))?,
        CancelOutcome::Held => {
            output::print_error(&format!(
                "cannot cancel job {id}: a transaction holds it; try again when the transaction has ended"
            ));
            return Ok(false);
        }
        CancelOutcome::NotFound => {
            output::print_error(&format!("cannot cancel job {id}: it is {}", job.state));
            return Ok(false);
        }
    }
    Ok(true)
}

fn live(text: &str) -> Result<JobState, String> {
    let state = text.parse().ok().filter(|state| LIVE.contains(state));
    state.ok_or_else(|| {
        "expected ready, blocked, scheduled or running; jobs in other states cannot be cancelled".to_owned()
    })
}
