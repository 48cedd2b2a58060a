//! `pq clear`.

use std::process::ExitCode;

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Delete the waiting jobs of a queue, scheduled ones included.
///
/// Running jobs stay. Deleted jobs are not archived. Jobs that wait for a deleted job go on as if it were done.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq clear mail --yes"))]
pub(crate) struct Clear {
    /// Queue name.
    queue: String,
    #[command(flatten)]
    yes: Confirmation,
}

impl Clear {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let queue = global.connect()?.queue::<()>(&self.queue)?;
        let counts = queue.counts()?;
        let jobs = counts.waiting() + counts.dequeued;
        let about = output::plural(jobs, "job");
        if jobs > 0 && !self.yes.confirm(&format!("deletes about {about} of {:?} permanently", self.queue))? {
            return Ok(ExitCode::from(1));
        }
        output::print(&format!(
            "{} deleted",
            output::plural(output::with_spinner("deleting", || queue.clear())?, "job")
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
