//! The pauses of a worker between retries of a call that the store refused.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(20);
const MAX: Duration = Duration::from_secs(2);

/// Pauses that double after each error, up to two seconds.
#[derive(Debug)]
pub(super) struct ErrorBackoff(Duration);

impl Default for ErrorBackoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl ErrorBackoff {
    /// Returns how long to pause after one more error.
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(MAX);
        pause
    }

    /// Starts again with the shortest pause.
    pub(super) fn reset(&mut self) {
        self.0 = FIRST;
    }
}
