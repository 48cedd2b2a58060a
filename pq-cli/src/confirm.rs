//! Asking before something is lost.

use std::io::{self, BufRead, IsTerminal};

use crate::failure::Failure;
use crate::output;

/// The word that answers beforehand.
#[derive(Debug, clap::Args)]
pub(crate) struct Yes {
    /// Do it without asking.
    #[arg(long, short)]
    yes: bool,
}

impl Yes {
    /// Asks whether this is to be done, where that was not said beforehand. An error where nobody can be asked.
    pub(crate) fn confirm(&self, what: &str) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage(format!("this {what}; say --yes where nobody can be asked")));
        }
        output::tell(&format!("This {what}. Go on? [y/N]"));
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::Io(error.to_string()))?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }
}
