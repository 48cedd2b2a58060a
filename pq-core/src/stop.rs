//! Stopping a worker: the mode, and the signal that carries it to the threads.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{CancellationToken, Error};

/// The way in which a worker stops. Modes are ordered by urgency, and a later request never makes the mode less urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopMode {
    /// Ends when no job is ready.
    Drain = 1,
    /// Finishes the running jobs. Jobs that were taken and not begun are given back.
    Finish = 2,
    /// Gives back jobs that were taken and not begun, and requests through their contexts that running handlers end. A
    /// job that is still running keeps its lease or its transaction until its handler returns, so nothing runs twice.
    /// If a leased handler then returns an error, its job is given back and the attempt is not counted.
    Abort = 3,
}

impl StopMode {
    /// Returns the mode as a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Finish => "finish",
            Self::Abort => "abort",
        }
    }
}

impl fmt::Display for StopMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StopMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "drain" | "all" => Ok(Self::Drain),
            "finish" | "current" => Ok(Self::Finish),
            "abort" | "now" => Ok(Self::Abort),
            _ => Err(Error::InvalidSetting(format!(
                "unknown stop mode {text:?}; expected `drain`, `finish` or `abort`"
            ))),
        }
    }
}

/// The most urgent stop mode that was requested, and a token that ends the worker's waits.
#[derive(Debug, Default)]
pub(crate) struct StopSignal {
    mode: AtomicU8,
    /// When the first request came.
    requested_at: OnceLock<Instant>,
    waits: CancellationToken,
}

impl StopSignal {
    pub(crate) fn request(&self, mode: StopMode) {
        self.requested_at.get_or_init(Instant::now);
        self.mode.fetch_max(mode as u8, Ordering::SeqCst);
        self.waits.cancel();
    }

    pub(crate) fn mode(&self) -> Option<StopMode> {
        match self.mode.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(StopMode::Drain),
            2 => Some(StopMode::Finish),
            _ => Some(StopMode::Abort),
        }
    }

    /// Returns how much of `within` is left since the first request, or `None` before it.
    pub(crate) fn time_left(&self, within: Duration) -> Option<Duration> {
        self.requested_at.get().map(|at| within.saturating_sub(at.elapsed()))
    }

    /// Returns whether no further handler may start.
    pub(crate) fn is_finishing(&self) -> bool {
        self.mode() >= Some(StopMode::Finish)
    }

    pub(crate) fn is_aborting(&self) -> bool {
        self.mode() == Some(StopMode::Abort)
    }

    /// Returns the token that is cancelled by the first request of any mode.
    pub(crate) fn waits(&self) -> &CancellationToken {
        &self.waits
    }
}
