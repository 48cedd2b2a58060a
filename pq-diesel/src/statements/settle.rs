//! Statements that settle taken jobs and extend leases.

/// Stores a new payload for a job that this transaction holds. $1 job, $2 token of the take, $3 payload.
///
/// The row of the job is deleted, so a setting that is local to the transaction stores the payload: it follows
/// savepoints and ends with the transaction. Returns no row if the transaction does not hold the job, because its take
/// was rolled back or the job has been settled.
pub(super) const UPDATE_HELD: &str = "\
WITH claim AS MATERIALIZED (
    SELECT $1::bigint || ':' || $2::bigint AS claim, $2 AS token
)
SELECT set_config('pq.payloads', (
        coalesce(nullif(current_setting('pq.payloads', true), ''), '{}')::jsonb
        || jsonb_build_object(claim.claim, $3::text))::text, true)
FROM claim
WHERE strpos(current_setting('pq.takes', true), ',' || claim.token || ',') > 0
    AND strpos(coalesce(current_setting('pq.ended', true), ''), ',' || claim.claim || ',') = 0";

/// Replaces the payload of a leased job. Returns no row if the lease is lost. $1 job, $2 payload, $3 lease.
///
/// Locks: the row of the lease.
pub(super) const UPDATE_LEASED: &str = "\
UPDATE {leases} SET data[array_position(jobs, $1)] = $2
WHERE id = $3 AND $1 = ANY (jobs)
    AND NOT EXISTS (SELECT FROM {settled} WHERE lease = $3 AND job = $1)
RETURNING id";

/// Settles jobs that this transaction holds, and returns the positions, from one, of those that it holds.
///
/// Arrays with a value for each job: $1 job, $2 token of the take, $3 outcome, $4 payload if none was stored, $5 queue,
/// $6 to $12 the columns of the job, $13 delay in microseconds, $14 error, $15 payload that replaces all others,
/// $16 result, $17 crashes, $18 limit of the next lease or 0, $19 annotations, or null if no job has any,
/// $20 logs of the attempts before these, likewise.
///
/// A requeued job is inserted again under its id, with the payload that was stored last, and the trigger notifies
/// waiters at the commit. A complete job needs only the commit. The claim of any other job is no longer valid, and its
/// serialization key is no longer the transaction's. Order: jobs are requeued in the order of their ids. No locks.
pub(super) const SETTLE_HELD: &str = "\
WITH given AS MATERIALIZED (
    SELECT given.*, given.job || ':' || given.token AS claim
    FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[],
            $8::timestamptz[], $9::integer[], $10::integer[], $11::text[], $12::text[], $13::bigint[], $14::text[],
            $15::text[], $16::text[], $17::integer[], $18::integer[], $19::text[], $20::text[]) WITH ORDINALITY
        AS given (job, token, outcome, data, q_name, enqueued_at, schedule_at, expected_at, priority, attempt,
            serial_key, unique_key, after, error, new_data, result, crashes, lease_limit, annotations, log, position)
), noted AS MATERIALIZED (
    SELECT nullif(current_setting('pq.payloads', true), '')::jsonb AS payloads
), held AS MATERIALIZED (
    SELECT given.*, noted.payloads ->> given.claim AS noted, log::jsonb AS attempt_log,
        CASE outcome WHEN 'retry' THEN 'failed' WHEN 'dead' THEN 'dead' END AS ended_as
    FROM given, noted
    WHERE strpos(current_setting('pq.takes', true), ',' || given.token || ',') > 0
        AND given.claim NOT IN (
            SELECT unnest(string_to_array(coalesce(current_setting('pq.ended', true), ''), ',')))
), back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
        lease_limit, serial_key, unique_key, error, annotations, attempt_log)
    SELECT job, q_name, coalesce(new_data, noted, data)::json, enqueued_at,
        CASE WHEN outcome = 'back' THEN schedule_at
            WHEN after > 0 THEN statement_timestamp() + after * interval '1 microsecond' END,
        expected_at, priority, attempt, crashes, nullif(lease_limit, 0), serial_key, unique_key, error,
        annotations::jsonb, {attempt_log}
    FROM held WHERE outcome IN ('retry', 'snooze', 'back')
    ORDER BY job
), kept AS (
    INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
        serial_key, unique_key, outcome, error, result, annotations, attempt_log)
    SELECT job, q_name, coalesce(noted, data)::json, enqueued_at, schedule_at, expected_at, priority, attempt,
        crashes, serial_key, unique_key, outcome, error, result::json, annotations::jsonb, {attempt_log}
    FROM held WHERE outcome IN ('done', 'dead', 'cancelled')
), ended AS MATERIALIZED (
    SELECT CASE WHEN count(*) > 0 THEN set_config('pq.ended',
        coalesce(nullif(current_setting('pq.ended', true), ''), ',') || string_agg(claim, ',') || ',', true) END
    FROM held WHERE outcome <> 'complete'
), freed AS MATERIALIZED (
    SELECT hashtextextended(serial_key, hashtextextended(q_name, {jobs_name}::regclass::oid::bigint))::text AS lock
    FROM held WHERE outcome <> 'complete' AND serial_key IS NOT NULL
), keys AS MATERIALIZED (
    SELECT CASE WHEN EXISTS (SELECT FROM freed)
        THEN set_config('pq.locked_keys', coalesce(',' || string_agg(lock, ',') || ',', ''), true) END
    FROM unnest(string_to_array(trim(',' FROM current_setting('pq.locked_keys', true)), ',')) AS lock
    WHERE lock NOT IN (SELECT lock FROM freed)
)
SELECT held.position FROM held, ended, keys";

