//! Handles signals.

use pq_diesel::CancellationToken;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;

/// Starts to catch these signals.
pub(crate) fn catch(signals: impl IntoIterator<Item = i32>) -> Result<Signals, Failure> {
    Signals::new(signals).map_err(|error| Failure::Io(format!("cannot handle signals: {error}")))
}

/// Returns a token that SIGINT, SIGTERM and SIGHUP cancel, so that the command can clean up.
pub(crate) fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let mut signals = catch([SIGINT, SIGTERM, SIGHUP])?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopped.cancel();
        }
    });
    Ok(stop)
}
