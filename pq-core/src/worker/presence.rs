//! What a worker tells the store of itself, and is told.

use std::time::Instant;

use super::shared::Shared;
use crate::{Heartbeat, HeartbeatReply, Store, StoreError, WorkerId};

/// The worker as the store knows it.
#[derive(Default)]
pub(super) struct Presence {
    worker: Option<WorkerId>,
    told: Option<Instant>,
    /// Whether an error was logged that will come again.
    complained: bool,
}

impl Presence {
    /// Tells of the worker, if it is time.
    pub(super) fn beat<S: Store>(&mut self, shared: &Shared<S>) {
        let Some(interval) = shared.settings.heartbeat_every else { return };
        if self.told.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        self.told = Some(Instant::now());
        let beat = Heartbeat {
            worker: self.worker,
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
            supervisor: shared.settings.supervisor.unwrap_or_else(std::process::id),
            queues: shared.lines.names(),
            threads: shared.settings.threads,
            status: shared.signals.status(),
        };
        let store = shared.pq.store();
        let beaten: Result<HeartbeatReply, S::Error> =
            store.with_connection(|conn| store.heartbeat(conn, &beat));
        match beaten {
            Ok(HeartbeatReply { worker, stop }) => {
                self.worker = Some(worker);
                if let Some(mode) = stop.filter(|mode| shared.signals.mode() < Some(*mode)) {
                    tracing::info!(%worker, %mode, "the worker is told through the store to stop");
                    shared.signals.stop(mode);
                }
            }
            Err(error) if error.is_unavailable() || self.complained => {
                tracing::debug!(%error, "the worker cannot tell of itself");
            }
            Err(error) => {
                self.complained = true;
                tracing::warn!(%error, "the worker cannot tell of itself; it works all the same");
            }
        }
    }

    /// The worker has ended.
    pub(super) fn leave<S: Store>(&self, shared: &Shared<S>) {
        let Some(worker) = self.worker else { return };
        let store = shared.pq.store();
        let left: Result<(), S::Error> = store.with_connection(|conn| store.deregister(conn, worker));
        if let Err(error) = left {
            tracing::debug!(%error, "the worker's end is not noted; it will be forgotten");
        }
    }
}