/// Completes all jobs of a lease at once, if nothing has to be kept and no key released. $1 lease. Completes none if
/// the end of one has been awaited since the take.
///
/// This statement and the next are for one lease. For an array of them PostgreSQL would scan the whole table if it was
/// never analyzed, past the dead tuples of all leases since the last VACUUM.
///
/// Locks: the row of the lease. A transaction that has settled some of its jobs may commit while this statement waits
/// for the lock. Its snapshot would overlook those jobs, so a function looks for them after the lock. A transaction
/// that has one snapshot would still overlook them, and an extension of the lease since the snapshot would refuse it
/// the lock.
pub(super) const COMPLETE_LEASE: &str = "\
WITH locked AS MATERIALIZED (
    SELECT id FROM {leases}
    WHERE id = $1 AND NOT awaited AND current_setting('transaction_isolation') = 'read committed'
    FOR UPDATE
)
DELETE FROM {leases} AS lease USING locked
WHERE lease.id = $1 AND NOT {is_partly_settled}(locked.id)
RETURNING lease.id";

/// Completes all jobs of a lease of a limited queue as [`COMPLETE_LEASE`] does, and notifies as
/// [`super::take::NOTIFY`] does, because others may have the places of the jobs. $1 lease, $2 channels.
pub(super) const COMPLETE_LIMITED: &str = "\
WITH locked AS MATERIALIZED (
    SELECT id FROM {leases}
    WHERE id = $1 AND NOT awaited AND current_setting('transaction_isolation') = 'read committed'
    FOR UPDATE
), gone AS (
    DELETE FROM {leases} AS lease USING locked
    WHERE lease.id = $1 AND NOT {is_partly_settled}(locked.id)
    RETURNING lease.id
), notified AS MATERIALIZED (
    SELECT CASE
        WHEN CASE WHEN pg_try_advisory_lock_shared(notifier_lock)
            THEN pg_advisory_unlock_shared(notifier_lock) ELSE false END
        THEN pg_notify(channel, '')::text
        END
    FROM gone, unnest($2::text[]) AS channel, {notifier_lock} AS notifier_lock
)
SELECT gone.id FROM gone, (SELECT count(*) FROM notified) AS done";

