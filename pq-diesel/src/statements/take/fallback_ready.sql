-- Fallback 0. Takes ready jobs without keys from the start of the queue, if it has nothing else.
-- $1 queue, $2 length of the lease in microseconds, or null if a transaction owns the jobs.
--
-- Result: a row for each job. If there is none, one row has the time in microseconds until the next job is due,
-- whether the take raced and must be repeated, and whether the next statement must run.
-- A row whose xmax is set was locked before by a transaction that did not commit. It is read before the row is locked.
--
-- Order: the index. Locks: the rows that are deleted. SKIP LOCKED skips rows that another take has locked. The
-- locked rows are gathered in an array first, because a subquery that locks may run more than once. A row that another
-- transaction has just updated is locked in its new version, which this snapshot cannot delete: the take has raced.
WITH uncontrolled AS MATERIALIZED (
    SELECT CASE WHEN row_security_active({controls_name}::regclass) THEN {refuse_hidden_controls}()
        ELSE NOT EXISTS (SELECT FROM {controls} WHERE q_name = $1) END AS uncontrolled
), take AS MATERIALIZED (
    SELECT lease_length, CASE WHEN lease_length IS NULL THEN (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        ELSE nextval({tokens_name}) END AS token
    FROM (SELECT $2::bigint AS lease_length) AS request
), beyond_index AS MATERIALIZED (
    SELECT (SELECT uncontrolled FROM uncontrolled) AND (
        EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
                AND schedule_at <= statement_timestamp())
        OR EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL)) AS has_jobs
), picked AS MATERIALIZED (
    SELECT coalesce(array_agg(ctid), '{}') AS ctids, bool_or(xmax <> 0) AS rolled_back FROM (
        SELECT ctid, xmax FROM {bounded}
            SELECT ctid, xmax, bytes FROM (
                SELECT ctid, xmax, pg_column_size(data) + coalesce(pg_column_size(attempt_log), 0) AS bytes FROM {jobs}
                WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
                    AND (SELECT uncontrolled FROM uncontrolled) AND NOT (SELECT has_jobs FROM beyond_index)
                ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
                LIMIT {size} FOR UPDATE SKIP LOCKED
            ) AS scanned
            LIMIT {count}
        {end_bounded}
    ) AS counted
), taken AS (
    DELETE FROM {jobs}
    WHERE ctid = ANY ((SELECT ctids FROM picked)::tid[])
    RETURNING id, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key,
        crashes, lease_limit, annotations, attempt_log
), leased AS (
    INSERT INTO {leases} (id, q_name, lease_until, size, jobs, data, enqueued_at, schedule_at, expected_at, priority,
        attempt, serial_key, unique_key, crashes, lease_limit, annotations, attempt_log)
    SELECT take.token, $1, statement_timestamp() + $2 * interval '1 microsecond', count(*),
        array_agg(id), array_agg(data::text), array_agg(enqueued_at),
        CASE WHEN count(schedule_at) > 0 THEN array_agg(schedule_at) END,
        CASE WHEN count(expected_at) > 0 THEN array_agg(expected_at) END,
        array_agg(priority), array_agg(attempt + 1),
        CASE WHEN count(serial_key) > 0 THEN array_agg(serial_key) END,
        CASE WHEN count(unique_key) > 0 THEN array_agg(unique_key) END,
        CASE WHEN max(crashes) > 0 THEN array_agg(crashes) END,
        CASE WHEN count(lease_limit) > 0 THEN array_agg(lease_limit) END,
        CASE WHEN count(annotations) > 0 THEN array_agg(annotations) END,
        CASE WHEN count(attempt_log) > 0 THEN array_agg(attempt_log) END
    FROM taken CROSS JOIN take
    WHERE $2 IS NOT NULL
    GROUP BY take.token
), marked AS (
    UPDATE {unique} AS claimed SET lease = take.token
    FROM taken CROSS JOIN take
    WHERE $2 IS NOT NULL AND taken.unique_key IS NOT NULL
        AND claimed.q_name = $1 AND claimed.unique_key = taken.unique_key AND claimed.job = taken.id
), noted AS MATERIALIZED (
    SELECT token, CASE WHEN lease_length IS NULL THEN set_config('pq.takes',
        coalesce(nullif(current_setting('pq.takes', true), ''), ',') || token || ',', true) END
    FROM take
)
SELECT id, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key,
    ROW(crashes, lease_limit, annotations::text, attempt_log::text),
    (SELECT rolled_back FROM picked), (SELECT token FROM noted), NULL::bigint, false,
    false, false
FROM taken
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    (SELECT (extract(epoch FROM min(schedule_at) - statement_timestamp()) * 1000000)::bigint
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
        AND schedule_at > statement_timestamp() AND schedule_at < 'infinity'),
    (SELECT cardinality(ctids) > 0 FROM picked),
    (SELECT has_jobs FROM beyond_index),
    EXISTS (SELECT FROM {controls} WHERE q_name = $1 AND limits IS NOT NULL AND paused_at IS NULL)
WHERE NOT EXISTS (SELECT FROM taken)
