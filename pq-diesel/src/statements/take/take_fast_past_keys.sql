-- Takes ready jobs without keys for a transaction, from the start of the queue past jobs of busy keys.
-- $1 queue, $2 token of the take.
--
-- Takes nothing if a job is due, or a key is free: its first job may precede the others. The recursion jumps through
-- the index from one key to the next.
--
-- Order: the index. Locks: the rows that are deleted. SKIP LOCKED skips rows that another take has locked. The
-- locked rows are gathered in an array first, because a subquery that locks may run more than once. The limit of
-- the inner query is a number, so the plan depends on no parameter and is made once.
-- A setting of the transaction contains the token for exactly as long as the transaction holds the jobs.
-- A row whose xmax is set was locked before by a transaction that did not commit. The scan reads xmax before it locks.
WITH RECURSIVE uncontrolled AS MATERIALIZED (
    SELECT CASE WHEN row_security_active({controls_name}::regclass) THEN {refuse_hidden_controls}()
        ELSE NOT EXISTS (SELECT FROM {controls} WHERE q_name = $1) END AS uncontrolled
), take AS MATERIALIZED (
    SELECT $2::bigint AS token
), waiting_keys AS (
    (SELECT serial_key FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL
    ORDER BY serial_key LIMIT 1)
    UNION ALL
    SELECT (
        SELECT job.serial_key FROM {jobs} AS job
        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL
            AND job.serial_key > waiting_keys.serial_key
        ORDER BY job.serial_key LIMIT 1)
    FROM waiting_keys WHERE waiting_keys.serial_key IS NOT NULL
), beyond_index AS MATERIALIZED (
    SELECT (SELECT uncontrolled FROM uncontrolled) AND (
        EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
                AND schedule_at <= statement_timestamp())
        OR EXISTS (
            SELECT FROM waiting_keys
            WHERE serial_key IS NOT NULL AND NOT EXISTS (
                SELECT FROM {keys} AS busy
                WHERE busy.q_name = $1 AND busy.serial_key = waiting_keys.serial_key))) AS has_jobs
), picked AS MATERIALIZED (
    SELECT array_agg(ctid) AS ctids, bool_or(xmax <> 0) AS rolled_back FROM (
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
), noted AS MATERIALIZED (
    SELECT CASE WHEN cardinality(ctids) > 0 THEN set_config('pq.takes',
        coalesce(nullif(current_setting('pq.takes', true), ''), ',') || token || ',', true) END AS takes
    FROM picked, take
)
DELETE FROM {jobs}
WHERE ctid = ANY ((SELECT ctids FROM picked)::tid[]) AND (SELECT takes FROM noted) IS NOT NULL
RETURNING id, data, enqueued_at,
    CASE WHEN attempt <> 0 OR priority <> 0 OR expected_at IS NOT NULL OR unique_key IS NOT NULL
            OR lease_limit IS NOT NULL OR annotations IS NOT NULL OR attempt_log IS NOT NULL
            OR (SELECT rolled_back FROM picked)
        THEN ROW(attempt, priority, expected_at, unique_key, crashes, lease_limit, annotations::text, attempt_log::text,
            (SELECT rolled_back FROM picked)) END
