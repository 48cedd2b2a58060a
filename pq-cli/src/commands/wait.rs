//! `pq wait`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use pq_diesel::store::PgStore;
use pq_diesel::{CancellationToken, FailedJob, JobId, JobResult, Wait};
use serde_json::value::RawValue;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::signals::stop_on_signals;
use crate::{job_output, output, values};

/// The SQLSTATE of a missing privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// The interval at which a wait by reading looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Exit status if the job is dead.
const DEAD: u8 = 10;
/// Exit status if the job was cancelled.
const CANCELLED: u8 = 11;
/// Exit status if the job has not ended before the timeout.
const TIMED_OUT: u8 = 12;

/// Wait until a job has ended, and print its result as one line of JSON.
///
/// The result is `null` if the job is done and its handler returned none. The error of a dead or cancelled job is
/// written to standard error. The job is kept in the archive when it is done, also if its handler keeps no history. A
/// job that ended before the command began is found only if it was kept. A role that may only read waits, too, but
/// does not keep the job.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq wait 42\npq wait 42 --timeout 60s | jq .total"))]
pub(crate) struct WaitFor {
    /// Job id.
    #[arg(value_parser = job_output::parse_id, allow_negative_numbers = true)]
    id: i64,
    /// Time to wait, such as 90s. 0s does not wait. Default: without a limit.
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    timeout: Option<Duration>,
}

impl WaitFor {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let stop = stop_on_signals()?;
        let pq = global.connect()?.as_ref().clone().with_cancellation_token(&stop);
        let wait = match self.timeout {
            None => Wait::Forever,
            Some(Duration::ZERO) => Wait::No,
            Some(timeout) => Wait::For(timeout),
        };
        let ended = match pq.wait_for::<Box<RawValue>>(JobId(self.id), wait) {
            Err(error) if error.sqlstate() == Some(INSUFFICIENT_PRIVILEGE) => {
                self.wait_by_reading(&pq, &stop)?
            }
            ended => ended?,
        };
        match ended {
            JobResult::Done(result) => {
                output::print(&output::one_line(result.get()))?;
                Ok(ExitCode::SUCCESS)
            }
            JobResult::Dead(failed) => Ok(report(&failed, "is dead", DEAD)),
            JobResult::Cancelled(failed) => Ok(report(&failed, "was cancelled", CANCELLED)),
            JobResult::Waiting => Ok(self.report_state("waits", TIMED_OUT)),
            JobResult::Running => Ok(self.report_state("runs", TIMED_OUT)),
            JobResult::Unknown => {
                output::print_error(&format!("cannot wait for job {}: {}", self.id, job_output::NOT_FOUND));
                Ok(ExitCode::from(1))
            }
        }
    }

    /// Looks again and again, for a role that may read, but not note that the job is awaited.
    fn wait_by_reading(
        &self,
        pq: &pq_core::Pq<PgStore>,
        stop: &CancellationToken,
    ) -> Result<JobResult<Box<RawValue>>, Failure> {
        let begun = Instant::now();
        output::print_status(
            "waiting by reading, because the role lacks the privileges of a consumer: the job is not kept for this wait, so its \
             end may be unknown",
        );
        loop {
            let found = pq.result(JobId(self.id))?;
            let is_over = self.timeout.is_some_and(|timeout| begun.elapsed() >= timeout);
            if is_over || !matches!(found, JobResult::Waiting | JobResult::Running) {
                return Ok(found);
            }
            if stop.is_cancelled() {
                return Err(pq_core::Error::Stopped.into());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn report_state(&self, state: &str, code: u8) -> ExitCode {
        output::print_error(&format!("job {} has not ended: it {state}", self.id));
        ExitCode::from(code)
    }
}

fn report(failed: &FailedJob, end: &str, code: u8) -> ExitCode {
    let error = failed.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    output::print_error(&format!("job {} {end}{error}", failed.id));
    ExitCode::from(code)
}
