//! What becomes of taken jobs.

/// Notes a new payload for a job that this transaction has taken. Its row is deleted, so the payload
/// is kept in a setting that is local to the transaction: it follows savepoints, and is gone when the
/// transaction ends. No row where the transaction does not hold the job: where its take does not stand, or the job has
/// ended or gone back since. $1 job, $2 the take's token, $3 payload.
pub(super) const UPDATE: &str = "\
WITH claim AS MATERIALIZED (
    SELECT $1::bigint || ':' || $2::bigint AS claim, $2 AS token
)
SELECT set_config('pq.payloads', (
        coalesce(nullif(current_setting('pq.payloads', true), ''), '{}')::jsonb
        || jsonb_build_object(claim.claim, $3::text))::text, true)
FROM claim
WHERE strpos(current_setting('pq.takes', true), ',' || claim.token || ',') > 0
    AND strpos(coalesce(current_setting('pq.ended', true), ''), ',' || claim.claim || ',') = 0";

/// A checkpoint: the lease keeps the new payload. No row where the lease is lost. $1 job, $2 payload,
/// $3 lease.
pub(super) const UPDATE_LEASED: &str = "\
UPDATE {leases} SET data[array_position(jobs, $1)] = $2
WHERE id = $3 AND $1 = ANY (jobs)
    AND NOT EXISTS (SELECT FROM {settled} WHERE lease = $3 AND job = $1)
RETURNING id";

/// Passes any verdicts on jobs that this transaction has taken, and returns the positions, from one, of those that it
/// holds. What goes back is inserted anew under its id, with the payload noted last, and the trigger tells waiters at the
/// commit. What is complete needs nothing but the transaction's commit. Of any other the claim is not good any more,
/// and the serialization key is no more the transaction's.
/// Arrays of a value a verdict: $1 job, $2 the take's token, $3 verdict, $4 payload where none was noted, $5 queue, then
/// the job's columns; $13 delay in microseconds, $14 error, $15 a payload in place of all, $16 result.
pub(super) const SETTLE_HELD: &str = "\
WITH given AS MATERIALIZED (
    SELECT given.*, given.job || ':' || given.token AS claim
    FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[],
            $8::timestamptz[], $9::integer[], $10::integer[], $11::text[], $12::text[], $13::bigint[], $14::text[],
            $15::text[], $16::text[]) WITH ORDINALITY
        AS given (job, token, verdict, data, q_name, enqueued_at, schedule_at, expected_at, priority, attempt,
            serial_key, unique_key, after, error, new_data, result, position)
), noted AS MATERIALIZED (
    SELECT nullif(current_setting('pq.payloads', true), '')::jsonb AS payloads
), held AS MATERIALIZED (
    SELECT given.*, noted.payloads ->> given.claim AS noted
    FROM given, noted
    WHERE strpos(current_setting('pq.takes', true), ',' || given.token || ',') > 0
        AND given.claim NOT IN (
            SELECT unnest(string_to_array(coalesce(current_setting('pq.ended', true), ''), ',')))
), back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
        unique_key, error)
    SELECT job, q_name, coalesce(new_data, noted, data)::json, enqueued_at,
        CASE WHEN verdict = 'back' THEN schedule_at
            WHEN after > 0 THEN statement_timestamp() + after * interval '1 microsecond' END,
        expected_at, priority, attempt, serial_key, unique_key, error
    FROM held WHERE verdict IN ('retry', 'snooze', 'back')
    ORDER BY job
), kept AS (
    INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
        unique_key, outcome, error, result)
    SELECT job, q_name, coalesce(noted, data)::json, enqueued_at, schedule_at, expected_at, priority, attempt,
        serial_key, unique_key, verdict, error, result::json
    FROM held WHERE verdict IN ('done', 'dead', 'cancelled')
), ended AS MATERIALIZED (
    SELECT CASE WHEN count(*) > 0 THEN set_config('pq.ended',
        coalesce(nullif(current_setting('pq.ended', true), ''), ',') || string_agg(claim, ',') || ',', true) END
    FROM held WHERE verdict <> 'complete'
), freed AS MATERIALIZED (
    SELECT hashtextextended(serial_key, hashtextextended(q_name, {jobs_name}::regclass::oid::bigint))::text AS lock
    FROM held WHERE verdict <> 'complete' AND serial_key IS NOT NULL
), keys AS MATERIALIZED (
    SELECT CASE WHEN EXISTS (SELECT FROM freed)
        THEN set_config('pq.locked_keys', coalesce(',' || string_agg(lock, ',') || ',', ''), true) END
    FROM unnest(string_to_array(trim(',' FROM current_setting('pq.locked_keys', true)), ',')) AS lock
    WHERE lock NOT IN (SELECT lock FROM freed)
)
SELECT held.position FROM held, ended, keys";

