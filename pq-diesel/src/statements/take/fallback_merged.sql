-- Fallbacks 1 and 2. Takes jobs of all kinds, and reads the first few or the first many of each kind.
-- $1 queue, $2 length of the lease in microseconds, or null if a transaction owns the jobs.
--
-- Result: a row for each job. If there is none, one row has the time in microseconds until the next job is due,
-- whether the take raced and must be repeated, and whether the next statement must run.
-- A row whose xmax is set was locked before by a transaction that did not commit. It is read before the row is locked.
--
-- Order: ready jobs without keys, due jobs, and the first job of each key that no lease holds are merged by sort key.
-- If there are only ready jobs without keys, they are taken by the index scan as in fallback 0.
--
-- A job in strict order that waits for its retry keeps its key: no other job of the key is taken.
--
-- Locks: candidates are read in order without a lock and locked one by one until there are enough, so that no lock is
-- held on a job that is not taken. A key is an advisory lock of a transaction, or a row of a lease. If another
-- transaction has just updated the row, or the job of the key is gone by then, the take holds a lock without a job: it
-- has raced. Each key is a lock in memory that all sessions share, so at most {max_keyed} jobs are taken if some have
-- keys.
--
-- Of ready jobs without keys the first {reach} are read. PostgreSQL would sort the whole queue for all of them, and for
-- a number that it knows to be about as many, so it is given the number in a subquery. If fewer than {due_limit} jobs
-- are due they are found by their time and sorted. Otherwise the first {reach} scheduled jobs are read in order.
--
-- If the jobs with keys have at most {few_keys} keys, the recursion jumps through the index from one key to the next,
-- and the jobs behind the first of each key cost nothing. Otherwise the first jobs with keys in order are read, as
-- many as the window holds. The last of a full window is the edge: nothing behind it is taken, because a job before
-- it that was not read may be ready.
WITH RECURSIVE uncontrolled AS MATERIALIZED (
    SELECT CASE WHEN row_security_active({controls_name}::regclass) THEN {refuse_hidden_controls}()
        ELSE NOT EXISTS (SELECT FROM {controls} WHERE q_name = $1) END AS uncontrolled
), take AS MATERIALIZED (
    SELECT lease_length, CASE WHEN lease_length IS NULL THEN (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        ELSE nextval({tokens_name}) END AS token
    FROM (SELECT $2::bigint AS lease_length) AS request
), keeping AS MATERIALIZED (
    SELECT serial_key, min(id) AS id FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND serial_key IS NOT NULL AND schedule_at IS NOT NULL AND attempt > 0
        AND annotations ? 'strict'
    GROUP BY serial_key
), first_of_each AS (
    (SELECT 1 AS number, ctid AS tid, xmax <> 0 AS rolled_back, tableoid AS relation, id, serial_key,
        -priority::bigint AS neg_priority, coalesce(expected_at, 'infinity'::timestamptz) AS expected_at
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL
    ORDER BY serial_key, -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
    LIMIT 1)
    UNION ALL
    SELECT number + 1, next.*
    FROM first_of_each CROSS JOIN LATERAL (
        SELECT ctid AS tid, xmax <> 0 AS rolled_back, tableoid AS relation, id, serial_key,
            -priority::bigint AS neg_priority, coalesce(expected_at, 'infinity'::timestamptz) AS expected_at
        FROM {jobs}
        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL
            AND serial_key > first_of_each.serial_key
        ORDER BY serial_key, -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
        LIMIT 1
    ) AS next
    WHERE number <= {few_keys}
), few AS MATERIALIZED (
    SELECT count(*) <= {few_keys} AS are_few FROM first_of_each
), keyed AS MATERIALIZED (
    (SELECT ctid AS tid, xmax <> 0 AS rolled_back, tableoid AS relation, id, serial_key,
        -priority::bigint AS neg_priority, coalesce(expected_at, 'infinity'::timestamptz) AS expected_at
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL
        AND NOT (SELECT are_few FROM few)
    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
    LIMIT least({window_limit}, {window_per_job} * {size}) + 2 * {size})
    UNION ALL
    SELECT tid, rolled_back, relation, id, serial_key, neg_priority, expected_at
    FROM first_of_each WHERE (SELECT are_few FROM few)
), first_per_key AS MATERIALIZED (
    SELECT DISTINCT ON (keyed.serial_key) keyed.*
    FROM keyed
    WHERE NOT EXISTS (SELECT FROM {keys} AS busy WHERE busy.q_name = $1 AND busy.serial_key = keyed.serial_key)
        AND keyed.serial_key NOT IN (SELECT keeping.serial_key FROM keeping)
    ORDER BY keyed.serial_key, neg_priority, expected_at, id
), edge AS MATERIALIZED (
    SELECT neg_priority, expected_at, id FROM keyed
    WHERE NOT (SELECT are_few FROM few)
        AND (SELECT count(*) FROM keyed) = least({window_limit}, {window_per_job} * {size}) + 2 * {size}
    ORDER BY neg_priority DESC, expected_at DESC, id DESC LIMIT 1
), due AS MATERIALIZED (
    SELECT ctid AS tid, xmax <> 0 AS rolled_back, tableoid AS relation, id, serial_key,
        -priority::bigint AS neg_priority, coalesce(expected_at, 'infinity'::timestamptz) AS expected_at
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL AND schedule_at <= statement_timestamp()
    ORDER BY schedule_at
    LIMIT least({due_limit}, {window_per_job} * {size})
), many AS MATERIALIZED (
    SELECT count(*) = least({due_limit}, {window_per_job} * {size}) AS are_due FROM due
), beyond_index AS MATERIALIZED (
    SELECT (SELECT uncontrolled FROM uncontrolled)
        AND (EXISTS (SELECT FROM first_per_key) OR EXISTS (SELECT FROM edge) OR EXISTS (SELECT FROM due)) AS has_jobs
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
), merged AS MATERIALIZED (
    SELECT coalesce(array_agg(ctid), '{}') AS ctids, bool_or(rolled_back) AS rolled_back FROM (
        SELECT ctid, rolled_back FROM {bounded}
            SELECT locked.ctid, candidate.rolled_back, locked.bytes
            FROM (
                SELECT *, count(is_ready) OVER before AS ready_before,
                    count(is_scheduled) OVER before AS scheduled_before
                FROM (
                    (SELECT ctid AS tid, xmax <> 0 AS rolled_back, tableoid AS relation, id, serial_key,
                        -priority::bigint AS neg_priority,
                        coalesce(expected_at, 'infinity'::timestamptz) AS expected_at,
                        true AS is_ready, NULL::boolean AS is_scheduled, true AS may_be_taken
                    FROM {jobs}
                    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
                    ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
                    LIMIT (SELECT ({reach} + {size})))
                    UNION ALL
                    (SELECT due.*, NULL, true, true
                    FROM due
                    WHERE NOT (SELECT are_due FROM many)
                        AND (serial_key IS NULL OR serial_key NOT IN (
                                SELECT busy.serial_key FROM {keys} AS busy WHERE busy.q_name = $1)
                            AND (serial_key NOT IN (SELECT keeping.serial_key FROM keeping)
                                OR id IN (SELECT keeping.id FROM keeping)))
                    ORDER BY neg_priority, expected_at, id)
                    UNION ALL
                    SELECT tid, rolled_back, relation, id, serial_key, neg_priority, expected_at, NULL, true,
                        schedule_at <= statement_timestamp() AND (serial_key IS NULL OR serial_key NOT IN (
                                SELECT busy.serial_key FROM {keys} AS busy WHERE busy.q_name = $1)
                            AND (serial_key NOT IN (SELECT keeping.serial_key FROM keeping)
                                OR id IN (SELECT keeping.id FROM keeping)))
                    FROM (
                        SELECT ctid AS tid, xmax <> 0 AS rolled_back, tableoid AS relation, id, serial_key,
                            -priority::bigint AS neg_priority,
                            coalesce(expected_at, 'infinity'::timestamptz) AS expected_at, schedule_at
                        FROM {jobs}
                        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
                            AND (SELECT are_due FROM many)
                        ORDER BY -priority::bigint, coalesce(expected_at, 'infinity'::timestamptz), id
                        LIMIT (SELECT ({reach} + {size}))
                    ) AS scheduled
                    UNION ALL
                    SELECT *, NULL, NULL, true FROM first_per_key
                ) AS candidates
                WINDOW before AS (ORDER BY neg_priority, expected_at, id ROWS UNBOUNDED PRECEDING)
                ORDER BY neg_priority, expected_at, id
            ) AS candidate
            CROSS JOIN LATERAL (
                SELECT ctid, pg_column_size(data) + coalesce(pg_column_size(attempt_log), 0) AS bytes
                FROM {jobs} WHERE id = candidate.id AND dequeued_at IS NULL FOR UPDATE SKIP LOCKED
            ) AS locked
            WHERE (SELECT has_jobs FROM beyond_index) AND candidate.may_be_taken
                AND candidate.ready_before < ({reach} + {size}) AND candidate.scheduled_before < ({reach} + {size})
                AND (NOT EXISTS (SELECT FROM edge)
                    OR (candidate.neg_priority, candidate.expected_at, candidate.id)
                        <= (SELECT neg_priority, expected_at, id FROM edge))
                AND (candidate.serial_key IS NULL OR {lock_keyed_job}(candidate.tid, $1, candidate.serial_key,
                    hashtextextended(candidate.serial_key, hashtextextended($1, candidate.relation::bigint)),
                    (SELECT CASE WHEN lease_length IS NOT NULL THEN token END FROM take)))
            LIMIT CASE WHEN {count} <= {max_keyed} THEN {count}
                WHEN EXISTS (SELECT FROM first_per_key)
                    OR EXISTS (SELECT FROM due WHERE serial_key IS NOT NULL)
                    OR (SELECT are_due FROM many) AND EXISTS (
                        SELECT FROM {jobs}
                        WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at <= statement_timestamp()
                            AND serial_key IS NOT NULL) THEN {max_keyed}
                ELSE {count} END
        {end_bounded}
    ) AS counted
), taken AS (
    DELETE FROM {jobs}
    WHERE ctid = ANY ((SELECT picked.ctids || merged.ctids FROM picked, merged)::tid[])
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
    (SELECT picked.rolled_back IS TRUE OR merged.rolled_back IS TRUE FROM picked, merged),
    (SELECT token FROM noted), NULL::bigint,
    (SELECT coalesce(current_setting('pq.missed_at', true) = statement_timestamp()::text, false)),
    false, false
FROM taken
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    (SELECT (extract(epoch FROM min(schedule_at) - statement_timestamp()) * 1000000)::bigint
    FROM {jobs}
    WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
        AND schedule_at > statement_timestamp() AND schedule_at < 'infinity'),
    (SELECT cardinality(picked.ctids || merged.ctids) > 0 FROM picked, merged)
        OR (SELECT coalesce(current_setting('pq.missed_at', true) = statement_timestamp()::text, false)),
    (SELECT uncontrolled FROM uncontrolled) AND (EXISTS (SELECT FROM edge)
        OR EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL
            OFFSET ({reach} + {size}) - 1)
        OR (SELECT are_due FROM many) AND EXISTS (
            SELECT FROM {jobs}
            WHERE q_name = $1 AND dequeued_at IS NULL AND schedule_at IS NOT NULL
            OFFSET ({reach} + {size}) - 1)),
    EXISTS (SELECT FROM {controls} WHERE q_name = $1 AND limits IS NOT NULL AND paused_at IS NULL)
WHERE NOT EXISTS (SELECT FROM taken)
