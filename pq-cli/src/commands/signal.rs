//! `pq signal`.

use std::process::ExitCode;

use pq_diesel::JobId;
use serde_json::value::RawValue;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::job_output;
use crate::output;

/// Send a signal to a job that waits or runs.
///
/// The handler waits for it by name and receives its value once. The signal is kept if it comes first. If the job
/// waits for it, the job is due at once.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq signal 42 approved\npq signal 42 approved '{\"by\": \"Ann\"}'"
))]
pub(crate) struct Signal {
    /// Job id.
    #[arg(value_parser = job_output::parse_id, allow_negative_numbers = true)]
    id: i64,
    /// Name of the signal.
    name: String,
    /// Value of the signal, as JSON.
    #[arg(default_value = "null", value_parser = json, allow_negative_numbers = true)]
    value: Box<RawValue>,
}

impl Signal {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        match global.connect()?.signal(JobId(self.id), &self.name, &self.value) {
            Ok(()) => output::print(&format!("{}: signalled", self.id))?,
            Err(pq_diesel::Error::Refused(refused @ pq_core::Error::NotLive { .. })) => {
                output::print_error(&refused.to_string());
                return Ok(ExitCode::from(1));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn json(text: &str) -> Result<Box<RawValue>, String> {
    RawValue::from_string(text.to_owned())
        .map_err(|found| format!("expected JSON, such as 7 or '\"text\"': {found}"))
}
