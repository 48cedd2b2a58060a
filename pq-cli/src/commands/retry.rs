//! `pq retry`.

use std::process::ExitCode;

use pq_diesel::{JobId, JobState, Operation};

use super::examples;
use crate::failure::Failure;
use crate::filtered::{self, Selection, Words};
use crate::global::Global;
use crate::{job_output, output};

/// Requeue dead or cancelled jobs. They are due at once, and their attempts start from 0.
///
/// With --queue it requeues dead jobs, or with --state cancelled the cancelled ones.
/// A job is not requeued if its unique key is in use, or its id by a job that waits or runs.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq retry 42 43\npq retry --queue mail --yes\npq retry --queue mail --state cancelled --task newsletter"
))]
pub(crate) struct Retry {
    #[command(flatten)]
    jobs: Selection,
}

impl Retry {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        if let Some(name) = &self.jobs.queue {
            let dead = self.jobs.conditions.is_for_default_state();
            let words = Words {
                verb: "requeue",
                past: "requeued",
                note: String::new(),
                job: if dead { "dead job" } else { "job" },
                passed: "the unique key or the id is in use".to_owned(),
            };
            let states = [JobState::Dead];
            return filtered::operate(
                &pq,
                name,
                &self.jobs.conditions,
                &states,
                &Operation::Retry,
                &words,
                &self.jobs.yes,
            );
        }
        let mut all = true;
        for id in &self.jobs.ids {
            let result = match pq.find(JobId(*id))? {
                Some(job) if matches!(job.state, JobState::Dead | JobState::Cancelled) => {
                    match pq.queue::<()>(job.queue.as_str())?.retry(job.id)? {
                        true => Ok(format!("{id}: requeued in {:?}", job.queue.as_str())),
                        false => Err(format!("cannot retry job {id}: its unique key is in use")),
                    }
                }
                Some(job) => {
                    Err(format!("cannot retry job {id}: it is {}, not dead or cancelled", job.state))
                }
                None => Err(format!("cannot retry job {id}: {}", job_output::NOT_FOUND)),
            };
            all &= result.is_ok();
            match result {
                Ok(done) => output::print(&done)?,
                Err(reason) => output::print_error(&reason),
            }
        }
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}
