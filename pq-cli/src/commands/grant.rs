//! `pq grant`.

use std::process::ExitCode;

use pq_diesel::{Pq, Role};

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Grant a role of the database what a kind of process needs, and nothing else.
///
/// A producer puts; a consumer takes and looks after jobs, as every worker and operator does; a reader counts and
/// looks. Run it as the owner of the schema.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq grant shop producer\npq grant shop_workers consumer --dry-run"))]
pub(crate) struct Grant {
    /// The role of the database, which must be there.
    role: String,
    /// producer, consumer or reader.
    kind: Role,
    /// Print the statements, and run none.
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
            pq.transaction(|conn| pq.grant_on(conn, self.kind, &self.role))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
