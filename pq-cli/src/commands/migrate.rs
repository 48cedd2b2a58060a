//! `pq migrate`.

use std::process::ExitCode;

use super::examples;
use crate::confirm::Yes;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Create the table, or bring it up to date; safe at any time, from any number of processes.
#[derive(Debug, clap::Args)]
#[command(after_help = examples(
    "pq migrate --schema app --table work\npq migrate --dry-run\npq migrate --down-to 20261121000000"
))]
pub(crate) struct Migrate {
    /// Print the SQL that would be run, and run none.
    #[arg(long, conflicts_with = "down_to")]
    dry_run: bool,
    /// Undo the migrations after the one of this version; 0 undoes all, and deletes every job.
    #[arg(long, value_name = "VERSION")]
    down_to: Option<String>,
    #[command(flatten)]
    yes: Yes,
}

impl Migrate {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq = global.connect()?;
        if self.dry_run {
            let pending = pq.transaction(|conn| pq.pending_migrations_on(conn))?;
            if pending.is_empty() {
                output::tell("all migrations have run");
            }
            for step in pending {
                output::print(&format!("-- {}\n{}", step.version, step.sql.trim_end()))?;
            }
        } else if let Some(version) = &self.down_to {
            let what = match version.as_str() {
                "0" => "undoes all migrations and deletes every job for good".to_owned(),
                _ => format!("undoes the migrations after {version}, with what only they can hold"),
            };
            if !self.yes.confirm(&what)? {
                return Ok(ExitCode::from(1));
            }
            let undone = pq.transaction(|conn| pq.migrate_down_to_on(conn, version))?;
            output::print(&format!("{} migrations undone", undone.len()))?;
        } else {
            pq.migrate()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
