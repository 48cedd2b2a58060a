//! Asking before something is lost.

use std::io::{self, BufRead, IsTerminal};

use crate::failure::Failure;
use crate::output;

/// The word that answers beforehand.
#[derive(Debug, clap::Args)]
pub(crate) struct Confirmation {
    /// Do it without asking.
    #[arg(long, short)]
    yes: bool,
}

impl Confirmation {
    /// Asks about what a describe finds, as [`Confirmation::confirm`] does; where it finds nothing there is nothing to ask. Where
    /// the answer was said beforehand the describe is not made: it may read a whole table.
    pub(crate) fn confirm_if_any(
        &self,
        describe: impl FnOnce() -> Result<Option<String>, Failure>,
    ) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        describe()?.map_or(Ok(true), |what| self.confirm(&what))
    }

    /// Asks whether this is to be done, where that was not said beforehand. An error where nobody can be asked.
    pub(crate) fn confirm(&self, what: &str) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage(format!("this {what}; say --yes where nobody can be asked")));
        }
        output::print_status(&format!("This {what}. Go on? [y/N]"));
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::Io(error.to_string()))?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }
}
