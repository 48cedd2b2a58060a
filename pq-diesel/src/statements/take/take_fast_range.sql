-- Takes ready jobs without keys for a transaction, between two sort keys.
-- $1 queue, $2 token of the take, $3 to $5 the sort key before the range,
-- $6 to $8 the last sort key in it.
--
-- Takes nothing if the queue has jobs outside of the index: due jobs, or jobs with a key. They may precede those in
-- the index. An index scan stops at the end of a range only if its upper bound is on one column. So there is one scan
-- up to the last priority, one from there up to the last expected_at, and one from there up to the last id. The
-- bounds are a query of their own only to name their types; it is never run.
--
-- Order: the index. Locks: the rows that are deleted. SKIP LOCKED skips rows that another take has locked. The
-- locked rows are gathered in an array first, because a subquery that locks may run more than once.
-- A setting of the transaction contains the token for exactly as long as the transaction holds the jobs.
-- A row whose xmax is set was locked before by a transaction that did not commit. The scan reads xmax before it locks.
WITH uncontrolled AS MATERIALIZED (
    SELECT CASE WHEN row_security_active({controls_name}::regclass) THEN {refuse_hidden_controls}()
        ELSE NOT EXISTS (SELECT FROM {controls} WHERE q_name = $1) END AS uncontrolled
), take AS MATERIALIZED (
    SELECT $2::bigint AS token
), bounds AS (
    SELECT $3::bigint, $4::timestamptz, $5::bigint, $6::bigint, $7::timestamptz, $8::bigint
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
    SELECT array_agg(ctid) AS ctids, bool_or(xmax <> 0) AS rolled_back FROM (
        SELECT ctid, xmax FROM {bounded}
            SELECT ctid, xmax, bytes FROM (
                SELECT ctid, xmax, bytes FROM (
                    SELECT ctid, xmax, pg_column_size(data) + coalesce(pg_column_size(attempt_log), 0) AS bytes
                    FROM {jobs}
                    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
                        AND (-priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id)
                            > ($3::bigint, $4::timestamptz, $5::bigint)
                        AND -priority::bigint < $6
                        AND (SELECT uncontrolled FROM uncontrolled) AND NOT (SELECT has_jobs FROM beyond_index)
                    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
                    LIMIT {size} FOR UPDATE SKIP LOCKED
                ) AS before_last_priority
                UNION ALL
                SELECT ctid, xmax, bytes FROM (
                    SELECT ctid, xmax, pg_column_size(data) + coalesce(pg_column_size(attempt_log), 0) AS bytes
                    FROM {jobs}
                    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
                        AND -priority::bigint = $6
                        AND (coalesce(expected_at, 'infinity'::timestamptz), id)
                            > (CASE WHEN $3 = $6 THEN $4 ELSE '-infinity' END,
                                CASE WHEN $3 = $6 THEN $5 ELSE '-9223372036854775808'::bigint END)
                        AND coalesce(expected_at, 'infinity'::timestamptz) < $7
                        AND (SELECT uncontrolled FROM uncontrolled) AND NOT (SELECT has_jobs FROM beyond_index)
                    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
                    LIMIT {size} FOR UPDATE SKIP LOCKED
                ) AS before_last_expected_at
                UNION ALL
                SELECT ctid, xmax, bytes FROM (
                    SELECT ctid, xmax, pg_column_size(data) + coalesce(pg_column_size(attempt_log), 0) AS bytes
                    FROM {jobs}
                    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
                        AND -priority::bigint = $6
                        AND coalesce(expected_at, 'infinity'::timestamptz) = $7
                        AND id > CASE WHEN $3 = $6 AND $4 = $7 THEN $5 ELSE '-9223372036854775808'::bigint END
                        AND id <= $8
                        AND (SELECT uncontrolled FROM uncontrolled) AND NOT (SELECT has_jobs FROM beyond_index)
                    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
                    LIMIT {size} FOR UPDATE SKIP LOCKED
                ) AS upto_last_id
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
