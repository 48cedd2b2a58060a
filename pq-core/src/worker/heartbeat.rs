//! What a worker tells the store of itself, and is told.

use std::time::Instant;

use super::shared::Shared;
use crate::{Heartbeat, HeartbeatReply, Store, StoreError, WorkerId};

/// The worker as the store knows it.
#[derive(Default)]
pub(super) struct HeartbeatSender {
    worker: Option<WorkerId>,
    sent_at: Option<Instant>,
    /// Whether an error was logged that will come again.
    warned: bool,
}

impl HeartbeatSender {
    /// Tells of the worker, if it is time.
    pub(super) fn send_if_due<S: Store>(&mut self, shared: &Shared<S>) {
        let Some(interval) = shared.settings.heartbeat_every else { return };
        if self.sent_at.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        self.sent_at = Some(Instant::now());
        let heartbeat = Heartbeat {
            worker: self.worker,
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
            supervisor: shared.settings.supervisor.unwrap_or_else(std::process::id),
            queues: shared.queues.names(),
            threads: shared.settings.threads,
            status: shared.signals.status(),
        };
        let store = shared.pq.store();
        let reply: Result<HeartbeatReply, S::Error> =
            store.with_connection(|conn| store.heartbeat(conn, &heartbeat));
        match reply {
            Ok(HeartbeatReply { worker, stop }) => {
                self.worker = Some(worker);
                if let Some(mode) = stop.filter(|mode| shared.signals.mode() < Some(*mode)) {
                    tracing::info!(%worker, %mode, "the worker was asked through the store to stop");
                    shared.signals.stop(mode);
                }
            }
            Err(error) if error.is_unavailable() || self.warned => {
                tracing::debug!(%error, "the worker cannot tell of itself");
            }
            Err(error) => {
                self.warned = true;
                tracing::warn!(%error, "the worker cannot tell of itself; it works all the same");
            }
        }
    }

    /// The worker has ended.
    pub(super) fn deregister<S: Store>(&self, shared: &Shared<S>) {
        let Some(worker) = self.worker else { return };
        let store = shared.pq.store();
        let left: Result<(), S::Error> = store.with_connection(|conn| store.deregister(conn, worker));
        if let Err(error) = left {
            tracing::debug!(%error, "the worker's end is not noted; it will be forgotten");
        }
    }
}
