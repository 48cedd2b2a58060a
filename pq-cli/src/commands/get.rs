//! `pq get`.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgAction;
use pq_diesel::{Backoff, CancellationToken, Claim, Outcome, Queue, Wait};
use serde_json::value::RawValue;

use super::examples;
use crate::encoding::Encoding;
use crate::exec::{Environment, Exec, Follow, variables};
use crate::failure::Failure;
use crate::global::Global;
use crate::signals::stop_on_signals;
use crate::{output, values};

/// Get jobs, and print each payload as one line of JSON.
///
/// The jobs are deleted after their lines have been written. If writing fails, they are requeued.
///
/// With --exec, taking the job, running the command and completing the job are one transaction, which stays open
/// while the command runs. The command reads the payload from standard input and the job's metadata from PQ_ID,
/// PQ_ATTEMPT and the other variables that `pq work --help` lists. Exit status 0 completes the job. Any other exit
/// status requeues the job with a failed attempt and the end of standard error as its error, or archives it as dead
/// if no retry is left, and `pq get` exits with status 8.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq get orders\npq get orders --wait 0 --count 100 | while read -r order; do …; done\n\
     pq get orders --wait 60 --exec 'jq .number | xargs ship'"
))]
pub(crate) struct Get {
    /// Queue name. `NAME/pickle` is the queue NAME with pickled payloads, as in Python.
    pub(crate) queue: String,
    /// Run this shell command for each job, one after the other, instead of printing the payloads.
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// With --exec: maximum number of retries of a failed job.
    #[arg(long, value_name = "N", default_value = "3", requires = "exec", value_parser = values::whole)]
    max_retries: u32,
    /// With --exec: delay before a retry: a duration, `linear STEP MAX` or `exponential FIRST MAX`.
    #[arg(long, value_name = "BACKOFF", default_value = "30s", requires = "exec")]
    backoff: Backoff,
    /// With --exec: let the command inherit the environment variables that may hold the password of the database.
    #[arg(long, requires = "exec")]
    pass_credentials: bool,
    /// Seconds to wait for a job. 0 waits without a limit, and a negative number does not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = -1.0, action = ArgAction::Set,
          allow_negative_numbers = true, value_parser = seconds)]
    pub(crate) wait: f64,
    /// Maximum number of jobs.
    #[arg(long, value_name = "N", default_value = "1", value_parser = values::positive::<NonZeroUsize>)]
    pub(crate) count: NonZeroUsize,
    #[command(flatten)]
    encoding: Encoding,
}

impl Get {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let (name, codec) = self.encoding.of(&self.queue)?;
        let stop = stop_on_signals()?;
        let pq = global.connect()?;
        let queue = pq.queue::<Box<RawValue>>(name)?.with_codec(codec).with_cancellation_token(&stop);
        // The same convention as in tpq.
        let wait = match self.wait {
            seconds if seconds < 0.0 => Wait::No,
            0.0 => Wait::Forever,
            seconds => Wait::For(Duration::from_secs_f64(seconds)),
        };
        if let Some(line) = &self.exec {
            return self.exec(&queue, &Exec::Shell(line.clone()), wait, &stop);
        }
        // The lines are written before the transaction commits, so a failed write rolls back the take.
        let written = queue.get_many_with(self.count.get(), wait, |_, jobs| {
            let lines: Vec<String> = jobs.iter().map(|job| output::one_line(job.data.get())).collect();
            output::print_lines(lines.iter().map(String::as_str)).map_err(|error| Failure::writing(&error))
        })?;
        Ok(if written.is_some() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

/// Exit status of `pq get --exec` when a command failed.
const COMMAND_FAILED: u8 = 8;

impl Get {
    /// Runs the command for up to `count` jobs, each in a transaction of its own.
    fn exec(
        &self,
        queue: &Queue<Box<RawValue>>,
        exec: &Exec,
        wait: Wait,
        stop: &CancellationToken,
    ) -> Result<ExitCode, Failure> {
        if exec.is_empty() {
            return Err(Failure::Usage("invalid --exec: the command must not be empty".to_owned()));
        }
        let mut code = ExitCode::from(1);
        for number in 0..self.count.get() {
            let wait = if number == 0 { wait } else { Wait::No };
            let succeeded = queue.get_with(wait, |conn, job| {
                let environment = Environment {
                    variables: variables(&job, None, job.annotations.trace()),
                    pass_credentials: self.pass_credentials,
                };
                let follow =
                    Follow { should_stop: &|| stop.is_cancelled(), on_line: None, returns_output: false };
                let ended = exec
                    .run(job.data.get(), &environment, &follow)
                    .map_err(|error| Failure::Io(format!("cannot run the command: {error}")))?;
                if ended.success() {
                    return Ok(true);
                }
                if stop.is_cancelled() {
                    return Err(pq_core::Error::Stopped.into());
                }
                let error = ended.reason();
                output::print_error(&format!("job {}: {error}", job.id));
                queue.on(conn).settle(&job, self.after_failure(&job, error))?;
                Ok::<_, Failure>(false)
            })?;
            match succeeded {
                None => break,
                Some(true) => code = ExitCode::SUCCESS,
                Some(false) => return Ok(ExitCode::from(COMMAND_FAILED)),
            }
        }
        Ok(code)
    }
}

impl Get {
    /// Returns the outcome of a job whose command failed.
    fn after_failure(&self, job: &Claim, error: String) -> Outcome {
        let failures = u32::try_from(job.attempt.saturating_sub(job.crashes)).unwrap_or_default();
        if failures > self.max_retries {
            output::print_error(&format!(
                "job {} is dead after {}",
                job.id,
                output::plural(u64::from(failures), "failed attempt")
            ));
            return Outcome::Dead { error };
        }
        Outcome::Retry { after: self.backoff.delay(failures, job.id), error, payload: None }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if seconds.is_finite() && seconds < 1e9 {
        Ok(seconds)
    } else {
        Err("expected less than 1000000000 seconds; 0 waits without a limit".to_owned())
    }
}
