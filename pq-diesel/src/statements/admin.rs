//! Statements of administration: queues, workers and schedules.

use super::filter::{
    calls_task, comes_behind, filter, has_annotations, is_archived, is_blocked, is_kept, is_waiting, leased,
    scheduled_first,
};

/// Reads the server's clock.
pub(super) const NOW: &str = "SELECT clock_timestamp()";

/// Returns the name of the database's encoding.
pub(super) const ENCODING: &str = "SELECT pg_catalog.current_setting('server_encoding')";

/// Pauses a queue. Returns no row if it is paused already. $1 queue, $2 operator or null.
pub(super) const PAUSE: &str = "\
INSERT INTO {controls} AS control (q_name, paused_at, paused_by) VALUES ($1, statement_timestamp(), $2)
ON CONFLICT (q_name) DO UPDATE SET paused_at = EXCLUDED.paused_at, paused_by = EXCLUDED.paused_by
    WHERE control.paused_at IS NULL
RETURNING q_name";

/// Lists the paused queues. Order: by name. No locks.
pub(super) const PAUSED: &str = "\
SELECT q_name, paused_at, paused_by FROM {controls} WHERE paused_at IS NOT NULL ORDER BY q_name COLLATE \"C\"";

/// Resumes a queue, which keeps its limits. Returns no row if it is not paused. $1 queue.
pub(super) const RESUME: &str = "\
WITH unlimited AS (
    DELETE FROM {controls} WHERE q_name = $1 AND paused_at IS NOT NULL AND limits IS NULL RETURNING q_name
), limited AS (
    UPDATE {controls} SET paused_at = NULL, paused_by = NULL
    WHERE q_name = $1 AND paused_at IS NOT NULL AND limits IS NOT NULL
    RETURNING q_name
)
SELECT q_name FROM unlimited UNION ALL SELECT q_name FROM limited";

