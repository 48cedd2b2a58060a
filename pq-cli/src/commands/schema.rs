//! `pq schema`.

use std::process::ExitCode;

use super::examples;
use crate::failure::Failure;
use crate::global::Global;
use crate::output;

/// Print the SQL that `pq migrate` runs on an empty database.
#[derive(Debug, clap::Args)]
#[command(after_help = examples("pq schema --schema app | psql -v ON_ERROR_STOP=1"))]
pub(crate) struct Schema {}

impl Schema {
    pub(crate) fn run(&self, global: &Global) -> Result<ExitCode, Failure> {
        let sql = global.detached()?.schema_sql();
        output::print(sql.trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}
