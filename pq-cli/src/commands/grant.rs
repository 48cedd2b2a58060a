//! `pq grant`.

use std::process::ExitCode;

use pq_diesel::Pq;
use pq_diesel::admin::Role;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Grant a database role the privileges that one kind of process needs.
///
/// A producer puts jobs. A consumer takes and manages jobs, as workers and operators do. A reader counts and lists
/// jobs. Run this command as the owner of the schema.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq grant shop producer\npq grant shop_workers consumer --dry-run"))]
pub(crate) struct Grant {
    /// Database role. It must exist.
    role: String,
    /// Kind of process: producer, consumer or reader.
    kind: Role,
    /// Print the statements without running them.
    #[arg(long)]
    dry_run: bool,
}

impl Grant {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let pq: Pq = global.connect()?;
        if self.dry_run {
            let statements = pq.transaction(|conn| pq.grant_sql_on(conn, self.kind, &self.role))?;
            statements.iter().try_for_each(|statement| output::print(statement))?;
        } else {
            let statements = pq.transaction(|conn| pq.grant_on(conn, self.kind, &self.role))?;
            output::print(&format!(
                "granted {} the privileges of a {} on {}.{} ({})",
                output::escape(&self.role),
                self.kind,
                output::escape(&global.schema),
                output::escape(&global.table),
                output::plural(statements as u64, "statement")
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
