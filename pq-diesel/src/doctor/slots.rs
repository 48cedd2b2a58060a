//! Checks for replication slots that nobody reads and that keep write-ahead log from being removed.

use diesel::prelude::*;
use diesel::sql_types::{Double, Text};

use super::{Exam, Finding, Level, mebibytes};
use crate::Error;

pub(super) const CHECK: &str = "replication slots";

/// The log that an inactive slot may keep without a warning, and without a failure, in bytes.
const WARNING_BYTES: f64 = 16.0 * 1_048_576.0;
const FAILURE_BYTES: f64 = 10_240.0 * 1_048_576.0;

/// Lists inactive slots with the log that they keep. A slot without a position keeps none.
const SLOTS: &str = "
    SELECT slot_name::text AS name, slot_type::text AS kind, pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn
    )::float8 AS bytes
    FROM pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL ORDER BY bytes DESC";

#[derive(QueryableByName)]
struct Slot {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Double)]
    bytes: f64,
}

pub(super) fn examine(_: &Exam<'_>, conn: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let slots: Vec<Slot> = diesel::sql_query(SLOTS).load(conn)?;
    let mut findings: Vec<Finding> = slots.iter().filter_map(assess).collect();
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no inactive slot keeps write-ahead log"));
    }
    Ok(findings)
}

fn assess(slot: &Slot) -> Option<Finding> {
    let level = match slot.bytes {
        bytes if bytes > FAILURE_BYTES => Level::Failure,
        bytes if bytes > WARNING_BYTES => Level::Warning,
        _ => return None,
    };
    let message = format!(
        "the inactive {} slot {:?} keeps {} of write-ahead log, which fills the disk",
        slot.kind,
        slot.name,
        mebibytes(slot.bytes)
    );
    Some(Finding::new(CHECK, level, message).advise(
        "start its consumer again, or drop the slot if the consumer is gone for good; max_slot_wal_keep_size limits what \
         slots keep",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_judged_by_the_log_that_it_keeps() {
        let level = |bytes| {
            let slot = Slot { name: "s".to_owned(), kind: "physical".to_owned(), bytes };
            assess(&slot).map(|finding| finding.level)
        };
        let of = [0.0, WARNING_BYTES, WARNING_BYTES + 1.0, FAILURE_BYTES + 1.0].map(level);
        assert_eq!(of, [None, None, Some(Level::Warning), Some(Level::Failure)]);
    }
}
