//! `pq migrate` and `pq schema`.

use std::process::ExitCode;

use crate::args::Global;
use crate::failure::Failure;
use crate::output;

pub(crate) fn migrate(global: &Global) -> Result<ExitCode, Failure> {
    global.connect()?.migrate()?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn schema(global: &Global) -> Result<ExitCode, Failure> {
    let sql = global.detached()?.schema_sql();
    output::print_lines([sql.trim_end()]).map_err(|error| Failure::writing(&error))?;
    Ok(ExitCode::SUCCESS)
}
