//! `pq prune`.

use std::process::ExitCode;
use std::time::Duration;

use pq_diesel::Filter;
use pq_diesel::{JobState, Pq, QueueName};

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::global::Global;
use crate::{job_output, output, values};

/// Delete jobs from the archive.
///
/// Workers do the same at regular intervals, by their retention settings.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq prune mail --state dead --older-than 30d --yes"))]
pub(crate) struct Prune {
    /// Queue name.
    queue: String,
    /// State of the jobs: dead, cancelled or done.
    #[arg(long, value_name = "STATE", value_parser = ended)]
    state: JobState,
    /// Only jobs that ended longer ago than this duration, such as 12h or 30d.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = values::duration)]
    older_than: Duration,
    #[command(flatten)]
    yes: Confirmation,
}

impl Prune {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let queue = pq.queue::<()>(&self.queue)?;
        if !self.yes.confirm_if_any(|| self.question(&pq, queue.name()))? {
            return Ok(ExitCode::from(1));
        }
        let removed = output::with_spinner("deleting", || queue.prune(self.state, self.older_than))?;
        output::print(&format!("{} deleted", output::plural(removed, "job")))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Describes what would be deleted. Returns `None` if nothing would be.
    fn question(&self, pq: &Pq, queue: &QueueName) -> Result<Option<String>, Failure> {
        let mut old = 0_u64;
        let now = pq.now()?;
        let bound =
            chrono::TimeDelta::from_std(self.older_than).ok().and_then(|age| now.checked_sub_signed(age));
        job_output::for_each(pq, &Filter::queue(queue).state(self.state), |job| {
            old += u64::from(job.ended_at <= bound);
            Ok(())
        })?;
        let about = output::plural(old, &format!("{} job", self.state));
        Ok((old > 0).then(|| format!("deletes {about} of {:?} permanently", self.queue)))
    }
}

fn ended(text: &str) -> Result<JobState, String> {
    match text.parse() {
        Ok(state @ (JobState::Dead | JobState::Cancelled | JobState::Done)) => Ok(state),
        _ => Err("expected dead, cancelled or done".to_owned()),
    }
}
