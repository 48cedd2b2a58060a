//! Rows of the audit log.

use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz};
use pq_core::{AuditEntry, AuditRecord, JobId};

use super::nearest;

row! {
    /// An entry of the audit log.
    AuditRow, AuditSql {
        id: i64 => BigInt,
        at: PgTimestamp => Timestamptz,
        actor: String => Text,
        action: String => Text,
        queue: Option<String> => Nullable<Text>,
        job: Option<i64> => Nullable<BigInt>,
        details: Option<String> => Nullable<Text>,
        count: i64 => BigInt,
    }
}

impl AuditRow {
    pub(crate) fn into_entry(self) -> AuditEntry {
        let record = AuditRecord {
            actor: self.actor,
            action: self.action,
            queue: self.queue,
            job: self.job.map(JobId),
            details: self.details,
            count: self.count.max(0).unsigned_abs(),
        };
        AuditEntry { id: self.id, at: nearest(self.at), record }
    }
}
