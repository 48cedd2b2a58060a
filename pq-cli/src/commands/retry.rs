//! `pq retry`.

use std::process::ExitCode;

use pq_diesel::{JobState, Operation};

use super::examples;
use crate::failure::Failure;
use crate::filtered::{Selection, Words, change_each};
use crate::global::Global;

/// Requeue dead or cancelled jobs. They are due at once, and their attempts start from 0.
///
/// With --queue it requeues dead jobs, or with --state cancelled the cancelled ones. A job is not requeued if its
/// unique key is in use, or its id by a job that waits or runs. A job goes on after its durable steps. With
/// --from-step it repeats that step and the later ones, and a waiting job is due at once, too. A job that waited for
/// others, and was cancelled, waits for none of them any more, unless it is one of a workflow.
///
/// The id of a workflow requeues those of its jobs that are dead or cancelled. If a job of a workflow is requeued,
/// the cancelled jobs of the workflow wait for those before them again.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq retry 42 43\npq retry 42 --from-step charge#2\npq retry 42 --from-job pack\npq retry --queue mail --yes\npq retry --queue mail --state cancelled --task newsletter"
))]
pub(crate) struct Retry {
    #[command(flatten)]
    jobs: Selection,
    /// Forget this step and the later ones, such as charge, or charge#2 for the second one of this name.
    #[arg(long, value_name = "STEP", conflicts_with_all = ["queue", "Conditions"])]
    from_step: Option<String>,
    /// Run this job of the workflow again, and all jobs after it, whatever their outcomes. Takes the id of the
    /// workflow, or of a job of it.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["queue", "Conditions", "from_step"])]
    from_job: Option<String>,
}

impl Retry {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        let dead = self.jobs.conditions.is_for_default_state();
        let words = Words {
            verb: "requeue",
            past: "requeued",
            note: String::new(),
            job: if dead { "dead job" } else { "job" },
            passed: "the unique key or the id is in use".to_owned(),
        };
        match (&self.from_step, &self.from_job) {
            (Some(step), _) => change_each(&self.jobs.ids, &words, |id| pq.retry_from_step(id, step)),
            (None, Some(name)) => change_each(&self.jobs.ids, &words, |id| pq.retry_workflow_from(id, name)),
            (None, None) => self.jobs.change(&pq, &[JobState::Dead], &Operation::Retry, &words),
        }
    }
}
