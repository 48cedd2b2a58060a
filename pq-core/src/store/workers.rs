//! Registered workers.

use super::Connect;
use crate::{Heartbeat, HeartbeatReply, StopMode, WorkerId, WorkerInfo};

/// Registers workers and passes stop requests to them.
pub trait Workers: Connect {
    /// Stores a worker's heartbeat and returns its id and whether it was asked to stop.
    ///
    /// The first heartbeat registers the worker.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn heartbeat(&self, conn: &mut Self::Conn, heartbeat: &Heartbeat) -> Result<HeartbeatReply, Self::Error>;

    /// Removes a worker that has ended.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn deregister(&self, conn: &mut Self::Conn, worker: WorkerId) -> Result<(), Self::Error>;

    /// Returns the registered workers, sorted by id.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn workers(&self, conn: &mut Self::Conn) -> Result<Vec<WorkerInfo>, Self::Error>;

    /// Asks a worker to stop, in the reply to its next heartbeat.
    ///
    /// A mode that is milder than an earlier request changes nothing. Returns `false` if no such worker is registered.
    ///
    /// # Errors
    ///
    /// The store's error.
    fn stop_worker(
        &self,
        conn: &mut Self::Conn,
        worker: WorkerId,
        mode: StopMode,
    ) -> Result<bool, Self::Error>;
}
