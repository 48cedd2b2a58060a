//! Asks for confirmation before data is changed or deleted.

use std::io::{self, BufRead, IsTerminal};

use crate::failure::Failure;
use crate::output;

/// The `--yes` option.
#[derive(Debug, clap::Args)]
pub(crate) struct Confirmation {
    /// Do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
}

impl Confirmation {
    /// Asks for confirmation of what `describe` returns, and returns `true` if there is nothing to confirm.
    ///
    /// With `--yes`, `describe` is not called, because it may read a whole table.
    pub(crate) fn confirm_if_any(
        &self,
        describe: impl FnOnce() -> Result<Option<String>, Failure>,
    ) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        describe()?.map_or(Ok(true), |what| self.confirm(&what))
    }

    /// Returns whether the user confirms `what`, a verb phrase. Fails without `--yes` and a terminal.
    pub(crate) fn confirm(&self, what: &str) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage(format!("not confirmed: this {what}; pass --yes to confirm")));
        }
        output::print_status(&format!("This {what}. Continue? [y/N]"));
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::Io(error.to_string()))?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }
}
