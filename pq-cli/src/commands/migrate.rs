//! `pq migrate`.

use std::process::ExitCode;

use pq_diesel::admin::QueueCounts;
use pq_diesel::{Error, Pq};

use super::examples;
use crate::confirm::Confirmation;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Create the tables, or migrate them to the current version.
///
/// Safe to run at any time and from any number of processes.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq migrate --schema app --table work\npq migrate --dry-run\npq migrate --down-to 0 --dry-run\n\
     pq migrate --down-to 0"
))]
pub(crate) struct Migrate {
    /// Print the SQL without running it.
    #[arg(long)]
    dry_run: bool,
    /// Revert the migrations after this version. 0 reverts all of them and deletes every job.
    #[arg(long, value_name = "VERSION")]
    down_to: Option<String>,
    #[command(flatten)]
    yes: Confirmation,
}

impl Migrate {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        if self.dry_run {
            let (steps, nothing) = match &self.down_to {
                Some(version) => (
                    pq.transaction(|conn| pq.revert_sql_on(conn, version))?,
                    "no migration would be reverted",
                ),
                None => (
                    pq.transaction(|conn| pq.pending_migrations_on(conn))?,
                    "up to date: no migration is pending",
                ),
            };
            if steps.is_empty() {
                output::print_status(nothing);
            }
            for step in steps {
                output::print(&format!("-- {}\n{}", step.version, step.sql.trim_end()))?;
            }
        } else if let Some(version) = &self.down_to {
            let after = pq.transaction(|conn| pq.migrations_after_on(conn, version))?;
            if !after.is_empty() && !self.yes.confirm(&describe_loss(&pq, version, &after)?)? {
                return Ok(ExitCode::from(1));
            }
            let undone = pq.transaction(|conn| pq.migrate_down_to_on(conn, version))?;
            output::print(&format!("{} reverted", output::plural(undone.len() as u64, "migration")))?;
        } else {
            let ran = output::with_spinner("migrating", || pq.migrate())?;
            output::print(&match ran.len() {
                0 => "up to date: no migration is pending".to_owned(),
                ran => format!("{} applied", output::plural(ran as u64, "migration")),
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn describe_loss(pq: &Pq, version: &str, after: &[String]) -> Result<String, Failure> {
    let migrations = output::plural(after.len() as u64, "migration");
    if version != "0" {
        let after = after.join(" and ");
        return Ok(format!("reverts {migrations} ({after}) and deletes the data that only they can store"));
    }
    let jobs = match pq.overview() {
        Ok(queues) => output::plural(queues.iter().map(all_jobs).sum(), "job"),
        // Some of the counted tables belong to a later migration.
        Err(Error::NotMigrated { .. }) => "all jobs".to_owned(),
        Err(error) => return Err(error.into()),
    };
    Ok(format!("reverts {migrations}, drops the tables and deletes {jobs} permanently"))
}

fn all_jobs(queue: &QueueCounts) -> u64 {
    queue.waiting() + queue.running + queue.dequeued + queue.dead + queue.cancelled + queue.done
}
