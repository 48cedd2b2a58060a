-- Order: ids are drawn in the order of the jobs, and keys are claimed in the order of the keys. Two batches with the
-- same keys then wait for each other and do not deadlock.
--
-- Locks: put_unique locks the row of each key until the end of the transaction.
WITH numbered AS MATERIALIZED (
    SELECT nextval((SELECT pg_get_serial_sequence({jobs_name}, 'id')::regclass)) AS id, $1::text AS q_name, put.*
    FROM (
        SELECT * FROM unnest($2::text[], $3::timestamptz[], $4::interval[], $5::timestamptz[], $6::interval[],
            $7::integer[], $8::text[], $9::text[], $10::text[], $11::text[])
        WITH ORDINALITY AS given (data, schedule_at, schedule_in, expected_at, expected_in, priority, serial_key,
            annotations, unique_key, on_conflict, position)
        ORDER BY position
    ) AS put
), plain AS (
    INSERT INTO {jobs} (id, q_name, data, schedule_at, expected_at, priority, serial_key, annotations)
    SELECT id, q_name, data::json,
        coalesce(schedule_at, statement_timestamp() + schedule_in),
        coalesce(expected_at, statement_timestamp() + expected_in),
        priority, serial_key, annotations::jsonb
    FROM numbered WHERE unique_key IS NULL
), claimed AS MATERIALIZED (
    SELECT sorted.position, put.job, put.outcome
    FROM (SELECT * FROM numbered WHERE unique_key IS NOT NULL ORDER BY unique_key, position) AS sorted
    CROSS JOIN LATERAL {put_unique}(q_name, unique_key, on_conflict, id, data::json,
        coalesce(schedule_at, statement_timestamp() + schedule_in),
        coalesce(expected_at, statement_timestamp() + expected_in),
        priority, serial_key, annotations::jsonb) AS put
)
SELECT coalesce(claimed.job, numbered.id), coalesce(claimed.outcome, 'added')
FROM numbered LEFT JOIN claimed USING (position)
ORDER BY position
