//! `pq move`.

use std::process::ExitCode;

use pq_diesel::{JobId, Operation};

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::filtered::{self, Conditions, Words};
use crate::global::Global;
use crate::{job_output, output};

/// Move waiting jobs from one queue to another. They keep their ids, times, keys and attempts.
///
/// Running jobs are not moved, and neither are jobs whose unique key is in use in the target queue.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq move mail slow-mail --id 42 --id 43\npq move mail mail-2 --yes"))]
pub(crate) struct Move {
    /// Source queue.
    from: String,
    /// Target queue.
    to: String,
    /// Only the job with this id. Can be repeated.
    #[arg(long, value_name = "ID", value_parser = job_output::parse_id, allow_negative_numbers = true)]
    #[arg(conflicts_with = "Conditions")]
    id: Vec<i64>,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    yes: Confirmation,
}

impl Move {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let (from, to) = (pq.queue::<()>(&self.from)?, pq.queue::<()>(&self.to)?);
        if from.name() == to.name() {
            return Err(Failure::Usage(format!(
                "invalid target queue {:?}: it must differ from the source queue",
                self.to
            )));
        }
        if self.id.is_empty() {
            let words = Words {
                verb: "move",
                past: "moved",
                note: format!(" to {:?}", self.to),
                job: "job",
                passed: format!("a transaction holds them, or the unique key is in use in {:?}", self.to),
            };
            let operation = Operation::Move { to: to.name().clone() };
            return filtered::operate(&pq, &self.from, &self.conditions, &[], &operation, &words, &self.yes);
        }
        let ids: Vec<JobId> = self.id.iter().copied().map(JobId).collect();
        let moved = output::with_spinner("moving", || from.move_to(&to, Some(&ids)))?;
        output::print(&format!("{} moved", output::plural(moved, "job")))?;
        let all = moved == ids.len() as u64;
        if !all {
            output::print_error(&format!(
                "{} not moved: not waiting in {:?}, or the unique key is in use in {:?}",
                output::plural(ids.len() as u64 - moved, "job"),
                self.from,
                self.to
            ));
        }
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}
