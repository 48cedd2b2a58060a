//! Jobs that have ended, and jobs that are cancelled.

/// Keeps a job that can never be worked. Twice the same one is once.
pub(super) const BURY: &str = "\
INSERT INTO {archive}
    (id, data, q_name, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key, error,
    outcome)
SELECT $1, $2::json, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'dead'
ON CONFLICT (id) DO NOTHING";

/// Archives a job that nobody holds. $1 queue, $2 job.
pub(super) const CANCEL_WAITING: &str = "\
WITH free AS MATERIALIZED (
    SELECT ctid FROM {jobs} WHERE q_name = $1 AND id = $2 AND dequeued_at IS NULL FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free)) RETURNING *
), cleared AS (
    DELETE FROM {unique} AS had USING gone
    WHERE had.q_name = gone.q_name AND had.unique_key = gone.unique_key AND had.job = gone.id
)
INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
    unique_key, outcome, error)
SELECT id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key,
    'cancelled', error
FROM gone
RETURNING id";

/// Tells the holder of a job's lease that it is unwanted. $1 job, $2 queue.
pub(super) const CANCEL_LEASED: &str = "\
UPDATE {leases} AS lease
SET cancelled = CASE WHEN $1 = ANY (cancelled) THEN cancelled ELSE array_append(cancelled, $1::bigint) END
WHERE q_name = $2 AND $1 = ANY (jobs)
    AND NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = $1)
RETURNING id";

/// The jobs that are in a state, the latest first, with the columns of LIST. $1 queue, $2 state, $3 and $4 the end and
/// the id of the last job of the previous page or null, $5 the most rows.
pub(super) const ARCHIVED: &str = "\
SELECT id, q_name, outcome, data::text, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
    unique_key, error, result::text, NULL::timestamptz, ended_at
FROM {archive}
WHERE q_name = $1 AND outcome = $2
    AND ($3::timestamptz IS NULL OR (ended_at, id) < ($3, $4::bigint))
ORDER BY ended_at DESC, id DESC
LIMIT $5";

/// Puts jobs of the archive back into the line. Of those that share a unique key the oldest goes, if none
/// waits or runs. $1 queue, $2 jobs, or null for all that are dead.
pub(super) const REVIVE: &str = "\
WITH wanted AS MATERIALIZED (
    SELECT id, unique_key FROM {archive}
    WHERE q_name = $1
        AND CASE WHEN $2::bigint[] IS NULL THEN outcome = 'dead' ELSE id = ANY ($2) AND outcome <> 'done' END
        AND NOT EXISTS (SELECT FROM {unique} AS had
            WHERE had.q_name = $1 AND had.unique_key = {archive}.unique_key AND {is_live}(had.job, had.lease))
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {archive}
    WHERE id IN (SELECT id FROM wanted WHERE unique_key IS NULL
        UNION ALL SELECT min(id) FROM wanted WHERE unique_key IS NOT NULL GROUP BY unique_key)
    RETURNING *
)
INSERT INTO {jobs} (id, q_name, data, enqueued_at, expected_at, priority, serial_key, unique_key, error)
SELECT id, q_name, data, enqueued_at, expected_at, priority, serial_key, unique_key, error FROM gone ORDER BY id";

/// $1 queue, $2 outcome, $3 age in microseconds.
pub(super) const PRUNE: &str = "\
DELETE FROM {archive}
WHERE q_name = $1 AND outcome = $2 AND ended_at <= statement_timestamp() - $3 * interval '1 microsecond'";

/// Of all queues, some at a time. $1 outcome, $2 age in microseconds.
pub(super) const PRUNE_ALL: &str = "\
DELETE FROM {archive} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {archive}
    WHERE outcome = $1 AND ended_at <= statement_timestamp() - $2 * interval '1 microsecond'
    ORDER BY ended_at LIMIT 10000 FOR UPDATE SKIP LOCKED))";

/// Deletes what nobody holds; what others hold is passed over, not waited for. $1 queue.
pub(super) const CLEAR: &str = "\
WITH free AS MATERIALIZED (
    SELECT ctid FROM {jobs} WHERE q_name = $1 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free)) RETURNING id, unique_key
), cleared AS (
    DELETE FROM {unique} AS had USING gone
    WHERE had.q_name = $1 AND had.unique_key = gone.unique_key AND had.job = gone.id
)
SELECT count(*) FROM gone";