/// Counts the jobs of a queue, or of all queues, by state, in one snapshot and without locks. $1 queue or null.
///
/// Of due jobs with the same serialization key one is ready if no lease has the key and no job that waits for its
/// retry keeps it. The others are blocked.
pub(super) const OVERVIEW: &str = concat!(
    "\
WITH live AS (
    SELECT job.q_name, job.serial_key, dequeued_at IS NOT NULL AS dequeued,
        dequeued_at IS NULL AND (schedule_at IS NULL OR schedule_at <= statement_timestamp()) AS due,
        busy.lease IS NOT NULL OR (job.serial_key IS NOT NULL AND (job.q_name, job.serial_key) IN (
            SELECT keeper.q_name, keeper.serial_key FROM {jobs} AS keeper
            WHERE keeper.schedule_at > statement_timestamp() AND ",
    is_kept!("keeper"),
    ")) AS busy, greatest(enqueued_at, schedule_at) AS since, error
    FROM {jobs} AS job LEFT JOIN {keys} AS busy ON busy.q_name = job.q_name AND busy.serial_key = job.serial_key
    WHERE $1::text IS NULL OR job.q_name = $1
), waiting AS (
    SELECT q_name, count(*) FILTER (WHERE due) AS due,
        count(*) FILTER (WHERE due AND serial_key IS NOT NULL) AS keyed,
        count(DISTINCT serial_key) FILTER (WHERE due AND serial_key IS NOT NULL AND NOT busy) AS first_per_key,
        count(*) FILTER (WHERE NOT due AND NOT dequeued) AS scheduled,
        count(*) FILTER (WHERE dequeued) AS dequeued,
        min(since) FILTER (WHERE due) AS oldest, max(error COLLATE \"C\") FILTER (WHERE NOT dequeued) AS error
    FROM live GROUP BY q_name
), running AS (
    SELECT q_name, sum(size - (SELECT count(*) FROM {settled} AS done WHERE done.lease = lease.id)) AS running
    FROM {leases} AS lease WHERE $1 IS NULL OR q_name = $1 GROUP BY q_name
), ended AS (
    SELECT q_name, count(*) FILTER (WHERE outcome = 'dead') AS dead,
        count(*) FILTER (WHERE outcome = 'cancelled') AS cancelled,
        count(*) FILTER (WHERE outcome = 'done') AS done
    FROM {archive} WHERE $1 IS NULL OR q_name = $1 GROUP BY q_name
), rates AS (
    SELECT key AS q_name, sum(CASE WHEN json_typeof(value) = 'number' AND value::text::numeric BETWEEN 0 AND 1e9
        THEN value::text::double precision END) AS per_second
    FROM {workers}, json_each(CASE WHEN json_typeof(status -> 'rates') = 'object' THEN status -> 'rates' END)
    WHERE heartbeat_at > statement_timestamp() - interval '10 seconds'
    GROUP BY key
)
SELECT q_name, coalesce(due - keyed + first_per_key, 0), coalesce(keyed - first_per_key, 0), coalesce(scheduled, 0),
    coalesce(running, 0)::bigint, coalesce(dequeued, 0), coalesce(dead, 0), coalesce(cancelled, 0),
    coalesce(done, 0),
    CASE WHEN oldest IS NOT NULL
        THEN (extract(epoch FROM statement_timestamp() - greatest(oldest, '2000-01-01')) * 1000000)::bigint END,
    error, paused_at, paused_by, coalesce(per_second, 0), limits::text
FROM waiting FULL JOIN running USING (q_name) FULL JOIN ended USING (q_name) FULL JOIN {controls} USING (q_name)
    LEFT JOIN rates USING (q_name)
WHERE $1 IS NULL OR q_name = $1
ORDER BY q_name COLLATE \"C\""
);

/// Lists jobs by id, without locks. Of several with the same id the one that waits or runs comes first, then the one
/// that ended last. Its parameters are those of the filter, $10 whether payloads, results and logs are read (0 or 1;
/// they are null otherwise), and $11 most rows.
///
/// A state that is not requested costs nothing: the condition on its part of the union is known before the scan begins.
/// Each part is sorted and limited by itself, so its indexes are used, and states are computed for listed jobs only.
pub(super) const LIST: &str = concat!(
    filter!(),
    scheduled_first!(),
    " SELECT * FROM (
        (SELECT job.id, job.q_name,
            CASE WHEN job.dequeued_at IS NOT NULL THEN 'dequeued'
                WHEN job.schedule_at > statement_timestamp() THEN 'scheduled'
                WHEN ",
    is_blocked!(),
    " THEN 'blocked'
                ELSE 'ready' END AS state,
            CASE WHEN $10 = 1 THEN job.data::text ELSE 'null' END AS data, job.enqueued_at, job.schedule_at,
            job.expected_at, ROW(job.priority, job.attempt, job.crashes), job.serial_key, job.unique_key, job.error,
            NULL::text AS result, NULL::timestamptz AS lease_until, NULL::timestamptz AS ended_at,
            ROW(job.annotations::text, CASE WHEN $10 = 1 THEN job.attempt_log::text END)
        FROM {jobs} AS job WHERE ",
    is_waiting!(),
    " ORDER BY job.id LIMIT $11)
        UNION ALL
        (SELECT held.job, lease.q_name, 'running', coalesce(held.data, 'null'), held.enqueued_at, held.schedule_at,
            held.expected_at, ROW(held.priority, held.attempt, coalesce(held.crashes, 0)), held.serial_key,
            held.unique_key, NULL, NULL, lease.lease_until, NULL, ROW(held.annotations::text, held.attempt_log::text)
        FROM ",
    leased!("CASE WHEN $10 = 1 OR $6 IS NOT NULL THEN lease.data END"),
    " ORDER BY held.job LIMIT $11)
        UNION ALL
        (SELECT job.id, job.q_name, job.outcome, CASE WHEN $10 = 1 THEN job.data::text ELSE 'null' END, job.enqueued_at,
            job.schedule_at, job.expected_at, ROW(job.priority, job.attempt, job.crashes), job.serial_key,
            job.unique_key, job.error, CASE WHEN $10 = 1 THEN job.result::text END, NULL, job.ended_at,
            ROW(job.annotations::text, CASE WHEN $10 = 1 THEN job.attempt_log::text END)
        FROM {archive} AS job WHERE ",
    is_archived!(),
    " ORDER BY job.id, job.ended_at DESC LIMIT $11)
    ) AS job
    ORDER BY id, ended_at DESC NULLS FIRST
    LIMIT $11"
);

/// Moves jobs that are neither leased nor locked. $1 from, $2 to, $3 jobs, or null for all.
///
/// A job whose unique key is in use in the other queue, or in an uncommitted put, stays. Locks: the rows of the jobs.
/// SKIP LOCKED skips jobs that transactions have taken. No lock is waited for longer than for a moment.
pub(super) const MOVE_JOBS: &str = "\
WITH locked AS MATERIALIZED (
    SELECT ctid, id, unique_key FROM {jobs}
    WHERE q_name = $1 AND $2::text <> $1 AND dequeued_at IS NULL AND ($3::bigint[] IS NULL OR id = ANY ($3))
    FOR UPDATE SKIP LOCKED
), free AS MATERIALIZED (
    SELECT ctid FROM locked WHERE unique_key IS NULL OR {try_claim_unique}($2, unique_key, id)
), gone AS (
    DELETE FROM {jobs} WHERE ctid = ANY (ARRAY(SELECT ctid FROM free)) RETURNING *
), cleared AS (
    DELETE FROM {unique} AS claimed USING gone
    WHERE claimed.q_name = $1 AND claimed.unique_key = gone.unique_key AND claimed.job = gone.id
)
INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
    lease_limit, serial_key, unique_key, error, annotations, attempt_log)
SELECT id, $2, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, lease_limit, serial_key,
    unique_key, error, annotations, attempt_log
FROM gone ORDER BY id";

/// Registers a worker, or updates its heartbeat. $1 worker, or null if it has no id yet, $2 host, $3 process,
/// $4 supervisor, $5 queues, $6 threads, $7 status.
pub(super) const HEARTBEAT: &str = "\
INSERT INTO {workers} AS known (id, host, pid, supervisor, queues, threads, status)
VALUES (coalesce($1::bigint, nextval({tokens_name})), $2, $3, $4, $5, $6, $7::text::json)
ON CONFLICT (id) DO UPDATE SET heartbeat_at = statement_timestamp(), status = EXCLUDED.status
RETURNING id, stop";

/// Deregisters a worker. $1 worker.
pub(super) const DEREGISTER: &str = "DELETE FROM {workers} WHERE id = $1";

/// Deletes workers without a recent heartbeat. $1 longest silence in microseconds.
///
/// SKIP LOCKED skips a worker whose heartbeat is being written.
pub(super) const FORGET_WORKERS: &str = "\
DELETE FROM {workers} WHERE id IN (
    SELECT id FROM {workers}
    WHERE heartbeat_at < statement_timestamp() - $1 * interval '1 microsecond' FOR UPDATE SKIP LOCKED)";

/// Lists workers, without locks.
pub(super) const WORKERS: &str = "\
SELECT id, host, pid, supervisor, queues, threads, started_at,
    (extract(epoch FROM statement_timestamp() - heartbeat_at) * 1000000)::bigint, stop, status::text
FROM {workers} ORDER BY id";

/// Requests that a worker stops. A stronger mode that was requested before is kept. $1 mode, $2 worker.
pub(super) const STOP_WORKER: &str = "\
UPDATE {workers}
SET stop = CASE WHEN array_position(ARRAY['drain', 'finish', 'abort'], stop)
        > array_position(ARRAY['drain', 'finish', 'abort'], $1::text) THEN stop ELSE $1 END
WHERE id = $2 RETURNING id";

/// Adds or replaces a schedule. Returns whether it is new. $1 name, $2 expression, $3 time zone, $4 queue, $5 payload,
/// $6 priority, $7 whether it catches up (0 or 1), $8 next tick if it is new or has another expression or time zone.
///
/// A schedule that is paused stays paused and has no next tick.
pub(super) const SET_CRON: &str = "\
INSERT INTO {cron} AS old (name, expression, time_zone, q_name, data, priority, catch_up, next_at)
VALUES ($1, $2, $3, $4, $5::text::json, $6, $7 <> 0, $8)
ON CONFLICT (name) DO UPDATE SET expression = EXCLUDED.expression, time_zone = EXCLUDED.time_zone,
    q_name = EXCLUDED.q_name, data = EXCLUDED.data, priority = EXCLUDED.priority, catch_up = EXCLUDED.catch_up,
    next_at = CASE WHEN old.paused THEN NULL
        WHEN (old.expression, old.time_zone) = (EXCLUDED.expression, EXCLUDED.time_zone)
            THEN coalesce(old.next_at, EXCLUDED.next_at)
        ELSE EXCLUDED.next_at END
RETURNING xmax = 0";

/// Lists schedules, without locks.
pub(super) const CRONS: &str = "\
SELECT name, expression, time_zone, q_name, data::text, priority, catch_up, paused, next_at, last_at, failures, error,
    paused_at, paused_by
FROM {cron} ORDER BY name COLLATE \"C\"";

/// Removes a schedule. $1 name.
pub(super) const REMOVE_CRON: &str = "DELETE FROM {cron} WHERE name = $1 RETURNING name";

/// Pauses or resumes a schedule. $1 whether it is paused (0 or 1), $2 next tick, $3 operator or null, $4 name.
///
/// The time and the operator of a pause stay until the schedule is resumed.
pub(super) const PAUSE_CRON: &str = "\
UPDATE {cron} SET paused = $1 <> 0, next_at = $2,
    paused_at = CASE WHEN $1 <> 0 THEN coalesce(paused_at, statement_timestamp()) END,
    paused_by = CASE WHEN $1 <> 0 THEN CASE WHEN paused THEN paused_by ELSE $3 END END
WHERE name = $4 RETURNING name";

/// Locks the first due schedule by name. $1 name of the schedule before it, or an empty text.
///
/// SKIP LOCKED skips those that another session is processing.
pub(super) const DUE_CRON: &str = "\
SELECT name, expression, time_zone, q_name, data::text, priority, catch_up, paused, next_at, last_at, failures, error,
    paused_at, paused_by
FROM {cron}
WHERE name > $1 AND next_at <= statement_timestamp() AND (retry_at IS NULL OR retry_at <= statement_timestamp())
ORDER BY name LIMIT 1 FOR UPDATE SKIP LOCKED";

/// Stores the last and the next tick of a schedule, which has not failed. $1 last tick, $2 next tick, $3 name.
pub(super) const ADVANCE_CRON: &str = "\
UPDATE {cron} SET last_at = $1, next_at = $2, failures = 0, error = NULL, retry_at = NULL WHERE name = $3";

/// Stores that the job of a schedule could not be put. $1 error, $2 microseconds until the next try, $3 name, $4 tick.
///
/// Does nothing if another session has put the job since.
pub(super) const FAIL_CRON: &str = "\
UPDATE {cron} SET failures = failures + 1, error = $1,
    retry_at = statement_timestamp() + $2 * interval '1 microsecond'
WHERE name = $3 AND next_at = $4";

/// Replaces the next tick of a schedule by an earlier one. $1 earlier tick, $2 name, $3 tick.
///
/// Returns no row if another session has changed the tick since.
pub(super) const BRING_CRON_FORWARD: &str = "\
UPDATE {cron} SET next_at = $1 WHERE name = $2 AND next_at = $3 RETURNING name";
