//! Statements of maintenance: returning the jobs of expired leases.
//!
//! What else maintenance does is in `follow_ups` (jobs that wait for others), `archive` (pruning), `limits`, `steps`,
//! `notes`, `counting` and `audit`.

/// Takes the lock of maintenance until the end of the transaction. Returns false if another session has it.
pub(super) const MAINTENANCE_LOCK: &str = "\
SELECT pg_try_advisory_xact_lock(hashtextextended('pq maintenance', {jobs_name}::regclass::oid::bigint))";

/// Returns whether a lease has expired and its jobs have not been returned, a job has ended for which a follow-up waits
/// still, or a workflow is due: another session may be about to put its next jobs. $1 queues. No locks.
pub(super) const NEEDS_MAINTENANCE: &str = "\
WITH leased AS MATERIALIZED (
    SELECT held.job FROM {leases} AS lease, unnest(lease.jobs) AS held (job)
    WHERE EXISTS (SELECT FROM {waits} WHERE outcome IS NULL)
        AND NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = lease.id AND done.job = held.job)
)
SELECT EXISTS (
        SELECT FROM {leases} WHERE q_name = ANY ($1::text[]) AND lease_until <= statement_timestamp())
    OR EXISTS (
        SELECT FROM {waits} AS wait
        WHERE wait.outcome IS NULL
            AND NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = wait.job AND live.dequeued_at IS NULL)
            AND NOT EXISTS (SELECT FROM leased WHERE leased.job = wait.job))
    OR EXISTS (
        SELECT FROM {jobs} AS workflow
        WHERE workflow.q_name = {workflows} AND workflow.dequeued_at IS NULL
            AND (workflow.schedule_at IS NULL OR workflow.schedule_at <= statement_timestamp())
            AND NOT EXISTS (SELECT FROM {controls} WHERE q_name = {workflows} AND paused_at IS NOT NULL))";

/// Locks expired leases. $1 most rows.
///
/// SKIP LOCKED skips a lease whose jobs are being settled.
pub(super) const EXPIRED_LEASES: &str = "\
SELECT id FROM {leases} WHERE lease_until <= statement_timestamp() LIMIT $1 FOR UPDATE SKIP LOCKED";

/// Returns the jobs of expired leases to their queues, and counts them. $1 leases, which [`EXPIRED_LEASES`] has locked.
///
/// This is a statement of its own so that its snapshot is younger than the locks. Otherwise it could overlook an
/// outcome that was accepted before them. Order: jobs are requeued in the order of their ids. A job whose id another
/// job has got meanwhile is requeued under a new one.
///
/// If the only job that is left of a lease was alone in it, or had to be run alone, its attempt counts as a crash. Of
/// several jobs it is not known which were begun. Their attempts do not count, and an eighth of them may be begun under
/// the next lease, so that a job that kills its worker is alone at last.
pub(super) const RETURN_EXPIRED: &str = "\
WITH expired AS (
    DELETE FROM {leases} WHERE id = ANY ($1::bigint[]) RETURNING *
), held AS MATERIALIZED (
    SELECT expired.id AS lease, expired.q_name, expired.size, held.*,
        held.job = ANY (expired.cancelled) AS cancel_requested, count(*) OVER (PARTITION BY expired.id) AS lost
    FROM expired CROSS JOIN LATERAL unnest(expired.jobs, expired.data, expired.enqueued_at, expired.schedule_at,
            expired.expected_at, expired.priority, expired.attempt, expired.crashes, expired.lease_limit,
            expired.serial_key, expired.unique_key, expired.annotations, expired.attempt_log)
        AS held (job, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, lease_limit, serial_key,
            unique_key, annotations, attempt_log)
    WHERE NOT EXISTS (SELECT FROM {settled} AS done WHERE done.lease = expired.id AND done.job = held.job)
), ended AS (
    SELECT held.*, CASE WHEN crashed THEN 'crashed' ELSE 'lost' END AS ended_as,
        CASE WHEN crashed THEN 'the worker died or lost its lease in attempt ' || attempt
            ELSE 'the worker died or lost its lease of ' || lost || ' unsettled jobs' END AS error
    FROM (SELECT *, lost = 1 AND (size = 1 OR lease_limit IS NOT DISTINCT FROM 1) AS crashed FROM held) AS held
), judged AS MATERIALIZED (
    SELECT job, lease, q_name, data::json, enqueued_at, schedule_at, expected_at, priority,
        attempt - CASE ended_as WHEN 'crashed' THEN 0 ELSE 1 END AS attempt,
        coalesce(crashes, 0) + CASE ended_as WHEN 'crashed' THEN 1 ELSE 0 END AS crashes,
        least(lease_limit, greatest(lost / 8, 1))::integer AS lease_limit, serial_key, unique_key, error,
        annotations, {attempt_log} AS attempt_log, cancel_requested
    FROM ended
), back AS (
    INSERT INTO {jobs} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
        lease_limit, serial_key, unique_key, error, annotations, attempt_log)
    SELECT id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, lease_limit,
        serial_key, kept_key, CASE WHEN id = job THEN error ELSE error || '; another job has the id ' || job END,
        annotations, attempt_log
    FROM (SELECT * FROM judged WHERE NOT cancel_requested ORDER BY job) AS judged
    CROSS JOIN LATERAL {return}(job, lease, q_name, unique_key) AS returned (id, kept_key)
), kept AS (
    INSERT INTO {archive} (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes,
        serial_key, unique_key, outcome, annotations, attempt_log)
    SELECT job, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt, crashes, serial_key,
        unique_key, 'cancelled', annotations, attempt_log
    FROM judged WHERE cancel_requested
), counted AS (
    INSERT INTO {counters} (q_name, task, counts)
    SELECT q_name, task, json_build_object('lost', count(*), 'cancelled', count(*) FILTER (WHERE cancel_requested))
    FROM (SELECT q_name, {task} AS task, cancel_requested FROM judged) AS lost GROUP BY q_name, task
), freed AS (
    DELETE FROM {keys} WHERE lease = ANY ($1)
), unclaimed AS MATERIALIZED (
    SELECT claimed.q_name, claimed.unique_key FROM held
    JOIN {unique} AS claimed
        ON claimed.q_name = held.q_name AND claimed.unique_key = held.unique_key AND claimed.job = held.job
    WHERE held.cancel_requested
    FOR UPDATE OF claimed SKIP LOCKED
), cleared AS (
    DELETE FROM {unique} AS claimed USING unclaimed
    WHERE claimed.q_name = unclaimed.q_name AND claimed.unique_key = unclaimed.unique_key
), forgotten AS (
    DELETE FROM {settled} WHERE lease = ANY ($1)
)
SELECT count(*) FROM held";

/// Deletes the records of settled jobs whose lease no longer exists.
pub(super) const FORGET_SETTLED: &str = "\
DELETE FROM {settled} AS done WHERE NOT EXISTS (SELECT FROM {leases} AS lease WHERE lease.id = done.lease)";
