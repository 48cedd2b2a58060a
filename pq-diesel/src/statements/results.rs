//! Statements of waits for the end of a job.

/// Returns the job with this id: the one that waits or runs, or else the one that ended last. $1 job. No locks.
///
/// A waiting job is ready or scheduled here. Only jobs that ended without being done have their payload.
pub(super) const LOOK: &str = "\
SELECT * FROM (
    SELECT id, q_name,
        CASE WHEN dequeued_at IS NOT NULL THEN 'dequeued' WHEN schedule_at > statement_timestamp() THEN 'scheduled'
            ELSE 'ready' END AS state,
        '' AS data, enqueued_at, schedule_at, expected_at, ROW(priority, attempt, crashes), serial_key, unique_key,
        error, NULL::text AS result, NULL::timestamptz AS lease_until, NULL::timestamptz AS ended_at,
        ROW(annotations::text, NULL::text)
    FROM {jobs} WHERE id = $1
    UNION ALL
    SELECT held.job, lease.q_name, 'running', '', held.enqueued_at, NULL, NULL, ROW(0, held.attempt, 0), NULL, NULL,
        NULL, NULL, lease.lease_until, NULL, ROW(held.annotations::text, NULL::text)
    FROM {leases} AS lease
    CROSS JOIN LATERAL unnest(lease.jobs, lease.enqueued_at, lease.attempt, lease.annotations)
        AS held (job, enqueued_at, attempt, annotations)
    WHERE $1 = ANY (lease.jobs) AND held.job = $1
        AND NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = $1)
    UNION ALL
    (SELECT id, q_name, outcome, CASE outcome WHEN 'done' THEN '' ELSE data::text END, enqueued_at, schedule_at,
        expected_at, ROW(priority, attempt, crashes), serial_key, unique_key, error, result::text, NULL, ended_at,
        ROW(annotations::text, attempt_log::text)
    FROM {archive} WHERE id = $1 ORDER BY ended_at DESC LIMIT 1)
) AS job
ORDER BY ended_at DESC NULLS FIRST
LIMIT 1";

/// Notes that the end of a waiting job is awaited. Returns its queue, or no row if no such job can be locked. $1 job.
///
/// Only an insert fires the trigger that notifies waiting sessions, so the row is not updated: a take may have
/// skipped the job because this statement had locked it. Locks: the row of the job. SKIP LOCKED skips one that a
/// transaction holds.
pub(super) const AWAIT_WAITING: &str = "\
WITH free AS MATERIALIZED (
    SELECT ctid FROM {jobs} WHERE id = $1 AND dequeued_at IS NULL FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free)) RETURNING *
)
INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, lease_limit,
    serial_key, unique_key, error, annotations, attempt_log)
SELECT id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, lease_limit, serial_key,
    unique_key, error, coalesce(annotations, '{}') || jsonb_build_object('notify', true), attempt_log
FROM gone
RETURNING q_name";

/// Notes that the end of a leased job is awaited. Returns its lease, or no row if no such lease can be locked. $1 job.
///
/// The lock excludes transactions that settle jobs of the lease, and those that come later see the changed row. The
/// job may have been settled between the snapshot and the lock, so the caller looks again. Locks: the row of the
/// lease. SKIP LOCKED skips one of which a transaction settles jobs.
pub(super) const AWAIT_LEASED: &str = "\
WITH free AS MATERIALIZED (
    SELECT id FROM {leases} AS lease
    WHERE $1 = ANY (lease.jobs)
        AND NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = $1)
    FOR UPDATE SKIP LOCKED
)
UPDATE {leases} AS lease SET awaited = true, annotations = ARRAY(
    SELECT CASE WHEN held.job = $1 THEN coalesce(held.annotations, '{}') || jsonb_build_object('notify', true)
        ELSE held.annotations END
    FROM unnest(lease.jobs, lease.annotations) WITH ORDINALITY AS held (job, annotations, position)
    ORDER BY held.position)
FROM free WHERE lease.id = free.id
RETURNING lease.id";
