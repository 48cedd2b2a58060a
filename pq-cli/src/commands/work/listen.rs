//! The routes of `pq work --listen`.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use pq_diesel::{Control, Pq};
use pq_metrics::{Collector, router, serve};

use crate::failure::Failure;
use crate::output;

/// The connections that a scrape and a readiness check use.
pub(super) const CONNECTIONS: u32 = 2;

/// The time after which a worker hangs whose thread for heartbeats does nothing.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(60);

/// Reserves the address, so that one that is in use is reported at once.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| Failure::Io(format!("cannot listen on {address}: {error}")))
}

/// Returns the reason if the worker hangs.
pub(super) fn check(worker: &Control) -> Result<(), String> {
    match worker.silent_for() {
        Some(silent) if silent > SILENT_FOR => Err(format!(
            "the worker has neither extended leases nor sent a heartbeat for {} s",
            silent.as_secs()
        )),
        _ => Ok(()),
    }
}

/// Serves `/metrics`, `/healthz` and `/readyz` until the process ends. `/healthz` says what `is_healthy` returns.
pub(super) fn start(
    listener: TcpListener,
    pq: &Pq,
    is_healthy: impl Fn() -> Result<(), String> + Send + Sync + 'static,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::Io(format!("cannot serve metrics: {error}"));
    let address = listener.local_addr().map_err(failed)?;
    serve(listener, router(pq, Collector::new(pq), is_healthy)).map_err(failed)?;
    output::print_status(&format!("listening on http://{address}"));
    Ok(())
}
