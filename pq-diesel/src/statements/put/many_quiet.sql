-- Like many.sql, with the trigger off for the rest of the transaction.
INSERT INTO {jobs} (q_name, data, schedule_at, expected_at, priority, serial_key, annotations)
SELECT $1, put.data::json,
    coalesce(put.schedule_at, statement_timestamp() + put.schedule_in),
    coalesce(put.expected_at, statement_timestamp() + put.expected_in),
    put.priority, put.serial_key, put.annotations::jsonb
FROM (
    SELECT * FROM unnest($2::text[], $3::timestamptz[], $4::interval[], $5::timestamptz[], $6::interval[],
        $7::integer[], $8::text[], $9::text[])
    WITH ORDINALITY AS given (data, schedule_at, schedule_in, expected_at, expected_in, priority, serial_key,
        annotations, position)
    CROSS JOIN (SELECT set_config('pq.notify', 'off', true)) AS quiet
    ORDER BY position
) AS put
RETURNING id
