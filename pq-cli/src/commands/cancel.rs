//! `pq cancel`.

use std::process::ExitCode;

use pq_diesel::{Cancelled, Filter, JobId, JobState, Listed, Pq};

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::global::Global;
use crate::{job_output, output};

/// What can be cancelled.
const LIVE: [JobState; 4] = [JobState::Ready, JobState::Blocked, JobState::Scheduled, JobState::Running];

/// Cancel jobs: those that wait at once, those that run under a lease by telling their handlers.
///
/// Cancelled jobs are kept, and `pq retry` puts them back.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq cancel 42 43\npq cancel --queue mail --state scheduled --yes"))]
pub(crate) struct Cancel {
    /// The jobs' numbers.
    #[arg(required_unless_present = "queue", value_parser = job_output::parse_id, allow_negative_numbers = true)]
    ids: Vec<i64>,
    /// The jobs of this queue that wait or run.
    #[arg(long, value_name = "QUEUE", conflicts_with = "ids")]
    queue: Option<String>,
    /// With --queue: only those in this state: ready, blocked, scheduled or running.
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
                        output::print_error(&format!(
                            "{id}: is done and nothing was kept of it, or was never there"
                        ));
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

fn cancel(pq: &Pq, job: &Listed) -> Result<bool, Failure> {
    let id = job.id;
    match pq.queue::<()>(job.queue.as_str())?.cancel(id)? {
        Cancelled::Done => output::print(&format!("{id}: cancelled"))?,
        Cancelled::Asked => output::print(&format!("{id}: runs; its handler is told"))?,
        Cancelled::Held => {
            output::print_error(&format!(
                "{id}: a transaction holds it; it ends with that, or can be cancelled after"
            ));
            return Ok(false);
        }
        Cancelled::NotFound => {
            output::print_error(&format!("{id}: is {} and cannot be cancelled", job.state));
            return Ok(false);
        }
    }
    Ok(true)
}

fn live(text: &str) -> Result<JobState, String> {
    let state = text.parse().ok().filter(|state| LIVE.contains(state));
    state.ok_or_else(|| {
        "ready, blocked, scheduled or running is wanted: others cannot be cancelled".to_owned()
    })
}