/// Completes all jobs of a whole lease of which nothing need be kept or freed. Like the next one it is of one lease
/// and not of an array of them, for which PostgreSQL would read a table whole that is new or was never analyzed:
/// each verdict would read past all leases that ended since the last vacuum. $1 lease.
pub(super) const FINISH: &str = "\
DELETE FROM {leases} AS lease
WHERE id = $1 AND NOT EXISTS (SELECT FROM {settled} WHERE lease = lease.id)
RETURNING id";

/// Passes any verdicts on jobs of one lease, and returns the accepted ones.
///
/// A lease all of whose jobs have a verdict here is deleted. Of another the verdicts are noted by
/// inserts, under a share lock on the lease that the sweep's lock excludes; the unique index refuses a
/// second verdict. So an accepted verdict is final, and verdicts on jobs of one lease do not wait for one
/// another.
/// Arrays of a value a verdict: $1 job, $2 verdict, $3 delay in microseconds, $4 error, $5 new payload, $6 result;
/// $7 the lease where all of its jobs are here, $8 the lease where they are not; the other one is null.
pub(super) const SETTLE: &str = "\
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[])
        AS given (job, verdict, after, error, data, result)
), whole AS (
    DELETE FROM {leases} AS lease
    WHERE id = $7 AND NOT EXISTS (SELECT FROM {settled} WHERE lease = lease.id)
    RETURNING lease.*
), part AS MATERIALIZED (
    SELECT * FROM {leases} WHERE id = $8 FOR KEY SHARE
), noted AS (
    INSERT INTO {settled} (lease, job)
    SELECT part.id, given.job FROM given, part
    ON CONFLICT DO NOTHING
    RETURNING job
), ended AS MATERIALIZED (
    SELECT lease.id AS lease, lease.q_name, held.*, given.after, given.error, given.data AS new_data, given.result,
        CASE WHEN given.verdict IN ('retry', 'snooze', 'back') AND held.job = ANY (lease.cancelled) THEN 'cancelled'
            ELSE given.verdict END AS verdict
    FROM (SELECT * FROM whole UNION ALL SELECT * FROM part) AS lease
    CROSS JOIN LATERAL unnest(lease.jobs, lease.data, lease.enqueued_at, lease.schedule_at, lease.expected_at,
            lease.priority, lease.attempt, lease.serial_key, lease.unique_key)
        AS held (job, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key)
    JOIN given ON given.job = held.job
    WHERE lease.id = $7 OR EXISTS (SELECT FROM noted WHERE noted.job = held.job)
), back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
        unique_key, error)
    SELECT job, q_name, coalesce(new_data, data)::json, enqueued_at,
        CASE WHEN verdict = 'back' THEN schedule_at
            WHEN after > 0 THEN statement_timestamp() + after * interval '1 microsecond' END,
        expected_at, priority, CASE verdict WHEN 'retry' THEN attempt ELSE attempt - 1 END, serial_key, unique_key,
        error
    FROM ended WHERE verdict IN ('retry', 'snooze', 'back')
    ORDER BY job
), kept AS (
    INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
        unique_key, outcome, error, result)
    SELECT job, q_name, data::json, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
        unique_key, verdict, error, result::json
    FROM ended WHERE verdict IN ('done', 'dead', 'cancelled')
    ON CONFLICT (id) DO NOTHING
), freed AS (
    DELETE FROM {keys} AS busy USING ended
    WHERE busy.q_name = ended.q_name AND busy.serial_key = ended.serial_key AND busy.lease = ended.lease
), cleared AS (
    DELETE FROM {unique} AS had USING ended
    WHERE ended.verdict IN ('complete', 'done', 'dead', 'cancelled')
        AND had.q_name = ended.q_name AND had.unique_key = ended.unique_key AND had.job = ended.job
), over AS (
    DELETE FROM {leases} AS lease
    USING (SELECT count(*) AS settled FROM noted) AS now
    WHERE lease.id = $8 AND now.settled > 0
        AND lease.size = now.settled + (SELECT count(*) FROM {settled} AS before WHERE before.lease = $8)
)
SELECT job FROM ended";

