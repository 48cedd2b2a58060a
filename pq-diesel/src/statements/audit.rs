//! Statements of the audit log.

/// Adds an entry and returns its id. $1 operator, $2 operation, $3 queue or null, $4 job or null, $5 details or null,
/// $6 count.
pub(super) const RECORD: &str = "\
INSERT INTO {audit} (actor, action, q_name, job, details, count) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id";

/// Adds to the count of an entry. $1 number, $2 entry.
pub(super) const ADD_TO_RECORD: &str = "UPDATE {audit} SET count = count + $1 WHERE id = $2";

/// Lists entries, the latest first. $1 entry or null, $2 most rows.
pub(super) const AUDIT: &str = "\
SELECT id, at, actor, action, q_name, job, details, count FROM {audit}
WHERE $1::bigint IS NULL OR id < $1 ORDER BY id DESC LIMIT $2";

/// Deletes up to 10,000 entries. $1 least age in microseconds.
///
/// Order: the oldest first. SKIP LOCKED skips entries that another session has locked.
pub(super) const PRUNE_AUDIT: &str = "\
DELETE FROM {audit} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {audit} WHERE at <= statement_timestamp() - $1 * interval '1 microsecond'
    ORDER BY at LIMIT 10000 FOR UPDATE SKIP LOCKED))";
