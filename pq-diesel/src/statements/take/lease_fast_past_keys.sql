-- Takes ready jobs without keys for a lease, from the start of the queue past jobs of busy keys.
-- $1 queue, $2 length of the lease in microseconds.
--
-- Takes nothing if a job is due, or a key is free: its first job may precede the others. The recursion jumps through
-- the index from one key to the next.
--
-- Order: the index. Locks: the rows that are deleted. SKIP LOCKED skips rows that another take has locked. The
-- locked rows are gathered in an array first, because a subquery that locks may run more than once. The limit of
-- the inner query is a number, so the plan depends on no parameter and is made once.
-- The jobs move into one row of the leases, which is the result. Columns that few jobs have are gathered only if
-- a job of the batch has one.
WITH RECURSIVE uncontrolled AS MATERIALIZED (
    SELECT CASE WHEN row_security_active({controls_name}::regclass) THEN {refuse_hidden_controls}()
        ELSE NOT EXISTS (SELECT FROM {controls} WHERE q_name = $1) END AS uncontrolled
), take AS MATERIALIZED (
    SELECT nextval({tokens_name}) AS token, $2::bigint AS lease_length
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
    SELECT ARRAY(
        SELECT ctid FROM {bounded}
            SELECT ctid, bytes FROM (
                SELECT ctid, pg_column_size(data) + coalesce(pg_column_size(attempt_log), 0) AS bytes FROM {jobs}
                WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
                    AND (SELECT uncontrolled FROM uncontrolled) AND NOT (SELECT has_jobs FROM beyond_index)
                ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
                LIMIT {size} FOR UPDATE SKIP LOCKED
            ) AS scanned
            LIMIT {count}
        {end_bounded}) AS ctids
), taken AS (
    DELETE FROM {jobs}
    WHERE ctid = ANY ((SELECT ctids FROM picked)::tid[])
    RETURNING id, data, enqueued_at, expected_at, priority, attempt, unique_key, crashes, lease_limit, annotations,
        attempt_log
), batch AS MATERIALIZED (
    SELECT count(*)::integer AS size, array_agg(id) AS jobs, array_agg(data::text) AS data,
        array_agg(enqueued_at) AS enqueued_at,
        bool_or(attempt <> 0 OR priority <> 0 OR expected_at IS NOT NULL OR unique_key IS NOT NULL
            OR lease_limit IS NOT NULL OR annotations IS NOT NULL OR attempt_log IS NOT NULL) AS has_options
    FROM taken
), marked AS (
    UPDATE {unique} AS claimed SET lease = take.token
    FROM taken CROSS JOIN take
    WHERE (SELECT has_options FROM batch) AND taken.unique_key IS NOT NULL
        AND claimed.q_name = $1 AND claimed.unique_key = taken.unique_key AND claimed.job = taken.id
)
INSERT INTO {leases} (id, q_name, lease_until, size, jobs, data, enqueued_at, expected_at, priority, attempt,
    unique_key, crashes, lease_limit, annotations, attempt_log)
SELECT take.token, $1, statement_timestamp() + take.lease_length * interval '1 microsecond',
    batch.size, batch.jobs, batch.data, batch.enqueued_at,
    CASE WHEN has_options
        THEN (SELECT CASE WHEN count(expected_at) > 0 THEN array_agg(expected_at) END FROM taken) END,
    CASE WHEN has_options THEN (SELECT array_agg(priority) FROM taken) ELSE array_fill(0, ARRAY[batch.size]) END,
    CASE WHEN has_options THEN (SELECT array_agg(attempt + 1) FROM taken) ELSE array_fill(1, ARRAY[batch.size]) END,
    CASE WHEN has_options
        THEN (SELECT CASE WHEN count(unique_key) > 0 THEN array_agg(unique_key) END FROM taken) END,
    CASE WHEN has_options
        THEN (SELECT CASE WHEN max(crashes) > 0 THEN array_agg(crashes) END FROM taken) END,
    CASE WHEN has_options
        THEN (SELECT CASE WHEN count(lease_limit) > 0 THEN array_agg(lease_limit) END FROM taken) END,
    CASE WHEN has_options
        THEN (SELECT CASE WHEN count(annotations) > 0 THEN array_agg(annotations) END FROM taken) END,
    CASE WHEN has_options
        THEN (SELECT CASE WHEN count(attempt_log) > 0 THEN array_agg(attempt_log) END FROM taken) END
FROM batch CROSS JOIN take
WHERE batch.size > 0
RETURNING id, jobs, data, enqueued_at, expected_at, priority, attempt, unique_key, crashes, lease_limit,
    annotations::text[], attempt_log::text[]
