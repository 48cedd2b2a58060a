//! How jobs come in.

/// What the trigger that tells waiters does about a put.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Trigger {
    Fires,
    /// It is switched off for the rest of the transaction: for statements that are a transaction of their own.
    Off,
    /// It is switched off for this statement, and back to what it was: whatever else the transaction puts is told as
    /// if this had not been.
    OffForThis,
}

/// Switches the trigger off for this transaction, before it asks.
const QUIET: &str = " FROM (SELECT set_config('pq.notify', 'off', true)) AS quiet";

/// A job that is due at once, of priority 0, without keys. $1 queue, $2 payload.
pub(super) fn one(trigger: Trigger) -> String {
    put("INSERT INTO {jobs} (q_name, data) SELECT $1, $2::json{quiet} RETURNING id", trigger)
}

/// Many jobs, in order: the ids ascend as they are inserted, and they are returned as inserted.
/// A delay is added to the clock at the statement's start, not at the transaction's.
/// $1 queue; arrays of a value a job: $2 payloads, $3 and $4 `schedule_at` as instant or delay, $5 and $6
/// `expected_at` likewise, $7 priorities, $8 serialization keys.
pub(super) fn many(trigger: Trigger) -> String {
    put(PUT, trigger)
}

fn put(insert: &str, trigger: Trigger) -> String {
    match trigger {
        Trigger::Fires => insert.replace("{quiet}", ""),
        Trigger::Off => insert.replace("{quiet}", QUIET),
        // The trigger asks when all rows are in, which is before the sum of them is there.
        Trigger::OffForThis => format!(
            "WITH before AS (\
                SELECT value, set_config('pq.notify', 'off', true) FROM current_setting('pq.notify', true) AS value\
            ), put AS ({}) \
            SELECT unnest(ids) FROM (\
                SELECT ids, set_config('pq.notify', coalesce(value, ''), true) \
                FROM (SELECT array_agg(id) AS ids FROM put) AS done CROSS JOIN before\
            ) AS told",
            insert.replace("{quiet}", " FROM before")
        ),
    }
}

const PUT: &str = "\
INSERT INTO {jobs} (q_name, data, schedule_at, expected_at, priority, serial_key)
SELECT $1, put.data::json,
    coalesce(put.schedule_at, statement_timestamp() + put.schedule_in),
    coalesce(put.expected_at, statement_timestamp() + put.expected_in),
    put.priority, put.serial_key
FROM (
    SELECT * FROM unnest($2::text[], $3::timestamptz[], $4::interval[], $5::timestamptz[], $6::interval[],
        $7::integer[], $8::text[])
    WITH ORDINALITY AS given (data, schedule_at, schedule_in, expected_at, expected_in, priority, serial_key, position)
    CROSS JOIN (SELECT true{quiet}) AS quietly
    ORDER BY position
) AS put
RETURNING id";

/// The numbers of so many jobs, ascending, and the clock from which their delays begin, for a COPY that follows. None
/// where policies decide which rows this role may put, for then PostgreSQL refuses a COPY. $1 how many.
pub(super) fn numbers(quietly: bool) -> String {
    // The sequence is looked up in a subquery of its own, for elsewhere it would be for each number.
    let quiet = if quietly { QUIET } else { " FROM (SELECT true) AS aloud" };
    format!(
        "SELECT array_agg(nextval((SELECT pg_get_serial_sequence({{jobs_name}}, 'id')::regclass))), \
             statement_timestamp(){quiet}, \
             generate_series(1, CASE WHEN row_security_active({{jobs_name}}) THEN 0 ELSE $1 END)"
    )
}

/// The clock alone, and whether there are such policies.
pub(super) fn clock(quietly: bool) -> String {
    let quiet = if quietly { QUIET } else { "" };
    format!("SELECT statement_timestamp(), row_security_active({{jobs_name}}){quiet}")
}

/// What many jobs are copied into.
pub(super) const COPY: &str = "{jobs} (q_name, data, schedule_at, expected_at, priority, serial_key)";

/// As the one above, where their numbers are known.
pub(super) const COPY_NUMBERED: &str =
    "{jobs} (id, q_name, data, schedule_at, expected_at, priority, serial_key)";

/// Many jobs of which some have a unique key. The ids are given out in the order of the jobs, and the keys are
/// claimed in the order of the keys, so that two batches with the same keys wait for one another and do not
/// deadlock.
/// As the one above; $9 unique keys, $10 what to do where one is in use.
pub(super) const UNIQUE: &str = "\
WITH numbered AS MATERIALIZED (
    SELECT nextval((SELECT pg_get_serial_sequence({jobs_name}, 'id')::regclass)) AS id, $1::text AS q_name, put.*
    FROM (
        SELECT * FROM unnest($2::text[], $3::timestamptz[], $4::interval[], $5::timestamptz[], $6::interval[],
            $7::integer[], $8::text[], $9::text[], $10::text[])
        WITH ORDINALITY AS given (data, schedule_at, schedule_in, expected_at, expected_in, priority, serial_key,
            unique_key, on_conflict, position)
        ORDER BY position
    ) AS put
), plain AS (
    INSERT INTO {jobs} (id, q_name, data, schedule_at, expected_at, priority, serial_key)
    SELECT id, q_name, data::json,
        coalesce(schedule_at, statement_timestamp() + schedule_in),
        coalesce(expected_at, statement_timestamp() + expected_in),
        priority, serial_key
    FROM numbered WHERE unique_key IS NULL
), claimed AS MATERIALIZED (
    SELECT sorted.position, put.job, put.outcome
    FROM (SELECT * FROM numbered WHERE unique_key IS NOT NULL ORDER BY unique_key, position) AS sorted
    CROSS JOIN LATERAL {put_unique}(q_name, unique_key, on_conflict, id, data::json,
        coalesce(schedule_at, statement_timestamp() + schedule_in),
        coalesce(expected_at, statement_timestamp() + expected_in),
        priority, serial_key) AS put
)
SELECT coalesce(claimed.job, numbered.id), coalesce(claimed.outcome, 'added')
FROM numbered LEFT JOIN claimed USING (position)
ORDER BY position";
