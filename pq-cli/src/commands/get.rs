//! `pq get`.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgAction;
use pq_diesel::{Wait, codec_by_name};
use serde_json::value::RawValue;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;
use crate::signals::stop_on_signals;

/// Get jobs, and print the payload of each as one line of JSON.
///
/// The jobs are gone when their lines have been written; if they cannot be, they are back.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq get orders\npq get orders --wait 0 --count 100 | while read -r order; do …; done"
))]
pub(crate) struct Get {
    /// The queue's name.
    pub(crate) queue: String,
    /// How long to wait for a job: so many seconds, 0 for ever, negative not at all.
    #[arg(long, value_name = "SECONDS", default_value_t = -1.0, action = ArgAction::Set,
          allow_negative_numbers = true, value_parser = seconds)]
    pub(crate) wait: f64,
    /// Up to so many jobs at once.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) count: NonZeroUsize,
    /// How payloads are stored: json or pickle.
    #[arg(long, default_value = "json")]
    pub(crate) codec: String,
}

impl Get {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let codec = codec_by_name(&self.codec)?;
        let stop = stop_on_signals()?;
        let pq = global.connect()?;
        let queue = pq.queue::<Box<RawValue>>(&self.queue)?.with_codec(codec).with_stop(&stop);
        // As in tpq: 0 waits for ever, and a negative number not at all.
        let wait = match self.wait {
            seconds if seconds < 0.0 => Wait::No,
            0.0 => Wait::Forever,
            seconds => Wait::For(Duration::from_secs_f64(seconds)),
        };
        // The jobs are gone when the transaction commits, which is after their lines have been written.
        let written = queue.get_many_with(self.count.get(), wait, |_, jobs| {
            let lines: Vec<String> = jobs.iter().map(|job| output::one_line(job.data.get())).collect();
            output::print_lines(lines.iter().map(String::as_str)).map_err(|error| Failure::writing(&error))
        })?;
        Ok(if written.is_some() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number of seconds".to_owned())?;
    if seconds.is_finite() && seconds < 1e9 {
        Ok(seconds)
    } else {
        Err("it is not below 1000000000 seconds; 0 waits for ever".to_owned())
    }
}
