//! Rows of registered workers.

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz};
use pq_core::{HeartbeatReply, WorkerId, WorkerInfo};

use super::{nearest, span};

row! {
    /// The reply to a heartbeat.
    HeartbeatRow, HeartbeatSql {
        id: i64 => BigInt,
        stop: Option<String> => Nullable<Text>,
    }
}

impl HeartbeatRow {
    pub(crate) fn into_reply(self) -> HeartbeatReply {
        HeartbeatReply { worker: WorkerId(self.id), stop: self.stop.and_then(|mode| mode.parse().ok()) }
    }
}

row! {
    /// A registered worker.
    WorkerRow, WorkerSql {
        id: i64 => BigInt,
        host: String => Text,
        pid: i64 => BigInt,
        supervisor: i64 => BigInt,
        queues: Vec<String> => Array<Text>,
        threads: i32 => Integer,
        started_at: PgTimestamp => Timestamptz,
        silent_for: i64 => BigInt,
        stop: Option<String> => Nullable<Text>,
        status: String => Text,
    }
}

impl WorkerRow {
    pub(crate) fn into_info(self) -> WorkerInfo {
        WorkerInfo {
            id: WorkerId(self.id),
            host: self.host,
            pid: u32::try_from(self.pid).unwrap_or_default(),
            supervisor: u32::try_from(self.supervisor).unwrap_or_default(),
            queues: self.queues,
            threads: usize::try_from(self.threads).unwrap_or_default(),
            started_at: nearest(self.started_at),
            heartbeat_age: span(self.silent_for),
            stop: self.stop.and_then(|mode| mode.parse().ok()),
            // A worker of another version may report a status that this one cannot read.
            status: serde_json::from_str(&self.status).unwrap_or_default(),
        }
    }
}
