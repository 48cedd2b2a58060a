//! Registered workers.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::MemoryStore;
use super::state::{Registered, State};
use super::transaction::MemoryConn;
use crate::store::Workers;
use crate::{Error, Heartbeat, HeartbeatReply, StopMode, WorkerId, WorkerInfo};

impl Workers for MemoryStore {
    fn heartbeat(&self, conn: &mut MemoryConn, heartbeat: &Heartbeat) -> Result<HeartbeatReply, Error> {
        let now = Utc::now();
        conn.operate(|state, _| {
            let id = heartbeat.worker.unwrap_or_else(|| WorkerId(state.next_tx()));
            let worker = state.workers.entry(id).or_insert_with(|| Registered {
                heartbeat: heartbeat.clone(),
                started_at: now,
                heartbeat_at: now,
                stop: None,
            });
            (worker.heartbeat, worker.heartbeat_at) = (heartbeat.clone(), now);
            Ok(HeartbeatReply { worker: id, stop: worker.stop })
        })
    }

    fn deregister(&self, conn: &mut MemoryConn, worker: WorkerId) -> Result<(), Error> {
        conn.operate(|state, _| {
            state.workers.remove(&worker);
            Ok(())
        })
    }

    fn workers(&self, conn: &mut MemoryConn) -> Result<Vec<WorkerInfo>, Error> {
        let now = Utc::now();
        let info = |(id, worker): (&WorkerId, &Registered)| WorkerInfo {
            id: *id,
            host: worker.heartbeat.host.clone(),
            pid: worker.heartbeat.pid,
            supervisor: worker.heartbeat.supervisor,
            queues: worker.heartbeat.queues.iter().map(ToString::to_string).collect(),
            threads: worker.heartbeat.threads,
            started_at: worker.started_at,
            heartbeat_age: age(worker, now),
            stop: worker.stop,
            status: worker.heartbeat.status.clone(),
        };
        conn.operate(|state, _| Ok(state.workers.iter().map(info).collect()))
    }

    fn stop_worker(&self, conn: &mut MemoryConn, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        conn.operate(|state, _| {
            let Some(worker) = state.workers.get_mut(&worker) else { return Ok(false) };
            worker.stop = worker.stop.max(Some(mode));
            Ok(true)
        })
    }
}

/// Forgets the workers without a recent heartbeat.
pub(super) fn forget_silent(state: &mut State, now: DateTime<Utc>) {
    state.workers.retain(|_, worker| age(worker, now) < WorkerInfo::FORGOTTEN_AFTER);
}

/// Returns the time since the last heartbeat.
fn age(worker: &Registered, now: DateTime<Utc>) -> Duration {
    (now - worker.heartbeat_at).to_std().unwrap_or_default()
}
