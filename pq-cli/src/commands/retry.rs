//! `pq retry`.

use std::process::ExitCode;

use pq_diesel::{JobId, JobState};

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::global::Global;
use crate::output::plural;
use crate::{job_output, output};

/// Put dead or cancelled jobs back into the line, due at once, with their attempts counted from the beginning.
///
/// A job whose unique key is in use stays where it is.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq retry 42 43\npq retry --queue mail --yes"))]
pub(crate) struct Retry {
    /// The jobs' numbers.
    #[arg(required_unless_present = "queue", value_parser = job_output::parse_id, allow_negative_numbers = true)]
    ids: Vec<i64>,
    /// All dead jobs of this queue.
    #[arg(long, value_name = "QUEUE", conflicts_with = "ids")]
    queue: Option<String>,
    #[command(flatten)]
    yes: Confirmation,
}

impl Retry {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        if let Some(name) = &self.queue {
            let queue = pq.queue::<()>(name)?;
            let dead = queue.counts()?.dead;
            if dead > 0
                && !self
                    .yes
                    .confirm(&format!("puts {} of {name:?} back into the line", plural(dead, "dead job")))?
            {
                return Ok(ExitCode::from(1));
            }
            let back = output::with_spinner("putting back", || queue.retry_all_dead())?;
            output::print(&format!("{} back in the line", plural(back, "dead job")))?;
            if back < dead {
                let stay = plural(dead - back, "job");
                output::print_error(&format!("{stay} stayed dead, for a unique key is in use"));
                return Ok(ExitCode::from(1));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut all = true;
        for id in &self.ids {
            let said = match pq.find(JobId(*id))? {
                Some(job) if matches!(job.state, JobState::Dead | JobState::Cancelled) => {
                    match pq.queue::<()>(job.queue.as_str())?.retry(job.id)? {
                        true => Ok(format!("{id}: back in the line of {:?}", job.queue.as_str())),
                        false => Err(format!("{id}: stays {}, for its unique key is in use", job.state)),
                    }
                }
                Some(job) => {
                    Err(format!("{id}: is {}, and only a dead or cancelled job can be put back", job.state))
                }
                None => Err(format!("{id}: is done and nothing was kept of it, or was never there")),
            };
            all &= said.is_ok();
            match said {
                Ok(done) => output::print(&done)?,
                Err(why) => output::print_error(&why),
            }
        }
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}
