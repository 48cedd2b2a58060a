//! Registered workers.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::MemoryStore;
use super::state::{Known, State};
use super::transaction::MemoryConn;
use crate::store::Workers;
use crate::{Error, Heartbeat, HeartbeatReply, StopMode, WorkerId, WorkerInfo};

impl Workers for MemoryStore {
    fn heartbeat(&self, conn: &mut MemoryConn, beat: &Heartbeat) -> Result<HeartbeatReply, Error> {
        let now = Utc::now();
        conn.operate(|state, _| Ok(heartbeat(state, beat, now)))
    }

    fn deregister(&self, conn: &mut MemoryConn, worker: WorkerId) -> Result<(), Error> {
        conn.operate(|state, _| {
            state.workers.remove(&worker);
            Ok(())
        })
    }

    fn workers(&self, conn: &mut MemoryConn) -> Result<Vec<WorkerInfo>, Error> {
        let now = Utc::now();
        conn.operate(|state, _| Ok(list(state, now)))
    }

    fn stop_worker(&self, conn: &mut MemoryConn, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        conn.operate(|state, _| Ok(stop(state, worker, mode)))
    }
}

fn heartbeat(state: &mut State, beat: &Heartbeat, now: DateTime<Utc>) -> HeartbeatReply {
    let worker = beat.worker.unwrap_or_else(|| WorkerId(state.next_tx()));
    let known = state.workers.entry(worker).or_insert_with(|| Known {
        beat: beat.clone(),
        started_at: now,
        beat_at: now,
        stop: None,
    });
    (known.beat, known.beat_at) = (beat.clone(), now);
    HeartbeatReply { worker, stop: known.stop }
}

pub(super) fn forget_silent(state: &mut State, now: DateTime<Utc>) {
    state.workers.retain(|_, known| heard(known, now) < WorkerInfo::FORGOTTEN_AFTER);
}

fn heard(known: &Known, now: DateTime<Utc>) -> Duration {
    (now - known.beat_at).to_std().unwrap_or_default()
}

fn list(state: &State, now: DateTime<Utc>) -> Vec<WorkerInfo> {
    let info = |(id, known): (&WorkerId, &Known)| WorkerInfo {
        id: *id,
        host: known.beat.host.clone(),
        pid: known.beat.pid,
        supervisor: known.beat.supervisor,
        queues: known.beat.queues.iter().map(ToString::to_string).collect(),
        threads: known.beat.threads,
        started_at: known.started_at,
        heard: heard(known, now),
        stop: known.stop,
        status: known.beat.status.clone(),
    };
    state.workers.iter().map(info).collect()
}

fn stop(state: &mut State, worker: WorkerId, mode: StopMode) -> bool {
    let Some(known) = state.workers.get_mut(&worker) else { return false };
    known.stop = known.stop.max(Some(mode));
    true
}