/// Settles jobs of one lease, and returns the accepted ones.
///
/// Arrays with a value for each job: $1 job, $2 outcome, $3 delay in microseconds, $4 error, $5 new payload, $6 result.
/// $7 the lease if all of its jobs are settled here, or $8 the lease if they are not. The other one is null.
///
/// Order: jobs are requeued in the order of their ids. A job whose id another job has got meanwhile is requeued under a
/// new one. Locks: the row of the lease. A lease whose jobs are all settled here is locked and deleted as by
/// [`COMPLETE_LEASE`]. For another the settled jobs are inserted into a table, under a key-share lock on the lease that
/// excludes maintenance, and the unique index refuses a second outcome. So an accepted outcome is final, and sessions
/// that settle jobs of one lease do not wait for each other. SKIP LOCKED skips unique keys that an open put moves to
/// one more job: if it is rolled back, the next put finds that the key's job has ended.
///
/// In a transaction that has one snapshot the row is never locked nor deleted: the lock would be refused if the lease
/// was extended since. It stays until the lease expires.
///
/// The payloads of a lease are one value, which may be large, and so are the annotations and the logs of attempts. They
/// are read only if a job moves to another table.
pub(super) const SETTLE_LEASED: &str = "\
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[])
        AS given (job, outcome, after, error, data, result)
), locked AS MATERIALIZED (
    SELECT id FROM {leases}
    WHERE id = $7 AND current_setting('transaction_isolation') = 'read committed'
    FOR UPDATE
), whole AS (
    DELETE FROM {leases} AS lease USING locked
    WHERE lease.id = $7 AND NOT {is_partly_settled}(locked.id)
    RETURNING lease.*
), part AS MATERIALIZED (
    SELECT * FROM {leases} WHERE id = $8 FOR KEY SHARE
), noted AS (
    INSERT INTO {settled} (lease, job)
    SELECT part.id, given.job FROM given, part
    ON CONFLICT DO NOTHING
    RETURNING job
), lease AS MATERIALIZED (
    SELECT * FROM whole UNION ALL SELECT * FROM part
), ended AS MATERIALIZED (
    SELECT lease.id AS lease, lease.q_name, held.*, given.after, given.error, given.data AS new_data, given.result,
        CASE given.outcome WHEN 'retry' THEN 'failed' WHEN 'dead' THEN 'dead' END AS ended_as,
        CASE WHEN given.outcome IN ('retry', 'snooze', 'back') AND held.job = ANY (lease.cancelled) THEN 'cancelled'
            WHEN given.outcome = 'complete' AND lease.awaited
                AND lease.annotations[held.position] -> 'notify' = 'true' THEN 'done'
            ELSE given.outcome END AS outcome
    FROM lease
    CROSS JOIN LATERAL unnest(lease.jobs, lease.enqueued_at, lease.schedule_at, lease.expected_at, lease.priority,
            lease.attempt, lease.crashes, lease.lease_limit, lease.serial_key, lease.unique_key) WITH ORDINALITY
        AS held (job, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, lease_limit, serial_key,
            unique_key, position)
    JOIN given ON given.job = held.job
    WHERE lease.id = $7 OR EXISTS (SELECT FROM noted WHERE noted.job = held.job)
), moved AS MATERIALIZED (
    SELECT ended.*, held.data, held.annotations, held.attempt_log
    FROM lease CROSS JOIN LATERAL unnest(lease.data, lease.annotations, lease.attempt_log) WITH ORDINALITY
        AS held (data, annotations, attempt_log, position)
    JOIN ended ON ended.position = held.position AND ended.outcome <> 'complete'
    WHERE (SELECT bool_or(outcome <> 'complete') FROM ended)
), back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
        lease_limit, serial_key, unique_key, error, annotations, attempt_log)
    SELECT id, q_name, coalesce(new_data, data)::json, enqueued_at,
        CASE WHEN outcome = 'back' THEN schedule_at
            WHEN after > 0 THEN statement_timestamp() + after * interval '1 microsecond' END,
        expected_at, priority, CASE outcome WHEN 'retry' THEN attempt ELSE attempt - 1 END, coalesce(crashes, 0),
        CASE outcome WHEN 'back' THEN lease_limit END, serial_key, kept_key,
        CASE WHEN id = job THEN error ELSE concat_ws('; ', error, 'another job has the id ' || job) END, annotations,
        {attempt_log}
    FROM (SELECT * FROM moved WHERE outcome IN ('retry', 'snooze', 'back') ORDER BY job) AS moved
    CROSS JOIN LATERAL {return}(job, lease, q_name, unique_key) AS returned (id, kept_key)
), kept AS (
    INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
        serial_key, unique_key, outcome, error, result, annotations, attempt_log)
    SELECT job, q_name, data::json, enqueued_at, schedule_at, expected_at, priority, attempt, coalesce(crashes, 0),
        serial_key, unique_key, outcome, error, result::json, annotations, {attempt_log}
    FROM moved WHERE outcome IN ('done', 'dead', 'cancelled')
), freed AS (
    DELETE FROM {keys} AS busy USING ended
    WHERE busy.q_name = ended.q_name AND busy.serial_key = ended.serial_key AND busy.lease = ended.lease
), unclaimed AS MATERIALIZED (
    SELECT claimed.q_name, claimed.unique_key FROM ended
    JOIN {unique} AS claimed
        ON claimed.q_name = ended.q_name AND claimed.unique_key = ended.unique_key AND claimed.job = ended.job
    WHERE ended.outcome IN ('complete', 'done', 'dead', 'cancelled')
    FOR UPDATE OF claimed SKIP LOCKED
), cleared AS (
    DELETE FROM {unique} AS claimed USING unclaimed
    WHERE claimed.q_name = unclaimed.q_name AND claimed.unique_key = unclaimed.unique_key
), completed AS (
    DELETE FROM {leases} AS lease
    USING (SELECT count(*) AS settled FROM noted) AS now
    WHERE lease.id = $8 AND now.settled > 0 AND current_setting('transaction_isolation') = 'read committed'
        AND lease.size = now.settled + (SELECT count(*) FROM {settled} AS before WHERE before.lease = $8)
)
SELECT job FROM ended";

/// Extends leases, and returns their jobs for which cancellation was requested, or null for a lease that is locked.
/// $1 leases, $2 microseconds from now.
///
/// A lease that has expired and whose jobs have not been returned yet is still valid. Locks: the rows of the leases.
/// SKIP LOCKED skips a lease whose jobs are all being settled or returned by an open transaction. Its end decides
/// whether the lease is lost, so such a lease is neither extended nor reported as lost.
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
SELECT id, NULL FROM {leases} WHERE id = ANY ($1) AND id NOT IN (SELECT id FROM free)";