/// Has leases end later, and tells which of their jobs are unwanted. A lease that is over and that nobody
/// has swept is still its holder's. One whose row is locked is not waited for: its only job is being settled in a
/// transaction that is open, and until that ends no sweep can have it. $1 leases, $2 microseconds from now.
pub(super) const EXTEND: &str = "\
WITH free AS MATERIALIZED (
    SELECT id FROM {leases} WHERE id = ANY ($1::bigint[]) FOR NO KEY UPDATE SKIP LOCKED
), extended AS (
    UPDATE {leases} SET lease_until = statement_timestamp() + $2 * interval '1 microsecond'
    WHERE id IN (SELECT id FROM free)
    RETURNING id, cancelled
)
SELECT id, cancelled FROM extended
UNION ALL
SELECT id, '{}' FROM {leases} WHERE id = ANY ($1) AND id NOT IN (SELECT id FROM free)";

/// One sweeps at a time; who comes meanwhile goes away.
pub(super) const SWEEP_TURN: &str = "\
SELECT pg_try_advisory_xact_lock(hashtextextended('pq sweep', {jobs_name}::regclass::oid::bigint))";

/// The leases that are over. A verdict under way holds its lease's row, which is then passed over. $1 the most.
pub(super) const SWEEP_OVER: &str = "\
SELECT id FROM {leases} WHERE lease_until <= statement_timestamp() LIMIT $1 FOR UPDATE SKIP LOCKED";

/// Returns the jobs of leases that this transaction has locked in the statement before. It is a statement of
/// its own so that its snapshot is younger than the locks: no verdict that was accepted before them can
/// be overlooked. $1 leases.
pub(super) const SWEEP_EXPIRE: &str = "\
WITH over AS (
    DELETE FROM {leases} WHERE id = ANY ($1::bigint[]) RETURNING *
), held AS MATERIALIZED (
    SELECT over.id AS lease, over.q_name, held.*, held.job = ANY (over.cancelled) AS unwanted
    FROM over CROSS JOIN LATERAL unnest(over.jobs, over.data, over.enqueued_at, over.schedule_at,
            over.expected_at, over.priority, over.attempt, over.serial_key, over.unique_key)
        AS held (job, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key)
    WHERE NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = over.id AND done.job = held.job)
), back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
        unique_key, error)
    SELECT job, q_name, data::json, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key, unique_key,
        'the lease of attempt ' || attempt || ' ended without a verdict'
    FROM held WHERE NOT unwanted
    ORDER BY job
), kept AS (
    INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
        unique_key, outcome)
    SELECT job, q_name, data::json, enqueued_at, schedule_at, expected_at, priority, attempt, serial_key,
        unique_key, 'cancelled'
    FROM held WHERE unwanted
    ON CONFLICT (id) DO NOTHING
), freed AS (
    DELETE FROM {keys} WHERE lease = ANY ($1)
), cleared AS (
    DELETE FROM {unique} AS had USING held
    WHERE held.unwanted AND had.q_name = held.q_name AND had.unique_key = held.unique_key AND had.job = held.job
), forgotten AS (
    DELETE FROM {settled} WHERE lease = ANY ($1)
)
SELECT count(*) FROM held";

/// Verdicts whose lease is gone.
pub(super) const SWEEP_FORGET: &str = "\
DELETE FROM {settled} AS done WHERE NOT EXISTS (SELECT FROM {leases} AS lease WHERE lease.id = done.lease)";
