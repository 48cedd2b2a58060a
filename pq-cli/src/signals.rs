//! What signals do.

use pq_diesel::Stop;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;

/// Ends a wait on the signals that would end the process, so that nothing is left half done.
pub(crate) fn stop_on_signals() -> Result<Stop, Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Failure::Io(format!("signals cannot be handled: {error}")))?;
    let stop = Stop::new();
    let stopped = stop.clone();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopped.stop();
        }
    });
    Ok(stop)
}
