//! Statements for the steps of jobs, and for signals.

/// Returns the steps of a job by their positions. $1 job, $2 time of its put. No locks.
pub(super) const STEPS: &str = "\
SELECT position, kind, name, row_number() OVER (PARTITION BY name ORDER BY position), kept_at, wait_until, result::text
FROM {steps} WHERE job = $1 AND enqueued_at = $2
ORDER BY position";

/// Keeps a step of a leased job, and returns whether the lease is held, and the position if the step was kept.
///
/// $1 lease, $2 job, $3 time of its put, $4 position, $5 kind, $6 name, $7 length of a sleep in microseconds or null,
/// $8 result or null.
///
/// The step before must be visible: otherwise a transaction that is rolled back would leave a gap. Locks: the row of
/// the lease, and the job's row of settled jobs, until the transaction ends.
pub(super) const KEEP_STEP: &str = "\
WITH held AS MATERIALIZED (
    SELECT {hold_lease}($1, $2, $3) AS is_held
), kept AS (
    INSERT INTO {steps} (job, enqueued_at, position, kind, name, wait_until, result)
    SELECT $2, $3, $4, $5, $6, statement_timestamp() + $7 * interval '1 microsecond', $8::json
    FROM held
    WHERE is_held AND ($4 = 0 OR EXISTS (
        SELECT FROM {steps} AS before WHERE before.job = $2 AND before.enqueued_at = $3 AND before.position = $4 - 1))
    ON CONFLICT DO NOTHING
    RETURNING position
)
SELECT held.is_held, (SELECT position::bigint FROM kept) FROM held";

/// Returns whether the lease of a job is held, and whether no open transaction has sent a signal to the job.
/// $1 lease, $2 job, $3 time of its put.
///
/// Locks: as KEEP_STEP, and the job's advisory lock of signals if no sender has it. The next statement has a snapshot
/// that is younger than the lock, so it sees each signal that was sent before. See the function that sends signals.
pub(super) const PREPARE_WAIT: &str = "\
SELECT {hold_lease}($1, $2, $3),
    pg_try_advisory_xact_lock(hashtextextended('pq signal ' || $2, pg_typeof(NULL::{jobs})::oid::bigint))";

/// Delivers the first signal of a name to a job, or keeps that the job waits for it. Returns the kind of the step, the
/// value, and the microseconds that are left. Returns no row if the step is out of order.
///
/// $1 job, $2 time of its put, $3 name, $4 position, $5 microseconds, $6 1 if no open transaction has sent a signal.
/// Otherwise a wait that is not kept yet is not kept now, and no row is returned: a sender whose transaction has one
/// snapshot also holds the entry of the index of waiting steps.
///
/// Order: signals in the order of their entries. Locks: the row of the signal. Nobody else delivers it, because
/// [`PREPARE_WAIT`] has locked the lease.
pub(super) const AWAIT_SIGNAL: &str = "\
WITH arrived AS MATERIALIZED (
    SELECT entry, value FROM {signals} WHERE job = $1 AND enqueued_at = $2 AND name = $3 ORDER BY entry LIMIT 1
), kept AS (
    INSERT INTO {steps} AS step (job, enqueued_at, position, kind, name, wait_until, result)
    SELECT $1, $2, $4,
        CASE WHEN arrived.entry IS NOT NULL THEN 'signal' WHEN $5 > 0 THEN 'waiting' ELSE 'timeout' END,
        $3, statement_timestamp() + $5 * interval '1 microsecond', arrived.value
    FROM (SELECT) AS one LEFT JOIN arrived ON true
    WHERE ($4 = 0 OR EXISTS (
            SELECT FROM {steps} AS before
            WHERE before.job = $1 AND before.enqueued_at = $2 AND before.position = $4 - 1))
        AND (arrived.entry IS NOT NULL OR $5 = 0 OR $6 = 1 OR EXISTS (
            SELECT FROM {steps} AS same WHERE same.job = $1 AND same.enqueued_at = $2 AND same.position = $4))
    ON CONFLICT (job, enqueued_at, position) DO UPDATE SET
        kind = CASE WHEN excluded.kind = 'signal' THEN 'signal'
            WHEN step.wait_until <= statement_timestamp() THEN 'timeout' ELSE 'waiting' END,
        kept_at = excluded.kept_at, result = excluded.result
        WHERE step.kind = 'waiting'
    RETURNING kind, result, wait_until
), delivered AS (
    DELETE FROM {signals} AS signal USING arrived, kept
    WHERE signal.job = $1 AND signal.enqueued_at = $2 AND signal.entry = arrived.entry
)
SELECT kind, result::text, (extract(epoch FROM wait_until - statement_timestamp()) * 1000000)::bigint FROM kept";

/// Deletes the steps of a job from a position on. $1 job, $2 time of its put, $3 position.
pub(super) const FORGET_STEPS: &str = "\
DELETE FROM {steps} WHERE job = $1 AND enqueued_at = $2 AND position >= $3";

/// Returns the signals of a job that are not delivered. $1 job, $2 time of its put, $3 most signals. Order: as they
/// were sent. No locks.
pub(super) const SIGNALS: &str =
    "SELECT name, value::text FROM {signals} WHERE job = $1 AND enqueued_at = $2 ORDER BY entry LIMIT $3";

/// Deletes the steps and the signals of jobs that neither wait nor run nor can be requeued, and returns the job after
/// which the next call goes on, or the least number at the end, and the number of these jobs. $1 job after which it
/// begins.
///
/// It reads at most 10,000 steps and signals, because very many jobs may sleep. Order: by job.
pub(super) const FORGET_ENDED: &str = "\
WITH some_steps AS MATERIALIZED (
    SELECT job FROM {steps} WHERE job > $1 ORDER BY job LIMIT 10000
), some_signals AS MATERIALIZED (
    SELECT job FROM {signals} WHERE job > $1 ORDER BY job LIMIT 10000
), leased AS MATERIALIZED (
    SELECT unnest(jobs) AS job FROM {leases} WHERE EXISTS (SELECT FROM some_steps) OR EXISTS (SELECT FROM some_signals)
), ended AS MATERIALIZED (
    SELECT job FROM (SELECT job FROM some_steps UNION SELECT job FROM some_signals) AS kept
    WHERE NOT EXISTS (SELECT FROM {jobs} AS live WHERE live.id = job)
        AND NOT EXISTS (SELECT FROM {archive} AS old WHERE old.id = job AND old.outcome <> 'done')
        AND NOT EXISTS (SELECT FROM leased WHERE leased.job = kept.job)
), forgotten AS (
    DELETE FROM {steps} WHERE job IN (SELECT job FROM ended)
), undelivered AS (
    DELETE FROM {signals} WHERE job IN (SELECT job FROM ended)
)
SELECT coalesce(min(last), -9223372036854775808), (SELECT count(*) FROM ended) FROM (
    SELECT max(job) AS last FROM some_steps HAVING count(*) = 10000
    UNION ALL SELECT max(job) FROM some_signals HAVING count(*) = 10000) AS full_reads";

/// Sends a signal to a job. Returns whether a job with this id waits or runs, and the queue in which it waited for the
/// signal. $1 job, $2 name, $3 value.
///
/// Locks: the job's advisory lock of signals, shared, and the row of a job that waits for the signal. It waits for a
/// transaction that holds that row, and for a moment while the job goes to sleep.
pub(super) const SEND_SIGNAL: &str = "SELECT sent, woken FROM {send_signal}($1, $2, $3::json)";
